//! Memfds that are mapped shared and open at the same time: one memory through two mappings, two open files and another
//! process; seals, also the one that spares a writable mapping there was before; permissions; holes; one of which but a
//! mapping is left.

use std::{
    ffi::CStr,
    fs::{self, Permissions},
    os::{
        fd::RawFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
};
use victims::{
    Findings, Peer, Seen, call,
    descriptor::{borrowed, open, seek},
    memory::{Mapping, PAGE},
    pattern, play,
};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const F_SEAL_FUTURE_WRITE: i32 = 0x10;
const F_SEAL_EXEC: i32 = 0x20;
const MFD_NOEXEC_SEAL: u32 = 8;
const MFD_EXEC: u32 = 16;
const PAGES: usize = 8;

fn main() {
    play(|_| {
        let mut several = Several::make();
        let sealed: Vec<Sealed> = SEALED.iter().map(Sealed::make).collect();
        let sparse = memfd(c"sparse", MFD_EXEC);
        borrowed(sparse).set_len(10 << 30).expect("10 GiB of nothing");
        borrowed(sparse)
            .write_all_at(b"in the middle", (5 << 30) + 3)
            .expect("write");
        let lonely = lonely();
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                several.whole.write(2 * PAGE, b"!");
            }
            several.check(findings, round);
            sealed.iter().for_each(|memory| memory.check(findings, round));
            check_sparse(findings, sparse);
            lonely.compare(findings, "one without a descriptor", 1, 21);
            lonely.compare_zero(findings, "one without a descriptor", 2);
        }
    })
}

fn memfd(name: &CStr, flags: u32) -> RawFd {
    // SAFETY: the name ends with a NUL.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    fd
}

fn reopened(fd: RawFd, flags: i32) -> RawFd {
    open(format!("/proc/self/fd/{fd}").as_ref(), flags)
}

/// One memfd that is reached in many ways.
struct Several {
    fd: RawFd,
    reader: RawFd,
    seen: [Seen; 2],
    link: String,
    whole: Mapping,
    part: Mapping,
    copy: Mapping,
    peer: Peer,
}

impl Several {
    fn make() -> Self {
        let fd = memfd(c"several ways/in", libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        borrowed(fd)
            .set_len((PAGES * PAGE - 100) as u64)
            .expect("set the length");
        let whole = Mapping::new(PAGES * PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0);
        let part = Mapping::new(2 * PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, 2 * PAGE as i64);
        let copy = Mapping::new(PAGES * PAGE, READ_WRITE, libc::MAP_PRIVATE, fd, 0);
        whole.mark(2, 2);
        whole.mark(5, 5);
        copy.mark(5, 55);
        let reader = reopened(fd, libc::O_RDONLY);
        std::os::unix::fs::fchown(&*borrowed(fd), Some(12), Some(34)).expect("chown");
        borrowed(fd)
            .set_permissions(Permissions::from_mode(0o640))
            .expect("chmod");
        seek(fd, 77, libc::SEEK_SET).expect("seek");
        seek(reader, 5, libc::SEEK_SET).expect("seek");
        // The other process moves the common position, and answers with a byte of its mapping.
        let peer = Peer::start(move |offset| {
            let moved = seek(fd, 1, libc::SEEK_CUR).is_ok();
            if moved {
                whole.read(offset as usize, 1)[0].into()
            } else {
                -1
            }
        });
        Self {
            fd,
            reader,
            seen: [Seen::of(fd), Seen::of(reader)],
            link: link(fd),
            whole,
            part,
            copy,
            peer,
        }
    }

    fn check(&mut self, findings: &mut Findings, round: u8) {
        findings.same("the link", &self.link, &link(self.fd));
        self.seen[0].compare(findings, "memfd", self.fd);
        self.seen[1].compare(findings, "memfd, opened for reading", self.reader);
        self.whole.compare(findings, "memfd", 2, 2);
        self.whole.compare(findings, "memfd", 5, 5);
        self.part.compare(findings, "a part of it", 0, 2);
        self.copy.compare(findings, "a private mapping", 5, 55);
        self.whole.write(3 * PAGE, &[round]);
        findings.same("the byte in the part", &vec![round], &self.part.read(PAGE, 1));
        findings.same(
            "the byte in the private mapping",
            &vec![round],
            &self.copy.read(3 * PAGE, 1),
        );
        let mut byte = [0];
        let read = borrowed(self.reader).read_exact_at(&mut byte, 3 * PAGE as u64);
        findings.that(read.is_ok() && byte == [round], "the open file shows another byte");
        let told = findings.take("ask the other process", self.peer.ask(3 * PAGE as i64));
        findings.same("the byte that another process reads", &Some(i64::from(round)), &told);
        let position = seek(self.fd, 0, libc::SEEK_CUR).unwrap_or(-1);
        findings.same("the common position", &(77 + i64::from(round)), &position);
        findings.that(call::write(self.reader, b"!").is_err(), "the reader can write");
        self.seen = [Seen::of(self.fd), Seen::of(self.reader)];
    }
}

fn link(fd: RawFd) -> String {
    fs::read_link(format!("/proc/self/fd/{fd}"))
        .unwrap_or_default()
        .display()
        .to_string()
}

/// Name, flags, permissions, seals, protection of its shared mapping.
type Kind = (&'static CStr, u32, u32, i32, i32);

const SEALED: [Kind; 5] = [
    (
        c"written no more",
        MFD_EXEC | libc::MFD_ALLOW_SEALING,
        0o777,
        F_SEAL_FUTURE_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK,
        READ_WRITE,
    ),
    (
        c"read only",
        MFD_EXEC | libc::MFD_ALLOW_SEALING,
        0o500,
        libc::F_SEAL_WRITE,
        libc::PROT_READ,
    ),
    (
        c"a program for ever",
        MFD_EXEC | libc::MFD_ALLOW_SEALING,
        0o755,
        F_SEAL_EXEC,
        libc::PROT_READ | libc::PROT_EXEC,
    ),
    (c"no program", MFD_NOEXEC_SEAL, 0o666, libc::F_SEAL_SEAL, READ_WRITE),
    (c"no seals", MFD_EXEC, 0o777, 0, READ_WRITE),
];

struct Sealed {
    kind: &'static Kind,
    fd: RawFd,
    seals: i32,
    mapping: Mapping,
}

impl Sealed {
    fn make(kind: &'static Kind) -> Self {
        let (name, flags, mode, seals, protection) = *kind;
        let fd = memfd(name, flags);
        call::write(fd, &pattern::bytes(2 * PAGE, 3)).expect("write");
        borrowed(fd)
            .set_permissions(Permissions::from_mode(mode))
            .expect("chmod");
        let via = if protection & libc::PROT_WRITE != 0 {
            fd
        } else {
            reopened(fd, libc::O_RDONLY)
        };
        let mapping = Mapping::new(2 * PAGE, protection, libc::MAP_SHARED, via, 0);
        if seals != 0 {
            call::fcntl(fd, libc::F_ADD_SEALS, seals).expect("F_ADD_SEALS");
        }
        Self {
            kind,
            fd,
            seals: call::fcntl(fd, libc::F_GET_SEALS, 0).expect("F_GET_SEALS"),
            mapping,
        }
    }

    fn check(&self, findings: &mut Findings, round: u8) {
        let (name, _, mode, _, protection) = *self.kind;
        let what = name.to_string_lossy();
        let seals = call::fcntl(self.fd, libc::F_GET_SEALS, 0).unwrap_or(-1);
        findings.same(format!("seals of {what}"), &self.seals, &seals);
        let now = borrowed(self.fd)
            .metadata()
            .map_or(0, |metadata| metadata.mode() & 0o7777);
        findings.same(format!("permissions of {what}"), &mode, &now);
        let content = &pattern::bytes(2 * PAGE, 3)[..PAGE];
        findings.that(self.mapping.read(0, PAGE) == content, format!("{what}: differs"));
        if protection & libc::PROT_WRITE != 0 {
            self.mapping.write(PAGE, &[round]);
        }
        let forbidden = self.seals & (libc::F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0;
        let written = borrowed(self.fd).write_at(&[round], PAGE as u64 + 1).is_ok();
        findings.same(format!("{what} can be written"), &!forbidden, &written);
    }
}

fn check_sparse(findings: &mut Findings, fd: RawFd) {
    let file = borrowed(fd);
    let mut bytes = [0; 13];
    let got = file.read_exact_at(&mut bytes, (5 << 30) + 3);
    findings.that(got.is_ok() && &bytes == b"in the middle", "sparse: its bytes are gone");
    let metadata = file.metadata().expect("fstat");
    findings.same("bytes of sparse", &(10 << 30), &metadata.size());
    findings.that(
        metadata.blocks() < 100,
        format!("sparse: takes {} blocks", metadata.blocks()),
    );
}

/// A memfd of which but a mapping is left.
fn lonely() -> Mapping {
    let fd = memfd(c"lonely (deleted)", MFD_EXEC);
    borrowed(fd).set_len(4 * PAGE as u64).expect("set the length");
    let mapping = Mapping::new(4 * PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0);
    mapping.mark(1, 21);
    call::close(fd);
    mapping
}
