//! System V semaphores whose changes are undone when a process ends: one that took, one that gave, both of them processes
//! with threads; a thread that waits in semtimedop.

use std::{sync::mpsc::channel, time::Duration};
use victims::{
    Findings, call, play,
    stage::fork,
    waiting::{spawn_into, waits_in},
};

const GETALL: i32 = 13;
const SETALL: i32 = 17;
const UNDO: i32 = libc::SEM_UNDO;
/// What they are while nobody has changed them.
const VALUES: [u16; 5] = [5, 0, 100, 32_000, 0];

fn main() {
    play(|stage| {
        // SAFETY: plain numbers.
        let set = unsafe { libc::semget(libc::IPC_PRIVATE, VALUES.len() as i32, libc::IPC_CREAT | 0o600) };
        assert!(set >= 0, "semget: {}", std::io::Error::last_os_error());
        // SAFETY: as many values as semaphores.
        call::checked(unsafe { libc::semctl(set, 0, SETALL, VALUES.as_ptr()) }.into()).expect("SETALL");
        change(set, &[(0, -2, UNDO)]);
        let ready = stage.path("changed");
        let child = {
            let ready = ready.clone();
            move || {
                let pid = fork(|| {
                    let thread = std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)));
                    change(set, &[(1, 3, UNDO), (2, -7, UNDO), (3, -100, UNDO), (3, 100, 0)]);
                    // Taken back by itself.
                    change(set, &[(0, -1, UNDO), (0, 1, UNDO)]);
                    std::fs::write(&ready, "").expect("tell");
                    thread.join().expect("it sleeps");
                });
                assert!(victims::wait_until(|| ready.exists()), "the child is not ready");
                std::fs::remove_file(&ready).expect("hear");
                pid
            }
        };
        let mut pid = child();
        let (tell, heard) = channel();
        let (tell_id, id) = channel();
        spawn_into(&[libc::SYS_semtimedop], move || {
            tell_id.send(call::gettid()).expect("the check lives");
            let time = libc::timespec {
                tv_sec: 3600,
                tv_nsec: 0,
            };
            loop {
                let mut operation = sembuf((4, -1, 0));
                // SAFETY: one operation, and a time that stays.
                let got = unsafe { libc::syscall(libc::SYS_semtimedop, set, &raw mut operation, 1, &raw const time) };
                if tell.send(got).is_err() {
                    return;
                }
            }
        });
        let tid = id.recv().expect("an id");
        move |findings: &mut Findings| {
            if findings.sabotage() {
                change(set, &[(2, 1, 0)]);
            }
            findings.same("values", &[3, 3, 93, 32_000, 0], &values(set));
            findings.that(heard.try_recv().is_err(), "semtimedop came back by itself");
            change(set, &[(4, 1, 0)]);
            let got = heard.recv_timeout(Duration::from_secs(20));
            findings.same("semtimedop that waited", &Ok(0), &got);
            call::kill(pid, libc::SIGKILL).expect("kill");
            // SAFETY: no status is wanted.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            findings.same("values when the child has ended", &[3, 0, 100, 32_100, 0], &values(set));
            change(set, &[(3, -100, 0)]);
            pid = child();
            let again = victims::wait_until(|| waits_in(tid, &[libc::SYS_semtimedop]));
            findings.that(again, "the thread does not wait again");
        }
    })
}

/// Number, operation, flags.
fn sembuf((number, value, flags): (u16, i16, i32)) -> libc::sembuf {
    libc::sembuf {
        sem_num: number,
        sem_op: value,
        sem_flg: flags as i16,
    }
}

fn change(set: i32, operations: &[(u16, i16, i32)]) {
    let mut all: Vec<libc::sembuf> = operations.iter().copied().map(sembuf).collect();
    // SAFETY: as many operations as are said.
    let status = unsafe { libc::semop(set, all.as_mut_ptr(), all.len()) };
    assert_eq!(status, 0, "semop: {}", std::io::Error::last_os_error());
}

fn values(set: i32) -> [u16; VALUES.len()] {
    let mut values = [0; VALUES.len()];
    // SAFETY: room for the values.
    unsafe { libc::semctl(set, 0, GETALL, values.as_mut_ptr()) };
    values
}
