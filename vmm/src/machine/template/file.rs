//! The file of a template.
//!
//! ```text
//! 0         magic number, format version, length and CRC-32 of the state, CRC-32 of the memory (little-endian)
//! 0x1000    the state in JSON
//! 0x200000  the machine's memory, as in the machine; what was never written is a hole
//! ```
//!
//! A start checks all but the memory. The checksum of the memory is that of its data without holes, and is written last, by
//! [`seal`]. Before, the file is no template.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use thiserror::Error;

use super::MachineState;

const MAGIC: [u8; 8] = *b"vmrttmpl";

/// Version of the format. A change of the state's fields or of what they mean changes it.
const VERSION: u32 = 1;

const HEADER_LENGTH: usize = 24;

/// Offset of the memory's checksum in the file in bytes.
const MEMORY_CHECKSUM: u64 = 20;
const STATE_OFFSET: u64 = 0x1000;
const PAGE: usize = 0x1000;

/// Offset of the memory in the file in bytes: a huge page, so that addresses of file and guest agree modulo its size.
pub(in crate::machine) const MEMORY_OFFSET: u64 = 2 << 20;

/// A template that is open, with its state.
#[derive(Debug)]
pub struct Template {
    /// The file.
    pub file: File,
    /// The state of the machine.
    pub state: Box<MachineState>,
    memory_checksum: u32,
}

/// Why a template cannot be written or used.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The file cannot be read or written.
    #[error("cannot {0} the template")]
    Io(&'static str, #[source] io::Error),
    /// The file does not begin like a template.
    #[error("the file is no template")]
    NotATemplate,
    /// The format is of another version.
    #[error("the template has format {0}, not {VERSION}")]
    Version(u32),
    /// The file ends early, or is longer than its memory.
    #[error("the template has {actual} bytes, not {expected}")]
    Length {
        /// The length in bytes.
        actual: u64,
        /// The length that follows from the size of the memory.
        expected: u64,
    },
    /// The state is longer than its part of the file.
    #[error("the template's state would have {0} bytes")]
    StateLength(usize),
    /// A part was damaged.
    #[error("the checksum of the template's {0} is wrong")]
    Checksum(&'static str),
    /// The state cannot be parsed.
    #[error("cannot parse the template's state")]
    State(#[source] serde_json::Error),
    /// The template is of a machine of another kind.
    #[error("the template is of a machine with another {0}")]
    Shape(&'static str),
}

impl Template {
    /// Reads and checks the state of the template in `file`. Its memory is not read.
    ///
    /// # Errors
    /// The file cannot be read, or is not a whole template of this version.
    pub fn open(file: File) -> Result<Self, TemplateError> {
        let mut header = [0; HEADER_LENGTH];
        file.read_exact_at(&mut header, 0).map_err(read_error)?;
        let (magic, fields) = header.split_at(MAGIC.len());
        let field = |index: usize| u32::from_le_bytes(fields[4 * index..][..4].try_into().expect("four bytes"));
        if magic != MAGIC {
            return Err(TemplateError::NotATemplate);
        }
        let (version, length, checksum, memory_checksum) = (field(0), field(1) as usize, field(2), field(3));
        if version != VERSION {
            return Err(TemplateError::Version(version));
        }
        check_state_length(length)?;
        let mut text = vec![0; length];
        file.read_exact_at(&mut text, STATE_OFFSET).map_err(read_error)?;
        if crc32fast::hash(&text) != checksum {
            return Err(TemplateError::Checksum("state"));
        }
        let state: Box<MachineState> = serde_json::from_slice(&text).map_err(TemplateError::State)?;
        let actual = file.metadata().map_err(|error| TemplateError::Io("examine", error))?.len();
        let expected = MEMORY_OFFSET.saturating_add(state.shape.memory_size);
        if actual != expected {
            Err(TemplateError::Length { actual, expected })
        } else {
            Ok(Self { file, state, memory_checksum })
        }
    }

    /// Checks the memory.
    ///
    /// # Errors
    /// It cannot be read, or was damaged.
    pub fn verify(&self) -> Result<(), TemplateError> {
        let checksum = checksum_memory(&self.file)?;
        if checksum == self.memory_checksum { Ok(()) } else { Err(TemplateError::Checksum("memory")) }
    }
}

/// Makes a template of a file to which a VMM has saved its machine.
///
/// # Errors
/// The file cannot be read or written, or a VMM has not saved its machine to it.
pub fn seal(file: &File) -> Result<(), TemplateError> {
    let checksum = checksum_memory(file)?;
    let write_error = |error| TemplateError::Io("write", error);
    file.write_all_at(&checksum.to_le_bytes(), MEMORY_CHECKSUM).map_err(write_error)?;
    file.write_all_at(&MAGIC, 0).map_err(write_error)
}

/// The checksum of the memory's data. Pages of zeros count as holes, because a copy of the file may have them as such.
fn checksum_memory(file: &File) -> Result<u32, TemplateError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut page = vec![0; PAGE];
    let mut offset = MEMORY_OFFSET;
    while let Some(data) = next_data(file, offset)? {
        offset = data - data % PAGE as u64;
        file.read_exact_at(&mut page, offset).map_err(read_error)?;
        if page.iter().any(|byte| *byte != 0) {
            hasher.update(&offset.to_le_bytes());
            hasher.update(&page);
        }
        offset += PAGE as u64;
    }
    Ok(hasher.finalize())
}

/// The offset of the first data at or after `offset`.
fn next_data(file: &File, offset: u64) -> Result<Option<u64>, TemplateError> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(TemplateError::Io("read", error.into())),
    }
}

/// Writes `state` to a file that has the machine's memory. [`seal`] makes a template of it.
///
/// # Errors
/// The state is too long, or the file cannot be written.
pub fn write_state(file: &File, state: &MachineState) -> Result<(), TemplateError> {
    let text = serde_json::to_vec(state).map_err(TemplateError::State)?;
    check_state_length(text.len())?;
    let write_error = |error| TemplateError::Io("write", error);
    file.write_all_at(&text, STATE_OFFSET).map_err(write_error)?;
    let length = u32::try_from(text.len()).map_err(|_| TemplateError::StateLength(text.len()))?;
    let fields: Vec<u8> = [VERSION, length, crc32fast::hash(&text)].into_iter().flat_map(u32::to_le_bytes).collect();
    file.write_all_at(&fields, MAGIC.len() as u64).map_err(write_error)
}

fn check_state_length(length: usize) -> Result<(), TemplateError> {
    let fits = length as u64 <= MEMORY_OFFSET - STATE_OFFSET;
    if fits { Ok(()) } else { Err(TemplateError::StateLength(length)) }
}

fn read_error(error: io::Error) -> TemplateError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TemplateError::NotATemplate,
        _ => TemplateError::Io("read", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 20;

    /// The file of a machine with some memory, after its VMM has saved it.
    fn saved() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY_OFFSET + MEMORY).unwrap();
        file.write_all_at(&[7; 3], MEMORY_OFFSET + 5 * PAGE as u64).unwrap();
        let mut state = MachineState::default();
        state.shape.memory_size = MEMORY;
        write_state(&file, &state).unwrap();
        file
    }

    fn sealed() -> File {
        let file = saved();
        seal(&file).unwrap();
        file
    }

    /// The error of a template after a change of its file.
    fn error(change: impl FnOnce(&File)) -> String {
        let file = sealed();
        change(&file);
        Template::open(file).unwrap_err().to_string()
    }

    #[test]
    fn a_sealed_file_is_a_template() {
        let template = Template::open(sealed()).unwrap();
        assert_eq!(template.state.shape.memory_size, MEMORY);
        template.verify().unwrap();
    }

    #[test]
    fn a_file_that_is_not_sealed_is_no_template() {
        assert!(matches!(Template::open(saved()), Err(TemplateError::NotATemplate)));
        assert!(matches!(Template::open(tempfile::tempfile().unwrap()), Err(TemplateError::NotATemplate)));
    }

    #[test]
    fn damage_is_found() {
        assert_eq!(error(|file| file.write_all_at(b"x", 0).unwrap()), "the file is no template");
        assert_eq!(error(|file| file.write_all_at(&[9], 8).unwrap()), "the template has format 9, not 1");
        assert_eq!(
            error(|file| file.write_all_at(&u32::MAX.to_le_bytes(), 12).unwrap()),
            "the template's state would have 4294967295 bytes"
        );
        let checksum = "the checksum of the template's state is wrong";
        assert_eq!(error(|file| file.write_all_at(b"x", STATE_OFFSET + 9).unwrap()), checksum);
        assert_eq!(
            error(|file| file.set_len(MEMORY_OFFSET + MEMORY - 1).unwrap()),
            "the template has 3145727 bytes, not 3145728"
        );
        assert_eq!(error(|file| file.set_len(STATE_OFFSET).unwrap()), "the file is no template");
    }

    #[test]
    fn damaged_memory_is_found_when_it_is_verified() {
        let file = sealed();
        file.write_all_at(&[0; PAGE], MEMORY_OFFSET).unwrap();
        Template::open(file.try_clone().unwrap()).unwrap().verify().unwrap();
        file.write_all_at(&[8], MEMORY_OFFSET + 5 * PAGE as u64 + 1).unwrap();
        let error = Template::open(file).unwrap().verify().unwrap_err();
        assert_eq!(error.to_string(), "the checksum of the template's memory is wrong");
    }
}
