//! Frames: a little-endian `u32` length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The largest body of a frame, in bytes. A container's whole specification has to fit, seccomp filter included.
pub const MAX_BODY: u32 = 4 << 20;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = size_of::<u32>();

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The other side wants to send, or we were asked to send, more than [`MAX_BODY`].
    #[error("frame of {0} bytes is larger than the limit of {MAX_BODY}")]
    TooLarge(u64),
    /// The body is not the JSON of the expected message.
    #[error("frame holds no valid message")]
    Json(#[from] serde_json::Error),
    /// The connection failed, or ended inside a frame.
    #[error("connection failed")]
    Io(#[from] io::Error),
}

/// The bytes of one frame: header and body.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut bytes, message)?;
    let body = bytes.len() - HEADER_LEN;
    let length = u32::try_from(body).ok().filter(|length| *length <= MAX_BODY);
    let length = length.ok_or(FrameError::TooLarge(body as u64))?;
    bytes[..HEADER_LEN].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Takes the first whole frame off the front of `buffer`; `None` if it does not hold one yet.
///
/// For connections that are read without blocking. A header that announces too much is an error at once, so a buffer
/// never has to hold more than [`MAX_BODY`] and a header.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
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
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(())
}

/// Reads one frame, blocking; `None` where the connection ended between frames.
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
    fn a_frame_comes_back_and_the_rest_stays() {
        let mut bytes = encode(&"one").unwrap();
        bytes.extend(encode(&"two").unwrap());
        bytes.truncate(bytes.len() - 1);
        assert_eq!(take::<String>(&mut bytes).unwrap().as_deref(), Some("one"));
        assert_eq!(take::<String>(&mut bytes).unwrap(), None);
        bytes.push(b'"');
        assert_eq!(take::<String>(&mut bytes).unwrap().as_deref(), Some("two"));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_header_that_announces_too_much_is_refused_before_the_body_comes() {
        let mut bytes = (MAX_BODY + 1).to_le_bytes().to_vec();
        assert!(matches!(take::<String>(&mut bytes), Err(FrameError::TooLarge(_))));
        assert!(matches!(read::<String>(&mut bytes.as_slice()), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn the_end_between_frames_is_no_error_but_inside_one_it_is() {
        assert!(read::<String>(&mut [].as_slice()).unwrap().is_none());
        assert!(matches!(read::<String>(&mut [3, 0].as_slice()), Err(FrameError::Io(_))));
        let bytes = encode(&"cut").unwrap();
        assert!(matches!(read::<String>(&mut &bytes[..bytes.len() - 1]), Err(FrameError::Io(_))));
    }

    #[test]
    fn garbage_is_an_error() {
        let mut bytes = vec![2, 0, 0, 0, b'{', b'x'];
        assert!(matches!(take::<String>(&mut bytes), Err(FrameError::Json(_))));
    }
}
