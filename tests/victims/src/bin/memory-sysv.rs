//! System V shared memory: attached twice, for reading alone, in part, in another process; marked for removal; attached
//! nowhere; identifiers, keys, owners and permissions, and how often each is attached.

use std::{io, mem::MaybeUninit, ptr};
use victims::{
    Findings, call,
    memory::{Mapping, PAGE, flags_at},
    play,
    sysv::Permission,
};

const KEY: i32 = 0x51_0ae5;
const PAGES: usize = 6;

fn main() {
    play(|stage| {
        // Its number is 0. Others leave gaps, as after some use of the namespace.
        let first = make(libc::IPC_PRIVATE, PAGE, 0o600);
        (0..3).for_each(|_| remove(make(libc::IPC_PRIVATE, PAGE, 0o600)));
        let nought = attach(first, 1, 0);
        nought.mark(0, 99);
        let detached = detached();
        let removed = make(libc::IPC_PRIVATE, 64 * PAGE - 5, 0o600);
        let used = make(KEY, PAGES * PAGE - 100, 0o640);
        let [whole, other, part, last] = [0; 4].map(|flags| attach(used, PAGES, flags));
        let gone = attach(removed, 64, 0);
        remove(removed);
        other.advise(0, PAGES, libc::MADV_HUGEPAGE).expect("madvise");
        whole.mark(0, 10);
        gone.mark(40, 40);
        // Each piece of an attachment counts.
        part.unmap(0, 1);
        part.unmap(3, 3);
        last.protect(1, 2, libc::PROT_READ);
        stage.child("child", move |_| {
            detach(other);
            detach(whole);
            let reader = attach(used, PAGES, libc::SHM_RDONLY);
            let mut round = 0;
            move |findings: &mut Findings| {
                round += 1;
                reader.compare(findings, "read by the child", 0, 10);
                gone.compare(findings, "marked for removal, child", 40, 40);
                let heard = victims::wait_until(|| reader.read(5 * PAGE, 1) == [round]);
                findings.that(heard, "the parent's write is not seen");
                last.write(5 * PAGE + 1, &[round]);
            }
        });
        stage.wait_for_part("child");
        let objects = [detached, removed, used, first].map(|id| (id, Known::of(id)));
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                whole.write(3, b"!");
            }
            for (id, known) in &objects {
                findings.same(format!("segment {id}"), known, &Known::of(*id));
            }
            // SAFETY: plain numbers.
            findings.same("the key's segment", &used, &unsafe { libc::shmget(KEY, 0, 0) });
            nought.compare(findings, "the first", 0, 99);
            whole.compare(findings, "attached", 0, 10);
            other.compare(findings, "attached again", 0, 10);
            let advice = flags_at(other.address);
            findings.that(
                advice.iter().any(|flag| flag == "hg"),
                format!("advice on huge pages is lost: {advice:?}"),
            );
            whole.mark(1, 100 + u64::from(round));
            part.compare(findings, "a part", 1, 100 + u64::from(round));
            last.compare(findings, "protected in part", 1, 100 + u64::from(round));
            gone.compare(findings, "marked for removal", 40, 40);
            gone.compare_zero(findings, "marked for removal", 41);
            let again = attach(detached, 2, libc::SHM_RDONLY);
            again.compare(findings, "attached by nobody", 1, 77);
            detach(again);
            findings.same("attachments", &objects[0].1, &Known::of(detached));
            whole.write(5 * PAGE, &[round]);
            let answered = victims::wait_until(|| whole.read(5 * PAGE + 1, 1) == [round]);
            findings.that(answered, "the child's answer is not seen");
        }
    })
}

fn make(key: i32, size: usize, mode: i32) -> i32 {
    // SAFETY: plain numbers.
    let id = unsafe { libc::shmget(key, size, libc::IPC_CREAT | libc::IPC_EXCL | mode) };
    assert!(id >= 0, "shmget: {}", io::Error::last_os_error());
    id
}

fn attach(id: i32, pages: usize, flags: i32) -> Mapping {
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(id, ptr::null(), flags) } as usize;
    assert!(address != usize::MAX, "shmat: {}", io::Error::last_os_error());
    Mapping {
        address,
        len: pages * PAGE,
    }
}

fn detach(mapping: Mapping) {
    // SAFETY: attached by the victim, which uses it no more.
    let status = unsafe { libc::shmdt(mapping.address as *const _) };
    assert_eq!(status, 0, "shmdt: {}", io::Error::last_os_error());
}

fn remove(id: i32) {
    // SAFETY: IPC_RMID takes no structure.
    call::checked(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }.into()).expect("IPC_RMID");
}

/// A segment that another user made, a third one owns, and nobody has attached.
fn detached() -> i32 {
    let set = |gid: u32, uid: u32| {
        let keep = u32::MAX;
        // SAFETY: plain numbers; the victim has one thread.
        let status = unsafe { [libc::setresgid(keep, gid, keep), libc::setresuid(keep, uid, keep)] };
        assert_eq!(status, [0, 0], "{}", io::Error::last_os_error());
    };
    // SAFETY: no arguments.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    set(56, 1234);
    let id = make(libc::IPC_PRIVATE, 2 * PAGE, 0o600);
    // SAFETY: plain numbers; the group follows, because an ordinary user may not choose it.
    let back = unsafe { libc::setresuid(u32::MAX, uid, u32::MAX) };
    assert_eq!(back, 0);
    set(gid, uid);
    let mut structure = stat(id);
    (structure.shm_perm.uid, structure.shm_perm.gid, structure.shm_perm.mode) = (78, 90, 0o444);
    // SAFETY: IPC_SET reads such a structure.
    call::checked(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut structure) }.into()).expect("IPC_SET");
    let mapping = attach(id, 2, 0);
    mapping.mark(1, 77);
    detach(mapping);
    id
}

fn stat(id: i32) -> libc::shmid_ds {
    let mut structure = MaybeUninit::zeroed();
    // SAFETY: room for the structure.
    call::checked(unsafe { libc::shmctl(id, libc::IPC_STAT, structure.as_mut_ptr()) }.into()).expect("IPC_STAT");
    // SAFETY: the kernel has filled it.
    unsafe { structure.assume_init() }
}

/// What shmctl says of a segment, but for who used it and when.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    permission: Permission,
    size: usize,
    attached: u64,
}

impl Known {
    fn of(id: i32) -> Self {
        let found = stat(id);
        Self {
            permission: Permission::of(&found.shm_perm),
            size: found.shm_segsz,
            attached: found.shm_nattch,
        }
    }
}
