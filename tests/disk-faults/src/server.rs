//! A server on loopback that has one blob, and flips one bit of it when told to.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What the server was told, and what it was asked.
#[derive(Debug, Default)]
struct Told {
    /// Which byte, and which bit of it; once.
    flip: Option<(usize, u8)>,
    /// Where answers were to begin.
    asked: Vec<u64>,
}

/// The server; it lives as long as the process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    told: Arc<Mutex<Told>>,
}

impl Server {
    pub(crate) fn start(bytes: Vec<u8>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/blob", listener.local_addr()?);
        let told = Arc::<Mutex<Told>>::default();
        let shared = Arc::clone(&told);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that has found the flip hangs up: that is what is wanted.
                let _ = answer(stream, &bytes, &shared);
            }
        });
        Ok(Self { url, told })
    }

    /// Has the next answer that comes to that byte flip a bit of it.
    pub(crate) fn flip(&self, at: usize, bit: u8) {
        self.told().flip = Some((at, bit));
    }

    /// Where answers were to begin since this was asked last.
    pub(crate) fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut self.told().asked)
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(mut stream: TcpStream, bytes: &[u8], told: &Mutex<Told>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0].to_ascii_lowercase());
    }
    let head = String::from_utf8_lossy(&head);
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let first = range.and_then(|range| range.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let mut rest = bytes[first..].to_vec();
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    told.asked.push(first as u64);
    if let Some((at, bit)) = told.flip.filter(|(at, _)| *at >= first) {
        rest[at - first] ^= 1 << bit;
        told.flip = None;
    }
    drop(told);
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\nconnection: close\r\n\
         content-range: bytes {first}-{}/{}\r\n\r\n",
        rest.len(),
        bytes.len() - 1,
        bytes.len(),
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&rest)
}
