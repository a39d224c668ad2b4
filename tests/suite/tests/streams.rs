//! The sandbox's own streams: what a workload writes reaches the log once and in order, what it is to read reaches it
//! once and in order, and its terminal stays its terminal, over checkpoints and restores.

use floe_suite::{Host, PID_METHODS, Victim, times, wait};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{OpenptyResult, openpty},
    unistd::read,
};
use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes numbered lines as fast as they are taken, to the output whose number it is given.
const NUMBERS: &str = r"
import os, sys
n = 0
while True:
    line = b'line %d\n' % n
    while line: line = line[os.write(int(sys.argv[1]), line):]
    n += 1
";

/// Tells what it reads, when it is told to begin.
const TELLS: &str = r"
import os, sys, time
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
while True:
    got = os.read(0, 10000)
    if not got: break
    os.write(1, got)
os.write(1, b'END\n')
time.sleep(1000)
";

fn log(host: &Host, name: &str) -> String {
    host.done(&["logs", name])
}

fn wait_for_log(host: &Host, name: &str, mut holds: impl FnMut(&str) -> bool) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = log(host, name);
        if holds(&text) {
            return text;
        }
        assert!(Instant::now() < end, "the log of {name} stands at {} bytes", text.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn round_trip(host: &Host, name: &str, method: &str) {
    let image = host.path("image.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", name, "-o", image]);
    host.done(&["restore", "-d", "--pid-method", method, image]);
}

/// How many lines there are; each has the number that follows.
fn numbers(text: &str) -> usize {
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let lines: Vec<&str> = complete.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let around = &lines[number.saturating_sub(3)..lines.len().min(number + 3)];
        assert_eq!(line.trim_end(), format!("line {number}"), "{around:?}");
    }
    lines.len()
}

fn loses_no_line(options: &[&str], output: &str) {
    let host = Host::new();
    let mut line = vec!["run", "-d", "--name", "lines"];
    line.extend(options);
    line.extend(["--", "python3", "-c", NUMBERS, output]);
    host.done(&line);
    let mut before = 0;
    for round in 0..times(6) {
        let enough = before + 2_000;
        wait_for_log(&host, "lines", |text| text.lines().count() > enough);
        round_trip(&host, "lines", PID_METHODS[round % 2]);
        before = log(&host, "lines").lines().count();
    }
    let text = wait_for_log(&host, "lines", |text| text.lines().count() > before + 2_000);
    assert!(numbers(&text) > 10_000);
}

#[test]
fn a_log_over_pipes_has_every_line_once() {
    loses_no_line(&[], "1");
    loses_no_line(&[], "2");
}

#[test]
fn a_log_over_a_terminal_has_every_line_once() {
    loses_no_line(&["-t"], "1");
}

#[test]
fn a_checkpoint_that_lets_run_on_changes_nothing_in_the_log() {
    let host = Host::new();
    host.done(&["run", "-d", "--name", "lines", "--", "python3", "-c", NUMBERS, "1"]);
    let image = host.path("image.floe");
    let image = image.to_str().expect("a plain path");
    for _ in 0..5 {
        let before = log(&host, "lines").lines().count();
        host.done(&["checkpoint", "lines", "--leave-running", "-o", image]);
        wait_for_log(&host, "lines", |text| text.lines().count() > before + 1_000);
    }
    let lines = numbers(&log(&host, "lines"));
    host.done(&["rm", "-f", "lines"]);
    // The image has the log of its moment.
    host.done(&["restore", "-d", image]);
    let text = wait_for_log(&host, "lines", |text| text.lines().count() > lines);
    assert!(numbers(&text) >= lines);
}

/// A foreground run whose input comes through a pipe; how much of it was given.
fn feed(host: &Host, child: &mut Child, bytes: &[u8]) -> Option<std::process::ChildStdin> {
    let mut input = child.stdin.take().expect("its input");
    input.write_all(bytes).expect("write the input");
    let running = || host.sandboxes().contains(&"reads".to_owned());
    let end = Instant::now() + PATIENCE;
    while !running() {
        assert!(Instant::now() < end, "the sandbox does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(input)
}

fn input_survives(ends: bool, lines: usize) {
    let host = Host::new();
    let go = host.path("go");
    let go = go.to_str().expect("a plain path");
    let mut command = host.command(&["run", "--name", "reads", "--", "python3", "-c", TELLS, go]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start floe");
    let text: String = (0..lines).map(|n| format!("line {n}\n")).collect();
    let mut input = feed(&host, &mut child, text.as_bytes());
    if ends {
        input = None;
    }
    // What floe run was given may still be on its way to the monitor; it is there when nothing is left to be read.
    let status = format!("/proc/{}/stat", child.id());
    let end = Instant::now() + PATIENCE;
    while !is_idle(&status, &input) {
        assert!(Instant::now() < end, "floe run does not take its input");
        std::thread::sleep(Duration::from_millis(5));
    }
    for method in PID_METHODS {
        round_trip(&host, "reads", method);
    }
    drop(input);
    assert_eq!(wait(child), 0, "the foreground run ends with the checkpoint");
    std::fs::write(go, "").expect("let it read");
    let end = if ends { "END\n" } else { "" };
    let told = wait_for_log(&host, "reads", |log| log.len() >= text.len() + end.len());
    assert!(
        told == text.clone() + end,
        "{} bytes of {} arrived",
        told.len(),
        text.len()
    );
}

/// Whether the client sleeps and its input is empty.
fn is_idle(stat: &str, input: &Option<std::process::ChildStdin>) -> bool {
    let sleeps = std::fs::read_to_string(stat).is_ok_and(|text| text.contains(") S "));
    let mut left = 0;
    if let Some(input) = input {
        use std::os::fd::AsRawFd;
        // SAFETY: room for the number.
        let status = unsafe { libc::ioctl(input.as_raw_fd(), libc::FIONREAD, &raw mut left) };
        assert_eq!(status, 0, "FIONREAD");
    }
    sleeps && left == 0
}

#[test]
fn input_that_nobody_has_read_is_read_after_the_restore() {
    input_survives(false, 10);
    input_survives(true, 10);
}

#[test]
fn input_beyond_the_pipe_is_read_after_the_restore() {
    input_survives(false, 20_000);
    input_survives(true, 20_000);
}

#[test]
fn the_terminal_stays_what_it_was() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "terminal", &["-t"], &[]);
    for method in PID_METHODS {
        victim.round_trip("terminal", method);
        victim.check("after a round trip");
    }
    victim.round_trip("another", PID_METHODS[0]);
    victim.check("in another sandbox");
    let host = Host::new();
    let verdict = Victim::start(&host, "terminal", &["-t"], &["--sabotage"]).verdict();
    assert!(verdict.starts_with("FAIL"), "{verdict}");
}

/// `floe attach` on a terminal of its own.
struct Attached {
    master: File,
    child: Child,
    text: String,
}

impl Attached {
    fn start(host: &Host, name: &str) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
        let stream = || Stdio::from(slave.try_clone().expect("duplicate"));
        let mut command = host.command(&["attach", name]);
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn();
        let mut attached = Self {
            master: master.into(),
            child: child.expect("start floe"),
            text: String::new(),
        };
        // In raw mode it is connected: keys go to the workload one by one.
        let end = Instant::now() + PATIENCE;
        while nix::sys::termios::tcgetattr(&attached.master)
            .expect("settings")
            .local_flags
            .contains(nix::sys::termios::LocalFlags::ICANON)
        {
            assert!(Instant::now() < end, "floe attach does not connect: {}", attached.text);
            attached.hear();
            std::thread::sleep(Duration::from_millis(2));
        }
        attached
    }

    fn type_keys(&mut self, keys: &str) {
        let mut rest = keys.as_bytes();
        let end = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            match nix::unistd::write(&self.master, rest) {
                Ok(done) => rest = &rest[done..],
                Err(error) => assert_eq!(error, nix::errno::Errno::EAGAIN, "type"),
            }
            self.hear();
            assert!(Instant::now() < end, "nobody reads keys: {}", self.text);
        }
    }

    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(got @ 1..) = read(self.master.as_fd(), &mut buffer) {
            self.text += &String::from_utf8_lossy(&buffer[..got]);
        }
    }

    fn expect(&mut self, words: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.hear();
            if let Some(at) = self.text.find(words) {
                self.text.drain(..at + words.len());
                return;
            }
            assert!(Instant::now() < end, "no {words:?} in {:?}", self.text);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn detach(mut self) {
        self.type_keys("\x10\x11");
        assert_eq!(wait(self.child), 0, "{}", self.text);
    }
}

const ECHO: &str = "while read line; do echo \"got $line of $(stty size)\"; done";

#[test]
fn a_restored_terminal_can_be_attached_to() {
    let host = Host::new();
    // Not as PID 1, to which ctrl-c would be nothing.
    host.done(&["run", "-d", "-t", "--init", "--name", "term", "--", "bash", "-c", ECHO]);
    for (round, method) in PID_METHODS.into_iter().enumerate() {
        let mut terminal = Attached::start(&host, "term");
        terminal.type_keys(&format!("word{round}\r"));
        terminal.expect(&format!("got word{round} of"));
        terminal.detach();
        round_trip(&host, "term", method);
    }
    let mut terminal = Attached::start(&host, "term");
    terminal.type_keys("last\r");
    terminal.expect("got last of");
    // Ctrl-c reaches the foreground group.
    terminal.type_keys("\x03");
    assert_eq!(wait(terminal.child), 130);
}

/// A line that is being typed, and some that are complete.
#[test]
fn input_that_waits_in_a_terminal_is_there_again() {
    let host = Host::new();
    let place = host.path("place");
    std::fs::create_dir(&place).expect("a folder");
    let script = "until [ -e go ]; do sleep 0.02; done; read -r one; echo \"one $one.\"; cksum";
    let line = [
        "run",
        "-d",
        "-t",
        "--name",
        "term",
        "-w",
        place.to_str().expect("a plain path"),
    ];
    host.done(&[&line[..], &["--", "bash", "-c", script]].concat());
    let mut terminal = Attached::start(&host, "term");
    // The terminal's echo tells that the keys are there.
    terminal.type_keys("abc");
    terminal.expect("abc");
    round_trip(&host, "term", PID_METHODS[0]);
    drop(terminal);
    let mut terminal = Attached::start(&host, "term");
    terminal.type_keys("def\r");
    terminal.expect("def\r\n");
    let lines: String = (0..2000).map(|n| format!("line {n}\r")).collect();
    terminal.type_keys(&lines);
    terminal.detach();
    round_trip(&host, "term", PID_METHODS[1]);
    let mut terminal = Attached::start(&host, "term");
    std::fs::write(place.join("go"), "").expect("let it go on");
    terminal.expect("one abcdef.");
    terminal.type_keys("\x04");
    let text = lines.replace('\r', "\n");
    let path = host.path("lines");
    std::fs::write(&path, &text).expect("write");
    let sum = std::process::Command::new("cksum")
        .stdin(std::fs::File::open(&path).expect("open"))
        .output()
        .expect("cksum");
    let sum = String::from_utf8_lossy(&sum.stdout).trim().to_owned();
    terminal.expect(&sum);
}

#[test]
fn a_line_that_was_deleted_is_no_reason_to_refuse() {
    let host = Host::new();
    host.done(&["run", "-d", "-t", "--name", "term", "--", "sleep", "1000"]);
    let mut terminal = Attached::start(&host, "term");
    terminal.type_keys("abc");
    terminal.expect("abc");
    terminal.type_keys("\x15");
    // The kernel rubs out what it echoed.
    terminal.expect("\x08 \x08");
    terminal.detach();
    round_trip(&host, "term", PID_METHODS[0]);
}
