//! Processes that have ended and wait to be reaped: how they ended, who they were, and that nothing else came with them.

use std::{
    io,
    sync::atomic::{AtomicI32, Ordering},
};
use victims::{
    Findings, Stage, call, own, play,
    stage::{fork, wait_until},
};

/// Signals that the ends of children sent.
static TOLD: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(_: i32) {
    TOLD.fetch_add(1, Ordering::Relaxed);
}

/// What can be seen of a zombie: code and status of its end, user, group, session, name and state.
type Seen = (i32, i32, u32, i32, i32, String, char);

fn main() {
    play(|stage| {
        // Before any member is forked, so that they inherit it.
        for signal in [libc::SIGCHLD, libc::SIGUSR1, libc::SIGUSR2, 40] {
            handle(signal);
        }
        let mut zombies: Vec<i32> = Vec::new();
        zombies.extend([0, 7, 255].map(|code| fork(|| exit(code))));
        zombies.extend(
            [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGABRT, 64].map(|signal| fork(|| die(signal))),
        );
        zombies.push(fork(|| {
            name(b"a) (b c\0");
            exit(3)
        }));
        zombies.push(fork(|| {
            set_ids(1234, 4321);
            exit(4)
        }));
        zombies.push(fork(|| {
            // SAFETY: plain numbers.
            unsafe { libc::setpgid(0, 0) };
            exit(5)
        }));
        zombies.push(session_leader(stage));
        zombies.push(orphan());
        // Children whose end tells the parent by other signals, or by none.
        zombies.extend([libc::SIGUSR1, libc::SIGUSR2, 40, 0].map(clone_with));
        stage.child("parent of a zombie", |_| {
            let zombie = fork(|| exit(9));
            check(vec![zombie])
        });
        check(zombies)
    })
}

fn check(zombies: Vec<i32>) -> impl FnMut(&mut Findings) + use<> {
    let before: Vec<Seen> = zombies.iter().map(|pid| see(*pid).expect("a zombie")).collect();
    let told = TOLD.load(Ordering::Relaxed);
    move |findings| {
        if findings.sabotage() {
            findings.take("reap", call::wait(zombies[0], libc::__WALL));
        }
        for (pid, before) in zombies.iter().zip(&before) {
            if let Some(now) = findings.take(format!("zombie {pid}"), see(*pid)) {
                findings.same(format!("zombie {pid}"), before, &now);
            }
        }
        findings.same("signals of ended children", &told, &TOLD.load(Ordering::Relaxed));
        let mut children = own_children();
        children.retain(|child| own::state_of(&child.to_string()) == 'Z');
        findings.same("zombies", &zombies.len(), &children.len());
    }
}

/// Waits until it has ended, and leaves it as it is.
fn see(pid: i32) -> io::Result<Seen> {
    // SAFETY: zeros are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = (libc::WEXITED | libc::WNOWAIT | libc::__WALL) as usize;
    let args = [libc::P_PID as usize, pid as usize, &raw mut info as usize, flags, 0];
    // SAFETY: room for the answer.
    unsafe { call::raw(libc::SYS_waitid, &args) }?;
    // SAFETY: waitid fills in these fields.
    let (status, user) = unsafe { (info.si_status(), info.si_uid()) };
    // SAFETY: plain numbers.
    let (group, session) = unsafe { (libc::getpgid(pid), libc::getsid(pid)) };
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
    let state = own::state_of(&pid.to_string());
    Ok((info.si_code, status, user, group, session, comm, state))
}

/// A session leader that has ended while a member of its session lives.
fn session_leader(stage: &Stage) -> i32 {
    let top = std::process::id() as i32;
    stage.expect("member of a dead session");
    let leader = fork(|| {
        // SAFETY: no arguments.
        unsafe { libc::setsid() };
        fork(|| {
            stage.act("member of a dead session", |_| {
                // SAFETY: no arguments.
                let parent = || unsafe { libc::getppid() };
                assert!(wait_until(|| parent() == top), "not adopted");
                let before = own::family();
                move |findings: &mut Findings| findings.same("family", &before, &own::family())
            })
        });
        exit(6)
    });
    stage.wait_for_part("member of a dead session");
    leader
}

/// A zombie that this process got when its parent ended.
fn orphan() -> i32 {
    let [reads, writes] = call::pipe(0);
    let middle = fork(|| {
        let child = fork(|| exit(8));
        let told = call::write(writes, &child.to_ne_bytes());
        exit(told.map_or(1, |_| 0))
    });
    call::wait(middle, 0).expect("reap the parent");
    let bytes = call::read(reads, 4).expect("the orphan's id");
    [reads, writes].into_iter().for_each(call::close);
    i32::from_ne_bytes(bytes.try_into().expect("four bytes"))
}

/// A child whose end is told by `signal`.
fn clone_with(signal: i32) -> i32 {
    // SAFETY: as fork(2), before there are threads.
    match unsafe { libc::syscall(libc::SYS_clone, signal, 0, 0, 0, 0) } {
        0 => exit(10 + signal),
        pid => pid as i32,
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: leaves at once.
    unsafe { libc::_exit(code) }
}

fn die(signal: i32) -> ! {
    call::prctl(libc::PR_SET_DUMPABLE, [0; 4]).expect("no core");
    // SAFETY: plain numbers.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    let own = std::process::id() as i32;
    call::kill(own, signal).expect("kill");
    exit(100)
}

fn name(name: &'static [u8]) {
    call::prctl(libc::PR_SET_NAME, [name.as_ptr() as usize, 0, 0, 0]).expect("set the name");
}

fn set_ids(user: u32, group: u32) {
    // SAFETY: plain numbers.
    let (first, second) = unsafe { (libc::setresgid(group, group, group), libc::setresuid(user, user, user)) };
    assert!(first == 0 && second == 0, "change the user");
}

fn handle(signal: i32) {
    let action = libc::sigaction {
        sa_sigaction: note as *const () as usize,
        sa_flags: libc::SA_RESTART,
        sa_restorer: None,
        // SAFETY: zeros are an empty set.
        sa_mask: unsafe { std::mem::zeroed() },
    };
    // SAFETY: a handler of the right type.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

fn own_children() -> Vec<i32> {
    let own = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}
