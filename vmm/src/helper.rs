//! The protocol between the VMM and the helper: the process outside the jail that does what the jail forbids. The runtime starts one
//! for each sandbox.
//!
//! Two connections of type `SOCK_SEQPACKET` carry one message a packet. No message has a path or a command. The helper trusts
//! nothing that it receives: the VMM may have been taken over.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

use crate::control::SCM_MAX_FD;

/// Longest name of a file in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// Length of the fixed part of [`MakeNode`]'s message in bytes: five numbers of 32 bits.
const NODE_FIELDS: usize = 5 * 4;

/// Something to be done outside the jail. Both the request and its answer are one packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Task {
    /// Make the host count an OOM kill in the VMM's cgroup.
    CountOomKill = 1,
    /// Give the guest the current interfaces of the VMM's network namespace.
    UpdateInterfaces = 2,
}

impl Task {
    fn of(byte: u8) -> Option<Self> {
        [Self::CountOomKill, Self::UpdateInterfaces].into_iter().find(|task| *task as u8 == byte)
    }
}

/// The answer to a [`Task`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskResult {
    /// The task.
    pub task: Task,
    /// Whether it was done. The helper has logged why not.
    pub is_done: bool,
}

/// Creates the two connected ends of a connection between VMM and helper.
///
/// # Errors
/// No file descriptor is left.
pub fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends a task without waiting.
///
/// # Errors
/// The helper has ended, or does not read.
pub fn send_task(connection: BorrowedFd<'_>, task: Task) -> io::Result<()> {
    send(connection, &[task as u8], MsgFlags::MSG_DONTWAIT)
}

/// Waits for a task; `None` at the end of the VMM.
///
/// # Errors
/// The message is malformed, or the socket failed.
pub fn receive_task(connection: BorrowedFd<'_>) -> io::Result<Option<Task>> {
    let mut message = [0; 2];
    match receive(connection, &mut message, MsgFlags::empty())? {
        0 => Ok(None),
        1 => Task::of(message[0]).map(Some).ok_or_else(malformed),
        _ => Err(malformed()),
    }
}

/// Answers a task.
///
/// # Errors
/// The VMM has ended.
pub fn send_result(connection: BorrowedFd<'_>, result: TaskResult) -> io::Result<()> {
    send(connection, &[result.task as u8, result.is_done.into()], MsgFlags::MSG_DONTWAIT)
}

/// Receives the answer to a task without waiting; `None` at the end of the helper.
///
/// # Errors
/// The message is malformed, or there is none (`WouldBlock`).
pub fn receive_result(connection: BorrowedFd<'_>) -> io::Result<Option<TaskResult>> {
    let mut message = [0; 3];
    match receive(connection, &mut message, MsgFlags::MSG_DONTWAIT)? {
        0 => Ok(None),
        2 => {
            let task = Task::of(message[0]).ok_or_else(malformed)?;
            Ok(Some(TaskResult { task, is_done: message[1] == 1 }))
        }
        _ => Err(malformed()),
    }
}

/// A device node to be created in a directory of a share, whose descriptor is passed with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MakeNode {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: u32,
    /// Type and permissions, as for `mknod(2)`.
    pub mode: u32,
    /// The device, as Linux encodes it in 32 bits (`new_encode_dev`).
    pub device: u32,
    /// Its name: a single component.
    pub name: Vec<u8>,
}

/// The device that Linux encodes in 32 bits as `encoded` (`new_decode_dev`), as FUSE and [`MakeNode`] have it.
#[must_use]
pub fn decode_device(encoded: u32) -> u64 {
    rustix::fs::makedev((encoded >> 8) & 0xfff, (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00))
}

impl MakeNode {
    /// Has the helper create the node in `directory`, and waits for it.
    ///
    /// # Errors
    /// The error of `mknod(2)`; `EIO` if the helper has ended.
    pub fn call(&self, connection: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let fields = [self.uid, self.gid, self.umask, self.mode, self.device];
        let fields: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
        let descriptors = [directory.as_raw_fd()];
        let message = [IoSlice::new(&fields), IoSlice::new(&self.name)];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(connection.as_raw_fd(), &message, &rights, MsgFlags::MSG_NOSIGNAL, None).or(Err(Errno::EIO))?;
        let mut answer = [0; 4];
        match receive(connection, &mut answer, MsgFlags::empty()) {
            Ok(4) if answer == [0; 4] => Ok(()),
            Ok(4) => Err(Errno::from_raw(i32::from_le_bytes(answer))),
            _ => Err(Errno::EIO),
        }
    }

    /// Waits for a request, and returns it with the directory; `None` at the end of the VMM.
    ///
    /// # Errors
    /// The message is malformed, or the socket failed.
    pub fn receive(connection: BorrowedFd<'_>) -> io::Result<Option<(Self, OwnedFd)>> {
        let mut message = [0; NODE_FIELDS + NAME_MAX + 1];
        let mut space = cmsg_space!([i32; SCM_MAX_FD]);
        let mut slices = [IoSliceMut::new(&mut message)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let (length, directory) = (received.bytes, received.cmsgs()?.find_map(owned_descriptor));
        if length == 0 && directory.is_none() {
            return Ok(None);
        }
        let request = Self::parse(&message[..length]).zip(directory);
        request.map(Some).ok_or_else(malformed)
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let (fields, name) = message.split_at_checked(NODE_FIELDS)?;
        let number = |index: usize| Some(u32::from_le_bytes(*fields.get(4 * index..)?.first_chunk()?));
        let is_component = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        (is_component && name.len() <= NAME_MAX).then_some(())?;
        let (uid, gid, umask) = (number(0)?, number(1)?, number(2)?);
        Some(Self { uid, gid, umask, mode: number(3)?, device: number(4)?, name: name.to_vec() })
    }
}

/// Answers [`MakeNode`].
///
/// # Errors
/// The VMM has ended.
pub fn send_errno(connection: BorrowedFd<'_>, result: Result<(), Errno>) -> io::Result<()> {
    let errno = result.map_or_else(|errno| errno as i32, |()| 0);
    send(connection, &errno.to_le_bytes(), MsgFlags::empty())
}

/// The descriptor in a control message. Any others are closed.
fn owned_descriptor(message: ControlMessageOwned) -> Option<OwnedFd> {
    let ControlMessageOwned::ScmRights(descriptors) = message else { return None };
    // SAFETY: the kernel has just created these descriptors for this process, and nothing else owns them.
    let mut owned = descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect::<Vec<_>>();
    owned.truncate(1);
    owned.pop()
}

fn send(connection: BorrowedFd<'_>, message: &[u8], flags: MsgFlags) -> io::Result<()> {
    nix::sys::socket::send(connection.as_raw_fd(), message, flags | MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

fn receive(connection: BorrowedFd<'_>, message: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    loop {
        match nix::sys::socket::recv(connection.as_raw_fd(), message, flags) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed message")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn tasks_and_their_results_are_exchanged() {
        let (vmm, helper) = connection().unwrap();
        send_task(vmm.as_fd(), Task::UpdateInterfaces).unwrap();
        assert_eq!(receive_task(helper.as_fd()).unwrap(), Some(Task::UpdateInterfaces));
        assert_eq!(receive_result(vmm.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let result = TaskResult { task: Task::UpdateInterfaces, is_done: true };
        send_result(helper.as_fd(), result).unwrap();
        assert_eq!(receive_result(vmm.as_fd()).unwrap(), Some(result));
        for malformed in [&[0_u8][..], &[3], &[1, 1]] {
            send(vmm.as_fd(), malformed, MsgFlags::empty()).unwrap();
            assert!(receive_task(helper.as_fd()).is_err(), "{malformed:?}");
        }
        drop(vmm);
        assert_eq!(receive_task(helper.as_fd()).unwrap(), None);
    }

    #[test]
    fn a_node_is_requested_with_its_directory() {
        let (vmm, helper) = connection().unwrap();
        let node = MakeNode { uid: 1, gid: 2, umask: 0o22, mode: 0o20_666, device: 0x103, name: b"null".to_vec() };
        let sent = node.clone();
        let server = std::thread::spawn(move || {
            let (received, directory) = MakeNode::receive(helper.as_fd()).unwrap().unwrap();
            assert_eq!(received, sent);
            assert!(rustix::fs::fstat(directory).is_ok());
            send_errno(helper.as_fd(), Err(Errno::EEXIST)).unwrap();
            drop(helper);
        });
        let directory = std::fs::File::open("/").unwrap();
        assert_eq!(node.call(vmm.as_fd(), directory.as_fd()), Err(Errno::EEXIST));
        server.join().unwrap();
        assert_eq!(node.call(vmm.as_fd(), directory.as_fd()), Err(Errno::EIO));
    }

    #[test]
    fn only_the_first_descriptor_of_a_message_is_kept() {
        let (vmm, helper) = connection().unwrap();
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        for (message, is_request) in [(vec![b'x'; NODE_FIELDS + 1], true), (vec![0], false)] {
            let descriptors = [writer.as_raw_fd(); SCM_MAX_FD];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<()>(vmm.as_raw_fd(), &[IoSlice::new(&message)], &rights, MsgFlags::empty(), None).unwrap();
            assert_eq!(MakeNode::receive(helper.as_fd()).is_ok(), is_request, "{message:?}");
        }
        drop(writer);
        reader.set_nonblocking(true).unwrap();
        assert_eq!(std::io::Read::read(&mut &reader, &mut [0]).unwrap(), 0, "a descriptor is still open");
    }

    #[test]
    fn a_name_that_is_no_component_is_malformed() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            let message = [&[0; NODE_FIELDS][..], name].concat();
            assert_eq!(MakeNode::parse(&message), None, "{name:?}");
        }
        assert!(MakeNode::parse(&[0; NODE_FIELDS - 1]).is_none());
        assert!(MakeNode::parse(&[&[0; NODE_FIELDS][..], &[b'x'; 255]].concat()).is_some());
    }
}
