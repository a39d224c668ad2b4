//! Files and ends outside of a tree that the user names: they stay there, and others are given in their place.

use floe_suite::{Host, ask, run, spawn, until, wait};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, PipeReader, Read, Write, pipe},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::fs::MetadataExt,
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
};

/// The number that given descriptors have in floe.
const GIVEN: i32 = 9;

/// A tree that floe did not start: a python script, in a session of its own.
struct Stray(Child);

impl Stray {
    fn start(script: &str, arguments: &[&str], streams: [Stdio; 2]) -> Self {
        let [input, output] = streams;
        // A shell before it (pyenv) could take a terminal for its session's own.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).args(arguments);
        command.stdin(input).stdout(output).stderr(Stdio::null());
        // SAFETY: the function makes two system calls, which are safe between fork and exec.
        unsafe { command.pre_exec(stand_alone) };
        Self(command.spawn().expect("start python"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Waits for its end, which its checkpoint was.
    fn gone(mut self) {
        self.0.wait().expect("its end");
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a session of its own, and without what the test's own caller has left open: that would be held outside of the tree.
fn stand_alone() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(nix::unistd::setsid().map(drop)?)
}

fn take_as(own: i32, number: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    match unsafe { libc::dup2(own, number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What /proc shows of a pipe or socket.
fn link(kind: &str, file: &impl AsFd) -> String {
    let file = File::from(file.as_fd().try_clone_to_owned().expect("dup"));
    format!("{kind}:[{}]", file.metadata().expect("stat").st_ino())
}

/// Runs floe, which has `given` as descriptors 9 and on.
fn given(host: &Host, given: &[&dyn AsFd], arguments: &[&str]) -> floe_suite::Outcome {
    let mut command = host.command(arguments);
    give(&mut command, given);
    run(&mut command)
}

fn give(command: &mut Command, given: &[&dyn AsFd]) {
    for (number, file) in (GIVEN..).zip(given) {
        let own = file.as_fd().as_raw_fd();
        // SAFETY: the closure makes one system call, which is safe between fork and exec.
        unsafe { command.pre_exec(move || take_as(own, number)) };
    }
}

/// A rule for descriptor 0 of the tree below the init of a sandbox.
fn link_of_tree(host: &Host, sandbox: &str) -> String {
    let init = host.pid1(sandbox);
    let root = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("a list");
    let link = fs::read_link(format!("/proc/{}/fd/0", root.trim())).expect("a link");
    format!("{}=partner", link.display())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

const COUNTS: &str = "import os, time
n = 0
while True:
    n += 1
    os.write(1, b'%d\\n' % n)
    time.sleep(0.002)";

fn next_number(lines: &mut BufReader<PipeReader>) -> u64 {
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    line.trim().parse().expect("a number")
}

#[test]
fn a_pipe_to_the_outside_is_given_anew() {
    let host = Host::new();
    let (reader, writer) = pipe().expect("a pipe");
    let link = link("pipe", &writer);
    let stray = Stray::start(COUNTS, &[], [Stdio::null(), writer.into()]);
    let mut lines = BufReader::new(reader);
    assert_eq!(next_number(&mut lines), 1);
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    let line = ["checkpoint", "--pid", &pid, "-o", &image];
    let found = host.floe(&line).expect_failed();
    assert!(found.contains(&format!("(--external {link}=NAME)")), "{found}");
    let found = host
        .floe(&[&line[..], &["--external", "pipe:[1]=log"]].concat())
        .expect_failed();
    assert!(found.contains("no file of the tree"), "{found}");
    let rule = format!("{link}=log");
    host.done(&[&line[..], &["--external", &rule]].concat());
    stray.gone();
    let mut last = 0;
    for line in lines.lines() {
        last = line.expect("a line").parse().expect("a number");
    }
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, &image];
    let found = host.floe(&restore).expect_failed();
    assert!(
        found.contains("a pipe \"log\": nothing is given for it: --inherit-fd log=FD"),
        "{found}"
    );
    let give = [&restore[..], &["--inherit-fd", "log=9"]].concat();
    let null = File::open("/dev/null").expect("open");
    let found = given(&host, &[&null], &give).expect_failed();
    assert!(
        found.contains("what is given for it is the character device 1:3"),
        "{found}"
    );
    let (reader, writer) = pipe().expect("a pipe");
    let found = given(&host, &[&reader], &give).expect_failed();
    assert!(
        found.contains("what is given for it is not open for writing"),
        "{found}"
    );
    let other = [&restore[..], &["--inherit-fd", "lgo=9"]].concat();
    let found = given(&host, &[&writer], &other).expect_failed();
    assert!(
        found.contains("descriptor given as \"lgo\": the image has no file of this name"),
        "{found}"
    );
    assert_eq!(given(&host, &[&writer], &give).expect_done().trim(), name);
    drop(writer);
    let mut lines = BufReader::new(reader);
    for number in 1..=100 {
        assert_eq!(next_number(&mut lines), last + number);
    }
    host.done(&["rm", "-f", &name]);
    // Nobody but the tree had it: neither the monitor nor floe.
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("the end");
}

/// Reads a line when there is a file `go`, and writes it to a file.
const WAITS: &str = "import os, sys, time
open(sys.argv[1] + '/ready', 'w')
while not os.path.exists(sys.argv[1] + '/go'):
    time.sleep(0.005)
line = os.read(0, 100)
open(sys.argv[1] + '/new', 'wb').write(line)
os.rename(sys.argv[1] + '/new', sys.argv[1] + '/got')
time.sleep(1000)";

#[test]
fn what_waits_in_a_pipe_from_the_outside_is_not_lost() {
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let (reader, mut writer) = pipe().expect("a pipe");
    let own = reader.try_clone().expect("dup");
    let rule = format!("{}=source", link("pipe", &own));
    let stray = Stray::start(WAITS, &[&folder], [reader.into(), Stdio::null()]);
    writer.write_all(b"one").expect("write");
    until("python", || Path::new(&format!("{folder}/ready")).exists());
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    host.done(&["checkpoint", "--pid", &pid, "-o", &image, "--external", &rule]);
    stray.gone();
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, "--inherit-fd", "source=9", &image];
    let (other, _writer) = pipe().expect("a pipe");
    let found = given(&host, &[&other], &restore).expect_failed();
    assert!(
        found.contains("something waited in it that the tree had not read"),
        "{found}"
    );
    assert_eq!(given(&host, &[&own], &restore).expect_done().trim(), name);
    fs::write(format!("{folder}/go"), "").expect("write");
    until("the line", || Path::new(&format!("{folder}/got")).exists());
    assert_eq!(fs::read(format!("{folder}/got")).expect("read"), b"one");
    host.done(&["rm", "-f", &name]);
}

#[test]
fn a_terminal_and_a_device_are_given_anew() {
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let device = || File::options().write(true).open("/dev/kmsg").expect("open");
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let path = nix::unistd::ttyname(&terminal.slave).expect("its name");
    let stray = Stray::start(WAITS, &[&folder], [terminal.slave.into(), device().into()]);
    until("python", || Path::new(&format!("{folder}/ready")).exists());
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    let line = ["checkpoint", "--pid", &pid, "-o", &image, "--external", "/dev/kmsg=log"];
    let found = host.floe(&line).expect_failed();
    assert!(found.contains("a terminal whose other end is outside"), "{found}");
    let rule = format!("{}=line", path.display());
    host.done(&[&line[..], &["--external", &rule]].concat());
    stray.gone();
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, &image, "--inherit-fd", "line=9"];
    let other = nix::pty::openpty(None, None).expect("a terminal");
    let found = given(&host, &[&other.slave], &restore).expect_failed();
    assert!(
        found.contains("the character device 1:11 \"log\": nothing is given for it"),
        "{found}"
    );
    let both = [&restore[..], &["--inherit-fd", "log=10"]].concat();
    let null = File::options().write(true).open("/dev/null").expect("open");
    let found = given(&host, &[&other.slave, &null], &both).expect_failed();
    assert!(
        found.contains("what is given for it is the character device 1:3"),
        "{found}"
    );
    assert_eq!(
        given(&host, &[&other.slave, &device()], &both).expect_done().trim(),
        name
    );
    let mut master = File::from(other.master);
    master.write_all(b"typed\n").expect("write");
    fs::write(format!("{folder}/go"), "").expect("write");
    until("the line", || Path::new(&format!("{folder}/got")).exists());
    assert_eq!(fs::read(format!("{folder}/got")).expect("read"), b"typed\n");
    host.done(&["rm", "-f", &name]);
}

/// Answers on descriptor 0.
const ANSWERS: &str = "import socket, time
s = socket.socket(fileno=0)
n = 0
while True:
    got = s.recv(100)
    if got in (b'', b'end'): break
    n += 1
    s.sendall(b'%d %s' % (n, got))
s.close()
time.sleep(1000)";

#[test]
fn an_end_of_a_pair_of_sockets_is_given_anew() {
    let host = Host::new();
    let (mut near, far) = UnixStream::pair().expect("a pair");
    let link = link("socket", &far);
    let stray = Stray::start(ANSWERS, &[], [OwnedFd::from(far).into(), Stdio::null()]);
    assert_eq!(ask(&mut near, "a"), "1 a");
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    let line = ["checkpoint", "--pid", &pid, "-o", &image];
    let found = host.floe(&line).expect_failed();
    assert!(found.contains(&format!("(--external {link}=NAME)")), "{found}");
    let rule = format!("{link}=partner");
    host.done(&[&line[..], &["--external", &rule]].concat());
    stray.gone();
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, "--inherit-fd", "partner=9", &image];
    let (letters, _other) = UnixDatagram::pair().expect("a pair");
    let found = given(&host, &[&letters], &restore).expect_failed();
    assert!(
        found.contains("a unix stream socket \"partner\": what is given for it is a unix datagram socket"),
        "{found}"
    );
    let (mut near, far) = UnixStream::pair().expect("a pair");
    assert_eq!(given(&host, &[&far], &restore).expect_done().trim(), name);
    drop(far);
    assert_eq!(ask(&mut near, "b"), "2 b");
    host.done(&[
        "checkpoint",
        &name,
        "-o",
        &image,
        "--external",
        &link_of_tree(&host, &name),
    ]);
    assert_eq!(near.read(&mut [0; 10]).expect("its end"), 0);
    // A floe that stays with the tree does not keep what it was given.
    let (near, far) = UnixStream::pair().expect("a pair");
    let mut command = host.command(&["restore", "--name", &name, "--inherit-fd", "partner=9", &image]);
    give(&mut command, &[&far]);
    let floe = spawn(&mut command);
    drop(far);
    let mut near = near;
    assert_eq!(ask(&mut near, "c"), "3 c");
    near.write_all(b"end").expect("write");
    assert_eq!(near.read(&mut [0; 10]).expect("its end"), 0);
    host.done(&["rm", "-f", &name]);
    assert_ne!(wait(floe), 0);
}

/// Serves at a socket that it was started with.
const SERVES: &str = "import socket
s = socket.socket(fileno=0)
n = 0
while True:
    end, _ = s.accept()
    n += 1
    end.sendall(b'%d %s' % (n, end.recv(100)))
    end.close()";

/// As a service has it that is started by its socket: who starts it has that too, and keeps it while the service is away.
#[test]
fn a_socket_that_listens_is_given_anew() {
    let host = Host::new();
    let path = host.path("service");
    let listener = UnixListener::bind(&path).expect("bind");
    let connect = || UnixStream::connect(&path).expect("connect");
    let rule = format!("{}=service", link("socket", &listener));
    let own = listener.try_clone().expect("dup");
    let stray = Stray::start(SERVES, &[], [OwnedFd::from(own).into(), Stdio::null()]);
    assert_eq!(ask(&mut connect(), "a"), "1 a");
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    host.done(&["checkpoint", "--pid", &pid, "-o", &image, "--external", &rule]);
    stray.gone();
    let mut waits = connect();
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, "--inherit-fd", "service=9", &image];
    assert_eq!(given(&host, &[&listener], &restore).expect_done().trim(), name);
    assert_eq!(ask(&mut waits, "b"), "2 b");
    assert_eq!(ask(&mut connect(), "c"), "3 c");
    host.done(&["rm", "-f", &name]);
}

/// Writes to what it was started with until there is a file `go`.
const WRITES: &str = "import os, sys, time
open(sys.argv[1] + '/ready', 'w')
while not os.path.exists(sys.argv[1] + '/go'):
    time.sleep(0.005)
os.write(1, b'of the tree\\n')
open(sys.argv[1] + '/done', 'w')
time.sleep(1000)";

fn flags_of(file: &File) -> i32 {
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL).expect("F_GETFL")
}

/// The open file is the user's too: what it appends to is not overwritten, and a restore that fails changes nothing.
#[test]
fn what_is_given_stays_the_users() {
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let log = host.path("log");
    let plain = File::create(host.path("plain")).expect("a file");
    let stray = Stray::start(WRITES, &[&folder], [Stdio::null(), plain.into()]);
    until("python", || Path::new(&format!("{folder}/ready")).exists());
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    let rule = format!("{}=log", host.path("plain").display());
    host.done(&["checkpoint", "--pid", &pid, "-o", &image, "--external", &rule]);
    stray.gone();
    fs::write(&log, "precious\n").expect("write");
    let mut own = File::options().append(true).open(&log).expect("open");
    let before = flags_of(&own) | libc::O_NONBLOCK;
    let set = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::from_bits_retain(before));
    nix::fcntl::fcntl(&own, set).expect("F_SETFL");
    let name = host.name("stray");
    let restore = ["restore", "-d", "--name", &name, "--inherit-fd", "log=9", &image];
    for stage in ["state", "freeze", "thaw:panic"] {
        let mut command = host.command(&restore);
        give(&mut command, &[&own]);
        let outcome = run(command.env("FLOE_FAIL_AT", stage));
        assert_ne!(outcome.status, 0, "{stage}: {}", outcome.err);
        assert_eq!(flags_of(&own), before, "after a failure at {stage}");
    }
    own.write_all(b"more\n").expect("write");
    assert_eq!(given(&host, &[&own], &restore).expect_done().trim(), name);
    assert_eq!(flags_of(&own), before & !libc::O_NONBLOCK);
    fs::write(format!("{folder}/go"), "").expect("write");
    until("its line", || Path::new(&format!("{folder}/done")).exists());
    own.write_all(b"the end\n").expect("write");
    assert_eq!(
        fs::read_to_string(&log).expect("read"),
        "precious\nmore\nof the tree\nthe end\n"
    );
    host.done(&["rm", "-f", &name]);
}

#[test]
fn one_name_stands_for_one_open_file() {
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let plain = text(&host.path("plain"));
    let open = || File::options().create(true).append(true).open(&plain).expect("a file");
    let script = format!("open('{plain}', 'r')\n{WRITES}").replacen("open(", "kept = open(", 1);
    let stray = Stray::start(&script, &[&folder], [Stdio::null(), open().into()]);
    until("python", || Path::new(&format!("{folder}/ready")).exists());
    let (pid, image) = (stray.pid(), text(&host.path("stray.floe")));
    let line = ["checkpoint", "--pid", &pid, "-o", &image, "--external"];
    let rules = [format!("{plain}=log"), format!("{folder}=log")];
    let found = host
        .floe(&[&line[..], &[&rules[0], "--external", &rules[1]]].concat())
        .expect_failed();
    assert!(found.contains("\"log\" is in two rules"), "{found}");
    let found = host.floe(&[&line[..], &[&rules[0]]].concat()).expect_failed();
    assert!(found.contains("it is open more than once by the link"), "{found}");
    fs::write(format!("{folder}/go"), "").expect("write");
    until("its line", || Path::new(&format!("{folder}/done")).exists());
}
