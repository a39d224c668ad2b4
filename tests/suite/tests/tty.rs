//! Trees that were started by hand in a terminal, `--tty current`: as the leader of its session, and as a job of a shell.

use floe_suite::{Host, until};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::openpty,
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
};

/// A terminal with what runs in it.
struct Terminal {
    master: File,
    /// What was shown and not looked at yet.
    shown: String,
    child: Child,
}

impl Terminal {
    /// Starts a command as the leader of the terminal's session.
    fn start(command: &mut Command) -> Self {
        let ends = openpty(None, None).expect("a terminal");
        let stream = || ends.slave.try_clone().expect("dup");
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: the function makes system calls that are safe between fork and exec.
        unsafe { command.pre_exec(lead_session) };
        let child = command.spawn().expect("start it");
        drop::<OwnedFd>(ends.slave);
        let (master, shown) = (File::from(ends.master), String::new());
        Self { master, shown, child }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write");
    }

    /// Waits until a text is shown.
    fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let mut ask = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut ask, PollTimeout::from(20_000_u16)).expect("poll");
            let mut bytes = [0; 1000];
            let count = if ready > 0 {
                self.master.read(&mut bytes).unwrap_or(0)
            } else {
                0
            };
            assert!(count > 0, "{text:?} is not shown, but {:?}", self.shown);
            self.shown += &String::from_utf8_lossy(&bytes[..count]);
        }
        let end = self.shown.find(text).expect("it is there") + text.len();
        self.shown.drain(..end);
    }

    fn status(&mut self) -> Option<i32> {
        self.child.wait().expect("its end").code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// And without what else the test has open.
fn lead_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: plain numbers; descriptor 0 is the terminal.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Answers what is typed, and says when it is interrupted.
const JOB: &str = "import os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_IGN)
if len(sys.argv) > 1 and os.fork():
    os.wait()
    print('over', flush=True)
    sys.exit(7)
signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))
quiet = termios.tcgetattr(0)
quiet[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, quiet)
tty = open('/dev/tty', 'r+b', buffering=0)
n = 0
while True:
    front = os.tcgetpgrp(0) == os.getpgrp()
    echo = termios.tcgetattr(0)[3] & termios.ECHO
    print('ready' if front and not echo else 'not in front, or it echoes', flush=True)
    line = sys.stdin.readline().strip()
    if line == 'end': break
    if not line: continue
    n += 1
    tty.write(b'%d %s\\n' % (n, line.encode()))";

fn answers(terminal: &mut Terminal, number: u32) {
    terminal.types("hello\n");
    terminal.shows(&format!("{number} hello"));
    terminal.shows("ready");
    // python heeds a signal that comes just before it reads when it has read.
    terminal.types("\x03");
    terminal.types("\n");
    terminal.shows("interrupted");
}

/// Takes the tree `pid` away and brings it back in another terminal.
fn brought_back(host: &Host, pid: &str, terminal: &mut Terminal) -> Terminal {
    let image = host.path("job.floe").display().to_string();
    let found = host.floe(&["checkpoint", "--pid", pid, "-o", &image]).expect_failed();
    assert!(found.contains("--tty current"), "{found}");
    // What is typed ahead goes along.
    terminal.types("ahead");
    host.done(&["checkpoint", "--pid", pid, "--tty", "current", "-o", &image]);
    let name = host.name("job");
    let mut restored = Terminal::start(&mut host.command(&["restore", "--name", &name, "--tty", "current", &image]));
    until("the sandbox", || host.sandboxes().contains(&name));
    restored.types("\n");
    restored.shows("2 ahead");
    restored.shows("ready");
    restored
}

#[test]
fn the_leader_of_a_session_gets_its_terminal_again() {
    let host = Host::new();
    let mut terminal = Terminal::start(Command::new("/usr/bin/python3").args(["-c", JOB, "fork"]));
    terminal.shows("ready");
    answers(&mut terminal, 1);
    let pid = terminal.child.id().to_string();
    let mut restored = brought_back(&host, &pid, &mut terminal);
    answers(&mut restored, 3);
    restored.types("end\n");
    restored.shows("over");
    assert_eq!(restored.status(), Some(7));
}

#[test]
fn a_job_of_a_shell_gets_a_terminal_again() {
    for set in ["set +m", "set -m"] {
        let host = Host::new();
        let script = format!("{set}; /usr/bin/python3 -c \"$JOB\"; echo shell goes on; sleep 1000");
        let mut shell = Terminal::start(Command::new("bash").args(["-c", &script]).env("JOB", JOB));
        shell.shows("ready");
        answers(&mut shell, 1);
        let own = shell.child.id();
        let pid = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).expect("a list");
        let mut restored = brought_back(&host, pid.trim(), &mut shell);
        shell.shows("shell goes on");
        answers(&mut restored, 3);
        // From now on it is a sandbox like any other.
        let (name, image) = (host.name("job"), host.path("job.floe").display().to_string());
        host.done(&["checkpoint", &name, "-o", &image]);
        restored.shows("was checkpointed");
        let mut restored = Terminal::start(&mut host.command(&["restore", &image]));
        until("the sandbox", || host.sandboxes().contains(&name));
        answers(&mut restored, 4);
        restored.types("end\n");
        assert_eq!(restored.status(), Some(0));
    }
}

#[test]
fn what_has_no_terminal_gets_none() {
    let host = Host::new();
    let job = host.sleeper("job");
    let image = host.path("job.floe").display().to_string();
    let pid = host.pid1(&job).to_string();
    let line = ["checkpoint", "--pid", &pid, "--tty", "current", "-o", &image];
    let found = host.floe(&line).expect_failed();
    assert!(found.contains("has no pseudo-terminal"), "{found}");
    host.done(&["checkpoint", &job, "-o", &image]);
    let found = host.floe(&["restore", "--tty", "current", &image]).expect_failed();
    assert!(found.contains("standard input and output are no terminal"), "{found}");
    let mut restored = Terminal::start(&mut host.command(&["restore", "--tty", "current", &image]));
    restored.shows("the tree had none that it could get again");
    assert_eq!(restored.status(), Some(1));
}
