//! An open directory of the host, from which entries are read.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The bytes of entries that one `getdents64` call reads.
const BLOCK: usize = 8 << 10;
/// The offset of the name in the kernel's `struct linux_dirent64`.
const NAME_OFFSET: usize = 19;

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'s> {
    /// Inode number.
    pub(crate) ino: u64,
    /// The offset of the next entry.
    pub(crate) next: u64,
    /// `DT_*`.
    pub(crate) kind: u8,
    /// The entry's name.
    pub(crate) name: &'s CStr,
}

/// How many more blocks the open directories of a server may keep between requests. All clones count together.
#[derive(Clone, Debug)]
pub(crate) struct BlockBudget(Arc<AtomicUsize>);

impl BlockBudget {
    /// A budget of `blocks`.
    pub(crate) fn new(blocks: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(blocks)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The entries of an open directory. A block of them is kept between requests if the budget allows it.
#[derive(Debug)]
pub(crate) struct DirectoryStream {
    directory: OwnedFd,
    block: Vec<u8>,
    /// The position of the next entry in `block`.
    position: usize,
    /// The host's offset of that entry.
    offset: u64,
    /// Whether the host's directory is behind entries that were read and dropped.
    is_ahead: bool,
    budget: BlockBudget,
    /// Whether the block counts against the budget.
    is_counted: bool,
}

impl Drop for DirectoryStream {
    fn drop(&mut self) {
        self.release_block();
    }
}

impl AsFd for DirectoryStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl DirectoryStream {
    /// The stream of `directory`, at its first entry.
    pub(crate) fn new(directory: OwnedFd, budget: BlockBudget) -> Self {
        Self { directory, block: Vec::new(), position: 0, offset: 0, is_ahead: false, budget, is_counted: false }
    }

    /// Moves to the entry at `offset`: 0 or an [`Entry::next`].
    pub(crate) fn seek(&mut self, offset: u64) -> Result<(), Errno> {
        // A seek to 0 reads the directory again, as `rewinddir` requires.
        if offset == self.offset && offset != 0 && !self.is_ahead {
            return Ok(());
        }
        rustix::fs::seek(&self.directory, SeekFrom::Start(offset))?;
        self.block.clear();
        self.position = 0;
        self.offset = offset;
        self.is_ahead = false;
        Ok(())
    }

    /// Ends a request. The block is kept for the next one if it has entries left and the budget allows it.
    pub(crate) fn end_request(&mut self) {
        let has_entries = self.position < self.block.len();
        if has_entries && !self.is_counted {
            self.is_counted = self.budget.take();
        }
        if !has_entries || !self.is_counted {
            self.is_ahead |= has_entries;
            self.release_block();
        }
    }

    fn release_block(&mut self) {
        self.block = Vec::new();
        self.position = 0;
        if std::mem::take(&mut self.is_counted) {
            self.budget.give_back();
        }
    }

    /// The next entry, without consuming it. `None` at the end.
    pub(crate) fn peek(&mut self) -> Result<Option<Entry<'_>>, Errno> {
        if self.position >= self.block.len() {
            self.fetch()?;
        }
        if self.block.is_empty() {
            return Ok(None);
        }
        parse(&self.block[self.position..]).map(|(entry, _)| Some(entry)).ok_or(Errno::IO)
    }

    /// Consumes the next entry.
    pub(crate) fn advance(&mut self) {
        if let Some((entry, length)) = self.block.get(self.position..).and_then(parse) {
            let next = entry.next;
            self.position += length;
            self.offset = next;
        }
    }

    fn fetch(&mut self) -> Result<(), Errno> {
        self.position = 0;
        self.block.resize(BLOCK, 0);
        // SAFETY: the kernel writes at most `BLOCK` bytes to a live buffer of that length.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, self.directory.as_raw_fd(), self.block.as_mut_ptr(), BLOCK) };
        let read = usize::try_from(read)
            .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        self.block.truncate(read.unwrap_or(0));
        if self.block.is_empty() {
            self.block = Vec::new();
        }
        read.map(|_| ())
    }
}

/// The first entry of `block`, and its length.
fn parse(block: &[u8]) -> Option<(Entry<'_>, usize)> {
    let ino = u64::from_ne_bytes(block.get(0..8)?.try_into().ok()?);
    let next = u64::from_ne_bytes(block.get(8..16)?.try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(block.get(16..18)?.try_into().ok()?));
    let kind = *block.get(18)?;
    let name = CStr::from_bytes_until_nul(block.get(NAME_OFFSET..length)?).ok()?;
    Some((Entry { ino, next, kind, name }, length))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    fn stream(directory: &Path, budget: &BlockBudget) -> DirectoryStream {
        DirectoryStream::new(File::open(directory).unwrap().into(), budget.clone())
    }

    /// A directory with so many files that no block holds all, and the names of all its entries.
    fn large_directory() -> (TempDir, BTreeSet<String>) {
        let directory = tempfile::tempdir().unwrap();
        let mut names = BTreeSet::from([".".to_owned(), "..".to_owned()]);
        for number in 0..500 {
            let name = format!("a-rather-long-name-of-a-file-{number}");
            File::create(directory.path().join(&name)).unwrap();
            names.insert(name);
        }
        (directory, names)
    }

    #[test]
    fn every_entry_is_read_once_across_blocks_requests_and_seeks() {
        let (directory, wanted) = large_directory();
        for blocks in [0, 1] {
            let mut stream = stream(directory.path(), &BlockBudget::new(blocks));
            let mut seen = BTreeSet::new();
            let mut offset = 0;
            while let Some(entry) = stream.peek().unwrap() {
                assert!(seen.insert(entry.name.to_str().unwrap().to_owned()));
                offset = entry.next;
                stream.advance();
                if seen.len() % 7 == 0 {
                    // Seek to the start and back.
                    stream.seek(0).unwrap();
                    stream.seek(offset).unwrap();
                } else if seen.len() % 5 == 0 {
                    stream.end_request();
                    stream.seek(offset).unwrap();
                }
            }
            assert_eq!(seen, wanted);
            stream.seek(offset).unwrap();
            assert!(stream.peek().unwrap().is_none());
        }
    }

    #[test]
    fn no_more_blocks_are_kept_than_the_budget_allows() {
        let (directory, _) = large_directory();
        let budget = BlockBudget::new(2);
        let mut streams: Vec<_> = (0..5).map(|_| stream(directory.path(), &budget)).collect();
        for stream in &mut streams {
            stream.peek().unwrap();
            stream.advance();
            stream.end_request();
            stream.end_request();
        }
        let kept = |streams: &[DirectoryStream]| streams.iter().filter(|stream| stream.block.capacity() > 0).count();
        assert_eq!(kept(&streams), 2);
        streams.remove(0);
        let last = streams.last_mut().unwrap();
        last.seek(0).unwrap();
        last.peek().unwrap();
        last.end_request();
        assert_eq!(kept(&streams), 2, "a closed directory gives its block back");
    }
}
