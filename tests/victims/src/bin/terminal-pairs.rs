//! Pseudo-terminals with both ends here: settings, sizes, what waits unread in either end, packet mode, locks, ends that
//! are closed; all of it also seen by another task that shares them.

use nix::sys::termios::{InputFlags, LocalFlags, SpecialCharacterIndices, cfmakeraw};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use victims::{
    Findings, Peer, Seen, call,
    descriptor::{borrowed, open},
    play,
    pty::{Pty, command, ioctl, master, put, take},
};

const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TCXONC: libc::c_ulong = 0x540A;
const TCFLSH: libc::c_ulong = 0x540B;

/// What can be seen of a terminal without taking anything.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    settings: nix::sys::termios::Termios,
    window: [u16; 4],
    numbers: [Option<i32>; 7],
    name: Option<String>,
    ends: Vec<Seen>,
    inode: u64,
    events: Vec<i16>,
}

fn events(fd: i32) -> i16 {
    let mut ask = libc::pollfd {
        fd,
        events: libc::POLLIN | libc::POLLPRI | libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure.
    let status = unsafe { libc::poll(&raw mut ask, 1, 0) };
    assert!(status >= 0, "poll");
    ask.revents
}

impl Known {
    fn of(pty: &Pty) -> Self {
        let mut window = [0_u16; 4];
        // SAFETY: `struct winsize` is four words.
        let status = unsafe { libc::ioctl(pty.master, libc::TIOCGWINSZ, window.as_mut_ptr()) };
        assert!(status == 0, "TIOCGWINSZ");
        let asked = [
            (pty.master, TIOCGPTLCK),
            (pty.master, TIOCGPKT),
            (pty.master, TIOCGEXCL),
            (pty.slave, TIOCGEXCL),
            (pty.master, libc::TIOCGPTN),
            (pty.slave, libc::FIONREAD),
            (pty.slave, libc::TIOCGETD),
        ];
        let ends = [pty.master, pty.slave].map(|fd| {
            let seen = Seen::of(fd);
            // Times move with what is read and written.
            Seen { modified: 0, ..seen }
        });
        Self {
            settings: pty.settings(),
            window,
            numbers: asked.map(|(fd, request)| ioctl(fd, request, 0).ok()),
            name: nix::unistd::ttyname(victims::pty::borrow(pty.slave))
                .ok()
                .map(|path| path.display().to_string()),
            ends: ends.to_vec(),
            inode: borrowed(pty.slave).metadata().expect("fstat").ino(),
            events: [pty.master, pty.slave].map(events).to_vec(),
        }
    }
}

type Empty = Box<dyn Fn(&Pty, &mut Findings)>;

/// A part of the victim: what it looks at, and what it takes and puts back.
struct Part {
    name: &'static str,
    pty: Pty,
    known: Known,
    /// Takes out what waits, and says what is wrong with it.
    empty: Empty,
    /// Puts it in again.
    fill: Box<dyn Fn(&Pty)>,
}

impl Part {
    fn new(
        name: &'static str,
        prepare: impl FnOnce(&Pty),
        fill: impl Fn(&Pty) + 'static,
        empty: impl Fn(&Pty, &mut Findings) + 'static,
    ) -> Self {
        let pty = Pty::new();
        prepare(&pty);
        fill(&pty);
        settle();
        let known = Known::of(&pty);
        Self {
            name,
            pty,
            known,
            empty: Box::new(empty),
            fill: Box::new(fill),
        }
    }

    fn check(&self, findings: &mut Findings) {
        findings.same(self.name, &self.known, &Known::of(&self.pty));
        (self.empty)(&self.pty, findings);
        for end in [self.pty.master, self.pty.slave] {
            let more = take(end, 0);
            findings.that(more.is_empty(), format!("{}: {} bytes too many", self.name, more.len()));
        }
        (self.fill)(&self.pty);
        settle();
        findings.same(self.name, &self.known, &Known::of(&self.pty));
    }
}

/// The kernel moves what was written to the other end at its leisure.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn expect(findings: &mut Findings, what: &str, fd: i32, wanted: &[u8]) {
    let got = take(fd, wanted.len());
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
    findings.that(
        got == wanted,
        format!(
            "{what}: {} bytes {:?}, not {} {:?}",
            got.len(),
            text(&got),
            wanted.len(),
            text(wanted)
        ),
    );
}

/// Lines, an end of file, a quoted newline, a line that is being typed, and a key that quotes the next.
fn lines() -> Part {
    let fill = |pty: &Pty| {
        put(pty.slave, b"out\n");
        put(pty.master, b"one\n\x04two\x16\na\r\x04last line\0\nmore\x16\x13|");
        put(pty.master, b"un\x16");
    };
    let prepare = |pty: &Pty| {
        pty.set(|settings| {
            settings.control_chars[SpecialCharacterIndices::VEOL as usize] = b'|';
            settings.local_flags.remove(LocalFlags::ECHO);
        });
        let window = [33_u16, 99, 640, 480];
        // SAFETY: `struct winsize` is four words.
        let status = unsafe { libc::ioctl(pty.slave, libc::TIOCSWINSZ, window.as_ptr()) };
        assert!(status == 0, "TIOCSWINSZ");
    };
    Part::new("lines", prepare, fill, |pty, findings| {
        let mut reads = Vec::new();
        put(pty.master, b"\x03ished\n");
        settle();
        while let Ok(bytes) = call::read(pty.slave, 100) {
            reads.push(bytes);
        }
        let wanted: [&[u8]; 6] = [b"one\n", b"", b"two\na\n", b"", b"last line\0\n", b"more\x13|"];
        let wanted: Vec<Vec<u8>> = wanted
            .iter()
            .map(|line| line.to_vec())
            .chain([b"un\x03ished\n".to_vec()])
            .collect();
        findings.same("lines read", &wanted, &reads);
        expect(findings, "output of lines", pty.master, b"out\r\n");
    })
}

/// More than a line discipline takes, in both directions.
fn much() -> Part {
    let pattern = |seed: u32, len: u32| -> Vec<u8> { (0..len).map(|at| (at * 7 + seed) as u8).collect() };
    let fill = move |pty: &Pty| {
        put(pty.master, &pattern(3, 7000));
        put(pty.slave, &pattern(5, 9000));
    };
    Part::new(
        "much",
        |pty| pty.set(cfmakeraw),
        fill,
        move |pty, findings| {
            expect(findings, "much input", pty.slave, &pattern(3, 7000));
            expect(findings, "much output", pty.master, &pattern(5, 9000));
        },
    )
}

/// What was typed before lines were edited, and keys of flow control as data.
fn pushed() -> Part {
    let fill = |pty: &Pty| {
        pty.set(cfmakeraw);
        put(pty.master, b"half\n\x11\x13a");
        settle();
        pty.set(|settings| {
            settings.local_flags.insert(LocalFlags::ICANON);
            settings.input_flags.insert(InputFlags::IXON);
        });
        put(pty.master, b"rest\n");
    };
    Part::new(
        "pushed",
        |_| {},
        fill,
        |pty, findings| {
            let reads: Vec<_> = (0..2).map(|_| call::read(pty.slave, 100).unwrap_or_default()).collect();
            findings.same(
                "pushed lines",
                &vec![b"half\n\x11\x13a".to_vec(), b"rest\n".to_vec()],
                &reads,
            );
        },
    )
}

/// In packet mode, with things to tell.
fn packets() -> Part {
    let prepare = |pty: &Pty| {
        pty.set(|settings| settings.local_flags.remove(LocalFlags::ECHO));
        ioctl(pty.master, libc::TIOCPKT, 1).expect("packet mode");
    };
    let fill = |pty: &Pty| {
        command(pty.slave, TCFLSH, 0).expect("flush");
        pty.set(|settings| settings.input_flags.remove(InputFlags::IXON));
        command(pty.slave, TCXONC, 0).expect("stop");
        command(pty.slave, TCXONC, 1).expect("go on");
        put(pty.slave, b"text\n");
        put(pty.master, b"typed\n");
    };
    Part::new("packets", prepare, fill, |pty, findings| {
        expect(findings, "typed in packet mode", pty.slave, b"typed\n");
        let status = call::read(pty.master, 100).unwrap_or_default();
        findings.same("status", &vec![1 | 8 | 16], &status);
        let packet = call::read(pty.master, 100).unwrap_or_default();
        findings.same("packet", &b"\0text\r\n".to_vec(), &packet);
        // Not to be told of.
        pty.set(|settings| settings.input_flags.insert(InputFlags::IXON));
        let status = call::read(pty.master, 100).unwrap_or_default();
        findings.same("second status", &vec![32], &status);
    })
}

/// Output that is stopped, by the key and by a call.
fn stopped(by_key: bool) -> Part {
    let fill = move |pty: &Pty| {
        put(pty.slave, b"before\n");
        settle();
        if by_key {
            put(pty.master, b"\x13");
        } else {
            command(pty.slave, TCXONC, 0).expect("stop");
        }
    };
    let prepare = |pty: &Pty| pty.set(|settings| settings.local_flags.remove(LocalFlags::ECHO));
    let name = if by_key { "stopped by key" } else { "stopped by call" };
    Part::new(name, prepare, fill, move |pty, findings| {
        let held = call::write(pty.slave, b"held").map_err(|error| error.kind());
        findings.same("write while stopped", &Err(std::io::ErrorKind::WouldBlock), &held);
        expect(findings, "before the stop", pty.master, b"before\r\n");
        put(pty.master, b"\x11");
        settle();
        if !by_key {
            let held = call::write(pty.slave, b"held").map_err(|error| error.kind());
            findings.same("a key does not help", &Err(std::io::ErrorKind::WouldBlock), &held);
            command(pty.slave, TCXONC, 1).expect("go on");
        }
        put(pty.slave, b"after\n");
        expect(findings, "behind the stop", pty.master, b"after\r\n");
    })
}

/// Locked, exclusive, somebody's.
fn guarded() -> Part {
    let prepare = |pty: &Pty| {
        let slave = borrowed(pty.slave);
        std::os::unix::fs::fchown(&*slave, Some(1000), Some(1001)).expect("chown");
        slave
            .set_permissions(std::fs::Permissions::from_mode(0o604))
            .expect("chmod");
        let mut locked = [0_u32; 9];
        locked[3] = libc::ECHO;
        // SAFETY: `struct termios` of the kernel has 36 bytes.
        let status = unsafe { libc::ioctl(pty.slave, libc::TIOCSLCKTRMIOS, locked.as_ptr()) };
        assert!(status == 0, "TIOCSLCKTRMIOS");
        command(pty.slave, libc::TIOCEXCL, 0).expect("exclusive");
        command(pty.master, libc::TIOCEXCL, 0).expect("exclusive");
        ioctl(pty.master, libc::TIOCSPTLCK, 1).expect("lock");
    };
    Part::new(
        "guarded",
        prepare,
        |_| {},
        |pty, findings| {
            let slave = borrowed(pty.slave).metadata().expect("fstat");
            findings.same(
                "owner",
                &(1000, 1001, 0o604),
                &(slave.uid(), slave.gid(), slave.mode() & 0o777),
            );
            pty.set(|settings| settings.local_flags.toggle(LocalFlags::ECHO));
            let kept = pty.settings().local_flags.contains(LocalFlags::ECHO);
            findings.that(kept, "a locked setting was changed");
        },
    )
}

/// Masters whose slave nobody has, and a slave whose master is gone.
struct Ends {
    never: i32,
    closed: i32,
    hung_up: i32,
}

impl Ends {
    fn make() -> Self {
        let (never, _) = master();
        let closed = Pty::new();
        let hung_up = Pty::new();
        call::close(hung_up.master);
        let ends = Self {
            never,
            closed: closed.master,
            hung_up: hung_up.slave,
        };
        put(never, b"typed ahead\n");
        ends.fill(closed.slave);
        ends
    }

    fn fill(&self, slave: i32) {
        put(slave, b"last words\n");
        settle();
        call::close(slave);
    }

    fn check(&self, findings: &mut Findings) {
        let hang_up = |fd| events(fd) & libc::POLLHUP != 0;
        let seen = [self.never, self.closed, self.hung_up].map(hang_up);
        findings.same("who has hung up", &[false, true, true], &seen);
        let none = call::read(self.hung_up, 10).map_err(|error| error.raw_os_error());
        findings.same("a read where nobody is", &Ok(Vec::new()), &none);
        let error = ioctl(self.hung_up, libc::FIONREAD, 0).map_err(|error| error.raw_os_error());
        findings.same("a question where nobody is", &Err(Some(libc::EIO)), &error);
        let echo = call::read(self.never, 100).unwrap_or_default();
        findings.same("echo of what was typed ahead", &b"typed ahead\r\n".to_vec(), &echo);
        put(self.never, b"\x15");
        put(self.never, b"typed ahead\n");
        settle();
        let words = call::read(self.closed, 100).unwrap_or_default();
        findings.same("last words", &b"last words\r\n".to_vec(), &words);
        let end = call::read(self.closed, 100).map_err(|error| error.raw_os_error());
        findings.same("behind them", &Err(Some(libc::EIO)), &end);
        let number = ioctl(self.closed, libc::TIOCGPTN, 0).expect("its number");
        let path = format!("/dev/pts/{number}");
        self.fill(open(path.as_ref(), libc::O_RDWR | libc::O_NOCTTY));
    }
}

fn main() {
    play(|_| {
        // A number that nobody has any more.
        let gap = Pty::new();
        let parts = [
            lines(),
            much(),
            pushed(),
            packets(),
            stopped(true),
            stopped(false),
            guarded(),
        ];
        let ends = Ends::make();
        call::close(gap.slave);
        call::close(gap.master);
        let shared = Pty::new();
        shared.set(cfmakeraw);
        let again = open(
            format!("/dev/pts/{}", shared.number).as_ref(),
            libc::O_WRONLY | libc::O_NOCTTY,
        );
        // What the other task writes into the slave this one reads from the master.
        let peer = Peer::start(move |number| {
            put(again, format!("number {number}").as_bytes());
            i64::from(call::fcntl(shared.slave, libc::F_GETFL, 0).expect("F_GETFL"))
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                parts[0]
                    .pty
                    .set(|settings| settings.local_flags.toggle(LocalFlags::ISIG));
                let _taken = call::read(parts[1].pty.slave, 1);
            }
            for part in &parts {
                part.check(findings);
            }
            ends.check(findings);
            call::fcntl(shared.slave, libc::F_SETFL, libc::O_APPEND).expect("F_SETFL");
            let flags = peer.ask(42).expect("the peer");
            findings.that(flags & i64::from(libc::O_APPEND) != 0, "the slave is not shared");
            call::fcntl(shared.slave, libc::F_SETFL, libc::O_NONBLOCK).expect("F_SETFL");
            expect(findings, "from the peer", shared.master, b"number 42");
        }
    })
}
