//! A client that makes requests of bytes. Node ids, handles and sizes are those of earlier replies unless the input says otherwise.

use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, IntoBytes};

use super::{Host, SECRET};
use crate::fs::protocol::buffers::Buffers;
use crate::fs::protocol::wire::*;
use crate::fs::server::Server;
use crate::fs::worker::Worker;
use crate::virtio::fuzz::Input;

/// The form of an operation's arguments.
#[derive(Clone, Copy, Default)]
struct Form {
    opcode: u32,
    /// Length of the structure in bytes.
    length: usize,
    /// Offset of a handle.
    handle: Option<usize>,
    /// Offset of a second node id, and of a second handle.
    other_node: Option<usize>,
    other_handle: Option<usize>,
    /// The number of names after the structure.
    names: u8,
    /// Offset of the 32-bit length of the data after the names.
    size: Option<usize>,
}

const fn form(opcode: u32, length: usize, names: u8) -> Form {
    Form { opcode, length, names, handle: None, other_node: None, other_handle: None, size: None }
}

const fn of_handle(opcode: u32, length: usize, offset: usize) -> Form {
    Form { handle: Some(offset), ..form(opcode, length, 0) }
}

/// The operations. A step of the input is an index.
const FORMS: [Form; 43] = [
    form(op::LOOKUP, 0, 1),
    of_handle(op::GETATTR, size_of::<GetattrIn>(), 8),
    form(op::OPEN, size_of::<OpenIn>(), 0),
    of_handle(op::READ, size_of::<ReadIn>(), 0),
    Form { size: Some(16), ..of_handle(op::WRITE, size_of::<WriteIn>(), 0) },
    form(op::CREATE, size_of::<CreateIn>(), 1),
    form(op::OPENDIR, size_of::<OpenIn>(), 0),
    of_handle(op::READDIR, size_of::<ReadIn>(), 0),
    of_handle(op::READDIRPLUS, size_of::<ReadIn>(), 0),
    of_handle(op::RELEASE, size_of::<ReleaseIn>(), 0),
    of_handle(op::RELEASEDIR, size_of::<ReleaseIn>(), 0),
    form(op::FORGET, size_of::<ForgetIn>(), 0),
    of_handle(op::SETATTR, size_of::<SetattrIn>(), 8),
    form(op::MKDIR, size_of::<MkdirIn>(), 1),
    form(op::MKNOD, size_of::<MknodIn>(), 1),
    form(op::SYMLINK, 0, 2),
    form(op::READLINK, 0, 0),
    Form { other_node: Some(0), ..form(op::LINK, size_of::<LinkIn>(), 1) },
    form(op::UNLINK, 0, 1),
    form(op::RMDIR, 0, 1),
    Form { other_node: Some(0), ..form(op::RENAME, size_of::<RenameIn>(), 2) },
    Form { other_node: Some(0), ..form(op::RENAME2, size_of::<Rename2In>(), 2) },
    form(op::TMPFILE, size_of::<CreateIn>(), 1),
    Form { size: Some(0), ..form(op::SETXATTR, size_of::<SetxattrIn>(), 1) },
    form(op::GETXATTR, size_of::<GetxattrIn>(), 1),
    form(op::LISTXATTR, size_of::<GetxattrIn>(), 0),
    form(op::REMOVEXATTR, 0, 1),
    form(op::STATFS, 0, 0),
    of_handle(op::FSYNC, size_of::<FsyncIn>(), 0),
    of_handle(op::FSYNCDIR, size_of::<FsyncIn>(), 0),
    of_handle(op::FALLOCATE, size_of::<FallocateIn>(), 0),
    of_handle(op::LSEEK, size_of::<LseekIn>(), 0),
    Form {
        other_node: Some(16),
        other_handle: Some(24),
        ..of_handle(op::COPY_FILE_RANGE, size_of::<CopyFileRangeIn>(), 0)
    },
    of_handle(op::STATX, size_of::<StatxIn>(), 8),
    form(op::SYNCFS, 8, 0),
    form(op::BATCH_FORGET, size_of::<BatchForgetIn>() + 2 * size_of::<ForgetOne>(), 0),
    form(op::INTERRUPT, 8, 0),
    form(op::INIT, 64, 0),
    form(op::DESTROY, 0, 0),
    form(31, 8, 1),
    form(0, 0, 0),
    form(0x1000, 8, 0),
    form(u32::MAX, 16, 0),
];

const LONGEST: [u8; 255] = [b'n'; 255];

/// Names that a request chooses from.
const NAMES: [&[u8]; 24] = [
    b"c",
    b"share",
    b"fixed",
    b"a",
    b"d",
    b"link",
    b"up",
    b"new",
    b"other",
    b".",
    b"..",
    b"",
    b"a/b",
    b"/",
    b"../outside",
    &LONGEST,
    b"user.a",
    b"user.b",
    b"security.capability",
    b"trusted.a",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"../outside/secret",
    b"share/d",
];

/// Flags of a request in the input.
mod wrong {
    pub(super) const NODE: u8 = 1;
    pub(super) const HANDLE: u8 = 1 << 1;
    pub(super) const LENGTH: u8 = 1 << 2;
    pub(super) const CALLER: u8 = 1 << 3;
    pub(super) const EXTENSIONS: u8 = 1 << 4;
    pub(super) const SPACE: u8 = 1 << 5;
    pub(super) const CUT: u8 = 1 << 6;
    pub(super) const NONBLOCKING: u8 = 1 << 7;
}

pub(super) struct Client {
    server: Server,
    worker: Worker,
    nodes: Vec<u64>,
    handles: Vec<u64>,
    unique: u64,
    space: Vec<u8>,
}

impl Client {
    /// A client with a session.
    pub(super) fn new(server: Server) -> Self {
        let worker = Worker::for_current_thread(server.proc_fds()).expect("the privileges of a file server");
        let (nodes, handles) = (vec![ROOT_ID], Vec::new());
        let mut client = Self { server, worker, nodes, handles, unique: 0, space: vec![0; 64 << 10] };
        let init = InitIn { major: MAJOR, minor: MINOR, max_readahead: 1 << 17, flags: u32::MAX };
        let body = [init.as_bytes(), &[0xff; 4], &[0; 44]].concat();
        client.send(InHeader { opcode: op::INIT, ..InHeader::default() }, &body, 0);
        client
    }

    /// Continues with a server that has the saved state of this one. If the state has a file without a path, the server stays.
    pub(super) fn restore(&mut self, host: &Host) {
        let saved = serde_json::to_string(&self.server.save()).expect("a state is written");
        let state = serde_json::from_str(&saved).expect("and read again");
        let server = host.server().expect("procfs");
        if server.restore(&state).is_ok() {
            self.server = server;
        }
    }

    /// Sends the request `step` with arguments of the input.
    pub(super) fn request(&mut self, step: u8, input: &mut Input<'_>) {
        let form = FORMS[usize::from(step) % FORMS.len()];
        let [mistakes, node] = input.array();
        let nodeid = if mistakes & wrong::NODE == 0 { pick(&self.nodes, node) } else { input.u64() };
        let mut body = self.arguments(form, mistakes, input);
        let mut header = InHeader { opcode: form.opcode, nodeid, ..InHeader::default() };
        if mistakes & wrong::CALLER != 0 {
            (header.uid, header.gid) = (input.u32(), input.u32());
        }
        if mistakes & wrong::EXTENSIONS != 0 {
            header.total_extlen = u16::from(input.u8() % 8);
            body.extend(input.bytes(usize::from(header.total_extlen) * 8));
        }
        if mistakes & wrong::CUT != 0 {
            body.truncate(usize::from(input.u8()));
        }
        let claimed = if mistakes & wrong::LENGTH == 0 { 0 } else { input.u32() };
        self.space.resize(if mistakes & wrong::SPACE == 0 { 64 << 10 } else { usize::from(input.u8()) }, 0);
        header.len = claimed;
        if let Some(reply) = self.send(header, &body, mistakes) {
            self.learn(form.opcode, &reply);
        }
    }

    /// The arguments of an operation.
    fn arguments(&self, form: Form, mistakes: u8, input: &mut Input<'_>) -> Vec<u8> {
        let mut body = vec![0; form.length];
        if mistakes & wrong::HANDLE == 0 {
            put(&mut body, form.handle, &pick(&self.handles, input.u8()).to_le_bytes());
            put(&mut body, form.other_handle, &pick(&self.handles, input.u8()).to_le_bytes());
            put(&mut body, form.other_node, &pick(&self.nodes, input.u8()).to_le_bytes());
        }
        // The rest of the structure comes from the input. All its bytes do if the ids are wrong.
        let known = [form.handle, form.other_handle, form.other_node].into_iter().flatten();
        let known: Vec<usize> = known.filter(|_| mistakes & wrong::HANDLE == 0).collect();
        let count = usize::from(input.u8());
        let values = input.bytes(count);
        let free = (0..body.len()).filter(|at| known.iter().all(|start| !(*start..start + 8).contains(at)));
        for (at, value) in free.collect::<Vec<_>>().into_iter().zip(values) {
            body[at] = *value;
        }
        for _ in 0..form.names {
            body.extend(NAMES[usize::from(input.u8()) % NAMES.len()]);
            body.push(0);
        }
        if form.size.is_some() {
            let length = u32::from(input.u16() % 0x2000);
            put(&mut body, form.size, &length.to_le_bytes());
            body.resize(body.len() + length as usize, step_value(values));
        }
        body
    }

    /// Sends a request, whose length is right if the header has none. Returns the body of a successful reply.
    fn send(&mut self, mut header: InHeader, body: &[u8], mistakes: u8) -> Option<Vec<u8>> {
        self.unique += 1;
        header.unique = self.unique;
        if header.len == 0 {
            header.len = u32::try_from(IN_HEADER + body.len()).expect("short");
        }
        let mut parts = [header.as_bytes().to_vec(), body.to_vec()];
        let request: Buffers<'_> = parts.iter_mut().map(|part| VolatileSlice::from(&mut part[..])).collect();
        let reply: Buffers<'_> = std::iter::once(VolatileSlice::from(&mut self.space[..])).collect();
        let length = if mistakes & wrong::NONBLOCKING == 0 {
            self.server.handle(&mut self.worker, request, reply)
        } else {
            self.server.handle_nonblocking(&mut self.worker, request, reply).unwrap_or(0)
        };
        if length == 0 {
            return None;
        }
        let (out, _) = OutHeader::read_from_prefix(&self.space).expect("a reply has a header");
        assert_eq!((out.unique, out.len as usize), (header.unique, length));
        assert!((-4095..=0).contains(&out.error), "error {}", out.error);
        let body = &self.space[OUT_HEADER..length];
        assert!(!body.windows(SECRET.len()).any(|bytes| bytes == SECRET), "a reply has what is not shared");
        (out.error == 0).then(|| body.to_vec())
    }

    /// Remembers the ids of a reply.
    fn learn(&mut self, opcode: u32, reply: &[u8]) {
        let mut rest = reply;
        if matches!(
            opcode,
            op::LOOKUP | op::MKNOD | op::MKDIR | op::SYMLINK | op::LINK | op::CREATE | op::TMPFILE | op::READDIRPLUS
        ) && let Ok((entry, after)) = EntryOut::read_from_prefix(rest)
        {
            self.nodes.push(entry.nodeid);
            rest = after;
        }
        if matches!(opcode, op::OPEN | op::OPENDIR | op::CREATE | op::TMPFILE)
            && let Ok((open, _)) = OpenOut::read_from_prefix(rest)
        {
            self.handles.push(open.fh);
        }
    }
}

/// The byte that the data of a request consist of.
fn step_value(values: &[u8]) -> u8 {
    values.last().copied().unwrap_or(1)
}

fn put(body: &mut [u8], offset: Option<usize>, bytes: &[u8]) {
    if let Some(offset) = offset {
        body[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// One of the known ids, the last of which has index 0. 0 if none is known.
fn pick(ids: &[u64], index: u8) -> u64 {
    if ids.is_empty() { 0 } else { ids[ids.len() - 1 - usize::from(index) % ids.len()] }
}
