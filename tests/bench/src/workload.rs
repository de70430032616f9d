//! File system workloads. The same code runs on the host and in each guest.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::start::run;

/// Size of the file that is read and written, in bytes.
const FILE_SIZE: u64 = 64 << 20;

/// Size of a sequential request, in bytes.
const BLOCK: usize = 1 << 20;

/// Number and size of random reads.
const RANDOM_READS: u64 = 2000;
const PAGE: usize = 4096;

/// One thing to do with a file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Workload {
    /// Write a new file, 1 MiB at a time
    SeqWrite,
    /// Read the file, 1 MiB at a time
    SeqRead,
    /// Read 4 KiB at random places of the file
    RandomRead,
    /// Walk a Debian root file system and stat every file (`find`)
    Find,
    /// Unpack a Debian root file system
    Untar,
}

impl Workload {
    /// All workloads, in the order in which they must run: the first makes the file that the next two read.
    pub const ALL: [Self; 5] = [Self::SeqWrite, Self::SeqRead, Self::RandomRead, Self::Find, Self::Untar];

    /// The name in the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::SeqWrite => "sequential write, 1 MiB",
            Self::SeqRead => "sequential read, 1 MiB",
            Self::RandomRead => "random read, 4 KiB",
            Self::Find => "find in a Debian rootfs",
            Self::Untar => "untar of a Debian rootfs",
        }
    }

    /// Runs the workload once in `directory`, which contains `debian/` and `debian.tar`, and returns its duration.
    pub fn time(self, directory: &Path) -> Result<Duration, BenchError> {
        let file = directory.join("file");
        let begun = Instant::now();
        match self {
            Self::SeqWrite => sequential_write(&file).map_err(BenchError::io("write", &file))?,
            Self::SeqRead => sequential_read(&file).map_err(BenchError::io("read", &file))?,
            Self::RandomRead => random_read(&file).map_err(BenchError::io("read", &file))?,
            Self::Find => {
                let root = directory.join("debian");
                walk(&root).map_err(BenchError::io("walk", &root))?;
            }
            Self::Untar => untar(directory)?,
        }
        Ok(begun.elapsed())
    }
}

fn sequential_write(path: &Path) -> std::io::Result<()> {
    let block = vec![0x5a; BLOCK];
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    for _ in 0..FILE_SIZE / BLOCK as u64 {
        file.write_all(&block)?;
    }
    Ok(())
}

fn sequential_read(path: &Path) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut file = File::open(path)?;
    while file.read(&mut block)? > 0 {}
    Ok(())
}

fn random_read(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let mut page = [0; PAGE];
    let mut place = 1_u64;
    for _ in 0..RANDOM_READS {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.read_exact_at(&mut page, (place >> 20) % (FILE_SIZE / PAGE as u64) * PAGE as u64)?;
    }
    Ok(())
}

/// Stats every file below `root`, and returns their number.
fn walk(root: &Path) -> std::io::Result<u64> {
    let mut files = 0;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        files += 1;
        if fs::symlink_metadata(entry.path())?.is_dir() {
            files += walk(&entry.path())?;
        }
    }
    Ok(files)
}

/// Unpacks with the static busybox beside the archive, so that every guest uses the same program.
fn untar(directory: &Path) -> Result<(), BenchError> {
    let target = directory.join("unpacked");
    fs::create_dir_all(&target).map_err(BenchError::io("create", &target))?;
    let mut command = Command::new(directory.join("busybox"));
    run(command.args(["tar", "-xf"]).arg(directory.join("debian.tar")).arg("-C").arg(target)).map(drop)
}
