//! Named pipes: contents, several readers and writers, one opened for both, a reader that never had a writer, one whose
//! writer is gone, and an opener that waits for the other side.

use nix::sys::stat::Mode;
use std::{path::PathBuf, sync::mpsc, thread, time::Duration};
use victims::{Findings, Seen, Stage, call, descriptor::open, pattern, play, wait_until, waiting::waits_in};

fn main() {
    play(|stage| {
        let busy = Busy::make(stage);
        let quiet = alone(stage, "quiet");
        let hung_up = hung_up(stage);
        let mut opener = Opener::start(stage);
        move |findings: &mut Findings| {
            busy.check(findings);
            findings.same("events of a reader that never had a writer", &0, &events(quiet));
            findings.same(
                "events of a reader whose writer is gone",
                &libc::POLLHUP,
                &events(hung_up),
            );
            opener.check(findings);
        }
    })
}

fn make(stage: &Stage, name: &str) -> PathBuf {
    let path = stage.path(name);
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("mkfifo");
    path
}

fn alone(stage: &Stage, name: &str) -> i32 {
    open(&make(stage, name), libc::O_RDONLY | libc::O_NONBLOCK)
}

fn hung_up(stage: &Stage) -> i32 {
    let reader = alone(stage, "hung up");
    call::close(open(&stage.path("hung up"), libc::O_WRONLY));
    reader
}

fn events(fd: i32) -> i16 {
    let mut ask = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry.
    let status = unsafe { libc::poll(&raw mut ask, 1, 0) };
    assert!(status >= 0, "poll");
    ask.revents
}

/// Two readers, two writers, one that is both.
struct Busy {
    all: Vec<(i32, Seen)>,
}

impl Busy {
    fn make(stage: &Stage) -> Self {
        let path = make(stage, "busy (deleted)");
        let flags = [
            libc::O_RDONLY | libc::O_NONBLOCK,
            libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC,
            libc::O_WRONLY,
            libc::O_WRONLY | libc::O_NONBLOCK,
            libc::O_RDWR,
        ];
        let fds = flags.map(|flags| open(&path, flags));
        call::fcntl(fds[0], libc::F_SETPIPE_SZ, 1 << 17).expect("F_SETPIPE_SZ");
        call::write(fds[2], &pattern::bytes(70_000, 1)).expect("write");
        Self {
            all: fds.map(|fd| (fd, Seen::of(fd))).to_vec(),
        }
    }

    fn check(&self, findings: &mut Findings) {
        for (fd, seen) in &self.all {
            let mut now = Seen::of(*fd);
            now.modified = seen.modified;
            findings.that(now == *seen, format!("was {seen:?}, is {now:?}"));
        }
        let [first, second, third, fourth, both] = [0, 1, 2, 3, 4].map(|index: usize| self.all[index].0);
        if findings.sabotage() {
            call::read(both, 1).expect("read");
        }
        findings.same(
            "capacity",
            &(1 << 17),
            &call::fcntl(second, libc::F_GETPIPE_SZ, 0).unwrap_or(-1),
        );
        let mut bytes = Vec::new();
        for (fd, len) in [(first, 20_000), (second, 30_000), (both, 20_000), (first, 1)] {
            bytes.extend(call::read(fd, len).unwrap_or_default());
        }
        let difference = pattern::difference(&pattern::bytes(70_000, 1), &bytes);
        findings.that(
            difference.is_none(),
            format!("{} bytes, they differ at {difference:?}", bytes.len()),
        );
        for (fd, piece) in [third, fourth, both]
            .into_iter()
            .zip(pattern::bytes(70_000, 1).chunks(25_000))
        {
            let wrote = call::write(fd, piece).map_err(|error| error.to_string());
            findings.same("bytes written", &Ok(piece.len()), &wrote);
        }
    }
}

/// A thread that waits in open(2) until somebody writes.
struct Opener {
    path: PathBuf,
    heard: mpsc::Receiver<Vec<u8>>,
    tid: mpsc::Receiver<i32>,
    again: mpsc::Sender<()>,
}

impl Opener {
    fn start(stage: &Stage) -> Self {
        let path = make(stage, "waited for");
        let (tell, heard) = mpsc::channel();
        let (tell_id, tid) = mpsc::channel();
        let (again, go) = mpsc::channel();
        let place = path.clone();
        thread::spawn(move || {
            loop {
                if tell_id.send(call::gettid()).is_err() {
                    return;
                }
                let fd = open(&place, libc::O_RDONLY);
                let got = call::read(fd, 100).expect("read");
                call::close(fd);
                // Not before the writer has closed its end.
                if tell.send(got).is_err() || go.recv().is_err() {
                    return;
                }
            }
        });
        let opener = Self {
            path,
            heard,
            tid,
            again,
        };
        opener.wait_until_it_waits();
        opener
    }

    fn wait_until_it_waits(&self) {
        let tid = self.tid.recv().expect("an id");
        assert!(
            wait_until(|| waits_in(tid, &[libc::SYS_openat])),
            "the opener does not wait"
        );
    }

    fn check(&mut self, findings: &mut Findings) {
        let early = self.heard.recv_timeout(Duration::from_millis(20));
        findings.that(early.is_err(), format!("the opener came back by itself: {early:?}"));
        let fd = open(&self.path, libc::O_WRONLY);
        call::write(fd, b"hello").expect("write");
        call::close(fd);
        let heard = self.heard.recv_timeout(Duration::from_secs(10));
        findings.that(heard.as_deref() == Ok(b"hello"), format!("the opener got {heard:?}"));
        self.again.send(()).expect("the opener waits");
        self.wait_until_it_waits();
    }
}
