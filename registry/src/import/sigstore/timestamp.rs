//! Timestamps of RFC 3161: an authority's word that a signature was there at some time. Newer logs
//! (Rekor 2) say no time, so it is from here.
//!
//! The authority's certificate is the first of its chain in the trusted root; what lies in the
//! timestamp itself is not looked at.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::bundle::{Material, Timestamp as Stamp};
use super::certificate::path;
use super::der::{
    GENERALIZED_TIME, Hash, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, Reader, SEQUENCE, SET, Value,
    Wrong, context, encode,
};
use super::key::Key;
use super::root::{Authority, TrustedRoot};
use super::{PROOFS_MAX, SigstoreError, error};

/// DER of 1.3.6.1.5.5.7.3.8, timestamping.
const TIME_STAMPING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];
/// 1.2.840.113549.1.7.2, signed data.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.9.16.1.4, what a timestamp says.
const TST_INFO: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x04];
/// Signed attributes, 1.2.840.113549.1.9 and then: .3, .4, .16.2.12, .16.2.47.
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
const SIGNING_CERTIFICATE: &[u8] =
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x02, 0x0c];
const SIGNING_CERTIFICATE_2: &[u8] =
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x02, 0x2f];
/// ECDSA with SHA-256, SHA-384, SHA-512: 1.2.840.10045.4.3 and then .2, .3, .4.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];

/// The times that trusted authorities vouch for, and why the other timestamps do not count.
///
/// A timestamp that does not hold is no proof of anything, so it only does not count; with no time
/// left, that is why.
pub(super) fn verify_all(
    material: &Material,
    signature: &[u8],
    root: &TrustedRoot,
) -> Result<(Vec<Timestamp>, Vec<String>), SigstoreError> {
    let stamps = material.timestamp_verification_data.as_ref();
    let stamps = stamps.map_or(&[][..], |data| data.rfc3161_timestamps.as_slice());
    if stamps.len() > PROOFS_MAX {
        return Err(error::bundle("rfc3161Timestamps", stamps.len(), "16 at most"));
    }
    let (mut times, mut refused) = (Vec::new(), Vec::new());
    for stamp in stamps {
        match by_any(stamp, signature, &root.timestamp_authorities) {
            Ok(time) => times.push(time),
            Err(reason) => refused.push(format!("a timestamp does not count: {reason}")),
        }
    }
    Ok((times, refused))
}

fn by_any(stamp: &Stamp, signature: &[u8], authorities: &[Authority]) -> Result<Timestamp, String> {
    let token =
        Token::read(&stamp.signed_timestamp.0).map_err(|e| format!("it is no token: {e}"))?;
    let time = token.verify_content(signature)?;
    let mut reasons = Vec::new();
    for authority in authorities {
        match token.verify_authority(authority, time) {
            Ok(()) => return Ok(time),
            Err(reason) => reasons.push(format!("{}: {reason}", authority.uri)),
        }
    }
    if reasons.is_empty() {
        return Err("the trusted root has no timestamp authority".to_owned());
    }
    Err(reasons.join("; "))
}

/// Reads a token, and what it says, as far as that goes without its authority.
#[cfg(feature = "fuzzing")]
pub(super) fn try_token(der: &[u8]) {
    if let Ok(token) = Token::read(der) {
        let _ = token.verify_content(b"signature");
    }
}

/// A TimeStampToken, taken apart.
struct Token<'a> {
    /// The TSTInfo.
    content: &'a [u8],
    digest: Hash,
    /// Content of the signed attributes.
    attributes: &'a [u8],
    signature_hash: Hash,
    signature: &'a [u8],
}

impl<'a> Token<'a> {
    /// Out of a TimeStampResp.
    fn read(der: &'a [u8]) -> Result<Self, Wrong> {
        let mut response = Reader::new(der).within(SEQUENCE)?;
        let mut status = response.within(SEQUENCE)?;
        let status = status.expect(INTEGER)?.content;
        // Granted, or granted with changes.
        if !matches!(status, [0 | 1]) {
            return Err(format!("its status is {status:?}, expected granted"));
        }
        let mut token = response.within(SEQUENCE)?;
        has_name(&mut token, SIGNED_DATA, "signed data")?;
        let mut data = token.within(context(0))?.within(SEQUENCE)?;
        data.expect(INTEGER)?;
        data.expect(SET)?;
        let mut encapsulated = data.within(SEQUENCE)?;
        has_name(&mut encapsulated, TST_INFO, "a timestamp's content")?;
        let content = encapsulated.within(context(0))?.expect(OCTET_STRING)?.content;
        // Certificates and revocation lists.
        data.optional(context(0))?;
        data.optional(context(1))?;
        let mut signers = data.within(SET)?;
        let mut signer = signers.within(SEQUENCE)?;
        if !signers.is_empty() {
            return Err("it has several signers, expected one".to_owned());
        }
        signer.expect(INTEGER)?;
        // Who: the certificate's digest among the attributes says that for good.
        signer.next()?;
        let digest = algorithm(signer.expect(SEQUENCE)?)?;
        let digest = Hash::from_oid(digest)?;
        let attributes = signer.expect(context(0))?.content;
        let by = algorithm(signer.expect(SEQUENCE)?)?;
        let signature_hash = match by.strip_prefix(ECDSA) {
            Some([2]) => Hash::Sha256,
            Some([3]) => Hash::Sha384,
            Some([4]) => Hash::Sha512,
            _ => digest,
        };
        let signature = signer.expect(OCTET_STRING)?.content;
        Ok(Self { content, digest, attributes, signature_hash, signature })
    }

    /// That it is about this signature; gives the time.
    fn verify_content(&self, signature: &[u8]) -> Result<Timestamp, String> {
        let read = || -> Result<(Hash, &[u8], &[u8]), Wrong> {
            let mut info = Reader::new(self.content).within(SEQUENCE)?;
            info.expect(INTEGER)?;
            info.expect(OBJECT_IDENTIFIER)?;
            let mut imprint = info.within(SEQUENCE)?;
            let hash = Hash::from_oid(algorithm(imprint.expect(SEQUENCE)?)?)?;
            let imprint = imprint.expect(OCTET_STRING)?.content;
            info.expect(INTEGER)?;
            Ok((hash, imprint, info.expect(GENERALIZED_TIME)?.content))
        };
        let (hash, imprint, time) = read().map_err(|e| format!("its content: {e}"))?;
        let expected = hash.of(signature);
        if imprint != expected {
            return Err(format!(
                "it is of {}, this signature is {}",
                hex::encode(imprint),
                hex::encode(expected)
            ));
        }
        read_time(time)
    }

    /// That this authority has signed it, and was to be trusted then.
    fn verify_authority(&self, authority: &Authority, time: Timestamp) -> Result<(), String> {
        let [leaf, above @ ..] = authority.certificates.as_slice() else {
            return Err("it has no certificates".to_owned());
        };
        if above.is_empty() {
            return Err("its chain has one certificate, expected a signer's and a root".to_owned());
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        self.verify_attributes(leaf)?;
        let key = Key::from_spki(parsed.public_key())?;
        // What is signed are the attributes as a set of their own.
        if !key.made_with(self.signature_hash, &encode(SET, self.attributes), self.signature) {
            return Err("its key did not make the timestamp".to_owned());
        }
        let purposes = parsed.extended_key_usage().map_err(|error| error.to_string())?;
        if !purposes.is_some_and(|purposes| purposes.value.time_stamping) {
            return Err("its certificate is not for timestamping".to_owned());
        }
        if !authority.period.contains(time) {
            return Err(format!("it is trusted {}, the timestamp is of {time}", authority.period));
        }
        path(leaf, above, TIME_STAMPING, time).map_err(|e| format!("at {time}: {e}"))?;
        Ok(())
    }

    /// The signed attributes: the content's type and digest, and the signer's certificate.
    fn verify_attributes(&self, leaf: &[u8]) -> Result<(), String> {
        let one = |name: &[u8]| -> Result<Option<&[u8]>, Wrong> {
            let mut all = Reader::new(self.attributes);
            let mut found = None;
            while !all.is_empty() {
                let mut attribute = all.within(SEQUENCE)?;
                if attribute.expect(OBJECT_IDENTIFIER)?.content != name {
                    continue;
                }
                if found.is_some() {
                    return Err("an attribute is there twice".to_owned());
                }
                found = Some(attribute.expect(SET)?.content);
            }
            Ok(found)
        };
        let content_type = one(CONTENT_TYPE)?;
        if content_type != Some(encode(OBJECT_IDENTIFIER, TST_INFO).as_slice()) {
            return Err("its attributes do not name the content's type".to_owned());
        }
        let expected = encode(OCTET_STRING, &self.digest.of(self.content));
        if one(MESSAGE_DIGEST)? != Some(expected.as_slice()) {
            return Err("its attributes name another digest than the content's".to_owned());
        }
        let (named, expected) = match (one(SIGNING_CERTIFICATE_2)?, one(SIGNING_CERTIFICATE)?) {
            (Some(attribute), _) => {
                let mut id =
                    Reader::new(attribute).within(SEQUENCE)?.within(SEQUENCE)?.within(SEQUENCE)?;
                let hash = match id.optional(SEQUENCE)? {
                    Some(hash) => Hash::from_oid(algorithm(hash)?)?,
                    None => Hash::Sha256,
                };
                (id.expect(OCTET_STRING)?.content, hash.of(leaf))
            }
            (None, Some(attribute)) => {
                let mut id =
                    Reader::new(attribute).within(SEQUENCE)?.within(SEQUENCE)?.within(SEQUENCE)?;
                // The older attribute knows nothing else; what binds is the authority's signature.
                let found = digest(&SHA1_FOR_LEGACY_USE_ONLY, leaf).as_ref().to_vec();
                (id.expect(OCTET_STRING)?.content, found)
            }
            (None, None) => return Err("its attributes do not name a certificate".to_owned()),
        };
        if named != expected {
            return Err("it was signed with another certificate than the trusted one".to_owned());
        }
        Ok(())
    }
}

/// The object identifier of an AlgorithmIdentifier.
fn algorithm(value: Value<'_>) -> Result<&[u8], Wrong> {
    Ok(Reader::new(value.content).expect(OBJECT_IDENTIFIER)?.content)
}

fn has_name(reader: &mut Reader<'_>, name: &[u8], what: &str) -> Result<(), Wrong> {
    let found = reader.expect(OBJECT_IDENTIFIER)?.content;
    if found == name {
        return Ok(());
    }
    Err(format!("found object identifier {}, expected that of {what}", hex::encode(found)))
}

/// `20250612120220Z`, perhaps with a fraction.
fn read_time(bytes: &[u8]) -> Result<Timestamp, String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let refuse = || format!("its time is {text:?}, expected as 20250612120220Z");
    let digits = text.strip_suffix('Z').ok_or_else(refuse)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 14 || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return Err(refuse());
    }
    let number = |from: usize, to: usize| whole.get(from..to).and_then(|text| text.parse().ok());
    let part = |from: usize| number(from, from + 2);
    let read = || {
        let year: i16 = whole.get(..4)?.parse().ok()?;
        let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
        let time =
            DateTime::new(year, part(4)?, part(6)?, part(8)?, part(10)?, part(12)?, nanoseconds);
        TimeZone::UTC.to_timestamp(time.ok()?).ok()
    };
    read().ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_fraction_and_nothing_else_is_one() {
        let read = |text: &str| read_time(text.as_bytes()).map(|time| time.to_string());
        assert_eq!(read("20250612120220Z").unwrap(), "2025-06-12T12:02:20Z");
        assert_eq!(read("20250612120220.5Z").unwrap(), "2025-06-12T12:02:20.5Z");
        for wrong in [
            "",
            "20250612120220",
            "2025061212022Z",
            "20251312120220Z",
            "20250612120220+0100",
            "20250612126020Z",
            "+0250612120220Z",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_that_are_no_timestamp_are_refused_in_words() {
        for bytes in [&[][..], &[0x30, 0x00], &[0x30, 0x05, 0x30, 0x03, 0x02, 0x01, 0x02]] {
            assert!(Token::read(bytes).is_err(), "{bytes:?}");
        }
    }
}
