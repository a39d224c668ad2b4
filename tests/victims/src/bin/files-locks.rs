//! Locks on files: of open files and of processes, on ranges, for reading and for writing, inherited, on what is no
//! regular file, and waited for.

use std::{io, os::fd::RawFd, path::Path};
use victims::{
    Findings, Peer, Stage, call,
    descriptor::open,
    play,
    waiting::{spawn_into, waits_in},
};

type Check = Box<dyn FnMut(&mut Findings)>;

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const NONE: i32 = libc::F_UNLCK;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(whole_files(stage)),
            Box::new(ranges(stage)),
            Box::new(ranges_of_open_files(stage)),
            Box::new(of_a_child(stage)),
            Box::new(deleted(stage)),
            Box::new(other_kinds(stage)),
            Box::new(waited_for(stage)),
        ];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn file(path: &Path) -> RawFd {
    open(path, libc::O_RDWR | libc::O_CREAT)
}

/// Another open file of the same.
fn again(fd: RawFd) -> RawFd {
    open(Path::new(&format!("/proc/self/fd/{fd}")), libc::O_RDWR)
}

fn flock(fd: RawFd, how: i32) -> io::Result<i64> {
    // SAFETY: numbers only.
    call::checked(i64::from(unsafe { libc::flock(fd, how) }))
}

/// F_SETLK and its kin.
fn record(fd: RawFd, command: i32, kind: i32, (start, length): (i64, i64)) -> io::Result<libc::flock> {
    let mut request = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the structure outlives the call.
    call::checked(i64::from(unsafe { libc::fcntl(fd, command, &raw mut request) }))?;
    Ok(request)
}

/// What would stand in the way of a lock for writing: kind, first byte, how many, whose.
fn in_the_way(fd: RawFd, command: i32, range: (i64, i64)) -> (i32, i64, i64, i32) {
    match record(fd, command, WRITE, range) {
        Ok(found) if i32::from(found.l_type) == NONE => (NONE, 0, 0, 0),
        Ok(found) => (i32::from(found.l_type), found.l_start, found.l_len, found.l_pid),
        Err(error) => panic!("F_GETLK: {error}"),
    }
}

fn is_free(fd: RawFd, how: i32) -> bool {
    let other = again(fd);
    let got = flock(other, how | libc::LOCK_NB).is_ok();
    call::close(other);
    got
}

/// flock(2): one for writing that a duplicate shares, one for reading by two open files.
fn whole_files(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let one = file(&stage.path("whole"));
    flock(one, libc::LOCK_EX).expect("flock");
    // SAFETY: a number.
    let duplicate = unsafe { libc::dup(one) };
    let shared = file(&stage.path("shared"));
    let too = again(shared);
    flock(shared, libc::LOCK_SH).expect("flock");
    flock(too, libc::LOCK_SH).expect("flock");
    move |findings| {
        findings.that(!is_free(one, libc::LOCK_SH), "the lock for writing is gone");
        // Of the same open file: it is its own lock.
        findings.take("flock again", flock(duplicate, libc::LOCK_EX | libc::LOCK_NB));
        if findings.sabotage() {
            flock(shared, libc::LOCK_UN).expect("flock");
            flock(too, libc::LOCK_UN).expect("flock");
        }
        findings.that(!is_free(shared, libc::LOCK_EX), "the lock for reading is gone");
        findings.that(
            is_free(shared, libc::LOCK_SH),
            "the lock for reading has become one for writing",
        );
        // Given up and taken again by the duplicate.
        findings.take("unlock", flock(duplicate, libc::LOCK_UN));
        findings.that(is_free(one, libc::LOCK_EX), "somebody else has the lock");
        findings.take("lock", flock(one, libc::LOCK_EX | libc::LOCK_NB));
    }
}

/// Locks of the process on parts of a file, one of them by a descriptor that can only be read from. Another process is
/// asked, since one's own are never in the way.
fn ranges(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("ranges");
    let fd = file(&path);
    let reading = open(&path, libc::O_RDONLY);
    let set = |fd, kind, range| record(fd, libc::F_SETLK, kind, range).expect("F_SETLK");
    set(fd, WRITE, (0, 10));
    set(reading, READ, (10, 5));
    set(fd, READ, (20, 10));
    set(fd, WRITE, (1000, 0));
    let asker = Peer::start(move |question| {
        let (start, part) = (question >> 8, question & 0xff);
        let found = in_the_way(fd, libc::F_GETLK, (start, 1));
        [i64::from(found.0), found.1, found.2, i64::from(found.3)][part as usize]
    });
    let own = i64::from(std::process::id() as i32);
    move |findings| {
        let all = |start: i64| [0, 1, 2, 3].map(|part| asker.ask(start << 8 | part).unwrap_or(-1));
        findings.same("lock at 3", &[i64::from(WRITE), 0, 10, own], &all(3));
        findings.same("lock at 12", &[i64::from(READ), 10, 5, own], &all(12));
        findings.same("lock at 17", &[i64::from(NONE), 0, 0, 0], &all(17));
        findings.same("lock at 29", &[i64::from(READ), 20, 10, own], &all(29));
        findings.same("lock at 5000", &[i64::from(WRITE), 1000, 0, own], &all(5000));
    }
}

fn ranges_of_open_files(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let fd = file(&stage.path("open file"));
    record(fd, libc::F_OFD_SETLK, WRITE, (0, 4)).expect("F_OFD_SETLK");
    record(fd, libc::F_OFD_SETLK, READ, (8, 0)).expect("F_OFD_SETLK");
    let other = again(fd);
    move |findings| {
        let at = |start| in_the_way(other, libc::F_OFD_GETLK, (start, 1));
        findings.same("lock at 2", &(WRITE, 0, 4, -1), &at(2));
        findings.same("lock at 6", &(NONE, 0, 0, 0), &at(6));
        findings.same("lock at 100", &(READ, 8, 0, -1), &at(100));
    }
}

/// A child has locks through descriptors that its parent has too.
fn of_a_child(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let fd = file(&stage.path("of a child"));
    let plain = file(&stage.path("flock of a child"));
    let child = Peer::start(move |_| {
        let record = record(fd, libc::F_SETLK, WRITE, (5, 5)).is_ok();
        i64::from(record && flock(plain, libc::LOCK_EX | libc::LOCK_NB).is_ok())
    });
    assert_eq!(child.ask(0).expect("ask"), 1, "the child locks");
    move |findings| {
        let wanted = (WRITE, 5, 5, child.pid);
        findings.same("lock of the child", &wanted, &in_the_way(fd, libc::F_GETLK, (0, 0)));
        findings.that(!is_free(plain, libc::LOCK_EX), "the child's flock is gone");
        findings.same("the child locks again", &Some(1), &child.ask(0).ok());
    }
}

fn deleted(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("deleted");
    let fd = file(&path);
    std::fs::remove_file(path).expect("remove");
    flock(fd, libc::LOCK_EX).expect("flock");
    record(fd, libc::F_OFD_SETLK, WRITE, (7, 7)).expect("F_OFD_SETLK");
    move |findings| {
        let other = again(fd);
        let found = in_the_way(other, libc::F_OFD_GETLK, (0, 0));
        findings.same("lock of a deleted file", &(WRITE, 7, 7, -1), &found);
        call::close(other);
        findings.that(!is_free(fd, libc::LOCK_SH), "the flock of a deleted file is gone");
    }
}

/// A directory and a pipe.
fn other_kinds(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("directory");
    std::fs::create_dir(&path).expect("a directory");
    let directory = open(&path, libc::O_RDONLY | libc::O_DIRECTORY);
    flock(directory, libc::LOCK_EX).expect("flock");
    let [read, _write] = call::pipe(0);
    flock(read, libc::LOCK_EX).expect("flock");
    move |findings| {
        let other = open(&path, libc::O_RDONLY | libc::O_DIRECTORY);
        findings.that(
            flock(other, libc::LOCK_SH | libc::LOCK_NB).is_err(),
            "the lock of a directory is gone",
        );
        call::close(other);
        let other = open(Path::new(&format!("/proc/self/fd/{read}")), libc::O_RDONLY);
        findings.that(
            flock(other, libc::LOCK_SH | libc::LOCK_NB).is_err(),
            "the lock of a pipe is gone",
        );
        call::close(other);
    }
}

/// Threads wait for a flock and for a range that a child has.
fn waited_for(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (held, wanted) = (file(&stage.path("waited for")), file(&stage.path("waited range")));
    let holder = Peer::start(move |question| {
        let how = if question == 0 { libc::LOCK_EX } else { libc::LOCK_UN };
        let kind = if question == 0 { WRITE } else { NONE };
        let other = record(wanted, libc::F_SETLKW, kind, (0, 1)).is_ok();
        i64::from(flock(held, how).is_ok() && other)
    });
    assert_eq!(holder.ask(0).expect("ask"), 1, "the child locks");
    let (got, heard) = std::sync::mpsc::channel();
    let (tell, ids) = std::sync::mpsc::channel();
    for (number, which) in [(libc::SYS_flock, 0), (libc::SYS_fcntl, 1)] {
        let (got, tell) = (got.clone(), tell.clone());
        let mine = again(held);
        spawn_into(&[number], move || {
            tell.send((call::gettid(), number)).expect("the check lives");
            loop {
                let done = if which == 0 {
                    flock(mine, libc::LOCK_EX).and_then(|_| flock(mine, libc::LOCK_UN))
                } else {
                    let taken = record(wanted, libc::F_SETLKW, WRITE, (0, 1));
                    taken
                        .and_then(|_| record(wanted, libc::F_SETLK, NONE, (0, 1)))
                        .map(|_| 0)
                };
                if got.send((which, done.map_err(|error| error.to_string()))).is_err() {
                    return;
                }
                // Until the child has it again.
                while is_free_again(which, mine, wanted) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        });
    }
    let waiters: Vec<(i32, i64)> = ids.try_iter().collect();
    move |findings| {
        findings.that(heard.try_recv().is_err(), "a lock was had that another process has");
        findings.same("the child unlocks", &Some(1), &holder.ask(1).ok());
        let mut all: Vec<_> = (0..2)
            .filter_map(|_| heard.recv_timeout(std::time::Duration::from_secs(20)).ok())
            .collect();
        all.sort();
        findings.same("locks that were waited for", &vec![(0, Ok(0)), (1, Ok(0))], &all);
        findings.same("the child locks again", &Some(1), &holder.ask(0).ok());
        let waits = victims::wait_until(|| waiters.iter().all(|(tid, number)| waits_in(*tid, &[*number])));
        findings.that(waits, "the threads do not wait again");
    }
}

fn is_free_again(which: i32, plain: RawFd, ranged: RawFd) -> bool {
    if which == 0 {
        let free = flock(plain, libc::LOCK_EX | libc::LOCK_NB).is_ok();
        if free {
            flock(plain, libc::LOCK_UN).expect("flock");
        }
        free
    } else {
        in_the_way(ranged, libc::F_GETLK, (0, 1)).0 == NONE
    }
}
