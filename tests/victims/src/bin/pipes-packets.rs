//! Pipes in packet mode (O_DIRECT), and what is in buffers of their own: packets of several lengths, of one byte, of a page
//! and more; the mode set or cleared while something waits; buffers from vmsplice, tee and splice; full ones, ones whose
//! writer is gone or in another process, and a fifo. Each read gets what it would have got, and there is room for as much.

use nix::sys::stat::Mode;
use std::{os::fd::RawFd, path::Path};
use victims::{Findings, Seen, Stage, call, descriptor::open, pattern, play};

/// What is written at once, and whether as a packet.
type Put = (Vec<u8>, bool);

struct Case {
    what: &'static str,
    read: RawFd,
    write: RawFd,
    /// Puts everything in.
    fill: Box<dyn Fn(RawFd)>,
    /// What each read gets.
    reads: Vec<Vec<u8>>,
    seen: [Seen; 2],
    room: bool,
    capacity: i32,
}

impl Case {
    /// Of a pipe whose ends have been set up; `reads` are what reads give of what `fill` puts in.
    fn new(what: &'static str, [read, write]: [RawFd; 2], fill: impl Fn(RawFd) + 'static, reads: Vec<Vec<u8>>) -> Self {
        fill(write);
        let fill = Box::new(fill);
        Self {
            what,
            read,
            write,
            fill,
            reads,
            seen: [read, write].map(Seen::of),
            room: has_room(write),
            capacity: call::fcntl(read, libc::F_GETPIPE_SZ, 0).expect("F_GETPIPE_SZ"),
        }
    }

    fn check(&self, findings: &mut Findings) {
        let what = self.what;
        for (fd, seen) in [self.read, self.write].into_iter().zip(self.seen) {
            let mut now = Seen::of(fd);
            (now.modified, now.size) = (seen.modified, seen.size);
            findings.same(what, &seen, &now);
        }
        let capacity = call::fcntl(self.read, libc::F_GETPIPE_SZ, 0).unwrap_or(-1);
        findings.same(format!("{what}: capacity"), &self.capacity, &capacity);
        findings.same(format!("{what}: room (POLLOUT)"), &self.room, &has_room(self.write));
        for (number, wanted) in self.reads.iter().enumerate() {
            let got = call::read(self.read, 1 << 20).unwrap_or_default();
            if got != *wanted {
                findings.add(format!(
                    "{what}: read {number} got {} bytes, not {}",
                    got.len(),
                    wanted.len()
                ));
            }
        }
        findings.same(format!("{what}: rest"), &0, &waiting(self.read));
        (self.fill)(self.write);
    }
}

fn has_room(fd: RawFd) -> bool {
    let mut ask = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure.
    unsafe { libc::poll(&raw mut ask, 1, 0) };
    ask.revents & libc::POLLOUT != 0
}

fn waiting(fd: RawFd) -> i32 {
    let mut count = 0;
    // SAFETY: room for the number.
    let status = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    assert!(status == 0, "FIONREAD");
    count
}

/// Writes each in its mode; the end's own mode is what it was afterwards.
fn put_all(write: RawFd, puts: &[Put]) {
    let flags = call::fcntl(write, libc::F_GETFL, 0).expect("F_GETFL");
    for (bytes, packet) in puts {
        let mode = if *packet { libc::O_DIRECT } else { 0 };
        call::fcntl(write, libc::F_SETFL, flags & !libc::O_DIRECT | mode).expect("F_SETFL");
        let done = call::write(write, bytes).expect("write");
        assert!(done == bytes.len(), "all is taken");
    }
    call::fcntl(write, libc::F_SETFL, flags).expect("F_SETFL");
}

fn set_flags(fd: RawFd, flags: i32) {
    call::fcntl(fd, libc::F_SETFL, flags).expect("F_SETFL");
}

fn main() {
    play(|stage| {
        let cases: Vec<Case> = modes()
            .into_iter()
            .chain(full())
            .chain(spliced())
            .chain([fifo(stage), elsewhere(stage)])
            .collect();
        let mut closed = Some(closed());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                // Takes out a packet of which it wants one byte.
                call::read(cases[0].read, 1).expect("read");
            }
            cases.iter().for_each(|case| case.check(findings));
            if let Some(reader) = closed.take() {
                for wanted in [b"last".as_slice(), b"words", b""] {
                    let got = call::read(reader, 100).unwrap_or_else(|_| b"error".to_vec());
                    findings.same("a pipe whose writer is gone", wanted, &got[..]);
                }
            }
        }
    })
}

/// Packets alone, and between plain bytes, with the mode on or off meanwhile.
fn modes() -> Vec<Case> {
    let packet = |len, seed| (pattern::bytes(len, seed), true);
    let packets = [
        packet(1, 1),
        packet(100, 2),
        packet(4096, 3),
        packet(1, 4),
        packet(4095, 5),
    ];
    let reads: Vec<Vec<u8>> = packets.iter().map(|(bytes, _)| bytes.clone()).collect();
    let all = packets.to_vec();
    let alone = Case::new(
        "packets",
        call::pipe(libc::O_DIRECT | libc::O_NONBLOCK),
        move |end| put_all(end, &all),
        reads.clone(),
    );
    let all = packets.to_vec();
    let cleared = Case::new("packets, mode off", call::pipe(0), move |end| put_all(end, &all), reads);
    let large = pattern::bytes(10_000, 6);
    let pieces = large.chunks(4096).map(<[u8]>::to_vec).collect();
    let split = Case::new(
        "a packet of more than a page",
        call::pipe(libc::O_DIRECT),
        move |end| put_all(end, &[(large.clone(), true)]),
        pieces,
    );
    let mixed = [
        (b"plain".to_vec(), false),
        (b" and more".to_vec(), false),
        (b"packet".to_vec(), true),
        (b"plain again".to_vec(), false),
    ];
    // A packet that joins what was written plainly is none.
    let reads = vec![b"plain and morepacketplain again".to_vec()];
    let ends = call::pipe(0);
    set_flags(ends[0], libc::O_DIRECT | libc::O_NONBLOCK);
    set_flags(ends[1], libc::O_DIRECT);
    let mixed = Case::new("the mode set later", ends, move |end| put_all(end, &mixed), reads);
    let page = vec![7; 4096];
    let between = [
        (page.clone(), false),
        (b"one".to_vec(), true),
        (b"rest".to_vec(), false),
    ];
    let reads = vec![[&page[..], b"one"].concat(), b"rest".to_vec()];
    let between = Case::new(
        "a packet between plain bytes",
        call::pipe(0),
        move |end| put_all(end, &between),
        reads,
    );
    let empty = Case::new(
        "no packets",
        call::pipe(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NONBLOCK),
        |_| {},
        Vec::new(),
    );
    vec![alone, cleared, split, mixed, between, empty]
}

/// As many as there are buffers.
fn full() -> Vec<Case> {
    let of = |what, capacity: i32, length| {
        let ends = call::pipe(libc::O_DIRECT | libc::O_NONBLOCK);
        call::fcntl(ends[1], libc::F_SETPIPE_SZ, capacity).expect("F_SETPIPE_SZ");
        let count = capacity as u64 / 4096;
        let reads: Vec<Vec<u8>> = (0..count).map(|number| pattern::bytes(length, 20 + number)).collect();
        let puts: Vec<Put> = reads.iter().map(|bytes| (bytes.clone(), true)).collect();
        let case = Case::new(what, ends, move |end| put_all(end, &puts), reads);
        assert!(!case.room, "it is full");
        case
    };
    vec![
        of("full of packets", 65_536, 33),
        of("full of one packet", 4_096, 9),
        of("many packets", 1 << 20, 700),
    ]
}

/// Buffers that are not from write(2): each is one, also where it has a single byte.
fn spliced() -> Vec<Case> {
    let bytes: &'static [u8] = pattern::bytes(16, 60).leak();
    let given = move |end: RawFd| {
        for byte in bytes {
            let vector = libc::iovec {
                iov_base: (&raw const *byte).cast_mut().cast(),
                iov_len: 1,
            };
            // SAFETY: one vector of a byte that lives for ever.
            let done = unsafe { libc::vmsplice(end, &raw const vector, 1, 0) };
            assert!(done == 1, "vmsplice");
        }
    };
    let single = Case::new("full of vmspliced bytes", call::pipe(0), given, vec![bytes.to_vec()]);
    assert!(!single.room, "it is full");
    // Copied, in part, and moved from a pipe of packets.
    let [from, source] = call::pipe(libc::O_DIRECT);
    let moved = move |end: RawFd| {
        put_all(source, &[(b"first".to_vec(), true), (b"second".to_vec(), true)]);
        let none = std::ptr::null_mut();
        // SAFETY: numbers, and no offsets.
        let done = unsafe { (libc::tee(from, end, 100, 0), libc::splice(from, none, end, none, 8, 0)) };
        assert!(done == (11, 8), "tee and splice: {done:?}");
        call::read(from, 100).expect("the rest");
    };
    let reads = ["first", "second", "first", "sec"].map(|text| text.as_bytes().to_vec());
    let moved = Case::new("moved packets", call::pipe(libc::O_NONBLOCK), moved, reads.to_vec());
    vec![single, moved]
}

fn fifo(stage: &Stage) -> Case {
    let path = stage.path("fifo of packets");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let reader = open(&path, libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = open(&path, libc::O_WRONLY);
    set_flags(writer, libc::O_DIRECT);
    let puts = [(b"by".to_vec(), true), (b"name".to_vec(), true)];
    let reads = puts.iter().map(|(bytes, _)| bytes.clone()).collect();
    Case::new("a fifo", [reader, writer], move |end| put_all(end, &puts), reads)
}

/// The child writes, by an end that it has opened again; both have all ends.
fn elsewhere(stage: &Stage) -> Case {
    let [read, write] = call::pipe(libc::O_DIRECT);
    let [told, tell] = call::pipe(0);
    let [asked, ask] = call::pipe(0);
    stage.child("with a pipe of packets", move |_| {
        let again = open(Path::new(&format!("/proc/self/fd/{write}")), libc::O_WRONLY);
        set_flags(again, libc::O_DIRECT);
        let answer = move || {
            call::read(asked, 1).expect("a request");
            put_all(again, &[(b"from".to_vec(), true), (b"a child".to_vec(), true)]);
            call::write(tell, b"!").expect("an answer");
        };
        std::thread::spawn(move || {
            loop {
                answer();
            }
        });
        move |findings: &mut Findings| {
            let flags = call::fcntl(again, libc::F_GETFL, 0).unwrap_or(0);
            findings.that(flags & libc::O_DIRECT != 0, "the child's end is in packet mode");
        }
    });
    let fill = move |_| {
        call::write(ask, b"?").expect("a request");
        call::read(told, 1).expect("an answer");
    };
    let reads = vec![b"from".to_vec(), b"a child".to_vec()];
    Case::new("packets of a child", [read, write], fill, reads)
}

fn closed() -> RawFd {
    let [read, write] = call::pipe(libc::O_DIRECT);
    put_all(write, &[(b"last".to_vec(), true), (b"words".to_vec(), true)]);
    call::close(write);
    read
}
