//! The sandbox's terminal: settings, window size, session, foreground group, /dev/tty, and that it is still read and
//! written. Runs with `floe run -t`.

use nix::{
    sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr},
    unistd::{Pid, getsid, setpgid, tcgetpgrp, tcsetpgrp},
};
use std::{os::fd::BorrowedFd, path::Path};
use victims::{Findings, Seen, call, descriptor::open, play};

/// What a terminal can be asked.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    flags: [u32; 4],
    keys: [u8; 19],
    window: [u16; 4],
    session: i32,
    foreground: i32,
    name: String,
}

impl Known {
    fn of(fd: BorrowedFd<'_>) -> Self {
        use std::os::fd::AsRawFd;
        let settings = tcgetattr(fd).expect("tcgetattr");
        let mut window = [0u16; 4];
        // SAFETY: `struct winsize` is four words.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, window.as_mut_ptr()) };
        assert!(status == 0, "TIOCGWINSZ");
        let mut keys = [0; 19];
        keys.copy_from_slice(&settings.control_chars[..19]);
        Self {
            flags: flags(&settings),
            keys,
            window,
            session: nix::sys::termios::tcgetsid(fd).expect("tcgetsid").as_raw(),
            foreground: tcgetpgrp(fd).expect("tcgetpgrp").as_raw(),
            name: nix::unistd::ttyname(fd).expect("ttyname").display().to_string(),
        }
    }
}

fn flags(settings: &Termios) -> [u32; 4] {
    [
        settings.input_flags.bits(),
        settings.output_flags.bits(),
        settings.control_flags.bits(),
        settings.local_flags.bits(),
    ]
}

fn main() {
    play(|stage| {
        // SAFETY: standard input stays open.
        let terminal = unsafe { BorrowedFd::borrow_raw(0) };
        // Taking the foreground as a background process is no reason to stop.
        // SAFETY: ignores a signal.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        change(terminal);
        let child = stage.child("foreground", |_| {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group of its own");
            |_: &mut Findings| {}
        });
        tcsetpgrp(terminal, Pid::from_raw(child)).expect("tcsetpgrp");
        let own = open(Path::new("/dev/tty"), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK);
        let by_name = open(Path::new("/dev/pts/0"), libc::O_RDONLY | libc::O_NOCTTY);
        let ends = [0, 1, 2, own, by_name];
        let seen = ends.map(|fd| (fd, Seen::of(fd)));
        // SAFETY: it stays open.
        let own_terminal = unsafe { BorrowedFd::borrow_raw(own) };
        let known = Known::of(terminal);
        assert_eq!(
            (known.foreground, known.session),
            (child, getsid(None).expect("getsid").as_raw())
        );
        move |findings: &mut Findings| {
            if findings.sabotage() {
                let mut settings = tcgetattr(terminal).expect("tcgetattr");
                settings.local_flags.toggle(LocalFlags::ECHO);
                tcsetattr(terminal, SetArg::TCSANOW, &settings).expect("tcsetattr");
            }
            findings.same("the terminal", &known, &Known::of(terminal));
            let mut through_tty = Known::of(own_terminal);
            through_tty.name.clone_from(&known.name);
            findings.same("the terminal by /dev/tty", &known, &through_tty);
            for (fd, seen) in &seen {
                let mut now = Seen::of(*fd);
                (now.modified, now.size) = (seen.modified, seen.size);
                findings.that(now == *seen, format!("descriptor {fd}: was {seen:?}, is {now:?}"));
            }
            let empty = call::read(own, 10).map_err(|error| error.raw_os_error());
            findings.same(
                "a read of nothing",
                &Err(Some(libc::EIO)),
                &empty.map(|bytes| bytes.len()),
            );
            findings.that(call::write(own, b"a line\n").is_ok(), "can't write to /dev/tty");
        }
    })
}

/// Away from what every terminal has at first.
fn change(terminal: BorrowedFd<'_>) {
    let mut settings = tcgetattr(terminal).expect("tcgetattr");
    settings.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON);
    settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 7;
    settings.control_chars[SpecialCharacterIndices::VINTR as usize] = 9;
    tcsetattr(terminal, SetArg::TCSANOW, &settings).expect("tcsetattr");
    let window = [33u16, 99, 640, 480];
    // SAFETY: `struct winsize` is four words.
    let status = unsafe { libc::ioctl(0, libc::TIOCSWINSZ, window.as_ptr()) };
    assert!(status == 0, "TIOCSWINSZ");
}
