//! The guest's initramfs: an uncompressed newc cpio archive.
//!
//! The same agent gives the same bytes: times are zero, owners are root, and inode numbers follow the order of the entries. Nothing
//! is compressed, because the kernel unpacks an archive faster than any decompressor could produce it.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use cpio::newc;
use elf::ElfBytes;
use elf::abi::{ET_DYN, ET_EXEC, PT_INTERP};
use elf::endian::AnyEndian;
use thiserror::Error;

/// The reason why no initramfs was written.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("read the agent {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the agent {} is not an executable", .path.display())]
    NotElf { path: PathBuf, source: elf::ParseError },
    #[error("the agent {} is not an executable: its ELF type is {elf_type}", .path.display())]
    NotExecutable { path: PathBuf, elf_type: u16 },
    #[error("the agent {} is dynamically linked: the guest has no loader for it", .path.display())]
    Dynamic { path: PathBuf },
    #[error("the agent {} is larger than a newc archive can hold: {size} bytes", .path.display())]
    TooLarge { path: PathBuf, size: usize },
    #[error("write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A file of the archive.
struct Entry<'a> {
    name: &'static str,
    /// File type and permissions, as in `st_mode`.
    mode: u32,
    /// Major and minor number of a device node.
    device: (u32, u32),
    content: &'a [u8],
}

impl Entry<'static> {
    fn directory(name: &'static str, permissions: u32) -> Self {
        Self { name, mode: 0o040_000 | permissions, device: (0, 0), content: &[] }
    }

    fn character_device(name: &'static str, permissions: u32, device: (u32, u32)) -> Self {
        Self { name, mode: 0o020_000 | permissions, device, content: &[] }
    }
}

/// The entries: what the kernel needs before the agent runs (`/dev/console` becomes its standard streams), and the mount points
/// that the agent expects.
fn entries(agent: &[u8]) -> Vec<Entry<'_>> {
    vec![
        Entry::directory("dev", 0o755),
        Entry::character_device("dev/console", 0o600, (5, 1)),
        Entry::character_device("dev/null", 0o666, (1, 3)),
        Entry::directory("proc", 0o555),
        Entry::directory("run", 0o755),
        Entry::directory("sys", 0o555),
        Entry::directory("tmp", 0o1777),
        Entry { name: "init", mode: 0o100_755, device: (0, 0), content: agent },
    ]
}

/// Writes the initramfs with this agent to `output`. On an error, `output` does not change.
pub(crate) fn build(agent: &Path, output: &Path) -> Result<(), Error> {
    let program = fs::read(agent).map_err(|source| Error::Read { path: agent.into(), source })?;
    check_static(agent, &program)?;
    if u32::try_from(program.len()).is_err() {
        return Err(Error::TooLarge { path: agent.into(), size: program.len() });
    }
    write_atomically(output, |file| archive(&entries(&program), file))
        .map_err(|source| Error::Write { path: output.into(), source })
}

/// Checks that the agent is a static executable. Otherwise the guest's kernel would panic without a reason.
pub(crate) fn check_static(path: &Path, program: &[u8]) -> Result<(), Error> {
    let parse_error = |source| Error::NotElf { path: path.into(), source };
    let file = ElfBytes::<AnyEndian>::minimal_parse(program).map_err(parse_error)?;
    let elf_type = file.ehdr.e_type;
    if ![ET_EXEC, ET_DYN].contains(&elf_type) {
        return Err(Error::NotExecutable { path: path.into(), elf_type });
    }
    match file.segments().into_iter().flatten().any(|segment| segment.p_type == PT_INTERP) {
        true => Err(Error::Dynamic { path: path.into() }),
        false => Ok(()),
    }
}

fn archive(entries: &[Entry<'_>], output: &mut dyn Write) -> io::Result<()> {
    for (inode, entry) in iter::zip(1.., entries) {
        let (major, minor) = entry.device;
        let size = u32::try_from(entry.content.len()).map_err(io::Error::other)?;
        let header = newc::Builder::new(entry.name).ino(inode).mode(entry.mode).nlink(1);
        let mut writer = header.rdev_major(major).rdev_minor(minor).write(&mut *output, size);
        writer.write_all(entry.content)?;
        writer.finish()?;
    }
    newc::trailer(output).map(drop)
}

/// Writes a temporary file beside `output` and renames it, so that `output` is never incomplete.
fn write_atomically(output: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let mut buffered = io::BufWriter::new(file.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(output)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(agent: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive(&entries(agent), &mut bytes).unwrap();
        bytes
    }

    fn listed(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut rest = archive;
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_string(), reader.entry().mode());
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            found.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_agent_is_init_and_the_console_is_a_device_node() {
        let found = listed(&packed(b"agent"));
        assert!(found.contains(&("init".into(), 0o100_755, b"agent".to_vec())));
        assert!(found.contains(&("dev/console".into(), 0o020_600, Vec::new())));
        assert_eq!(found.len(), 8);
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let names: Vec<_> = listed(&packed(b"")).into_iter().map(|(name, ..)| name).collect();
        let position = |wanted: &str| names.iter().position(|name| name == wanted).unwrap();
        assert!(position("dev") < position("dev/console"));
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(packed(b"agent"), packed(b"agent"));
        assert_ne!(packed(b"agent"), packed(b"other"));
    }

    #[test]
    fn a_dynamically_linked_agent_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("initramfs.cpio");
        let this_test = std::env::current_exe().unwrap();
        assert!(matches!(build(&this_test, &output), Err(Error::Dynamic { .. })));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_script_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        fs::write(&agent, "#!/bin/sh\n").unwrap();
        let output = folder.path().join("initramfs.cpio");
        assert!(matches!(build(&agent, &output), Err(Error::NotElf { .. })));
        assert!(!output.exists());
    }

    #[test]
    fn a_failed_write_leaves_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("initramfs.cpio");
        fs::write(&output, "before").unwrap();
        let disk_full = |file: &mut dyn Write| {
            file.write_all(b"half of it")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        let error = write_atomically(&output, disk_full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&output).unwrap(), b"before");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
