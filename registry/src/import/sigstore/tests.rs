//! Bundles of `tests/imports/keyless.py` under its trusted root, with every byte of them changed:
//! nothing but what was signed counts, and nothing makes the verification panic. What each step
//! refuses, and in which words, is in `tests/imports/keyless.rs`.

use super::bundle::Bundle;
use super::*;

const ROOT: &[u8] = include_bytes!("data/root.json");
/// An entry of Rekor 1 with its time, and a timestamp beside it.
const STAMPED: &[u8] = include_bytes!("data/stamped.json");
/// An entry of Rekor 2, so that a timestamp is all that says when.
const HASHEDREKORD: &[u8] = include_bytes!("data/hashedrekord-2.json");
/// 2100.
const NOW_S: i64 = 4_102_444_800;

fn keyless() -> Keyless {
    Keyless {
        roots: vec![TrustedRoot::from_json("root.json", ROOT).unwrap()],
        identities: vec![Identity::exactly("https://id.example", "releases@acme.example").unwrap()],
    }
}

fn verified(bytes: &[u8], keyless: &Keyless) -> Result<Signer, String> {
    let read: Bundle = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    held(&read, keyless)
}

fn held(read: &Bundle, keyless: &Keyless) -> Result<Signer, String> {
    let version = Version::of(&read.media_type).ok_or("another version")?;
    let envelope = read.dsse_envelope.as_ref().ok_or("no envelope")?;
    let payload = envelope.payload.0.as_slice();
    let kind = &envelope.payload_type;
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    let signature = envelope.signatures.first().ok_or("no signature")?.sig.0.as_slice();
    let signed = Signed { message: &message, payload, signature };
    let verified = keyless.verify(version, &read.verification_material, &signed, NOW_S);
    verified.map_err(|error| error.to_string())
}

#[test]
fn no_changed_byte_of_a_bundles_text_changes_who_signed() {
    let keyless = keyless();
    for sound in [STAMPED, HASHEDREKORD] {
        let signer = verified(sound, &keyless).unwrap();
        let (mut tried, mut harmless) = (0, 0);
        // A step without a common divisor with 8 meets every bit of a byte.
        for bit in (0..sound.len() * 8).step_by(67) {
            let mut flipped = sound.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            tried += 1;
            // White space, names of fields that nobody reads.
            if let Ok(found) = verified(&flipped, &keyless) {
                harmless += 1;
                assert_eq!((&found.subject, &found.issuer), (&signer.subject, &signer.issuer));
            }
        }
        assert!(tried > 500 && harmless * 3 < tried, "{harmless} of {tried}");
    }
}

/// Bytes of a bundle that are encoded in its text.
type Part = fn(&mut Bundle) -> &mut Vec<u8>;

#[test]
fn no_changed_byte_in_what_was_signed_is_accepted() {
    let keyless = keyless();
    let parts: [(&str, Part); 5] = [
        ("payload", |b| &mut b.dsse_envelope.as_mut().unwrap().payload.0),
        ("signature", |b| &mut b.dsse_envelope.as_mut().unwrap().signatures[0].sig.0),
        ("certificate", |b| &mut b.verification_material.certificate.as_mut().unwrap().der.0),
        ("body", |b| &mut b.verification_material.tlog_entries[0].canonicalized_body.0),
        ("log id", |b| &mut b.verification_material.tlog_entries[0].log_id.key_id.0),
    ];
    for sound in [STAMPED, HASHEDREKORD] {
        for (name, part) in parts {
            let read = || serde_json::from_slice::<Bundle>(sound).unwrap();
            assert!(held(&read(), &keyless).is_ok());
            let length = part(&mut read()).len();
            for byte in (0..length).step_by(3) {
                let mut changed = read();
                part(&mut changed)[byte] ^= 1 << (byte % 8);
                assert!(held(&changed, &keyless).is_err(), "{name}, byte {byte}");
            }
            for cut in (0..length).step_by(41) {
                let mut changed = read();
                part(&mut changed).truncate(cut);
                assert!(held(&changed, &keyless).is_err(), "{name}, cut at {cut}");
            }
        }
    }
}

#[test]
fn no_changed_byte_of_a_timestamp_gives_a_time() {
    let keyless = keyless();
    let read = || serde_json::from_slice::<Bundle>(HASHEDREKORD).unwrap();
    let stamp: Part = |bundle| {
        let data = bundle.verification_material.timestamp_verification_data.as_mut().unwrap();
        &mut data.rfc3161_timestamps[0].signed_timestamp.0
    };
    let sound = held(&read(), &keyless).unwrap();
    let length = stamp(&mut read()).len();
    let mut harmless = 0;
    for byte in 0..length {
        let mut changed = read();
        stamp(&mut changed)[byte] ^= 1 << (byte % 8);
        if let Ok(found) = held(&changed, &keyless) {
            // Versions, and who the signer says it is: the signed attributes say that for good.
            harmless += 1;
            assert_eq!(found, sound, "byte {byte}");
        }
        let mut cut = read();
        stamp(&mut cut).truncate(byte);
        assert!(held(&cut, &keyless).is_err(), "cut at {byte}");
    }
    assert!(harmless * 2 < length, "{harmless} of {length}");
}
