//! Deleted files: content, holes, size, permissions, owner, times; opened twice and shared with another process; never
//! named ones (O_TMPFILE); mapped, privately and shared, while no descriptor is left; a large one; in a folder that was
//! deleted too.

use std::{
    fs::{self, File, FileTimes, Permissions},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};
use victims::{
    Findings, Peer, Seen, Stage, call,
    descriptor::{borrowed, compare_content, open, seek},
    memory::{Mapping, PAGE},
    pattern, play,
};

const LARGE: usize = 64 << 20;
const ATTRIBUTE: &std::ffi::CStr = c"trusted.mine";

fn main() {
    play(|stage| {
        let attributes = with_attributes(stage);
        let sparse = sparse(stage);
        let large = large(stage);
        let unnamed = unnamed(stage);
        let twice = twice(stage);
        let mapped = mapped(stage);
        let orphan = in_deleted_folder(stage);
        let peer = Peer::start(move |offset| {
            let mut byte = [0];
            borrowed(twice[0])
                .read_exact_at(&mut byte, offset as u64)
                .map_or(-1, |()| byte[0].into())
        });
        let seen: Vec<(&str, RawFd, Seen)> = [
            ("attributes", attributes),
            ("sparse", sparse),
            ("large", large),
            ("unnamed", unnamed),
            ("in a deleted folder", orphan),
        ]
        .into_iter()
        .map(|(what, fd)| (what, fd, Seen::of(fd)))
        .collect();
        let mut round = 0u8;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                borrowed(attributes).write_all_at(b"!", 5).expect("write");
            }
            for (what, fd, seen) in &seen {
                // A position is all that a description has of O_TMPFILE besides the file.
                let mut now = Seen::of(*fd);
                let unnamed = libc::O_TMPFILE & !libc::O_DIRECTORY;
                now.flags |= seen.flags & (unnamed | libc::O_DIRECTORY);
                findings.that(now == *seen, format!("{what}: was {seen:?}, is {now:?}"));
                findings.same(
                    format!("links of {what}"),
                    &0,
                    &borrowed(*fd).metadata().map_or(9, |m| m.nlink()),
                );
            }
            compare_content(findings, "attributes", attributes, 0, 5_000, 1);
            check_attribute(findings, attributes);
            compare_content(findings, "large", large, 0, LARGE, 3);
            compare_content(findings, "unnamed", unnamed, 0, 12_345, 4);
            compare_content(findings, "in a deleted folder", orphan, 0, 5_000, 7);
            check_sparse(findings, sparse);
            check_twice(findings, twice, &peer, round);
            mapped.check(findings, round);
        }
    })
}

/// Writes a file, opens it with `flags`, and deletes it.
fn deleted(path: &Path, content: &[u8], flags: i32) -> RawFd {
    fs::write(path, content).expect("write");
    let fd = open(path, flags);
    fs::remove_file(path).expect("delete");
    fd
}

fn with_attributes(stage: &Stage) -> RawFd {
    let fd = deleted(
        &stage.path("attributes"),
        &pattern::bytes(5_000, 1),
        libc::O_RDWR | libc::O_APPEND,
    );
    let file = borrowed(fd);
    std::os::unix::fs::fchown(&*file, Some(1234), Some(5678)).expect("chown");
    file.set_permissions(Permissions::from_mode(0o4711)).expect("chmod");
    // SAFETY: the name ends with a NUL, the value has the stated length.
    let status = unsafe { libc::fsetxattr(fd, ATTRIBUTE.as_ptr(), b"value".as_ptr().cast(), 5, 0) };
    assert_eq!(status, 0, "an attribute: {}", std::io::Error::last_os_error());
    let time = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
    let times = FileTimes::new()
        .set_modified(time(1_234_567_890_123_456_789))
        .set_accessed(time(987_654_321_987_654_321));
    file.set_times(times).expect("set times");
    seek(fd, 77, libc::SEEK_SET).expect("seek");
    fd
}

fn check_attribute(findings: &mut Findings, fd: RawFd) {
    let mut value = [0_u8; 16];
    // SAFETY: the name ends with a NUL, there is room for the stated length.
    let got = unsafe { libc::fgetxattr(fd, ATTRIBUTE.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    findings.that(
        got == 5 && value.starts_with(b"value"),
        format!("the attribute has {got} bytes"),
    );
}

fn sparse(stage: &Stage) -> RawFd {
    let path = stage.path("sparse (deleted)");
    let file = File::create(&path).expect("create");
    file.set_len(10 << 30).expect("10 GiB of nothing");
    file.write_all_at(b"in the middle", (5 << 30) + 3).expect("write");
    deleted_as_it_is(&path, libc::O_RDWR)
}

fn deleted_as_it_is(path: &Path, flags: i32) -> RawFd {
    let fd = open(path, flags);
    fs::remove_file(path).expect("delete");
    fd
}

fn check_sparse(findings: &mut Findings, fd: RawFd) {
    let file = borrowed(fd);
    let mut bytes = [0; 13];
    let got = file.read_exact_at(&mut bytes, (5 << 30) + 3);
    findings.that(got.is_ok() && &bytes == b"in the middle", "sparse: its bytes are gone");
    let blocks = file.metadata().map_or(u64::MAX, |metadata| metadata.blocks());
    findings.that(blocks < 100, format!("sparse: takes {blocks} blocks"));
}

fn large(stage: &Stage) -> RawFd {
    let fd = deleted(&stage.path("large"), &pattern::bytes(LARGE, 3), libc::O_RDWR);
    seek(fd, LARGE as i64 / 2, libc::SEEK_SET).expect("seek");
    fd
}

fn unnamed(stage: &Stage) -> RawFd {
    let fd = open(stage.dir(), libc::O_TMPFILE | libc::O_RDWR);
    call::write(fd, &pattern::bytes(12_345, 4)).expect("write");
    fd
}

/// One file, opened for reading and for writing, each with a position of its own.
fn twice(stage: &Stage) -> [RawFd; 2] {
    let path = stage.path("twice");
    fs::write(&path, pattern::bytes(100, 5)).expect("write");
    let both = [open(&path, libc::O_RDONLY), open(&path, libc::O_WRONLY)];
    fs::remove_file(&path).expect("delete");
    seek(both[1], 50, libc::SEEK_SET).expect("seek");
    both
}

fn check_twice(findings: &mut Findings, [reader, writer]: [RawFd; 2], peer: &Peer, round: u8) {
    let offset = seek(writer, 0, libc::SEEK_CUR).unwrap_or(-1);
    findings.same("position of the writer", &(49 + i64::from(round)), &offset);
    findings.same(
        "position of the reader",
        &0,
        &seek(reader, 0, libc::SEEK_CUR).unwrap_or(-1),
    );
    findings.that(call::write(writer, &[round]).is_ok(), "can't write any more");
    let told = findings.take("ask the other process", peer.ask(offset));
    findings.same("the byte that another process reads", &Some(i64::from(round)), &told);
}

/// Two shared mappings and a private one of a file of which nothing else is left.
struct Mapped {
    shared: Mapping,
    other: Mapping,
    private: Mapping,
}

fn mapped(stage: &Stage) -> Mapped {
    let path = stage.path("mapped");
    fs::write(&path, pattern::bytes(8 * PAGE, 6)).expect("write");
    let file = File::options().read(true).write(true).open(&path).expect("open");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let map = |flags| Mapping::new(8 * PAGE, protection, flags, file.as_raw_fd(), 0);
    let mapped = Mapped {
        shared: map(libc::MAP_SHARED),
        other: map(libc::MAP_SHARED),
        private: map(libc::MAP_PRIVATE),
    };
    fs::remove_file(&path).expect("delete");
    mapped.shared.mark(2, 62);
    mapped.private.mark(3, 63);
    mapped
}

impl Mapped {
    fn check(&self, findings: &mut Findings, round: u8) {
        let original = pattern::bytes(8 * PAGE, 6);
        findings.that(self.shared.read(0, PAGE) == original[..PAGE], "shared: page 0 differs");
        self.other.compare(findings, "the other mapping", 2, 62);
        self.private.compare(findings, "the private mapping", 3, 63);
        let clean = self.other.read(3 * PAGE, PAGE) == original[3 * PAGE..4 * PAGE];
        findings.that(clean, "a private page reached the file");
        self.shared.mark(4, 100 + u64::from(round));
        self.other
            .compare(findings, "a new page in the other mapping", 4, 100 + u64::from(round));
        self.private
            .compare(findings, "a new page in the private mapping", 4, 100 + u64::from(round));
    }
}

fn in_deleted_folder(stage: &Stage) -> RawFd {
    let folder = stage.path("folder");
    fs::create_dir_all(folder.join("inner")).expect("folders");
    let fd = deleted(&folder.join("inner/file"), &pattern::bytes(5_000, 7), libc::O_RDONLY);
    fs::remove_dir_all(&folder).expect("delete the folders");
    fd
}
