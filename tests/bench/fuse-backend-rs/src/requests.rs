//! The requests, and the parts of the replies that later requests need.

use std::fs;
use std::path::Path;

use crate::Backend;

/// The measured requests, in the order of [`Session::round`].
pub const TITLES: [&str; 13] = [
    "LOOKUP, new",
    "LOOKUP, known",
    "GETATTR",
    "OPEN and RELEASE",
    "READ 4 KiB",
    "READ 1 MiB",
    "WRITE 4 KiB",
    "WRITE 1 MiB",
    "CREATE and RELEASE as root",
    "CREATE and RELEASE as uid 1000",
    "UNLINK",
    "OPENDIR, READDIRPLUS of 200, RELEASEDIR, known",
    "OPENDIR, READDIRPLUS of 200, RELEASEDIR, new",
];

const FILES: usize = 200;
const MIB: usize = 1 << 20;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const UNLINK: u32 = 10;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const CREATE: u32 = 35;
const READDIRPLUS: u32 = 44;

/// Fills the directory.
pub fn prepare(directory: &Path) -> std::io::Result<()> {
    fs::create_dir(directory.join("many"))?;
    for number in 0..FILES {
        fs::write(directory.join("many").join(file_name(number)), "text")?;
    }
    fs::create_dir(directory.join("made"))?;
    fs::write(directory.join("data"), vec![7; 16 * MIB])
}

fn file_name(number: usize) -> String {
    format!("file-{number}")
}

/// A server with an initialized session.
pub struct Session {
    backend: Box<dyn Backend>,
    unique: u64,
    uid: u32,
    reply: Vec<u8>,
    root: u64,
}

impl Session {
    pub fn begin(backend: Box<dyn Backend>) -> Self {
        let mut session = Self { backend, unique: 0, uid: 0, reply: Vec::new(), root: 1 };
        let mut init = words(&[7, 38, 1 << 17, 0xffff_ffff, 0xffff_ffff]);
        init.resize(64, 0);
        session.call(INIT, 0, &init, 64);
        for name in session.backend.root_path() {
            session.root = session.look_up(session.root, name).0;
        }
        session
    }

    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// Makes a request and returns its duration in nanoseconds. Panics if the reply is an error.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> u64 {
        self.unique += 1;
        let length = u32::try_from(40 + body.len()).expect("short");
        let mut request = words(&[length, opcode]);
        request.extend(longs(&[self.unique, node]));
        request.extend(words(&[self.uid, self.uid, 1, 0]));
        request.extend(body);
        let time = self.backend.call(&request, room, &mut self.reply);
        let error = self.reply.get(4..8).map_or(0, |word| i32::from_ne_bytes(word.try_into().expect("four")));
        assert_eq!(error, 0, "{}: request {opcode} failed", self.backend.name());
        time
    }

    /// The 64-bit word at `index` in the reply's body.
    fn long(&self, index: usize) -> u64 {
        let at = 16 + 8 * index;
        u64::from_ne_bytes(self.reply[at..at + 8].try_into().expect("eight"))
    }

    fn look_up(&mut self, parent: u64, name: &str) -> (u64, u64) {
        let time = self.call(LOOKUP, parent, &nul(name), 128);
        (self.long(0), time)
    }

    fn forget(&mut self, node: u64, count: u64) {
        self.call(FORGET, node, &longs(&[count]), 0);
    }

    /// Mean nanoseconds of each of [`TITLES`].
    pub fn round(&mut self) -> Vec<f64> {
        let mut means = self.lookups();
        means.extend(self.data());
        means.extend(self.creations());
        means.extend(self.listings());
        means
    }

    fn lookups(&mut self) -> Vec<f64> {
        let many = self.look_up(self.root, "many").0;
        let (mut new, mut known, mut attributes) = (0, 0, 0);
        for number in 0..FILES {
            let (node, time) = self.look_up(many, &file_name(number));
            new += time;
            known += self.look_up(many, &file_name(number)).1;
            attributes += self.call(GETATTR, node, &[0; 16], 104);
            self.forget(node, 2);
        }
        self.forget(many, 1);
        [new, known, attributes].map(|total| mean(total, FILES)).to_vec()
    }

    fn data(&mut self) -> Vec<f64> {
        let node = self.look_up(self.root, "data").0;
        let mut opening = 0;
        for _ in 0..FILES {
            opening += self.call(OPEN, node, &words(&[2, 0]), 16);
            opening += self.call(RELEASE, node, &longs(&[self.long(0), 0, 0]), 0);
        }
        self.call(OPEN, node, &words(&[2, 0]), 16);
        let handle = self.long(0);
        let mut means = vec![mean(opening, FILES)];
        for (opcode, size, count) in [(READ, 4096, 1000), (READ, MIB, 64), (WRITE, 4096, 1000), (WRITE, MIB, 64)] {
            let mut total = 0;
            for number in 0..count {
                let offset = (number * size) % (16 * MIB);
                let mut body = longs(&[handle, offset as u64]);
                body.extend(words(&[u32::try_from(size).expect("small"), 0, 0, 0, 0, 0]));
                let room = if opcode == READ { size } else { 8 };
                if opcode == WRITE {
                    body.resize(body.len() + size, 9);
                }
                total += self.call(opcode, node, &body, room);
            }
            means.push(mean(total, count));
        }
        self.call(RELEASE, node, &longs(&[handle, 0, 0]), 0);
        self.forget(node, 1);
        means
    }

    fn creations(&mut self) -> Vec<f64> {
        let made = self.look_up(self.root, "made").0;
        let (mut means, mut removing) = (Vec::new(), 0);
        for uid in [0, 1000] {
            let mut total = 0;
            for number in 0..FILES {
                self.uid = uid;
                let mut body = words(&[2 | 0o100, 0o644, 0o022, 0]);
                body.extend(nul(&file_name(number)));
                total += self.call(CREATE, made, &body, 144);
                let (node, handle) = (self.long(0), self.long(16));
                total += self.call(RELEASE, node, &longs(&[handle, 0, 0]), 0);
                self.uid = 0;
                self.forget(node, 1);
                removing += self.call(UNLINK, made, &nul(&file_name(number)), 0);
            }
            means.push(mean(total, FILES));
        }
        self.forget(made, 1);
        means.push(mean(removing, 2 * FILES));
        means
    }

    fn listings(&mut self) -> Vec<f64> {
        let many = self.look_up(self.root, "many").0;
        let nodes: Vec<u64> = (0..FILES).map(|number| self.look_up(many, &file_name(number)).0).collect();
        let known = self.list(many);
        // Each node was looked up once and listed once.
        nodes.iter().for_each(|node| self.forget(*node, 2));
        let new = self.list(many);
        for number in 0..FILES {
            let node = self.look_up(many, &file_name(number)).0;
            self.forget(node, 2);
        }
        self.forget(many, 1);
        vec![mean(known, 1), mean(new, 1)]
    }

    fn list(&mut self, node: u64) -> u64 {
        let mut total = self.call(OPENDIR, node, &[0; 8], 16);
        let handle = self.long(0);
        let mut offset = 0;
        loop {
            let mut body = longs(&[handle, offset]);
            body.extend(words(&[4096, 0, 0, 0, 0, 0]));
            total += self.call(READDIRPLUS, node, &body, 4096);
            let Some(last) = last_offset(&self.reply[16..]) else { break };
            offset = last;
        }
        total + self.call(RELEASEDIR, node, &longs(&[handle, 0, 0]), 0)
    }
}

/// The offset after the last entry of a `READDIRPLUS` reply.
fn last_offset(mut entries: &[u8]) -> Option<u64> {
    let mut last = None;
    while entries.len() > 152 {
        let length = u32::from_ne_bytes(entries[144..148].try_into().expect("four")) as usize;
        last = Some(u64::from_ne_bytes(entries[136..144].try_into().expect("eight")));
        entries = entries.get((152 + length).next_multiple_of(8)..).unwrap_or_default();
    }
    last
}

fn mean(total: u64, count: usize) -> f64 {
    total as f64 / count as f64
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn nul(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}
