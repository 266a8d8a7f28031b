//! What whole-program tests share: the built binaries, their processes, waiting for conditions.
//!
//! `tests/run` builds the binaries and sets the variables named here; a missing one is an error,
//! never a skipped test.

mod device;
mod fleet;
mod process;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use device::Device;
pub use fleet::{Fleet, client, text};
pub use process::{Output, Process, fulmar, fulmar_ok, json_of};

/// How long a condition may take on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run whole-program tests with tests/run"))
}

/// The built `fulmar`.
#[must_use]
pub fn fulmar_bin() -> PathBuf {
    variable("FULMAR_BIN").into()
}

/// A Python with the packages of `tests/requirements.txt`.
#[must_use]
pub fn python() -> PathBuf {
    variable("FULMAR_TEST_PYTHON").into()
}

/// Where screenshots and logs are kept.
#[must_use]
pub fn output_dir() -> PathBuf {
    variable("FULMAR_TEST_OUTPUT").into()
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The embedded default model.
#[must_use]
pub fn demo_model() -> PathBuf {
    root().join("packaging/demo-model/fulmar-demo.gguf")
}

/// A `logit_bias` under which the default model does not end an answer by itself: its end token, as
/// its file names it, is as good as never drawn.
///
/// # Panics
/// When the file does not name one.
#[must_use]
pub fn endless() -> Value {
    let bytes = std::fs::read(demo_model()).expect("the default model can be read");
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|window| window == key);
    let value = at.expect("the file names its end token") + key.len();
    // GGUF: the value's type (4: an unsigned number of 32 bits), then the value.
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(number(value), 4, "the end token is an unsigned number");
    json!({ number(value + 4).to_string(): -100 })
}

/// Waits until `probe` gives something, for [`PATIENCE`] at most.
///
/// # Panics
/// When the time is over: the test has failed.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
