//! Huge pages of hugetlbfs: private, one that can only be read, without a reservation; shared with a child; a memfd that is
//! mapped and open. Takes ten pages of 2 MiB.

use std::os::unix::fs::FileExt;
use victims::{
    Findings, Seen, call,
    descriptor::borrowed,
    memory::{Mapping, PAGE, flags_at},
    play,
};

const HUGE: usize = 2 << 20;
/// In pages of 4 KiB.
const PAGES: usize = HUGE / PAGE;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MAP_HUGE: i32 = libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;

fn main() {
    play(|stage| {
        let private = Mapping::anonymous(2 * HUGE, READ_WRITE, libc::MAP_PRIVATE | MAP_HUGE);
        let spare = Mapping::anonymous(8 * HUGE, READ_WRITE, libc::MAP_PRIVATE | MAP_HUGE | libc::MAP_NORESERVE);
        let shared = Mapping::anonymous(2 * HUGE, READ_WRITE, libc::MAP_SHARED | MAP_HUGE);
        let mail = Mapping::anonymous(PAGE, READ_WRITE, libc::MAP_SHARED);
        stage.child("child", move |_| {
            private.unmap(0, 2 * PAGES);
            spare.unmap(0, 8 * PAGES);
            shared.mark(PAGES + 1, 4);
            let mut round = 0u8;
            move |findings: &mut Findings| {
                round += 1;
                shared.compare(findings, "shared, child", 1, 3);
                let heard = victims::wait_until(|| shared.read(9 * PAGE, 1) == [round]);
                findings.that(heard, "the parent's write is not seen");
                mail.write(0, &[round]);
            }
        });
        stage.wait_for_part("child");
        private.mark(1, 1);
        private.mark(PAGES, 2);
        private.protect(PAGES, PAGES, libc::PROT_READ);
        spare.mark(3 * PAGES + 7, 5);
        shared.mark(1, 3);
        // SAFETY: the name ends with a NUL.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        borrowed(fd).set_len(3 * HUGE as u64).expect("set the length");
        let mapped = Mapping::new(HUGE, READ_WRITE, libc::MAP_SHARED, fd, HUGE as i64);
        mapped.mark(2, 6);
        let copy = Mapping::new(HUGE, READ_WRITE, libc::MAP_PRIVATE, fd, HUGE as i64);
        copy.mark(3, 7);
        copy.protect(0, PAGES, libc::PROT_READ);
        call::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_GROW).expect("F_ADD_SEALS");
        let seen = Seen::of(fd);
        let blocks = blocks(fd);
        let mut round = 0u8;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                shared.write(PAGES * PAGE + PAGE, b"!");
            }
            private.compare(findings, "private", 1, 1);
            private.compare(findings, "private, for reading", PAGES, 2);
            private.compare_zero(findings, "private", 2);
            spare.compare(findings, "without reservation", 3 * PAGES + 7, 5);
            shared.compare(findings, "shared", 1, 3);
            shared.compare(findings, "shared", PAGES + 1, 4);
            mapped.compare(findings, "memfd", 2, 6);
            mapped.compare_zero(findings, "memfd", 3);
            copy.compare(findings, "a private mapping of it", 2, 6);
            copy.compare(findings, "a private mapping of it", 3, 7);
            for area in [private, spare, shared, mapped, copy] {
                let flags = flags_at(area.address);
                findings.that(
                    flags.iter().any(|flag| flag == "ht"),
                    format!("no huge pages: {flags:?}"),
                );
            }
            seen.compare(findings, "memfd", fd);
            findings.same("blocks of the memfd", &blocks, &self::blocks(fd));
            let seals = call::fcntl(fd, libc::F_GET_SEALS, 0).unwrap_or(-1);
            findings.same("seals", &libc::F_SEAL_GROW, &seals);
            let mut byte = [0];
            mapped.write(PAGE, &[round]);
            let read = borrowed(fd).read_exact_at(&mut byte, (HUGE + PAGE) as u64);
            findings.that(read.is_ok() && byte == [round], "the open file shows another byte");
            shared.write(9 * PAGE, &[round]);
            let answered = victims::wait_until(|| mail.read(0, 1) == [round]);
            findings.that(answered, "the child's answer is not seen");
        }
    })
}

/// How much of it there is.
fn blocks(fd: i32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    borrowed(fd).metadata().map_or(0, |metadata| metadata.blocks())
}
