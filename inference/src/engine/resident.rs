//! What the system says that the process has in memory.

/// Resident bytes of the process; `None` where the system does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resident {
    pub(super) bytes: Option<u64>,
    /// Of these, pages of mapped files.
    pub(super) file_bytes: Option<u64>,
    /// The most there was.
    pub(super) peak_bytes: Option<u64>,
}

/// Reads `/proc/self/status`.
pub(super) fn read() -> Resident {
    parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse(status: &str) -> Resident {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib = line.strip_prefix(':')?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()?.checked_mul(1024)
    };
    Resident { bytes: field("VmRSS"), file_bytes: field("RssFile"), peak_bytes: field("VmHWM") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_counts_are_read_in_bytes_and_missing_ones_are_none() {
        let found = parse(
            "Name:	fulmar
VmHWM:	    3000 kB
VmRSS:	    2000 kB
",
        );
        let kib = |n: u64| Some(n * 1024);
        assert_eq!((found.bytes, found.file_bytes, found.peak_bytes), (kib(2000), None, kib(3000)));
    }
}
