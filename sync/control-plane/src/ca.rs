//! The fleet's certificate authority: signs device certificates and the server's own.
//!
//! - What a certificate says (subject, lifetime, usage) is decided here; of a request only the
//!   public key is taken.
//! - The server's key lives in memory and is new at every start; only the CA's key is on disk.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    SigningKey as _,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::files;

/// Lifetime of the CA's certificate, in days.
const CA_DAYS: i64 = 20 * 365;
/// Lifetime of a device's certificate, in days: devices may be away for long.
pub(crate) const DEVICE_DAYS: i64 = 2 * 365;
/// Lifetime of the server's certificate, in days.
pub(crate) const SERVER_DAYS: i64 = 90;
/// Clocks of devices may be behind by so much, in hours.
const CLOCK_SKEW_HOURS: i64 = 24;

/// Why the CA failed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it could not be read or written.
    #[error("read or write the fleet CA")]
    File(#[from] files::FileError),
    /// A key or certificate could not be made or parsed.
    #[error("make or parse a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A PEM file does not hold what it should.
    #[error("parse the fleet CA's certificate: {0}")]
    Pem(String),
    /// No random numbers.
    #[error("draw random numbers")]
    Random,
    /// The certificate signing request is not acceptable.
    #[error("accept the certificate signing request: {0}")]
    Request(String),
}

/// The fleet's CA, ready to sign.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate made for a device.
pub(crate) struct Issued {
    /// The certificate, PEM.
    pub(crate) pem: String,
    /// SHA-256 of its DER, hex.
    pub(crate) fingerprint: String,
    /// End of its validity, seconds since 1970.
    pub(crate) expires_s: i64,
}

/// The server's certificate with its key.
pub(crate) struct ServerCertificate {
    /// The certificate and the CA's.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub(crate) key: PrivateKeyDer<'static>,
}

/// SHA-256, hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

impl Ca {
    /// Makes a CA in `dir`: `ca.key` (readable by its owner only) and `ca.pem`.
    pub(crate) fn create(dir: &Path, now_s: i64) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        let mut tag = [0_u8; 4];
        SystemRandom::new().fill(&mut tag).map_err(|_| CaError::Random)?;
        params.distinguished_name = common_name(&format!("fulmar fleet CA {}", hex::encode(tag)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lifetime(&mut params, now_s, CA_DAYS)?;
        let certificate = params.self_signed(&key)?;
        files::write_secret(&dir.join("ca.key"), key.serialize_pem().as_bytes())?;
        files::write_new(&dir.join("ca.pem"), certificate.pem().as_bytes())?;
        Self::open(dir)
    }

    /// Opens the CA that [`Ca::create`] made.
    pub(crate) fn open(dir: &Path) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(&files::read_text(&dir.join("ca.key"))?)?;
        let pem = files::read_text(&dir.join("ca.pem"))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| CaError::Pem(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate, pem })
    }

    /// The CA's certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate, DER.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Signs an answer to a device that joins by file.
    pub(crate) fn sign(&self, words: &[u8]) -> Result<Vec<u8>, CaError> {
        Ok(self.issuer.key().sign(words)?)
    }

    /// SHA-256 of the CA's certificate, hex: what join tokens carry.
    pub(crate) fn sha256(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// A certificate for the server, valid for `names`.
    pub(crate) fn server(
        &self,
        names: &[String],
        now_s: i64,
    ) -> Result<ServerCertificate, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("fulmar control plane");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf(&mut params, now_s, SERVER_DAYS)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// A certificate for the device `id` over the key in `csr_pem`, whose signature by that key
    /// is verified. Nothing else of the request is taken.
    pub(crate) fn device(&self, id: &str, csr_pem: &str, now_s: i64) -> Result<Issued, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| CaError::Request(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(id);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        leaf(&mut params, now_s, DEVICE_DAYS)?;
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| CaError::Request(e.to_string()))?;
        Ok(Issued {
            pem: certificate.pem(),
            fingerprint: sha256_hex(certificate.der()),
            expires_s: now_s + DEVICE_DAYS * 86_400,
        })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn leaf(params: &mut CertificateParams, now_s: i64, days: i64) -> Result<(), CaError> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    lifetime(params, now_s, days)
}

fn lifetime(params: &mut CertificateParams, now_s: i64, days: i64) -> Result<(), CaError> {
    let mut serial = [0_u8; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CaError::Random)?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch
        + std::time::Duration::from_secs(
            u64::try_from(now_s - CLOCK_SKEW_HOURS * 3_600).unwrap_or(0),
        );
    params.not_after =
        epoch + std::time::Duration::from_secs(u64::try_from(now_s + days * 86_400).unwrap_or(0));
    Ok(())
}

/// The subject's common name in a certificate that the TLS layer has verified already.
pub(crate) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    #[test]
    fn of_a_request_only_the_key_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(dir.path(), NOW_S).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut wish = CertificateParams::new(vec!["control.example".to_owned()]).unwrap();
        wish.distinguished_name = common_name("somebody else");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();

        let issued = ca.device("d-1", &csr, NOW_S).unwrap();
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        assert_eq!(subject(&der).as_deref(), Some("d-1"));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        assert_eq!(parsed.validity().not_after.timestamp(), issued.expires_s);
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(dir.path(), NOW_S).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let mut der = request.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        use base64::Engine as _;
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::engine::general_purpose::STANDARD.encode(der)
        );
        assert!(matches!(ca.device("d-1", &pem, NOW_S), Err(CaError::Request(_))));
        assert!(matches!(ca.device("d-1", "no PEM", NOW_S), Err(CaError::Request(_))));
    }

    #[test]
    fn the_authority_survives_reopening_and_is_not_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = Ca::create(dir.path(), NOW_S).unwrap().sha256();
        assert_eq!(Ca::open(dir.path()).unwrap().sha256(), sha256);
        assert!(Ca::create(dir.path(), NOW_S).is_err());
        assert_eq!(Ca::open(dir.path()).unwrap().sha256(), sha256);
    }

    #[test]
    fn any_request_for_a_certificate_is_signed_or_refused() {
        use base64::Engine as _;
        use x509_parser::prelude::FromDer as _;
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::create(dir.path(), NOW_S).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let wish = CertificateParams::new(vec!["device.example".to_owned()]).unwrap();
        let sound = wish.serialize_request(&key).unwrap().der().to_vec();
        // What the signature covers. Around it the parser forgives, as in a tag's bit that says whether
        // there are parts: what is asked for stays what the key signed.
        let (_, parsed) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&sound).unwrap();
        let signed = parsed.certification_request_info.raw.to_vec();
        let holds = |der: &[u8]| der.windows(signed.len()).any(|part| part == signed);
        proptest::proptest!(|(
            changes in proptest::collection::vec((0..sound.len(), proptest::num::u8::ANY), 1..4),
            cut in 0..=sound.len(),
            text in ".{0,40}",
        )| {
            let mut der = sound.clone();
            changes.iter().for_each(|(at, change)| der[*at] ^= change);
            for der in [&der[..], &sound[..cut]] {
                let pem = format!(
                    "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                    base64::engine::general_purpose::STANDARD.encode(der)
                );
                let is_signed = ca.device("d-1", &pem, NOW_S).is_ok();
                proptest::prop_assert!(is_signed || der != sound);
                proptest::prop_assert!(!is_signed || holds(der));
            }
            proptest::prop_assert!(ca.device("d-1", &text, NOW_S).is_err());
        });
    }
}
