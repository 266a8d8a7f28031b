//! Large zeroed memory on huge pages, for weights, caches and buffers that live as long as a model.

// One raw allocation behind safe slices.
use std::io;
use std::ops::{Deref, DerefMut};

/// Zeroed bytes, aligned to a page at least. Pages are taken from the system when first written.
pub struct Buffer {
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, as with `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes; on Linux with huge pages asked for where the size makes them worthwhile.
    ///
    /// # Errors
    /// The system's error when it has no such memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { start: std::ptr::NonNull::<u64>::dangling().as_ptr().cast(), len });
        }
        Ok(Self { start: allocate(len)?, len })
    }

    /// The bytes as values of a plain type.
    pub fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self[..self.len / size_of::<T>() * size_of::<T>()])
    }

    /// The bytes as values of a plain type.
    pub fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        let len = self.len / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self[..len])
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes while the value lives.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the value is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `start` came from `allocate` with this length and is not used again.
            unsafe { release(self.start, self.len) }
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(unix)]
fn allocate(len: usize) -> io::Result<*mut u8> {
    // SAFETY: a fresh anonymous mapping touches no existing memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    #[cfg(target_os = "linux")]
    if len >= 4 << 20 {
        // SAFETY: advice on a mapping of our own; a refusal changes nothing.
        unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
    }
    Ok(start.cast())
}

#[cfg(unix)]
unsafe fn release(start: *mut u8, len: usize) {
    // SAFETY: by the caller, a mapping of ours that nobody uses any more.
    unsafe { libc::munmap(start.cast(), len) };
}

#[cfg(not(unix))]
fn layout(len: usize) -> io::Result<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(len, 4096).map_err(io::Error::other)
}

#[cfg(not(unix))]
fn allocate(len: usize) -> io::Result<*mut u8> {
    // SAFETY: `len` is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout(len)?) };
    if start.is_null() { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(start) }
}

#[cfg(not(unix))]
unsafe fn release(start: *mut u8, len: usize) {
    if let Ok(layout) = layout(len) {
        // SAFETY: by the caller, allocated with this layout and not used any more.
        unsafe { std::alloc::dealloc(start, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_starts_zeroed_and_keeps_what_is_written() {
        let mut buffer = Buffer::zeroed(5 << 20).unwrap();
        assert!(buffer.iter().all(|b| *b == 0));
        buffer.as_mut_slice::<f32>()[1000] = 1.5;
        assert_eq!(buffer.as_slice::<f32>()[1000], 1.5);
        assert!(Buffer::zeroed(0).unwrap().is_empty());
    }
}
