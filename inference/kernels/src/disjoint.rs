//! A slice that several threads write at once, each its own part.

use std::marker::PhantomData;

/// Shared access to a slice for writers that agree who writes what.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: only `slice` gives access, and its contract forbids overlap between threads.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    #[inline]
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// No other part that overlaps is in use.
    ///
    /// # Panics
    /// When the part is not within the slice.
    #[inline]
    #[allow(clippy::mut_from_ref)] // What the type is for.
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part outside of the slice");
        // SAFETY: within the slice, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// A pointer to the element `from`, for writes to some of the elements `from..from + len`.
    ///
    /// # Panics
    /// When the part is not within the slice.
    #[inline]
    pub(crate) fn pointer(&self, from: usize, len: usize) -> *mut T {
        assert!(from <= self.len && len <= self.len - from, "part outside of the slice");
        self.start.wrapping_add(from)
    }
}
