//! Reads blobs of an image layout and checks their digests.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, DigestAlgorithm};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::Error;

/// The image specification's recommended limit for a manifest.
const MAX_DOCUMENT: u64 = 4 << 20;

/// A reader that computes the digest of the data.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads the rest and returns the digest of all data, as `sha256:…`.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(sha256_text(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn sha256_text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The path of a blob. The digest's type allows no path separator.
pub(super) fn path(layout: &Path, descriptor: &Descriptor) -> Result<PathBuf, Error> {
    let digest = descriptor.digest();
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(layout.join("blobs/sha256").join(digest.digest())),
        _ => Err(Error::DigestAlgorithm { digest: digest.clone() }),
    }
}

/// Compares the computed digest with the one of a descriptor.
pub(super) fn check_digest(what: &str, expected: &str, found: String) -> Result<(), Error> {
    match expected == found {
        true => Ok(()),
        false => Err(Error::Digest { what: what.into(), expected: expected.into(), found }),
    }
}

/// Reads a JSON document of the layout and checks its digest.
pub(super) fn document<T: DeserializeOwned>(layout: &Path, descriptor: &Descriptor, what: &str) -> Result<T, Error> {
    let bytes = read_bounded(&path(layout, descriptor)?, what)?;
    check_digest(what, descriptor.digest().as_ref(), sha256_text(Sha256::new_with_prefix(&bytes)))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: what.into(), source })
}

/// Reads a JSON file without a descriptor.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T, Error> {
    let bytes = read_bounded(path, what)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: what.into(), source })
}

fn read_bounded(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_DOCUMENT {
        return Err(Error::TooLarge { what: what.into(), size, limit: MAX_DOCUMENT });
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}
