//! Descriptors of zombies, of threads and of processes that were waited for: whom they stand for, what epoll and their
//! flags tell of them, and signals by them; in a child too. And files that tell a thread of their events (F_OWNER_TID).

use std::{
    fs,
    os::fd::RawFd,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};
use victims::{Findings, Stage, call, play, stage::fork};

type Check = Box<dyn FnMut(&mut Findings)>;

/// PIDFD_THREAD.
const THREAD: i32 = libc::O_EXCL;
const SIGNAL: i32 = 45;
const ABOUT_FILES: i32 = 46;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![Box::new(zombies(stage)), Box::new(gone()), Box::new(threads(stage))];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn open(pid: i32, flags: i32) -> RawFd {
    // SAFETY: plain numbers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    call::checked(opened).expect("pidfd_open") as RawFd
}

/// The id in fdinfo, of the innermost namespace.
fn id(file: RawFd) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok().filter(|id| *id > 0)
}

fn is_ready(file: RawFd) -> bool {
    let mut ask = libc::pollfd {
        fd: file,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure.
    unsafe { libc::poll(&raw mut ask, 1, 0) == 1 }
}

fn ended(status: i32) -> i32 {
    fork(move || {
        if status < 0 {
            // SAFETY: plain numbers.
            unsafe { libc::kill(libc::getpid(), -status) };
        }
        // SAFETY: leaves at once.
        unsafe { libc::_exit(status) }
    })
}

/// Who was it, and how it ended, without waiting for it.
fn peek(file: RawFd) -> (i32, i32, i32) {
    // SAFETY: a structure of zeros, which the kernel fills.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        libc::waitid(libc::P_PIDFD, file as u32, &raw mut about, flags);
        (about.si_pid(), about.si_code, about.si_status())
    }
}

/// Children that have ended, and one of a child's.
fn zombies(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (one, other) = (ended(3), ended(-libc::SIGTERM));
    let is_zombie = |pid: i32| victims::wait_until(|| victims::own::state_of(&pid.to_string()) == 'Z');
    assert!(is_zombie(one) && is_zombie(other), "children end");
    let files = [open(one, libc::O_NONBLOCK), open(other, 0)];
    let leader = open(one, THREAD);
    let wanted = [(one, libc::CLD_EXITED, 3), (other, libc::CLD_KILLED, libc::SIGTERM)];
    let wanted_flags = [libc::O_NONBLOCK, 0];
    stage.child("with a zombie", move |_| {
        let own = ended(9);
        assert!(is_zombie(own), "a child ends");
        let file = open(own, 0);
        move |findings: &mut Findings| {
            findings.same("a child's zombie", &(own, libc::CLD_EXITED, 9), &peek(file));
            findings.same("a parent's zombie", &Some(one), &id(files[0]));
        }
    });
    move |findings| {
        for ((file, wanted), flags) in files.into_iter().zip(wanted).zip(wanted_flags) {
            findings.same("a zombie", &wanted, &peek(file));
            findings.same("a zombie is ready", &true, &is_ready(file));
            findings.same("its id", &Some(wanted.0), &id(file));
            let has = call::fcntl(file, libc::F_GETFL, 0).unwrap_or(-1) & (libc::O_NONBLOCK | THREAD);
            findings.same("its flags", &flags, &has);
        }
        findings.same("a zombie's first thread", &Some(one), &id(leader));
        if findings.sabotage() {
            findings.same(
                "a zombie that was waited for",
                &3,
                &(call::wait(one, 0).map_or(0, |(_, status)| status)),
            );
        }
    }
}

/// How a task that was waited for ended; `None` where the kernel does not keep it (before Linux 6.15).
fn exit_status(file: RawFd) -> Option<i32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const GET_INFO: libc::Ioctl = nix::request_code_readwrite!(0xff, 11, 64);
    let mut info = [0_u32; 16];
    info[0] = PIDFD_INFO_EXIT as u32;
    // SAFETY: room for the first version of the structure.
    let status = unsafe { libc::ioctl(file, GET_INFO, info.as_mut_ptr()) };
    (status == 0).then_some(info[15] as i32)
}

/// Processes and a thread that have ended and are known to nobody.
fn gone() -> impl FnMut(&mut Findings) {
    let of = |status: i32| {
        let pid = ended(status);
        let file = open(pid, 0);
        call::wait(pid, 0).expect("waitpid");
        file
    };
    let mut files: Vec<RawFd> = [0, 7, -libc::SIGKILL, -libc::SIGUSR1].map(of).to_vec();
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || tell.send(open(call::gettid(), THREAD)));
    files.push(told.recv().expect("a descriptor"));
    thread.join().expect("it ends").expect("somebody heard");
    assert!(victims::wait_until(|| id(files[4]).is_none()), "the thread is gone");
    let wanted: Vec<Option<i32>> = files.iter().map(|file| exit_status(*file)).collect();
    move |findings| {
        let now: Vec<Option<i32>> = files.iter().map(|file| exit_status(*file)).collect();
        findings.same("ends of those that are gone", &wanted, &now);
        for file in &files {
            findings.same("one that is gone is ready", &true, &is_ready(*file));
            findings.same("its id", &None, &id(*file));
        }
    }
}

/// A thread that tells which signals it gets, and ends when it is told to.
struct Hearing {
    tid: i32,
    heard: Receiver<(i32, i32)>,
    _end: Sender<()>,
}

fn listen() -> Hearing {
    let (tell, heard) = channel();
    let (end, ends) = channel::<()>();
    let (tell_id, id) = channel();
    std::thread::spawn(move || {
        tell_id.send(call::gettid()).expect("somebody hears");
        let set: u64 = 1 << (SIGNAL - 1) | 1 << (ABOUT_FILES - 1);
        let while_told = || !matches!(ends.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
        while while_told() {
            let pause = libc::timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            // SAFETY: a structure of zeros, which the kernel fills; the set has eight bytes.
            let (got, descriptor) = unsafe {
                let mut about: libc::siginfo_t = std::mem::zeroed();
                let arguments = [
                    &raw const set as usize,
                    &raw mut about as usize,
                    &raw const pause as usize,
                    8,
                ];
                let got = call::raw(libc::SYS_rt_sigtimedwait, &arguments);
                // si_fd of SIGPOLL's kind is behind the eight bytes of si_band.
                let descriptor = (&raw const about).cast::<i32>().add(6).read();
                (got.unwrap_or(0) as i32, descriptor)
            };
            if got > 0
                && tell
                    .send((got, if got == ABOUT_FILES { descriptor } else { 0 }))
                    .is_err()
            {
                return;
            }
        }
    });
    Hearing {
        tid: id.recv().expect("an id"),
        heard,
        _end: end,
    }
}

/// A thread that is no process's first, which epoll watches and a child has too; files that signal it.
fn threads(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let mask: u64 = 1 << (SIGNAL - 1) | 1 << (ABOUT_FILES - 1);
    let how = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &how) }.expect("rt_sigprocmask");
    // Children come before threads, so this one fetches the descriptor when it is there.
    let number: RawFd = 300;
    let parent = std::process::id() as i32;
    let [told, tell] = call::pipe(0);
    let [answered, answer] = call::pipe(0);
    let child = stage.child("with a thread's", |_| {
        std::thread::spawn(move || {
            while call::read(told, 1).is_ok_and(|bytes| !bytes.is_empty()) {
                fetch(parent, number);
                call::write(answer, b"!").expect("an answer");
            }
        });
        move |_: &mut Findings| {}
    });
    let share = move || {
        call::write(tell, b"?").expect("a request");
        call::read(answered, 1).expect("an answer");
    };
    // SAFETY: a number.
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut thread = listen();
    let mut file = watched(epoll, &thread, number);
    share();
    let [reads, writes] = call::pipe(libc::O_NONBLOCK);
    own(reads, &thread);
    move |findings| {
        findings.same("id of a thread's", &Some(thread.tid), &id(file));
        let text = fs::read_to_string(format!("/proc/{child}/fdinfo/{number}")).unwrap_or_default();
        let told = text.contains(&format!("{}\n", thread.tid));
        findings.that(told, format!("the child's descriptor: {text}"));
        let flags = call::fcntl(file, libc::F_GETFL, 0).unwrap_or(-1) & (libc::O_NONBLOCK | THREAD);
        findings.same("flags of a thread's", &(libc::O_NONBLOCK | THREAD), &flags);
        findings.same("the living are ready", &(0, 0), &wait(epoll, 0));
        // SAFETY: numbers, and no information about the signal.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, file, SIGNAL, 0, 0) };
        findings.same("signal by a thread's", &0, &sent);
        let patience = Duration::from_secs(20);
        findings.same("signal heard", &Ok((SIGNAL, 0)), &thread.heard.recv_timeout(patience));
        call::write(writes, b"x").expect("write");
        let heard = thread.heard.recv_timeout(patience);
        findings.same("signal about a file", &Ok((ABOUT_FILES, reads)), &heard);
        call::read(reads, 1).expect("read");
        if findings.sabotage() {
            call::close(file);
        }
        let next = listen();
        let ended = std::mem::replace(&mut thread, next);
        drop(ended);
        findings.same("the end of a thread", &(1, 7), &wait(epoll, 20_000));
        file = watched(epoll, &thread, number);
        share();
        own(reads, &thread);
    }
}

/// Takes over a descriptor of another process, under its number there.
fn fetch(pid: i32, number: RawFd) {
    let process = open(pid, 0);
    let arguments = [process as usize, number as usize, 0];
    // SAFETY: plain numbers.
    let fetched = unsafe { call::raw(libc::SYS_pidfd_getfd, &arguments) }.expect("pidfd_getfd") as RawFd;
    // SAFETY: as above.
    unsafe { libc::dup2(fetched, number) };
    call::close(fetched);
    call::close(process);
}

/// Has signals about a file sent to a thread.
fn own(file: RawFd, thread: &Hearing) {
    const F_SETOWN_EX: i32 = 15;
    const F_SETSIG: i32 = 10;
    const F_OWNER_TID: i32 = 0;
    let owner = [F_OWNER_TID, thread.tid];
    // SAFETY: a structure of two numbers.
    call::checked(unsafe { libc::fcntl(file, F_SETOWN_EX, owner.as_ptr()) }.into()).expect("F_SETOWN_EX");
    call::fcntl(file, F_SETSIG, ABOUT_FILES).expect("F_SETSIG");
    call::fcntl(file, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK).expect("F_SETFL");
}

/// The thread's descriptor, by a number of choice, and watched.
fn watched(epoll: RawFd, thread: &Hearing, number: RawFd) -> RawFd {
    let file = open(thread.tid, THREAD | libc::O_NONBLOCK);
    // What was there is watched no more when its last user closes it, and a child has it for a while.
    // SAFETY: plain numbers.
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, number, std::ptr::null_mut()) };
    // SAFETY: as above.
    unsafe { libc::dup3(file, number, libc::O_CLOEXEC) };
    call::close(file);
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 7,
    };
    // SAFETY: the structure outlives the call.
    call::checked(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, number, &raw mut event) }.into())
        .expect("epoll_ctl");
    number
}

fn wait(epoll: RawFd, timeout: i32) -> (i32, u64) {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event.
    let count = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, timeout) };
    (count, event.u64)
}
