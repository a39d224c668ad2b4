//! Files and ends outside of a tree that the user names: they stay there, and others are given in their place.

use floe_suite::{Host, enter_own_mounts, run, until};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, PipeReader, Read, Write, pipe},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::{fs::MetadataExt, net::SocketAddrExt},
        unix::{
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
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
    for (number, file) in (GIVEN..).zip(given) {
        let own = file.as_fd().as_raw_fd();
        // SAFETY: the closure makes one system call, which is safe between fork and exec.
        unsafe { command.pre_exec(move || take_as(own, number)) };
    }
    run(&mut command)
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
const ANSWERS: &str = "import socket
s = socket.socket(fileno=0)
n = 0
while True:
    got = s.recv(100)
    if not got: break
    n += 1
    s.sendall(b'%d %s' % (n, got))";

fn ask(socket: &mut UnixStream, question: &str) -> String {
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("SO_RCVTIMEO");
    socket.write_all(question.as_bytes()).expect("write");
    let mut answer = [0; 100];
    let count = socket.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

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
    host.done(&["rm", "-f", &name]);
    assert_eq!(near.read(&mut [0; 10]).expect("its end"), 0);
}

/// Connects with argument 1 and answers there.
const CONNECTS: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
place = sys.argv[1]
s.connect(('\\0' + place[1:]) if place[0] == '@' else place)
n = 0
while True:
    got = s.recv(100)
    n += 1
    s.sendall(b'%d %s' % (n, got))";

#[test]
fn a_stream_connects_anew_with_who_listens_at_a_path() {
    let host = Host::new();
    let path = text(&host.path("service"));
    let listener = UnixListener::bind(&path).expect("bind");
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", CONNECTS, &path]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "a"), "1 a");
    let line = ["checkpoint", &job, "-o", &image];
    let rule = format!("unix:{path}");
    let found = host.floe(&line).expect_failed();
    assert!(found.contains(&format!("(--external {rule})")), "{found}");
    let line = [&line[..], &["--external", &rule]].concat();
    host.done(&line);
    let (restore, permit) = (["restore", "-d", &image], ["--external", &rule]);
    // Only this test stops it, so the end of the old connection comes with the tree's.
    assert_eq!(end.read(&mut [0; 10]).expect("its end"), 0);
    let found = host.floe(&restore).expect_failed();
    assert!(
        found.contains(&format!(
            "connecting anew with what is outside of the tree takes --external {rule}"
        )),
        "{found}"
    );
    let permitted = [&restore[..], &permit].concat();
    drop(listener);
    let found = host.floe(&permitted).expect_failed();
    assert!(
        found.contains(&format!("nobody has the socket {path} to connect with")),
        "{found}"
    );
    fs::remove_file(&path).expect("remove");
    let found = host.floe(&permitted).expect_failed();
    assert!(
        found.contains(&format!("there is no socket {path} to connect with")),
        "{found}"
    );
    let letters = UnixDatagram::bind(&path).expect("bind");
    let found = host.floe(&permitted).expect_failed();
    assert!(found.contains("is another kind of socket here"), "{found}");
    drop(letters);
    fs::remove_file(&path).expect("remove");
    let listener = UnixListener::bind(&path).expect("bind");
    host.done(&permitted);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "b"), "2 b");
    // What came and is not read would be lost with the connection.
    host.done(&["freeze", &job]);
    end.write_all(b"not read").expect("write");
    let found = host.floe(&[&line[..], &["--patience", "0"]].concat()).expect_failed();
    assert!(
        found.contains("bytes from outside of the tree wait in this socket"),
        "{found}"
    );
    host.done(&["rm", "-f", &job]);
}

#[test]
fn a_stream_connects_anew_with_an_abstract_name() {
    let host = Host::new();
    let name = host.name("service");
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("bind");
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    let place = format!("@{name}");
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", CONNECTS, &place]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "a"), "1 a");
    let rule = format!("unix:{place}");
    host.done(&["checkpoint", &job, "-o", &image, "--external", &rule]);
    host.done(&["restore", "-d", "--external", &rule, &image]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "b"), "2 b");
    host.done(&["rm", "-f", &job]);
}

/// Tells the system's log a number when a file with it appears.
const LOGS: &str = "import os, sys, syslog, time
n = 0
syslog.openlog('job', syslog.LOG_NDELAY | syslog.LOG_PID)
while True:
    n += 1
    syslog.syslog('number %d' % n)
    while not os.path.exists('%s/go.%d' % (sys.argv[1], n)):
        time.sleep(0.005)";

#[test]
fn a_program_goes_on_telling_the_systems_log() {
    // A /dev/log that nobody else sees.
    enter_own_mounts();
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let go = |number: u32| fs::write(format!("{folder}/go.{number}"), "").expect("write");
    let heard = |log: &UnixDatagram, number: u32| {
        let mut bytes = [0; 1000];
        let count = log.recv(&mut bytes).expect("a letter");
        let line = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(
            line.contains("job[") && line.ends_with(&format!("number {number}")),
            "{line}"
        );
    };
    let listen = || {
        let log = UnixDatagram::bind("/dev/log").expect("bind");
        log.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        log
    };
    let log = listen();
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    // A path leads out of a network of its own, too.
    let run = ["run", "-d", "--net", "none", "--name", &job, "--"];
    host.done(&[&run[..], &["python3", "-c", LOGS, &folder]].concat());
    heard(&log, 1);
    go(1);
    heard(&log, 2);
    host.done(&["checkpoint", &job, "-o", &image]);
    go(2);
    drop(log);
    let found = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(
        found.contains("nobody has the socket /dev/log to connect with"),
        "{found}"
    );
    fs::remove_file("/dev/log").expect("remove");
    let log = listen();
    host.done(&["restore", "-d", &image]);
    heard(&log, 3);
    go(3);
    heard(&log, 4);
    host.done(&["rm", "-f", &job]);
}
