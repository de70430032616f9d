//! Frames: a little-endian `u32` length, then a body of JSON with that many bytes.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Maximum size of a frame's body, in bytes. A container's complete specification has to fit, including its seccomp
/// filter.
pub const MAX_BODY: u32 = 4 << 20;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = size_of::<u32>();

/// A failure to read or write a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A frame to send or to receive is larger than [`MAX_BODY`].
    #[error("frame of {0} bytes is larger than the limit of {MAX_BODY}")]
    TooLarge(u64),
    /// The body is not a valid message.
    #[error("frame holds no valid message")]
    Json(#[from] serde_json::Error),
    /// The connection failed or ended inside a frame.
    #[error("connection failed")]
    Io(#[from] io::Error),
}

/// Encodes a message as one frame: header and body.
///
/// # Errors
///
/// [`FrameError::TooLarge`], [`FrameError::Json`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut bytes, message)?;
    let body = bytes.len() - HEADER_LEN;
    let length = u32::try_from(body).ok().filter(|length| *length <= MAX_BODY);
    let length = length.ok_or(FrameError::TooLarge(body as u64))?;
    bytes[..HEADER_LEN].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Removes the first complete frame from `buffer`. `None` if there is none yet.
///
/// For non-blocking connections. A header with too large a size is an error at once, so a buffer never has to hold more
/// than [`MAX_BODY`] bytes and a header.
///
/// # Errors
///
/// [`FrameError::TooLarge`], [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let length = body_length(*header)?;
    let Some(body) = buffer.get(HEADER_LEN..HEADER_LEN + length) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(body)?;
    buffer.drain(..HEADER_LEN + length);
    Ok(Some(message))
}

/// Writes one frame.
///
/// # Errors
///
/// Every [`FrameError`].
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(())
}

/// Reads one frame; blocks until it is complete. `None` if the connection ended between frames.
///
/// # Errors
///
/// Every [`FrameError`].
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER_LEN];
    if let Err(error) = from.read_exact(&mut header[..1]) {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(None),
            _ => Err(error.into()),
        };
    }
    from.read_exact(&mut header[1..])?;
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

fn body_length(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header);
    if length > MAX_BODY {
        return Err(FrameError::TooLarge(length.into()));
    }
    Ok(length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_is_removed_and_the_rest_of_the_buffer_stays() {
        let mut bytes = encode(&"one").unwrap();
        bytes.extend(encode(&"two").unwrap());
        bytes.truncate(bytes.len() - 1);
        assert_eq!(decode::<String>(&mut bytes).unwrap().as_deref(), Some("one"));
        assert_eq!(decode::<String>(&mut bytes).unwrap(), None);
        bytes.push(b'"');
        assert_eq!(decode::<String>(&mut bytes).unwrap().as_deref(), Some("two"));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_header_with_too_large_a_size_is_refused_before_the_body_arrives() {
        let mut bytes = (MAX_BODY + 1).to_le_bytes().to_vec();
        assert!(matches!(decode::<String>(&mut bytes), Err(FrameError::TooLarge(_))));
        assert!(matches!(read::<String>(&mut bytes.as_slice()), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn the_end_of_the_connection_is_an_error_only_inside_a_frame() {
        assert!(read::<String>(&mut [].as_slice()).unwrap().is_none());
        assert!(matches!(read::<String>(&mut [3, 0].as_slice()), Err(FrameError::Io(_))));
        let bytes = encode(&"cut").unwrap();
        assert!(matches!(read::<String>(&mut &bytes[..bytes.len() - 1]), Err(FrameError::Io(_))));
    }

    #[test]
    fn invalid_json_is_an_error() {
        let mut bytes = vec![2, 0, 0, 0, b'{', b'x'];
        assert!(matches!(decode::<String>(&mut bytes), Err(FrameError::Json(_))));
    }
}
