//! The registry's TUF client behind the command line of the public conformance suite
//! (`tuf-conformance`, CLIENT-CLI.md): `init`, `refresh` and `download`.
//!
//! The state lives where it always does, in SQLite; after each command the trusted files are
//! copied to `METADATA_DIR/<role>.json`, where the suite looks for them. The clock is the system's,
//! so the suite's libfaketime reaches it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use clap::{Parser, Subcommand};
use fulmar_registry::trust::{
    Fetched, Refresh, Repo, SCHEMA, Scope, TargetEntry, TrustError, Trusted, role_file_name,
};
use fulmar_store::Store;

#[derive(Parser)]
struct Arguments {
    /// Where trusted metadata is kept.
    #[arg(long)]
    metadata_dir: PathBuf,
    /// The repository's metadata.
    #[arg(long)]
    metadata_url: Option<String>,
    /// A target to download; may be repeated.
    #[arg(long)]
    target_name: Vec<String>,
    /// The repository's targets.
    #[arg(long)]
    target_base_url: Option<String>,
    /// Where targets are put.
    #[arg(long)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sets the trusted root.
    Init {
        /// The file with it.
        trusted_root: PathBuf,
    },
    /// Brings the top-level metadata up to date.
    Refresh,
    /// Refreshes, then downloads targets.
    Download,
}

fn main() -> std::process::ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(&Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let store = Store::open(&arguments.metadata_dir.join("trust.db"), &[&SCHEMA])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    match &arguments.command {
        Command::Init { trusted_root } => {
            let root = std::fs::read(trusted_root).context("read the root")?;
            let trusted = store
                .write_blocking(move |tx| Trusted::bootstrap(tx, Repo::Registry, &root, now_s))?;
            copy_out(&trusted, &arguments.metadata_dir)
        }
        Command::Refresh => {
            let client = Client::new(arguments, store, now_s)?;
            runtime.block_on(client.refresh()).map(|_| ())
        }
        Command::Download => {
            let client = Client::new(arguments, store, now_s)?;
            runtime.block_on(async {
                let mut trusted = client.refresh().await?;
                for path in &arguments.target_name {
                    trusted = client.download(trusted, path, arguments).await?;
                }
                Ok(())
            })
        }
    }
}

/// Puts every trusted file where the suite looks, and removes those trusted no more.
fn copy_out(trusted: &Trusted, dir: &Path) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for (role, _, bytes) in trusted.files() {
        let name = role_file_name(role);
        let beside = dir.join(format!("{name}.new"));
        std::fs::write(&beside, bytes)?;
        std::fs::rename(&beside, dir.join(&name))?;
        kept.push(name);
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".json") && !kept.contains(&name) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

struct Client {
    store: Store,
    http: reqwest::Client,
    metadata_dir: PathBuf,
    metadata_url: String,
    now_s: i64,
}

impl Client {
    fn new(arguments: &Arguments, store: Store, now_s: i64) -> anyhow::Result<Self> {
        let url = arguments.metadata_url.as_deref().context("find --metadata-url")?;
        Ok(Self {
            store,
            http: reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?,
            metadata_dir: arguments.metadata_dir.clone(),
            metadata_url: with_slash(url),
            now_s,
        })
    }

    async fn refresh(&self) -> anyhow::Result<Trusted> {
        let trusted = self
            .store
            .read(|c| Trusted::load(c, Repo::Registry))
            .await?
            .ok_or_else(|| anyhow!("find a trusted root: run init first"))?;
        self.drive(Refresh::new(trusted, self.now_s)).await
    }

    /// Runs a refresh, and keeps what was verified however it ends.
    async fn drive(&self, mut refresh: Refresh) -> anyhow::Result<Trusted> {
        let ended = self.feed(&mut refresh).await;
        for refused in refresh.refused() {
            eprintln!("failed to {refused}");
        }
        let trusted = refresh.into_progress();
        let copy = trusted.clone();
        self.store.write(move |tx| copy.store(tx)).await?;
        copy_out(&trusted, &self.metadata_dir)?;
        ended.map(|()| trusted)
    }

    async fn feed(&self, refresh: &mut Refresh) -> anyhow::Result<()> {
        while let Some(want) = refresh.next() {
            let url = format!("{}{}", self.metadata_url, want.file_name);
            let fetched = match self.get(&url, want.length_max).await? {
                Some(bytes) => Fetched::Found(bytes),
                None => Fetched::NotFound,
            };
            refresh.feed(fetched)?;
        }
        Ok(())
    }

    /// A file of at most `length_max` bytes; `None` when the server does not have it.
    async fn get(&self, url: &str, length_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let mut response = self.http.get(url).send().await.with_context(|| format!("get {url}"))?;
        match response.status().as_u16() {
            200 => {}
            403 | 404 => return Ok(None),
            status => bail!("get {url}: the server answered {status}"),
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > length_max {
                return Err(TrustError::TooLong { file: url.to_owned(), length_max }.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    async fn download(
        &self,
        trusted: Trusted,
        path: &str,
        arguments: &Arguments,
    ) -> anyhow::Result<Trusted> {
        let search = Refresh::resume(trusted, self.now_s, Scope::Paths(vec![path.to_owned()]))?;
        let trusted = self.drive(search).await?;
        let entry = trusted.target(path).ok_or_else(|| anyhow!("find the target {path}"))?;
        let dir = arguments.target_dir.as_deref().context("find --target-dir")?;
        // One flat name per target path.
        let file = dir.join(role_file_name(path));
        if std::fs::read(&file).is_ok_and(|bytes| entry.verify(path, &bytes).is_ok()) {
            return Ok(trusted);
        }
        let base = arguments.target_base_url.as_deref().context("find --target-base-url")?;
        let name = remote_name(&trusted, path, entry)?;
        let bytes = self
            .get(&format!("{}{name}", with_slash(base)), entry.length)
            .await?
            .ok_or_else(|| anyhow!("download {name}: the repository does not have it"))?;
        entry.verify(path, &bytes)?;
        let beside = dir.join(".incoming");
        std::fs::write(&beside, &bytes)?;
        std::fs::rename(&beside, &file)?;
        Ok(trusted)
    }
}

/// 5.7.3: with consistent snapshots, a hash stands before the base name.
fn remote_name(trusted: &Trusted, path: &str, entry: &TargetEntry) -> anyhow::Result<String> {
    if !trusted.root().consistent_snapshot {
        return Ok(path.to_owned());
    }
    let known = ["sha256", "sha512"].iter().find_map(|kind| entry.hashes.get(*kind));
    let hash = known.context("find a hash of the target that this client knows")?;
    Ok(match path.rsplit_once('/') {
        Some((folder, base)) => format!("{folder}/{hash}.{base}"),
        None => format!("{hash}.{path}"),
    })
}

fn with_slash(url: &str) -> String {
    if url.ends_with('/') { url.to_owned() } else { format!("{url}/") }
}
