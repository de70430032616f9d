//! The bytes of a request and of its reply, in segments of guest memory.
//!
//! A transport makes [`Buffers`] of a descriptor chain, and a test makes them of arrays. The server does not need to
//! know.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// The most segments that one system call accepts (`IOV_MAX`).
const MAX_SEGMENTS: usize = 1024;

/// A list of memory segments that is consumed from the front.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    segments: VecDeque<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> FromIterator<VolatileSlice<'m>> for Buffers<'m> {
    fn from_iter<I: IntoIterator<Item = VolatileSlice<'m>>>(segments: I) -> Self {
        let segments: VecDeque<_> = segments.into_iter().collect();
        let length = segments.iter().map(VolatileSlice::len).sum();
        Self { segments, length }
    }
}

impl<'m> Buffers<'m> {
    /// The number of bytes left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no bytes are left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Consumes the first `count` bytes and returns them as separate buffers. `None`, with nothing consumed, if fewer
    /// are left.
    pub(crate) fn split_front(&mut self, count: usize) -> Option<Self> {
        if count > self.length {
            return None;
        }
        let mut front = Self::default();
        while front.length < count {
            let segment = self.segments.pop_front()?;
            let wanted = segment.len().min(count - front.length);
            let (taken, rest) = segment.split_at(wanted).ok()?;
            front.segments.push_back(taken);
            front.length += wanted;
            if !rest.is_empty() {
                self.segments.push_front(rest);
            }
        }
        self.length -= count;
        Some(front)
    }

    /// Consumes the first bytes and copies them to `target`. False, with nothing consumed, if fewer are left.
    pub(crate) fn read(&mut self, target: &mut [u8]) -> bool {
        let Some(front) = self.split_front(target.len()) else { return false };
        let mut done = 0;
        for segment in &front.segments {
            done += segment.copy_to(&mut target[done..]);
        }
        true
    }

    /// Consumes the first bytes and copies `source` to them. False, with nothing written, if fewer are left.
    pub(crate) fn write(&mut self, source: &[u8]) -> bool {
        let Some(front) = self.split_front(source.len()) else { return false };
        let mut rest = source;
        for segment in &front.segments {
            segment.copy_from(rest);
            rest = &rest[segment.len()..];
        }
        true
    }

    /// The segments as arguments of a vectored system call: adjacent segments are joined, and at most [`MAX_SEGMENTS`]
    /// returned.
    fn vectors(&self) -> Vec<libc::iovec> {
        let mut vectors: Vec<libc::iovec> = Vec::new();
        for segment in &self.segments {
            let base = segment.ptr_guard_mut().as_ptr();
            let full = vectors.len() == MAX_SEGMENTS;
            match vectors.last_mut() {
                Some(last) if last.iov_base.addr() + last.iov_len == base.addr() => last.iov_len += segment.len(),
                _ if full => break,
                _ => vectors.push(libc::iovec { iov_base: base.cast(), iov_len: segment.len() }),
            }
        }
        vectors
    }

    /// Reads from `file` directly into the first bytes, until all are filled or the file ends. Returns the number of
    /// bytes read. `flags` are those of `preadv2`.
    pub(crate) fn fill_from(&mut self, file: BorrowedFd<'_>, offset: u64, flags: i32) -> Result<usize, Errno> {
        self.transfer(offset, |vectors, count, at| {
            // SAFETY: the vectors describe segments of guest memory that `self` borrows, which are valid for writes for
            // its lifetime. The guest may change them at the same time, but no Rust reference to them exists.
            unsafe { libc::preadv2(file.as_raw_fd(), vectors, count, at, flags) }
        })
    }

    /// Writes all bytes directly to `file`. Returns the number of bytes written. `flags` are those of `pwritev2`.
    pub(crate) fn drain_to(&mut self, file: BorrowedFd<'_>, offset: u64, flags: i32) -> Result<usize, Errno> {
        self.transfer(offset, |vectors, count, at| {
            // SAFETY: the vectors describe segments of guest memory that `self` borrows, which are valid for reads for
            // its lifetime. The kernel allows the contents to change meanwhile.
            unsafe { libc::pwritev2(file.as_raw_fd(), vectors, count, at, flags) }
        })
    }

    fn transfer(
        &mut self,
        offset: u64,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        while self.length > 0 {
            let at = i64::try_from(offset).ok().and_then(|offset| offset.checked_add_unsigned(done as u64));
            let vectors = self.vectors();
            let count = libc::c_int::try_from(vectors.len()).map_err(|_| Errno::INVAL)?;
            match usize::try_from(call(vectors.as_ptr(), count, at.ok_or(Errno::INVAL)?)) {
                Ok(0) => break,
                Ok(moved) => {
                    self.split_front(moved).ok_or(Errno::IO)?;
                    done += moved;
                }
                Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    error => return Err(error.unwrap_or(Errno::IO)),
                },
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_continue_across_segments() {
        let (mut one, mut two) = ([1_u8, 2, 3], [4_u8, 5]);
        let mut buffers: Buffers<'_> = [&mut one[..], &mut two[..]].into_iter().map(VolatileSlice::from).collect();
        let mut four = [0; 4];
        assert!(buffers.read(&mut four));
        assert_eq!(four, [1, 2, 3, 4]);
        assert!(!buffers.read(&mut four), "only one byte is left");
        assert_eq!(buffers.len(), 1);
    }

    #[test]
    fn adjacent_segments_are_joined() {
        let mut array = [0_u8; 12];
        let (front, back) = array.split_at_mut(5);
        let buffers: Buffers<'_> = [front, back].into_iter().map(VolatileSlice::from).collect();
        assert_eq!(buffers.vectors().len(), 1);
    }
}
