//! Each kind of key that metadata may name: what it signed counts, and nothing beside that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _,
};

use super::*;

const MESSAGE: &[u8] = b"words";

fn public(keytype: &str, scheme: &str, public: &str) -> PublicKey {
    let key = json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}});
    serde_json::from_value(key).unwrap()
}

/// Whether the key counts the signature over [`MESSAGE`].
fn counts(key: &PublicKey, signature: &[u8]) -> bool {
    key.verifier().is_some_and(|verifier| verifier.verify(MESSAGE, signature))
}

/// Holds for the message alone, whole, and for this key alone.
fn holds_for_nothing_else(key: &PublicKey, signature: &[u8], others: &[PublicKey]) {
    assert!(counts(key, signature));
    let verifier = key.verifier().unwrap();
    for message in [&b"other words"[..], b"word", b"words ", b""] {
        assert!(!verifier.verify(message, signature), "{message:?}");
    }
    for byte in 0..signature.len() {
        let mut flipped = signature.to_vec();
        flipped[byte] ^= 1;
        assert!(!counts(key, &flipped), "byte {byte}");
    }
    assert!(!counts(key, &signature[1..]) && !counts(key, &[]));
    assert!(!counts(key, &[signature, &[0]].concat()));
    for other in others {
        assert!(!counts(other, signature), "{other:?}");
    }
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

fn pair(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap()
}

/// SubjectPublicKeyInfo of a point, behind that head.
fn spki(head: &str, pair: &EcdsaKeyPair) -> String {
    pem(&[hex::decode(head).unwrap().as_slice(), pair.public_key().as_ref()].concat())
}

const P256: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
const P384: &str = "3076301006072a8648ce3d020106052b81040022036200";

#[test]
fn an_ed25519_key_signs_for_what_it_signed_and_nothing_else() {
    let (signer, other) = (key(), key());
    let signature = signer.sign(MESSAGE).unwrap();
    holds_for_nothing_else(signer.public(), &signature, &[other.public().clone()]);
    let mut short = signer.public().clone();
    short.keyval.public.truncate(62);
    assert!(!short.is_known());
}

#[test]
fn an_ecdsa_key_signs_for_what_it_signed_and_nothing_else() {
    let (pair_1, pair_2) =
        (pair(&ECDSA_P256_SHA256_ASN1_SIGNING), pair(&ECDSA_P256_SHA256_ASN1_SIGNING));
    let ecdsa = |text: &str| public("ecdsa", "ecdsa-sha2-nistp256", text);
    let key = ecdsa(&spki(P256, &pair_1));
    let signature = pair_1.sign(&SystemRandom::new(), MESSAGE).unwrap();
    let bare = ecdsa(&hex::encode(pair_1.public_key()));
    assert!(counts(&bare, signature.as_ref()), "the point in hex is the same key");
    let other = ecdsa(&spki(P256, &pair_2));
    holds_for_nothing_else(&key, signature.as_ref(), &[other]);
    // Another curve under this scheme's name, and a point that is cut short.
    let larger = pair(&ECDSA_P384_SHA384_ASN1_SIGNING);
    assert!(!ecdsa(&spki(P384, &larger)).is_known());
    assert!(!ecdsa(&hex::encode(&pair_1.public_key().as_ref()[..64])).is_known());
}

#[test]
fn an_rsa_key_signs_for_what_it_signed_and_nothing_else() {
    let made: BTreeMap<String, String> =
        serde_json::from_str(include_str!("data/rsa_pss.json")).unwrap();
    assert_eq!(made["message"].as_bytes(), MESSAGE);
    let rsa = |name: &str| public("rsa", "rsassa-pss-sha256", &made[name]);
    let signature = |name: &str| hex::decode(&made[name]).unwrap();
    let key = rsa("key");
    assert!(counts(&rsa("key_pkcs1"), &signature("signature")), "the same key in PKCS #1");
    holds_for_nothing_else(&key, &signature("signature"), &[rsa("key_of_1024_bits")]);
    for other_way in
        ["salt_of_20_bytes", "no_salt", "sha384", "sha384_salt_of_32_bytes", "pkcs1_padding"]
    {
        assert!(!counts(&key, &signature(other_way)), "{other_way}");
    }
    // Rightly made, by a key that is too short to count.
    assert!(!counts(&rsa("key_of_1024_bits"), &signature("of_1024_bits")));
    let other_scheme = public("rsa", "rsassa-pkcs1v15-sha256", &made["key"]);
    assert!(!counts(&other_scheme, &signature("pkcs1_padding")));
}
