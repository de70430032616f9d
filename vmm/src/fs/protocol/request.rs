//! A request's arguments. They are copied out of guest memory once and parsed from the copy.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::wire::{EXT_GROUPS, ExtHeader, InHeader, aligned};

/// The longest name in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// The longest target of a symbolic link in bytes (`PATH_MAX` without the NUL).
const MAX_TARGET: usize = 4095;

/// A request without its payload.
#[derive(Debug)]
pub(crate) struct Request<'b> {
    /// The request's header.
    pub(crate) header: InHeader,
    /// Whether the request may wait for a disk. If it may not and would have to, it fails with `EAGAIN`.
    pub(crate) may_block: bool,
    args: &'b [u8],
    extensions: &'b [u8],
}

impl<'b> Request<'b> {
    /// A request of `header` and `body`. `EINVAL` if the extensions are longer than the body.
    pub(crate) fn new(header: InHeader, may_block: bool, body: &'b [u8]) -> Result<Self, Errno> {
        let extensions = usize::from(header.total_extlen) * 8;
        let args = body.len().checked_sub(extensions).ok_or(Errno::INVAL)?;
        let (args, extensions) = body.split_at(args);
        Ok(Self { header, may_block, args, extensions })
    }

    /// Consumes a structure from the arguments.
    pub(crate) fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.args).map_err(|_| Errno::INVAL)?;
        self.args = rest;
        Ok(value)
    }

    /// Consumes a file name from the arguments, which is not the last one.
    pub(crate) fn name(&mut self) -> Result<&'b CStr, Errno> {
        checked_name(self.string()?)
    }

    /// Consumes the rest of the arguments as a file name.
    pub(crate) fn last_name(&mut self) -> Result<&'b CStr, Errno> {
        checked_name(self.last_string()?)
    }

    /// Consumes the rest of the arguments as the target of a symbolic link.
    pub(crate) fn target(&mut self) -> Result<&'b CStr, Errno> {
        let target = self.last_string()?;
        match target.count_bytes() {
            0 => Err(Errno::NOENT),
            1..=MAX_TARGET => Ok(target),
            _ => Err(Errno::NAMETOOLONG),
        }
    }

    /// Consumes a string from the arguments, which is not the last one.
    pub(crate) fn string(&mut self) -> Result<&'b CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.args).map_err(|_| Errno::INVAL)?;
        self.args = &self.args[string.count_bytes() + 1..];
        Ok(string)
    }

    /// Consumes the rest of the arguments as a string.
    pub(crate) fn last_string(&mut self) -> Result<&'b CStr, Errno> {
        CStr::from_bytes_with_nul(std::mem::take(&mut self.args)).map_err(|_| Errno::INVAL)
    }

    /// Consumes the rest of the arguments as `size` bytes.
    pub(crate) fn last_bytes(&mut self, size: u32) -> Result<&'b [u8], Errno> {
        let bytes = std::mem::take(&mut self.args);
        if usize::try_from(size) == Ok(bytes.len()) { Ok(bytes) } else { Err(Errno::INVAL) }
    }

    /// The owner of files that the request creates.
    pub(crate) fn owner(&self) -> Result<Owner, Errno> {
        let InHeader { uid, gid, .. } = self.header;
        let supplementary = supplementary_group(self.extensions)?;
        // The host takes -1 as "no change", so the file would belong to root.
        if [Some(uid), Some(gid), supplementary].contains(&Some(u32::MAX)) {
            return Err(Errno::INVAL);
        }
        Ok(Owner { uid, gid, supplementary })
    }
}

/// The owner of a new file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    /// The user id.
    pub(crate) uid: u32,
    /// The group id, unless the parent directory is setgid.
    pub(crate) gid: u32,
    /// The parent directory's group, if it is a supplementary group of the caller.
    pub(crate) supplementary: Option<u32>,
}

impl Owner {
    /// Whether `gid` is a group of the owner.
    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.supplementary == Some(gid)
    }
}

/// Checks that `name` is one path component other than `.` and `..`.
fn checked_name(name: &CStr) -> Result<&CStr, Errno> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

/// The group in a request's extensions. Linux sends at most one.
fn supplementary_group(mut extensions: &[u8]) -> Result<Option<u32>, Errno> {
    while !extensions.is_empty() {
        let (header, body) = ExtHeader::read_from_prefix(extensions).map_err(|_| Errno::INVAL)?;
        let size = usize::try_from(header.size).map_err(|_| Errno::INVAL)?;
        if size < size_of::<ExtHeader>() || size > extensions.len() {
            return Err(Errno::INVAL);
        }
        if header.kind == EXT_GROUPS {
            let (count, groups) = u32::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
            return match count {
                0 => Ok(None),
                _ => u32::read_from_prefix(groups).map(|(group, _)| Some(group)).map_err(|_| Errno::INVAL),
            };
        }
        extensions = extensions.get(aligned(size)..).unwrap_or_default();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<&CStr, Errno> {
        Request::new(InHeader::default(), true, body)?.last_name()
    }

    #[test]
    fn names_are_single_components() {
        assert_eq!(parse(b"file\0"), Ok(c"file"));
        for bad in [&b""[..], b"\0", b".\0", b"..\0", b"/abs\0", b"a/b\0", b"no nul", b"in\0ner\0", b"../x\0"] {
            assert_eq!(parse(bad), Err(Errno::INVAL), "{bad:?}");
        }
        let mut long = vec![b'x'; 256];
        long.push(0);
        assert_eq!(parse(&long), Err(Errno::NAMETOOLONG));
        assert!(parse(&long[1..]).is_ok());
    }

    #[test]
    fn extensions_are_bounded_by_the_body() {
        let header = InHeader { total_extlen: 2, ..InHeader::default() };
        assert!(Request::new(header, true, &[0; 15]).is_err());
        for (size, kind, body) in [(24_u32, EXT_GROUPS, [1_u32, 7]), (0, EXT_GROUPS, [1, 7]), (40, EXT_GROUPS, [1, 7])]
        {
            let mut bytes = Vec::new();
            for word in [size, kind, body[0], body[1], 0, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            let expected = if size == 24 { Ok(Some(7)) } else { Err(Errno::INVAL) };
            assert_eq!(supplementary_group(&bytes), expected);
        }
    }

    #[test]
    fn uid_minus_one_is_rejected() {
        let header = InHeader { uid: u32::MAX, ..InHeader::default() };
        assert_eq!(Request::new(header, true, b"").unwrap().owner(), Err(Errno::INVAL));
    }
}
