//! A control plane for tests: TLS and HTTP/1.1 by hand, so that it can lie, cut connections and go
//! away as no real one would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_policy::audit;
use fulmar_protocol::{
    CheckIn, CheckInResponse, DeviceFacts, EnrollRequest, EnrollResponse, JoinToken, OutboxAck,
    OutboxBatch, RegistryRoot,
};
use fulmar_registry::import::{self, ModelFacts};
use fulmar_registry::manifest::{FileRole, ManifestFile};
use fulmar_registry::trust::director::{DirectorEntry, DirectorSigner, Minting};
use fulmar_registry::trust::repository::{Plan, Repository};
use fulmar_registry::trust::{Active, Ed25519Key, SigningKey};
use fulmar_registry::{Digest, Registry, SCHEMAS};
use fulmar_store::Store;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

mod device;

pub(crate) use device::Device;

use crate::{
    Checked, Deps, Enrollment, Hooks, Identity, Options, SignedClock, Sync, enroll, state,
};

pub(crate) const DEVICE_ID: &str = "d-1";

/// What the control plane knows and does; tests change it while it runs.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) generation: u64,
    pub(crate) serial: u64,
    pub(crate) check_ins: Vec<CheckIn>,
    pub(crate) reports: Vec<u64>,
    /// Blob answers end after that many bytes, as many times as the second number says.
    pub(crate) cut_blobs: Option<(usize, u32)>,
    /// After the cuts above, blobs are not found.
    pub(crate) gone_after_cuts: Option<()>,
    /// One byte of blob answers is changed, as many times as this says.
    pub(crate) spoil_blobs: u32,
    /// Of blobs, nothing but these bytes is to be had: of other ranges, not even the beginning.
    pub(crate) only: Option<std::ops::Range<usize>>,
    /// Bytes of blobs sent.
    pub(crate) blob_bytes_sent: usize,
    /// What it answers for the registry's root, if not the truth.
    pub(crate) registry_root: Option<Vec<u8>>,
    /// What join tokens say of the registry's root.
    pub(crate) token_pin: Option<RegistryRoot>,
    /// How far its clock is ahead.
    pub(crate) ahead_s: i64,
}

pub(crate) struct ControlPlane {
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) address: SocketAddr,
    ca: CertificateDer<'static>,
    owner: Ed25519Key,
    director: DirectorSigner<Ed25519Key>,
    repository: Repository,
    task: tokio::task::JoinHandle<()>,
    enrolling: Arc<Enrolling>,
    dir: tempfile::TempDir,
    entries: Mutex<Vec<DirectorEntry>>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn now_s() -> i64 {
    SignedClock::new(0).now_s()
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let chain = vec![server.der().clone(), ca.der().clone()];
        let acceptor = acceptor(chain, &key, ca.der());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let dir = tempfile::tempdir().unwrap();
        let owner = Ed25519Key::generate().unwrap();
        let director = DirectorSigner::new(Ed25519Key::generate().unwrap());
        let plan = Plan::with_keys(&[owner.public().clone()], 1);
        let repository = Repository::init(dir.path(), &plan, now_s()).unwrap();
        repository.sign(&[&owner], now_s()).unwrap();
        let sha256 = Digest::of(&repository.first_root().unwrap()).hex();
        let token_pin = Some(RegistryRoot { version: 1, sha256 });
        let script = Arc::new(Mutex::new(Script { token_pin, ..Script::default() }));
        let enrolling = Arc::new(Enrolling {
            ca_pem: ca.pem(),
            registry_root: repository.first_root().unwrap(),
            director_root: director.root(now_s() + 86_400).unwrap(),
            issuer,
        });
        let director_root = enrolling.director_root.clone();
        script.lock().unwrap().metadata.insert("director/1.root.json".to_owned(), director_root);
        let task =
            tokio::spawn(serve(listener, acceptor, Arc::clone(&script), Arc::clone(&enrolling)));
        let plane = Self {
            script,
            address,
            ca: ca.der().clone(),
            owner,
            director,
            repository,
            task,
            enrolling,
            dir,
            entries: Mutex::default(),
        };
        plane.mint();
        plane
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn token(&self) -> String {
        JoinToken {
            url: format!("https://{}", self.address),
            ca_sha256: hex::encode(digest(&SHA256, &self.ca).as_ref()),
            secret: "s".to_owned(),
            registry_root: self.script().token_pin.clone(),
        }
        .encode()
    }

    /// The answer to a request that came by file.
    pub(crate) fn answer(&self, request: &EnrollRequest) -> Vec<u8> {
        let response = enrolled(request, &self.enrolling, &self.script());
        let response = serde_json::from_slice(&response).unwrap();
        let sign = |words: &[u8]| {
            rcgen::SigningKey::sign(self.enrolling.issuer.key(), words).map(hex::encode)
        };
        let answer = fulmar_protocol::EnrollAnswerFile::make(&response, sign).unwrap();
        serde_json::to_vec(&answer).unwrap()
    }

    /// All that the device would fetch now, in one file.
    pub(crate) fn bundle(&self, path: &Path) -> PathBuf {
        let serial = self.script().serial;
        let mut header = fulmar_registry::bundle::Header::new(now_s(), serial);
        let blobs_dir = tempfile::tempdir().unwrap();
        let blobs = fulmar_registry::Blobs::open(blobs_dir.path(), 1 << 30).unwrap();
        let script = self.script();
        for (name, bytes) in &script.metadata {
            match name.split_once('/').unwrap() {
                ("registry", name) => header.add_registry(name, bytes),
                (_, name) => header.add_director(DEVICE_ID, name, bytes),
            }
        }
        let policy = self.repository.draft_policy().unwrap();
        if let Some(policy) = &policy {
            header.set_policy(policy);
        }
        for bytes in script.blobs.values() {
            header.add_blob(blobs.put(bytes).unwrap(), bytes.len() as u64);
        }
        fulmar_registry::bundle::write(path, &header, &blobs, self.director.key()).unwrap();
        path.to_owned()
    }

    /// As if there were no registry yet; returns its files.
    pub(crate) fn hide_registry(&self) -> BTreeMap<String, Vec<u8>> {
        let mut script = self.script();
        let hidden = script.metadata.clone().into_iter().filter(|(k, _)| k.starts_with("registry"));
        let hidden = hidden.collect();
        script.metadata.retain(|name, _| !name.starts_with("registry"));
        hidden
    }

    /// Publishes a release with these weights to the owner's registry.
    pub(crate) fn publish(&self, name: &str, release: u64, weights: &[u8]) -> DirectorEntry {
        self.publish_with(name, release, weights, None)
    }

    /// [`ControlPlane::publish`], with a projector beside the weights.
    pub(crate) fn publish_with(
        &self,
        name: &str,
        release: u64,
        weights: &[u8],
        projector: Option<&[u8]>,
    ) -> DirectorEntry {
        let path = self.dir.path().join("model.gguf");
        std::fs::write(&path, weights).unwrap();
        let facts = ModelFacts { architecture: "qwen3".into(), ..ModelFacts::default() };
        let file = import::describe_gguf(&path, &facts).unwrap();
        let blob = file.digest.to_string();
        let mut files = vec![file];
        if let Some(mut projector) = projector {
            let (role, kind) = (FileRole::Projector, "application/vnd.fulmar.gguf");
            let blob = Digest::of(projector).to_string();
            self.script().blobs.insert(blob, projector.to_vec());
            let described =
                ManifestFile::describe(&mut projector, Vec::new(), role, "projector.gguf", kind);
            files.push(described.unwrap());
        }
        let name: fulmar_registry::ModelName = name.parse().unwrap();
        let manifest = import::manifest(&name, release, files, &facts).to_bytes().unwrap();
        let custom = serde_json::json!({"fulmar": {"kind": "model", "release": release}});
        let target_path = name.target_path();
        self.repository
            .publish_target(&target_path, &manifest, Some(custom), None, now_s())
            .unwrap();
        self.repository.sign(&[&self.owner], now_s()).unwrap();
        let mut script = self.script();
        script.blobs.insert(blob, weights.to_vec());
        script.blobs.insert(Digest::of(&manifest).to_string(), manifest.clone());
        DirectorEntry {
            target_path,
            length: manifest.len() as u64,
            digest: Digest::of(&manifest),
            release,
            active: Active::Serve,
        }
    }

    /// The owner rotates its root; what the newest one must be.
    pub(crate) fn rotate_root(&self) -> RegistryRoot {
        self.repository.renew("root", now_s()).unwrap();
        self.repository.sign(&[&self.owner], now_s()).unwrap();
        self.mint();
        let pin = self.repository.trusted(now_s()).unwrap().root_pin();
        RegistryRoot { version: pin.version, sha256: pin.digest.hex() }
    }

    /// The owner's first root, as the owner would hand it out.
    pub(crate) fn owners_root(&self) -> Vec<u8> {
        self.repository.first_root().unwrap()
    }

    /// Publishes a policy to the owner's registry; returns its digest.
    pub(crate) fn policy(&self, policy: serde_json::Value) -> Digest {
        self.repository.publish_policy(policy, None, now_s()).unwrap();
        self.repository.sign(&[&self.owner], now_s()).unwrap();
        let bytes = self.repository.draft_policy().unwrap().unwrap();
        let digest = Digest::of(&bytes);
        self.script().blobs.insert(digest.to_string(), bytes);
        self.mint();
        digest
    }

    /// Assigns models to the device; raises the generation.
    pub(crate) fn assign(&self, entries: Vec<DirectorEntry>) {
        *self.entries.lock().unwrap() = entries;
        self.script().generation += 1;
        self.mint();
    }

    /// Signs the director's files anew, with versions that count up.
    pub(crate) fn mint(&self) {
        let entries = self.entries.lock().unwrap().clone();
        let mut script = self.script();
        script.serial += 1;
        script.generation = script.generation.max(1);
        let minting = Minting {
            generation: script.generation,
            serial: script.serial,
            signed_at_s: now_s() + script.ahead_s,
            expires_s: now_s() + script.ahead_s + 3_600,
        };
        let set = self.director.mint(DEVICE_ID, &entries, minting).unwrap();
        for (name, bytes) in [
            ("targets.json", set.targets),
            ("snapshot.json", set.snapshot),
            ("timestamp.json", set.timestamp),
        ] {
            script.metadata.insert(format!("director/{name}"), bytes);
        }
        for (name, bytes) in self.repository.metadata_files(now_s()).unwrap() {
            script.metadata.insert(format!("registry/{name}"), bytes);
        }
    }
}

/// A mirror on site: blobs by digest over plain HTTP, and nothing else.
pub(crate) struct Site {
    pub(crate) url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    /// Of what a control plane has.
    pub(crate) async fn of(plane: &ControlPlane) -> Self {
        let script =
            Mutex::new(Script { blobs: plane.script().blobs.clone(), ..Script::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/blobs", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                // A connection that is cut off is the other side's test.
                let _ = hand_out(stream, &script).await;
            }
        });
        Self { url, task }
    }
}

/// One request, one blob.
async fn hand_out(mut stream: TcpStream, script: &Mutex<Script>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let digest = head.split(' ').nth(1).and_then(|path| path.strip_prefix("/blobs/"));
    let range = head.lines().find_map(|line| line.strip_prefix("range: ")).map(str::to_owned);
    let (status, range, bytes, _) =
        blob(&mut script.lock().unwrap(), digest.unwrap_or_default(), range);
    let range = range.map_or(String::new(), |range| format!("content-range: {range}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n{range}\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

struct Enrolling {
    ca_pem: String,
    registry_root: Vec<u8>,
    director_root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    ca: &CertificateDer<'static>,
) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .allow_unauthenticated()
    .build()
    .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    script: Arc<Mutex<Script>>,
    enrolling: Arc<Enrolling>,
) {
    // The connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, script) = (acceptor.clone(), Arc::clone(&script));
        let enrolling = Arc::clone(&enrolling);
        connections.spawn(async move {
            // A refused handshake or a cut connection is the other side's test.
            let _ = converse(stream, acceptor, &script, &enrolling).await;
        });
    }
}

async fn converse(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    script: &Mutex<Script>,
    enrolling: &Enrolling,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let member = stream.get_ref().1.peer_certificates().is_some();
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let length: usize = header("content-length").map_or(0, |text| text.parse().unwrap());
        while buffer.len() < end + length {
            stream.read_buf(&mut buffer).await?;
        }
        let body: Vec<u8> = buffer.drain(..end + length).skip(end).collect();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, range, answer, cut) =
            answer(&path, header("range"), &body, member, script, enrolling);
        let range = range.map_or(String::new(), |range| format!("content-range: {range}\r\n"));
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{range}\r\n", answer.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&answer[..cut.unwrap_or(answer.len()).min(answer.len())]).await?;
        stream.flush().await?;
        if cut.is_some_and(|cut| cut < answer.len()) {
            return Ok(());
        }
    }
}

type Answer = (u16, Option<String>, Vec<u8>, Option<usize>);

fn answer(
    path: &str,
    range: Option<String>,
    body: &[u8],
    member: bool,
    script: &Mutex<Script>,
    enrolling: &Enrolling,
) -> Answer {
    let mut script = script.lock().unwrap();
    let json = |bytes: Vec<u8>| (200, None, bytes, None);
    let path = path.strip_prefix("/device/v1/").unwrap_or_default();
    if path == "enroll" {
        let request: EnrollRequest = serde_json::from_slice(body).unwrap();
        return json(enrolled(&request, enrolling, &script));
    }
    if !member {
        let refusal = br#"{"code":"certificate_required","message":"show one"}"#;
        return (401, None, refusal.to_vec(), None);
    }
    if let Some(bytes) = script.metadata.get(path) {
        return json(bytes.clone());
    }
    if let Some(digest) = path.strip_prefix("blobs/") {
        return blob(&mut script, digest, range);
    }
    match path {
        "check-in" => {
            script.check_ins.push(serde_json::from_slice(body).unwrap());
            let response = CheckInResponse {
                generation: script.generation,
                registry_timestamp_version: script.serial,
                director_timestamp_version: script.serial,
                commands: Vec::new(),
                next_check_in_ms: 20,
                audit_cosignature: None,
            };
            json(serde_json::to_vec(&response).unwrap())
        }
        "outbox" => {
            let batch: OutboxBatch = serde_json::from_slice(body).unwrap();
            script.reports.extend(batch.reports.iter().map(|report| report.seq));
            let ack = OutboxAck { acked_through: script.reports.last().copied().unwrap_or(0) };
            json(serde_json::to_vec(&ack).unwrap())
        }
        _ => (404, None, br#"{"code":"not_found","message":"no such thing"}"#.to_vec(), None),
    }
}

fn blob(script: &mut Script, digest: &str, range: Option<String>) -> Answer {
    let Some(bytes) = script.blobs.get(digest).cloned() else {
        return (404, None, br#"{"code":"blob_unknown","message":"gone"}"#.to_vec(), None);
    };
    if script.gone_after_cuts.is_some() && matches!(script.cut_blobs, Some((_, 0))) {
        return (404, None, br#"{"code":"blob_unknown","message":"gone"}"#.to_vec(), None);
    }
    let total = bytes.len();
    let asked = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let from = asked.and_then(|(from, _)| from.parse::<usize>().ok());
    let last = asked.and_then(|(_, last)| last.parse::<usize>().ok());
    let end = last.map_or(total, |last| total.min(last + 1));
    let wanted = from.unwrap_or(0).min(end)..end;
    if script.only.as_ref().is_some_and(|only| *only != wanted) {
        return (503, None, br#"{"code":"away","message":"not these bytes"}"#.to_vec(), None);
    }
    let mut part = bytes[wanted].to_vec();
    if script.spoil_blobs > 0 && part.len() > 100 {
        script.spoil_blobs -= 1;
        let middle = part.len() / 2;
        part[middle] ^= 1;
    }
    let cut = match &mut script.cut_blobs {
        Some((cut, times)) if *times > 0 && part.len() > *cut => {
            *times -= 1;
            Some(*cut)
        }
        _ => None,
    };
    script.blob_bytes_sent += cut.unwrap_or(part.len());
    match from {
        Some(from) => (206, Some(format!("bytes {from}-{}/{total}", end - 1)), part, cut),
        None => (200, None, part, cut),
    }
}

fn enrolled(request: &EnrollRequest, enrolling: &Enrolling, script: &Script) -> Vec<u8> {
    let mut csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
    csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = csr.signed_by(&enrolling.issuer).unwrap();
    let named = format!("registry/{}.root.json", request.registry_root_version.unwrap_or(1));
    let honest = script.metadata.get(&named).unwrap_or(&enrolling.registry_root);
    let registry_root = STANDARD.encode(script.registry_root.as_ref().unwrap_or(honest));
    let response = EnrollResponse {
        device_id: DEVICE_ID.to_owned(),
        certificate_pem: certificate.pem(),
        ca_pem: enrolling.ca_pem.clone(),
        registry_root,
        director_root: STANDARD.encode(&enrolling.director_root),
        audit_cosign_key: String::new(),
    };
    serde_json::to_vec(&response).unwrap()
}
