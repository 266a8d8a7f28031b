//! The control plane's configuration: one TOML file, unknown fields refused, every limit named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// All settings of a control plane. Every field has a default; see each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The state directory made by [`crate::init`].
    pub dir: PathBuf,
    /// Where devices connect.
    pub device: DevicePort,
    /// Where operators connect, browsers and programs alike.
    pub console: ConsolePort,
    /// When a device is asked to check in again, in milliseconds.
    pub check_in_interval_ms: u64,
    /// Bytes that the blob store may hold.
    pub blob_bytes_max: u64,
    /// Days that reports of devices are kept.
    pub report_days_max: u32,
    /// Days that the files of a withdrawn release are kept, once nobody wants it any more.
    pub withdrawn_days_kept: u32,
    /// Limits of both ports.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/fulmar-control"),
            device: DevicePort::default(),
            console: ConsolePort::default(),
            check_in_interval_ms: 30_000,
            blob_bytes_max: 256 << 30,
            report_days_max: 400,
            withdrawn_days_kept: 30,
            limits: Limits::default(),
        }
    }
}

/// The port for devices: always TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevicePort {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What join tokens tell devices, `https://host:port`. Without it, the listening address.
    pub url: Option<String>,
    /// Further host names and addresses that the server's certificate is valid for.
    pub names: Vec<String>,
}

impl Default for DevicePort {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443),
            url: None,
            names: Vec::new(),
        }
    }
}

/// The port for operators: console and API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsolePort {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How the connection is protected.
    pub tls: ConsoleTls,
    /// PEM file of the certificate chain, for `tls = "files"`.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its private key, for `tls = "files"`.
    pub key_file: Option<PathBuf>,
    /// Minutes that a sign-in lasts without use.
    pub session_idle_minutes: u32,
    /// Hours that a sign-in lasts at most.
    pub session_hours_max: u32,
}

impl Default for ConsolePort {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7480),
            tls: ConsoleTls::Off,
            certificate_file: None,
            key_file: None,
            session_idle_minutes: 60,
            session_hours_max: 12,
        }
    }
}

/// How the operators' port is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleTls {
    /// Plain HTTP: only on loopback.
    Off,
    /// TLS with a certificate of the fleet's own CA.
    FleetCa,
    /// TLS with `certificate_file` and `key_file`.
    Files,
}

/// Limits that hold for each port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections open at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Time for a TLS handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Time for a request's headers, in milliseconds.
    pub header_timeout_ms: u64,
    /// Time for a request's answer to begin, in milliseconds; uploads excepted.
    pub request_timeout_ms: u64,
    /// Bytes of request headers.
    pub header_bytes_max: usize,
    /// Bytes of a blob that is uploaded.
    pub blob_upload_bytes_max: u64,
    /// Time that open requests have to finish when the process stops, in milliseconds.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            handshake_timeout_ms: 10_000,
            header_timeout_ms: 10_000,
            request_timeout_ms: 30_000,
            header_bytes_max: 16 << 10,
            blob_upload_bytes_max: 64 << 30,
            drain_timeout_ms: 10_000,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what is expected.
    #[error("parse the configuration {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: toml::de::Error,
    },
    /// Operators' passwords would cross a network in clear.
    #[error(
        "serve the console on {listen} without TLS: plain HTTP is for loopback only. Set \
         console.tls to \"fleet-ca\" or \"files\", or listen on 127.0.0.1"
    )]
    PlainConsole {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// `tls = "files"` lacks a file.
    #[error("serve the console with console.tls = \"files\": {field} is not set")]
    FileMissing {
        /// The field.
        field: &'static str,
    },
    /// The devices' URL is not one.
    #[error("use device.url {found:?}: expected https://host:port without a path")]
    DeviceUrl {
        /// What was found.
        found: String,
    },
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The field that is wrong and what to set.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.console.tls == ConsoleTls::Off && !self.console.listen.ip().is_loopback() {
            return Err(ConfigError::PlainConsole { listen: self.console.listen });
        }
        if self.console.tls == ConsoleTls::Files {
            if self.console.certificate_file.is_none() {
                return Err(ConfigError::FileMissing { field: "console.certificate_file" });
            }
            if self.console.key_file.is_none() {
                return Err(ConfigError::FileMissing { field: "console.key_file" });
            }
        }
        if let Some(url) = &self.device.url {
            device_host(url).ok_or_else(|| ConfigError::DeviceUrl { found: url.clone() })?;
        }
        Ok(())
    }

    /// Host names and addresses that the server's certificate must be valid for.
    #[must_use]
    pub fn server_names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        for listen in [self.device.listen, self.console.listen] {
            if !listen.ip().is_unspecified() {
                names.push(listen.ip().to_string());
            }
        }
        names.extend(self.device.names.iter().cloned());
        names.extend(self.device.url.as_deref().and_then(device_host).map(str::to_owned));
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

/// The host of `https://host[:port]`, brackets of an IPv6 address removed.
fn device_host(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://")?.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
        return None;
    }
    if let Some(v6) = authority.strip_prefix('[') {
        return v6.split_once(']').map(|(host, _)| host);
    }
    let host = authority.split_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused_by_its_name() {
        let refused = toml::from_str::<Config>("[console]\nlistn = \"127.0.0.1:1\"").unwrap_err();
        assert!(refused.to_string().contains("listn"), "{refused}");
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config.device.listen.port(), 7443);
        config.check().unwrap();
    }

    #[test]
    fn a_plain_console_off_loopback_is_refused() {
        let mut config = Config::default();
        config.console.listen = "0.0.0.0:7480".parse().unwrap();
        assert!(matches!(config.check(), Err(ConfigError::PlainConsole { .. })));
        config.console.tls = ConsoleTls::FleetCa;
        config.check().unwrap();
    }

    #[test]
    fn the_certificate_is_valid_for_the_address_that_devices_are_told() {
        let mut config = Config::default();
        for (url, host) in [
            ("https://fleet.example.org:7443", "fleet.example.org"),
            ("https://[2001:db8::1]:7443", "2001:db8::1"),
            ("https://10.0.0.7", "10.0.0.7"),
        ] {
            config.device.url = Some(url.to_owned());
            config.check().unwrap();
            assert!(config.server_names().contains(&host.to_owned()), "{url}");
        }
        for url in ["http://a:1", "https://", "https://a/b", "https://u@a"] {
            config.device.url = Some(url.to_owned());
            assert!(matches!(config.check(), Err(ConfigError::DeviceUrl { .. })), "{url}");
        }
    }
}
