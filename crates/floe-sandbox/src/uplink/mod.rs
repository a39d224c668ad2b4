//! The way to the host's network of who may not change that: an ordinary user's, by pasta(1), or slirp4netns(1) where there is none.
//!
//! ```text
//! host                   between                                               sandbox
//!   carrier ──────── carrier0 10.242.0.x       floeNNNN 10.241.x.y ═══ veth ═══ eth0 10.241.x.y+1
//! ```
//! The network namespace between is the user's own, so there the sandbox is joined as it is to the host's where root does
//! it: by the same devices, addresses and rules. What leaves that namespace the carrier takes from a tap device, and makes
//! connections of its own of it, as any program of the user's; what comes to published ports it takes there.
//!
//! The carrier ends with the monitor, whatever ends that: it is in a PID namespace whose first process does. It sees neither the
//! sandbox's network nor any other descriptor of the monitor's.

mod carrier;
mod pasta;
mod slirp;

pub use carrier::Carrier;

use crate::published::Published;
use floe_sys::{capability, descriptor::pidfd_open, fork, memfd, network};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{Signal, kill},
        wait::{wait, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, pipe},
};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The carrier's device in the namespace between.
const DEVICE: &str = "carrier0";
/// Its hardware address, which pasta learns only by packets otherwise; before that it sends to all, and that is not forwarded.
const HARDWARE: &str = "02:f1:0e:ff:00:02";
/// Bytes of what it says that are kept: it may say more while the sandbox lives.
const WORDS: u64 = 16 << 10;

/// Exit status of who keeps it, which nobody asks for.
const ENDED: i32 = 127;
/// How often one that has ended is started anew.
const RESTARTS: u32 = 5;

/// Why there is none, and what was attempted.
type Failure = (Errno, String);

/// A network namespace that is joined to the host's.
#[derive(Debug)]
pub struct Uplink {
    network: OwnedFd,
    carrier: Carrier,
    started: Option<Started>,
    /// How often it may still be started anew.
    restarts: u32,
}

/// A carrier, which ends with this.
#[derive(Debug)]
struct Started {
    /// The first process of its PID namespace, with which the kernel ends all in there.
    keeper: Pid,
    /// It.
    life: OwnedFd,
    /// So that it never writes to nobody.
    output: BufReader<File>,
}

/// Makes one by a carrier that ends at once: what keeps it from being made, in words; none where nothing does. The caller must
/// have one thread, and the rights of root in its user namespace.
#[must_use]
pub fn attempt(carrier: Carrier) -> String {
    let opened = Uplink::new(carrier).and_then(|mut uplink| uplink.open(&[]));
    opened
        .err()
        .map(|(error, action)| format!("{action}: {}", error.desc()))
        .unwrap_or_default()
}

impl Uplink {
    /// Makes the namespace, which forwards, without the way to the host.
    ///
    /// # Errors
    /// What was attempted, and why it failed.
    pub fn new(carrier: Carrier) -> Result<Self, Failure> {
        let make = || -> Result<OwnedFd, Errno> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            network::raise_loopback()?;
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(|error| number(&error))?;
            let made = File::open("/proc/thread-self/ns/net").map_err(|error| number(&error))?;
            Ok(made.into())
        };
        let network = on_a_thread(make);
        let network = network.map_err(|error| (error, "make a network namespace that forwards".to_owned()))?;
        Ok(Self {
            network,
            carrier,
            started: None,
            restarts: RESTARTS,
        })
    }

    /// Does something in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
        on_a_thread(|| {
            let entered = setns(&self.network, CloneFlags::CLONE_NEWNET);
            entered.map_err(|error| (error, "enter the network namespace between".to_owned()))?;
            work()
        })
    }

    /// Opens the way to the network of the caller, which must have one thread.
    ///
    /// # Errors
    /// What was attempted, and why it failed: in the carrier's words.
    pub fn open(&mut self, published: &[Published]) -> Result<(), Failure> {
        let carrier = self.carrier;
        let failed = |error| (error, format!("start {}", carrier.name()));
        let words = memfd::create(c"floe-carrier", libc::MFD_ALLOW_SEALING).map_err(failed)?;
        let words = File::from(words);
        words.set_len(WORDS).map_err(|error| number(&error)).map_err(failed)?;
        let fixed = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK);
        fcntl(&words, fixed).map_err(failed)?;
        let (output, input) = pipe().map_err(failed)?;
        let own = self.network.as_fd();
        let keeper = fork::child_in((libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64, None, || {
            keep(carrier, published, [&own, &input.as_fd(), &words.as_fd()]).unwrap_or_else(|error| tell(&error))
        });
        let keeper = keeper.map_err(failed)?;
        drop(input);
        let life = pidfd_open(floe_sys::Pid::new(keeper.as_raw())).map_err(failed)?;
        let mut started = Started {
            keeper,
            life,
            output: BufReader::new(File::from(output)),
        };
        // A line comes when all is done.
        let mut line = String::new();
        let read = started
            .output
            .read_line(&mut line)
            .map_err(|error| number(&error))
            .map_err(failed)?;
        if read == 0 {
            drop(started);
            let said = last_words(words).map_err(|error| number(&error)).map_err(failed)?;
            return Err((
                Errno::EIO,
                format!("join the sandbox to the host's network by {}: {said}", carrier.name()),
            ));
        }
        self.started = Some(started);
        Ok(())
    }

    /// By what it goes.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// What can be read of when the way has ended; none where it has, and stays so.
    pub fn life(&self) -> Option<BorrowedFd<'_>> {
        self.started.as_ref().map(|started| started.life.as_fd())
    }

    /// Opens the way again that has ended, which the caller must be able to do as it was before: false where that was so often that
    /// it is not tried any more.
    ///
    /// # Errors
    /// Those of [`Self::open`]; the way stays closed.
    pub fn open_again(&mut self, published: &[Published]) -> Result<bool, Failure> {
        self.started = None;
        let Some(left) = self.restarts.checked_sub(1) else {
            return Ok(false);
        };
        self.restarts = left;
        self.open(published).map(|()| true)
    }
}

/// The life of the first process of a new PID namespace: it starts the carrier there, and ends with it or with the monitor. A
/// program's own wish to end with its parent is forgotten where a security module gives it another label, as AppArmor does with
/// pasta; this process becomes no other program. Its descriptors are the namespace, a place for a line that says that the way is
/// open, and one for what is said.
fn keep(carrier: Carrier, published: &[Published], [network, output, words]: [&dyn AsFd; 3]) -> io::Result<i32> {
    dup2_stdin(network.as_fd())?;
    dup2_stdout(output.as_fd())?;
    dup2_stderr(words.as_fd())?;
    fork::close_all_but(&[0, 1, 2]);
    fork::default_signals();
    fork::signal_at_any_parents_end(Signal::SIGKILL)?;
    // The monitor alone reads there, so it has ended already where nobody does.
    let stdout = io::stdout();
    let mut read = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    if poll(&mut read, PollTimeout::ZERO)? > 0 {
        return Ok(ENDED);
    }
    // Who appears as another user than root there would have none in the carrier.
    capability::keep_over_exec()?;
    let started = match carrier {
        Carrier::Pasta => fork::child(|| match pasta::become_it(published) {
            Ok(never) => match never {},
            Err(error) => tell(&error),
        })?,
        Carrier::Slirp4netns => {
            let started = slirp::start(published)?;
            writeln!(&stdout, "{started}")?;
            started
        }
    };
    // So that the monitor sees when pasta has closed it.
    dup2_stdout(io::stdin().as_fd())?;
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(started) => return Ok(ENDED),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says it in the file for what the carrier says: the exit status.
fn tell(error: &io::Error) -> i32 {
    // It is the memory file, or else nobody is there to be told.
    let _ = writeln!(io::stderr(), "{error}");
    ENDED
}

/// What it said before it ended, but for what it says of its log, and of itself.
fn last_words(mut words: File) -> io::Result<String> {
    words.rewind()?;
    let mut bytes = Vec::new();
    words.take(WORDS).read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let told = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told: Vec<&str> = told
        .filter(|line| !line.contains("to syslog") && !line.starts_with("WARNING:"))
        .collect();
    Ok(told.join("; "))
}

impl Drop for Started {
    fn drop(&mut self) {
        // It is a child, so its number is nobody else's until it is waited for.
        let _ = kill(self.keeper, Signal::SIGKILL);
        while let Err(Errno::EINTR) = waitpid(self.keeper, None) {}
    }
}

fn on_a_thread<T: Send, E: Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    std::thread::scope(|scope| {
        let joined = scope.spawn(work).join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The number of an error of the kernel's.
pub(crate) fn number(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::{File, Write, last_words};

    #[test]
    fn what_a_carrier_says_of_its_log_and_itself_is_left_out() {
        let words = floe_sys::memfd::create(c"words", 0).expect("a file");
        let mut words = File::from(words);
        words.set_len(100).expect("a length");
        let text = "Failed to send 46 bytes to syslog\nWARNING: is experimental\nNo external interface\n\nnot usable\n";
        words.write_all(text.as_bytes()).expect("write");
        assert_eq!(last_words(words).expect("read"), "No external interface; not usable");
    }
}
