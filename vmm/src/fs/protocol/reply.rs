//! The reply to a request, and the payload of `WRITE`.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::buffers::Buffers;
use super::wire::{OUT_HEADER, OutHeader};

/// The data of a `WRITE` request, in guest memory.
#[derive(Debug)]
pub(crate) struct Payload<'m>(Buffers<'m>);

impl<'m> Payload<'m> {
    /// The first `size` bytes of `buffers`. `EINVAL` if there are fewer.
    pub(crate) fn new(mut buffers: Buffers<'m>, size: u32) -> Result<Self, Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        buffers.split_front(size).map(Self).ok_or(Errno::INVAL)
    }

    /// Writes the payload to `file` and returns the number of bytes written.
    pub(crate) fn write_to(mut self, file: BorrowedFd<'_>, offset: u64, flags: i32) -> Result<usize, Errno> {
        self.0.drain_to(file, offset, flags)
    }
}

/// A reply that is being written. The body is appended, and the header is written last.
#[derive(Debug)]
pub(crate) struct Reply<'m> {
    header: Buffers<'m>,
    body: Buffers<'m>,
    written: usize,
}

impl<'m> Reply<'m> {
    /// A reply into `buffers`. `None` if the header does not fit.
    pub(crate) fn new(mut buffers: Buffers<'m>) -> Option<Self> {
        let header = buffers.split_front(OUT_HEADER)?;
        Some(Self { header, body: buffers, written: 0 })
    }

    /// The space left for the body in bytes.
    pub(crate) fn remaining(&self) -> usize {
        self.body.len()
    }

    /// Appends a structure. `EIO` if it does not fit.
    pub(crate) fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        self.put_bytes(value.as_bytes())
    }

    /// Appends bytes. `EIO` if they do not fit.
    pub(crate) fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if !self.body.write(bytes) {
            return Err(Errno::IO);
        }
        self.written += bytes.len();
        Ok(())
    }

    /// Appends up to `size` bytes of `file` from `offset`, fewer only at the end of the file. `EINVAL` if `size` bytes
    /// do not fit.
    pub(crate) fn put_file(&mut self, file: BorrowedFd<'_>, offset: u64, size: u32, flags: i32) -> Result<(), Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        if size > self.body.len() {
            return Err(Errno::INVAL);
        }
        let mut target = self.body.clone().split_front(size).ok_or(Errno::INVAL)?;
        let read = target.fill_from(file, offset, flags)?;
        self.body.split_front(read).ok_or(Errno::IO)?;
        self.written += read;
        Ok(())
    }

    /// Writes the header and returns the reply's length in bytes. The reply to a failed request has no body.
    pub(crate) fn finish(mut self, unique: u64, result: Result<(), Errno>) -> usize {
        let (length, error) = match result {
            Ok(()) => (OUT_HEADER + self.written, 0),
            Err(errno) => (OUT_HEADER, -errno.raw_os_error()),
        };
        let header = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error, unique };
        self.header.write(header.as_bytes());
        length
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn a_reply_that_does_not_fit_is_an_error() {
        let mut short = [0_u8; 8];
        assert!(Reply::new(std::iter::once(VolatileSlice::from(&mut short[..])).collect()).is_none());
        let mut space = [0_u8; 20];
        let mut reply = Reply::new(std::iter::once(VolatileSlice::from(&mut space[..])).collect()).unwrap();
        assert_eq!(reply.put(&7_u64), Err(Errno::IO));
        assert_eq!(reply.put(&7_u32), Ok(()));
        assert_eq!(reply.finish(9, Ok(())), 20);
        assert_eq!(space[0], 20);
        assert_eq!(space[16], 7);
    }
}
