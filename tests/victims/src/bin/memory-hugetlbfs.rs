//! Huge pages with a name or a key: a file of hugetlbfs that is open and mapped in both ways, one that was deleted, System
//! V segments that are attached, in part attached and not attached. Takes a folder on hugetlbfs, and twelve pages of 2 MiB.

use std::{
    fs::File,
    os::fd::{AsRawFd, IntoRawFd},
    path::Path,
};
use victims::{
    Findings, Seen, call,
    memory::{Mapping, PAGE, flags_at},
    play,
};

const HUGE: usize = 2 << 20;
/// In pages of 4 KiB.
const PAGES: usize = HUGE / PAGE;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn main() {
    play(|stage| {
        let folder = Path::new(stage.arg(0).expect("a folder on hugetlbfs"));
        let file = folder.join("named");
        let named = create(&file, 2);
        let shared = Mapping::new(2 * HUGE, READ_WRITE, libc::MAP_SHARED, named, 0);
        shared.mark(1, 1);
        shared.mark(PAGES + 7, 2);
        let copy = Mapping::new(HUGE, READ_WRITE, libc::MAP_PRIVATE, named, HUGE as i64);
        copy.mark(9, 3);
        let seen = Seen::of(named);

        let path = folder.join("deleted");
        let deleted = create(&path, 3);
        std::fs::remove_file(&path).expect("remove");
        let ghost = Mapping::new(2 * HUGE, READ_WRITE, libc::MAP_SHARED, deleted, HUGE as i64);
        ghost.mark(5, 4);
        let ghost_seen = Seen::of(deleted);

        // Not a whole number of pages.
        let attached = segment(3 << 20);
        let whole = attach(attached, 2 * HUGE);
        whole.mark(600, 5);
        let part = attach(attached, 2 * HUGE);
        part.unmap(PAGES, PAGES);
        let waiting = segment(HUGE);
        let aside = attach(waiting, HUGE);
        aside.mark(3, 6);
        detach(aside);
        let mut round = 0u8;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                ghost.write(5 * PAGE, b"!");
            }
            shared.compare(findings, "file", 1, 1);
            shared.compare(findings, "file", PAGES + 7, 2);
            copy.compare(findings, "private mapping of it", 9, 3);
            copy.compare(findings, "private mapping of it", 7, 2);
            seen.compare(findings, "file", named);
            ghost.compare(findings, "deleted file", 5, 4);
            ghost.compare_zero(findings, "deleted file", PAGES + 1);
            ghost_seen.compare(findings, "deleted file", deleted);
            whole.compare(findings, "segment", 600, 5);
            whole.write(8, &[round]);
            findings.same("segment through its other mapping", &vec![round], &part.read(8, 1));
            shared.write(8, &[round]);
            let again = Mapping::new(HUGE, READ_WRITE, libc::MAP_SHARED, named, 0);
            findings.same("file through a new mapping", &vec![round], &again.read(8, 1));
            again.unmap(0, PAGES);
            for area in [shared, copy, ghost, whole] {
                let flags = flags_at(area.address);
                findings.that(
                    flags.iter().any(|flag| flag == "ht"),
                    format!("no huge pages: {flags:?}"),
                );
            }
            let aside = attach(waiting, HUGE);
            aside.compare(findings, "segment that was not attached", 3, 6);
            detach(aside);
        }
    })
}

fn create(path: &Path, pages: u64) -> i32 {
    let options = File::options().read(true).write(true).create_new(true).open(path);
    let file = options.expect("make a file");
    // One that is made anew has the length of another one's life.
    file.set_len(pages * HUGE as u64).expect("set the length");
    assert!(file.as_raw_fd() > 2);
    file.into_raw_fd()
}

fn segment(size: usize) -> i32 {
    // SAFETY: all arguments are numbers.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, size, libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600) };
    assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
    id
}

fn attach(id: i32, len: usize) -> Mapping {
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    assert!(address as isize != -1, "shmat: {}", std::io::Error::last_os_error());
    Mapping {
        address: address as usize,
        len,
    }
}

fn detach(mapping: Mapping) {
    // SAFETY: the mapping is used no more.
    call::checked(i64::from(unsafe {
        libc::shmdt(mapping.address as *const libc::c_void)
    }))
    .expect("shmdt");
}
