//! The signer's certificate: whom it names, whether it is made for signing, and whether it leads
//! to a trusted authority.

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use super::SigstoreError;
use super::bundle::{Material, Version};
use super::der::{Reader, UTF8_STRING, context};
use super::error::{bundle, short};
use super::key::Key;
use super::root::{Authority, TrustedRoot};
use crate::Digest;

/// DER of 1.3.6.1.5.5.7.3.3, code signing.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
/// Fulcio's extensions: the issuer as DER text, as bare text, and a user name as alternative name.
const ISSUER: &str = "1.3.6.1.4.1.57264.1.8";
const ISSUER_OLD: &str = "1.3.6.1.4.1.57264.1.1";
const USER_NAME: &str = "1.3.6.1.4.1.57264.1.7";

/// What a signer's certificate says.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) key: Key,
    /// The only alternative name: a mail address, a workflow's address, a user name.
    pub(super) subject: String,
    /// Who has vouched for the subject to Fulcio.
    pub(super) issuer: String,
}

/// The signer's certificate in a bundle.
pub(super) fn of(
    material: &Material,
    version: Version,
) -> Result<CertificateDer<'static>, SigstoreError> {
    match (&material.certificate, &material.x509_certificate_chain) {
        (Some(certificate), None) => Ok(certificate.der.0.clone().into()),
        (None, Some(chain)) if version < Version::V03 => {
            let [leaf, others @ ..] = chain.certificates.as_slice() else {
                return Err(bundle("certificates", "empty", "at least the signer's certificate"));
            };
            // None of them counts. A root among them is forbidden: somebody might believe it.
            for other in others {
                let (_, parsed) = parsed(&other.der.0)?;
                if parsed.subject() == parsed.issuer() {
                    let found = format!("with the root {}", parsed.subject());
                    return Err(bundle("x509CertificateChain", found, "no root in it"));
                }
            }
            Ok(leaf.der.0.clone().into())
        }
        (None, Some(_)) => {
            Err(bundle("x509CertificateChain", "there", "the signer's certificate alone (0.3)"))
        }
        _ => Err(bundle("verificationMaterial", "ambiguous", "one certificate or one chain")),
    }
}

fn parsed(der: &[u8]) -> Result<(&[u8], X509Certificate<'_>), SigstoreError> {
    match X509Certificate::from_der(der) {
        Ok((&[], certificate)) => Ok((der, certificate)),
        Ok(_) => Err(bundle("the certificate", "followed by more bytes", "a certificate in DER")),
        Err(error) => Err(bundle("the certificate", error, "a certificate in DER")),
    }
}

fn wrong(field: &'static str, found: impl ToString, expected: &'static str) -> SigstoreError {
    SigstoreError::Certificate { field, found: short(found), expected }
}

impl Leaf {
    pub(super) fn read(der: &[u8]) -> Result<Self, SigstoreError> {
        let (_, certificate) = parsed(der)?;
        let unreadable = |field| move |error| wrong(field, error, "one that can be read");
        if certificate.is_ca() {
            return Err(wrong("basic constraints", "an authority's", "those of a signer"));
        }
        let usage = certificate.key_usage().map_err(unreadable("key usage"))?;
        if !usage.as_ref().is_some_and(|usage| usage.value.digital_signature()) {
            let found = usage.map_or("missing".to_owned(), |usage| usage.value.to_string());
            return Err(wrong("key usage", found, "digital signature"));
        }
        let purposes =
            certificate.extended_key_usage().map_err(unreadable("extended key usage"))?;
        if !purposes.as_ref().is_some_and(|purposes| purposes.value.code_signing) {
            let found = purposes.map_or("missing".to_owned(), |p| format!("{:?}", p.value));
            return Err(wrong("extended key usage", found, "code signing"));
        }
        let key = Key::from_spki(certificate.public_key())
            .map_err(|reason| wrong("key", reason, "one of a kind that is known"))?;
        Ok(Self { key, subject: subject(&certificate)?, issuer: issuer(&certificate)? })
    }
}

fn subject(certificate: &X509Certificate<'_>) -> Result<String, SigstoreError> {
    const FIELD: &str = "subject alternative name";
    const EXPECTED: &str = "exactly one mail address, URI or user name";
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| wrong(FIELD, error, EXPECTED))?
        .map_or(&[][..], |names| names.value.general_names.as_slice());
    let subject = match names {
        [GeneralName::RFC822Name(name) | GeneralName::URI(name)] => (*name).to_owned(),
        [GeneralName::OtherName(kind, value)] if kind.to_id_string() == USER_NAME => {
            let inner = Reader::new(value).within(context(0));
            inner.and_then(|mut inner| text(&mut inner)).map_err(|e| wrong(FIELD, e, EXPECTED))?
        }
        [other] => return Err(wrong(FIELD, format!("{other:?}"), EXPECTED)),
        _ => return Err(wrong(FIELD, format!("{} names", names.len()), EXPECTED)),
    };
    if subject.is_empty() { Err(wrong(FIELD, "empty", EXPECTED)) } else { Ok(subject) }
}

fn text(reader: &mut Reader<'_>) -> Result<String, String> {
    let value = reader.expect(UTF8_STRING)?;
    if !reader.is_empty() {
        return Err("bytes behind the text".to_owned());
    }
    String::from_utf8(value.content.to_vec()).map_err(|error| error.to_string())
}

/// The newer extension goes before the older; where both are there, they agree.
fn issuer(certificate: &X509Certificate<'_>) -> Result<String, SigstoreError> {
    const FIELD: &str = "issuer extension (1.3.6.1.4.1.57264.1.8, or .1)";
    const EXPECTED: &str = "one address of who vouches for the subject";
    let find = |oid: &str| -> Result<Option<&[u8]>, SigstoreError> {
        let mut found = certificate.extensions().iter().filter(|e| e.oid.to_id_string() == oid);
        match (found.next(), found.next()) {
            (first, None) => Ok(first.map(|extension| extension.value)),
            _ => Err(wrong(FIELD, "there twice", EXPECTED)),
        }
    };
    let new = find(ISSUER)?
        .map(|value| text(&mut Reader::new(value)).map_err(|error| wrong(FIELD, error, EXPECTED)));
    let old = find(ISSUER_OLD)?.map(|value| {
        String::from_utf8(value.to_vec()).map_err(|error| wrong(FIELD, error, EXPECTED))
    });
    match (new.transpose()?, old.transpose()?) {
        (Some(new), Some(old)) if new != old => {
            Err(wrong(FIELD, format!("{new} and {old}"), EXPECTED))
        }
        (Some(issuer), _) | (None, Some(issuer)) if !issuer.is_empty() => Ok(issuer),
        _ => Err(wrong(FIELD, "missing", EXPECTED)),
    }
}

/// Leads the certificate to an authority that was trusted at that time; gives the digest of the key
/// that issued it.
pub(super) fn verify_chain(
    der: &CertificateDer<'_>,
    leaf: &Leaf,
    root: &TrustedRoot,
    time: Timestamp,
) -> Result<Digest, SigstoreError> {
    let mut reasons = Vec::new();
    for authority in root.authorities.iter().filter(|a| a.period.contains(time)) {
        match path(der, &authority.certificates, CODE_SIGNING, time) {
            Ok(issuer_key) => return Ok(issuer_key),
            Err(reason) => reasons.push(format!("{}: {reason}", authority.uri)),
        }
    }
    let time = time.to_string();
    if reasons.is_empty() {
        return Err(SigstoreError::Authority { time, found: periods(&root.authorities) });
    }
    let (subject, reason) = (leaf.subject.clone(), reasons.join("; "));
    Err(SigstoreError::Chain { subject, time, reason })
}

/// Authorities and when they are trusted, for messages.
pub(super) fn periods(authorities: &[Authority]) -> String {
    let all: Vec<String> =
        authorities.iter().map(|a| format!("{} ({})", a.uri, a.period)).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// Verifies the way from a certificate over intermediate ones to the root, which comes last, with
/// all of them valid at `time`. Gives the digest of the issuer's key.
pub(super) fn path(
    end: &CertificateDer<'_>,
    authority: &[CertificateDer<'_>],
    purpose: &'static [u8],
    time: Timestamp,
) -> Result<Digest, String> {
    let [intermediates @ .., root] = authority else {
        return Err("it has no certificates".to_owned());
    };
    // What is trusted is not asked for its dates by the library; the specification does.
    let (_, parsed) = X509Certificate::from_der(root).map_err(|error| error.to_string())?;
    let at = ASN1Time::from_timestamp(time.as_second()).map_err(|error| error.to_string())?;
    if !parsed.validity().is_valid_at(at) {
        let validity = parsed.validity();
        return Err(format!(
            "its root is valid from {} to {}",
            validity.not_before, validity.not_after
        ));
    }
    let anchors = [webpki::anchor_from_trusted_cert(root).map_err(|error| error.to_string())?];
    let end = EndEntityCert::try_from(end).map_err(|error| error.to_string())?;
    let seconds = Duration::from_secs(time.as_second().max(0).unsigned_abs());
    let path = end
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            UnixTime::since_unix_epoch(seconds),
            KeyUsage::required_if_present(purpose),
            None,
            None,
        )
        .map_err(|error| error.to_string())?;
    Ok(Digest::of(&path.issuer_spki()))
}

/// The promises of certificate transparency logs in a certificate.
pub(super) fn promises<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Option<&'a [x509_parser::extensions::SignedCertificateTimestamp<'a>]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SCT(promises) => Some(promises.as_slice()),
        _ => None,
    })
}
