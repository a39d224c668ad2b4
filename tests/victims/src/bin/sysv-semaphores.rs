//! System V semaphore sets: values, identifiers, keys, owners; a process that waits for one.

use std::io;
use victims::{Findings, call, play, stage::fork, sysv::Permission};

const KEY: i32 = -0x5e3a;
const VALUES: [u16; 4] = [7, 0, 32_767, 1];
const GETALL: i32 = 13;
const SETALL: i32 = 17;

fn main() {
    play(|_| {
        let first = make(libc::IPC_PRIVATE, 1, 0o600);
        // SAFETY: IPC_RMID takes no argument.
        call::checked(unsafe { libc::semctl(first, 0, libc::IPC_RMID) }.into()).expect("IPC_RMID");
        let set = make(KEY, VALUES.len(), 0o640);
        // SAFETY: as many values as semaphores.
        call::checked(unsafe { libc::semctl(set, 0, SETALL, VALUES.as_ptr()) }.into()).expect("SETALL");
        // Two more, by which the processes tell each other that a round is done.
        let turns = make(libc::IPC_PRIVATE, 2, 0o600);
        // It waits in semop between the checks, also while it is checkpointed.
        fork(move || {
            loop {
                add(turns, 0, -1);
                add(turns, 1, 1);
            }
        });
        let mut owner = stat(set);
        (owner.sem_perm.uid, owner.sem_perm.gid, owner.sem_perm.mode) = (12, 34, 0o604);
        // SAFETY: IPC_SET reads such a structure.
        call::checked(unsafe { libc::semctl(set, 0, libc::IPC_SET, &raw mut owner) }.into()).expect("IPC_SET");
        let known = Known::of(set);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                add(set, 3, 1);
            }
            findings.same("the set", &known, &Known::of(set));
            let mut values = [0u16; VALUES.len()];
            // SAFETY: room for the values.
            unsafe { libc::semctl(set, 0, GETALL, values.as_mut_ptr()) };
            findings.same("the values", &VALUES, &values);
            // SAFETY: plain numbers.
            findings.same("the key's set", &set, &unsafe { libc::semget(KEY, 0, 0) });
            add(turns, 0, 1);
            add(turns, 1, -1);
        }
    })
}

fn make(key: i32, count: usize, mode: i32) -> i32 {
    // SAFETY: plain numbers.
    let id = unsafe { libc::semget(key, count as i32, libc::IPC_CREAT | libc::IPC_EXCL | mode) };
    assert!(id >= 0, "semget: {}", io::Error::last_os_error());
    id
}

fn add(set: i32, number: u16, value: i16) {
    let mut operation = libc::sembuf {
        sem_num: number,
        sem_op: value,
        sem_flg: 0,
    };
    // SAFETY: one operation.
    let status = unsafe { libc::semop(set, &raw mut operation, 1) };
    assert_eq!(status, 0, "semop: {}", io::Error::last_os_error());
}

fn stat(set: i32) -> libc::semid_ds {
    let mut structure = std::mem::MaybeUninit::zeroed();
    // SAFETY: room for the structure.
    call::checked(unsafe { libc::semctl(set, 0, libc::IPC_STAT, structure.as_mut_ptr()) }.into()).expect("IPC_STAT");
    // SAFETY: the kernel has filled it.
    unsafe { structure.assume_init() }
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    permission: Permission,
    count: u64,
}

impl Known {
    fn of(id: i32) -> Self {
        let found = stat(id);
        Self {
            permission: Permission::of(&found.sem_perm),
            count: found.sem_nsems,
        }
    }
}
