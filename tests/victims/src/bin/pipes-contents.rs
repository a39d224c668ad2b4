//! Pipes with contents: empty, with some, full; buffers of odd sizes; capacities; O_NONBLOCK; both ends here, or one of
//! them in another process; one end closed; opened again through /proc; read in part. No byte is lost or doubled.

use std::path::Path;
use victims::{Findings, Peer, Seen, call, descriptor::open, pattern, play};

/// What a pipe must still give.
struct Filled {
    what: String,
    read: i32,
    write: Option<i32>,
    bytes: Vec<u8>,
    capacity: i32,
    seen: Vec<(i32, Seen)>,
}

impl Filled {
    fn note(what: impl Into<String>, read: i32, write: Option<i32>, bytes: Vec<u8>) -> Self {
        let ends = std::iter::once(read).chain(write);
        Self {
            what: what.into(),
            read,
            write,
            bytes,
            capacity: call::fcntl(read, libc::F_GETPIPE_SZ, 0).expect("F_GETPIPE_SZ"),
            seen: ends.map(|fd| (fd, Seen::of(fd))).collect(),
        }
    }

    fn check(&self, findings: &mut Findings) {
        for (fd, seen) in &self.seen {
            let mut now = Seen::of(*fd);
            (now.modified, now.size) = (seen.modified, seen.size);
            findings.that(now == *seen, format!("{}: was {seen:?}, is {now:?}", self.what));
        }
        let capacity = call::fcntl(self.read, libc::F_GETPIPE_SZ, 0).unwrap_or(-1);
        findings.same(format!("capacity of {}", self.what), &self.capacity, &capacity);
        let now = drain(self.read, self.bytes.len());
        if let Some(at) = pattern::difference(&self.bytes, &now) {
            let what = &self.what;
            findings.add(format!(
                "{what}: {} bytes, was {}; differs at {at}",
                now.len(),
                self.bytes.len()
            ));
        }
        match self.write {
            // As it was before.
            Some(write) => put(write, &self.bytes),
            None => findings.same(
                format!("the end of {}", self.what),
                &Some(0),
                &call::read(self.read, 1).ok().map(|b| b.len()),
            ),
        }
    }
}

fn drain(fd: i32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while available(fd) > 0 && bytes.len() <= len {
        bytes.extend(call::read(fd, 1 << 20).expect("read the pipe"));
    }
    bytes
}

fn available(fd: i32) -> i32 {
    let mut count = 0;
    // SAFETY: room for the number.
    let status = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    assert!(status == 0, "FIONREAD");
    count
}

fn put(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let done = call::write(fd, bytes).expect("write the pipe");
        bytes = &bytes[done..];
    }
}

fn filled(what: &str, capacity: i32, len: usize, seed: u64) -> Filled {
    let [read, write] = call::pipe(0);
    call::fcntl(write, libc::F_SETPIPE_SZ, capacity).expect("F_SETPIPE_SZ");
    put(write, &pattern::bytes(len, seed));
    Filled::note(what, read, Some(write), pattern::bytes(len, seed))
}

fn main() {
    play(|_| {
        let all = by_size()
            .into_iter()
            .chain(by_shape())
            .chain(by_end())
            .collect::<Vec<_>>();
        let elsewhere = elsewhere();
        let broken = broken();
        let mut closed = Some(closed());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                call::read(all[1].read, 1).expect("read");
            }
            all.iter().for_each(|pipe| pipe.check(findings));
            // What was written before its writer closed, then the end of the file, again and again.
            if let Some(pipe) = closed.take() {
                pipe.check(findings);
                closed = Some(Filled {
                    bytes: Vec::new(),
                    ..pipe
                });
            }
            elsewhere.check(findings);
            let wrote = call::write(broken, b"x").map_err(|error| error.raw_os_error());
            findings.same("a write without a reader", &Err(Some(libc::EPIPE)), &wrote);
        }
    })
}

fn by_size() -> Vec<Filled> {
    let mut all = vec![
        filled("an empty pipe", 65_536, 0, 1),
        filled("a pipe with some", 65_536, 1_000, 2),
        filled("a full pipe", 65_536, 65_536, 3),
        filled("a full pipe of one page", 4_096, 4_096, 4),
        filled("a full pipe of 1 MiB", 1 << 20, 1 << 20, 5),
        filled("a large pipe with some", 1 << 20, 4_097, 6),
    ];
    for (number, flags) in [libc::O_NONBLOCK, libc::O_CLOEXEC, libc::O_NONBLOCK | libc::O_CLOEXEC]
        .into_iter()
        .enumerate()
    {
        let [read, write] = call::pipe(flags);
        let bytes = pattern::bytes(5_000, 10 + number as u64);
        put(write, &bytes);
        all.push(Filled::note(
            format!("a pipe with flags {flags:o}"),
            read,
            Some(write),
            bytes,
        ));
    }
    all
}

/// Buffers that are not full pages.
fn by_shape() -> Vec<Filled> {
    let [read, write] = call::pipe(libc::O_NONBLOCK);
    let odd: Vec<u8> = (0..16).flat_map(|number| pattern::bytes(3_000, 20 + number)).collect();
    odd.chunks(3_000).for_each(|piece| put(write, piece));
    // Full by the number of its buffers: no room for one more of this size.
    assert!(call::write(write, &[0; 3_000]).is_err(), "a pipe full of odd buffers");
    let odd = Filled::note("a pipe full of odd buffers", read, Some(write), odd);
    let [read, write] = call::pipe(0);
    let pages: Vec<u8> = pattern::bytes(16, 40);
    for page in &pages {
        // A page of memory each, with a single byte in use.
        let vector = libc::iovec {
            iov_base: (&raw const *page).cast_mut().cast(),
            iov_len: 1,
        };
        // SAFETY: one vector of one byte, which outlives the pipe's use of it: `pages` is kept.
        let done = unsafe { libc::vmsplice(write, &raw const vector, 1, 0) };
        assert!(done == 1, "vmsplice");
    }
    let single = Filled::note("a pipe full of single bytes", read, Some(write), pages.clone());
    std::mem::forget(pages);
    let read_in_part = filled("a pipe read in part", 65_536, 50_000, 41);
    call::read(read_in_part.read, 777).expect("read");
    let read_in_part = Filled {
        bytes: read_in_part.bytes[777..].to_vec(),
        ..read_in_part
    };
    vec![odd, single, read_in_part]
}

/// Ends that are not those of pipe(2).
fn by_end() -> Vec<Filled> {
    let again = |fd: i32, flags| open(Path::new(&format!("/proc/self/fd/{fd}")), flags);
    let reopened = filled("a pipe opened again", 65_536, 3_000, 50);
    let reader = again(reopened.read, libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = again(reopened.write.expect("a write end"), libc::O_WRONLY);
    let extra = Filled::note(
        "a pipe's other ends",
        reopened.read,
        Some(writer),
        reopened.bytes.clone(),
    );
    let mut all = vec![Filled {
        seen: vec![(reader, Seen::of(reader)), (writer, Seen::of(writer))],
        ..extra
    }];
    let both = filled("a pipe opened for both", 65_536, 3_000, 51);
    let end = again(both.read, libc::O_RDWR);
    call::close(both.read);
    call::close(both.write.expect("a write end"));
    all.push(Filled::note("a pipe opened for both", end, Some(end), both.bytes));
    all
}

/// Its writer is gone.
fn closed() -> Filled {
    let pipe = filled("a pipe without a writer", 65_536, 4_321, 60);
    call::close(pipe.write.expect("a write end"));
    Filled::note("a pipe without a writer", pipe.read, None, pipe.bytes)
}

/// Its reader is gone.
fn broken() -> i32 {
    let [read, write] = call::pipe(0);
    call::close(read);
    write
}

/// Its writer is in another process.
struct Elsewhere {
    peer: Peer,
    pipe: Filled,
}

fn elsewhere() -> Elsewhere {
    let pipe = filled("a pipe to another process", 65_536, 6_000, 61);
    let write = pipe.write.expect("a write end");
    let peer = Peer::start(move |seed| {
        put(write, &pattern::bytes(6_000, seed as u64));
        0
    });
    call::close(write);
    Elsewhere {
        pipe: Filled {
            write: None,
            seen: vec![(pipe.read, Seen::of(pipe.read))],
            ..pipe
        },
        peer,
    }
}

impl Elsewhere {
    fn check(&self, findings: &mut Findings) {
        let now = drain(self.pipe.read, 6_000);
        findings.that(
            now == self.pipe.bytes,
            format!("{}: its content differs", self.pipe.what),
        );
        findings.take("ask the other process", self.peer.ask(61));
    }
}
