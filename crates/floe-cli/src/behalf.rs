//! On behalf of an ordinary user: what the host's root does to a tree in a user namespace of that user's.
//!
//! Whoever made a user namespace has all rights over who is in it, so root does not enter it. It starts this same command line
//! once more as that user, with nothing of root's but what the work takes: the image, open, and a socket. The user's floe
//! then does what it does for its user, and by the socket asks root for the two deeds that it may not do itself:
//!
//! ```text
//! user's floe                        root's floe
//! one byte, a Deed              ->   does it, once at most
//!                               <-   length u32, that many bytes: what went wrong; none
//! ```
//! An image it sends by a pipe (`intake.rs`). What the user's floe prints root prints on, without control characters. Killed, root's floe takes the user's along as by SIGTERM.

mod intake;
mod records;
mod relay;
mod start;

pub use records::{record, refuse_others_bases, refuse_others_word, refuse_users, space};
pub use start::runtime_of;

use crate::{failure::Outcome, output};
use anyhow::Context as _;
use floe_checkpoint::checkpoint::{OpenOutput, Output, Publish};
use floe_image::ImageFiles;
use floe_sandbox::{Owner, UserSpace, become_root_by};
use floe_sys::{
    Pid,
    descriptor::{self, take_inherited},
    fork, interrupt,
    namespace::is_in_first_user,
};
use intake::Intake;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{geteuid, getpid},
};
use relay::Relay;
use start::Start;
use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Whether floe is the host's root, who acts for others.
pub fn is_host_root() -> anyhow::Result<bool> {
    Ok(geteuid().is_root() && is_in_first_user()?)
}

/// What the user's floe asks root for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Give the image that was sent its place.
    Publish = b'p' as isize,
    /// Give the user namespace that was just made its users and groups.
    Map = b'm' as isize,
}

/// What a command line says of what was handed: numbers of descriptors, `SOCKET:OUTPUT:IMAGE,BASE,…`, each part but the first
/// perhaps empty.
#[derive(Debug, Clone)]
pub struct Numbers {
    socket: RawFd,
    output: Option<RawFd>,
    image: Vec<RawFd>,
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = |part: Option<&str>| -> Option<Vec<RawFd>> {
            let numbers = part?.split(',').filter(|number| !number.is_empty());
            numbers.map(|number| number.parse().ok()).collect()
        };
        let mut parts = text.split(':').map(Some);
        let mut part = || all(parts.next().flatten());
        let found = (part(), part(), part());
        match found {
            (Some(socket), Some(output), Some(image)) if socket.len() == 1 && output.len() < 2 => Ok(Self {
                socket: socket[0],
                output: output.first().copied(),
                image,
            }),
            _ => Err("it is floe's own".to_owned()),
        }
    }
}

/// What root's floe has handed to this one.
#[derive(Debug)]
pub struct Handed {
    root: UnixStream,
    output: Option<File>,
    image: Vec<File>,
}

impl Handed {
    /// Takes it.
    pub fn take(numbers: &Numbers) -> anyhow::Result<Self> {
        let file = |number: &RawFd| take_inherited(*number).map(File::from);
        Ok(Self {
            root: take_inherited(numbers.socket)?.into(),
            output: numbers.output.as_ref().map(file).transpose()?,
            image: numbers.image.iter().map(file).collect::<Result<_, _>>()?,
        })
    }

    /// Where the image is to go, if one is wanted.
    pub fn output(&self) -> io::Result<Option<Output>> {
        let Some(file) = &self.output else { return Ok(None) };
        let root = self.root.try_clone()?;
        let publish = Publish(Box::new(move || ask(&root, Deed::Publish)));
        Ok(Some(Output::Handed(file.try_clone()?, publish)))
    }

    /// The image, or the base of the one to be made.
    pub fn image(&self) -> anyhow::Result<ImageFiles> {
        let files: io::Result<Vec<File>> = self.image.iter().map(File::try_clone).collect();
        let mut files = files?.into_iter();
        let own = files.next().context("no image was handed")?;
        Ok(ImageFiles::handed(own, files))
    }

    /// Makes the user namespace that the tree is to be in, and enters it.
    pub fn become_root(&self) -> anyhow::Result<()> {
        Ok(become_root_by(|| ask(&self.root, Deed::Map))?)
    }
}

/// Asks root for a deed.
fn ask(mut root: &UnixStream, deed: Deed) -> io::Result<()> {
    root.write_all(&[deed as u8])?;
    let mut length = [0; 4];
    root.read_exact(&mut length)?;
    let mut told = String::new();
    root.take(u32::from_le_bytes(length).into()).read_to_string(&mut told)?;
    if told.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(told))
    }
}

/// Work that is to be done as an ordinary user.
#[derive(Debug)]
pub struct Behalf {
    /// Who.
    pub owner: Owner,
    /// The image that is to be read, and its bases; or those of the base of one that is to be written.
    pub image: Option<ImageFiles>,
    /// The image that is to be written.
    pub output: Option<OpenOutput>,
    /// What the user namespace that is made is to know.
    pub space: Option<UserSpace>,
    /// Descriptors that root's own command line names.
    pub inherited: Vec<OwnedFd>,
}

impl Behalf {
    /// Does it. No thread may have been started.
    pub fn perform(mut self) -> Outcome {
        // Told to stop, root's floe waits until the user's has stopped.
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let interrupted = interrupt::note_signals(&signals)?;
        let image: Vec<File> = self.image.take().map_or_else(
            || Ok(Vec::new()),
            |files| {
                files
                    .into_files()
                    .map(|file| to_be_read(&file))
                    .collect::<io::Result<_>>()
            },
        )?;
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let (out, err) = (io::pipe()?, io::pipe()?);
        let intake = self.output.take().map(|output| Intake::new(output, &self.owner));
        let (intake, sent) = intake.transpose()?.unzip();
        // Standard output is the image's alone.
        let print = match &intake {
            Some(intake) if intake.is_streamed() => output::error,
            _ => output::line,
        };
        let start = Start::prepare(&self.owner, (theirs.as_raw_fd(), sent.as_ref(), &image))?;
        let front = getpid();
        let worker = fork::child(|| {
            let error = start.execute(front, (&out.1, &err.1), &self.inherited);
            output::error(&format!("floe: start it as user {}: {error}", self.owner.user));
            1
        })?;
        drop((theirs, out.1, err.1, image, sent));
        let pidfd = descriptor::pidfd_open(Pid::new(worker.as_raw()))?;
        let mut streams = [
            Relay::new(out.0.into(), print)?,
            Relay::new(err.0.into(), output::error)?,
        ];
        let mut root = Root {
            socket,
            worker,
            is_wanted: intake.is_some(),
            intake,
            is_mapped: self.space.is_none(),
            space: self.space,
            interrupted,
            told: None,
        };
        let (mut asks, mut failure) = (true, None);
        loop {
            root.hand_on_signals()?;
            let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            polled.extend(streams.iter().filter(|stream| stream.is_open).map(Relay::polled));
            polled.extend(root.intake.as_ref().and_then(Intake::polled));
            if asks {
                polled.push(PollFd::new(root.socket.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut polled, GLANCE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = |polled: &PollFd<'_>| polled.revents().is_some_and(|events| !events.is_empty());
            let has_ended = ready(&polled[0]);
            let is_asked = asks && polled.last().is_some_and(ready);
            drop(polled);
            if is_asked {
                asks = root.answer()?;
                if !asks {
                    // Nobody is to wait for an answer. Of one that is gone already there is nothing to end.
                    let _ = root.socket.shutdown(Shutdown::Both);
                }
            }
            if let Some(Err(error)) = root.intake.as_mut().map(Intake::take_in) {
                // Who sends finds the pipe broken, and gives up.
                root.intake = None;
                failure = Some(anyhow::Error::new(error).context("keep the image"));
            }
            for stream in &mut streams {
                stream.pass_on()?;
            }
            if has_ended {
                streams.iter_mut().for_each(Relay::end);
                let status = ended(worker)?;
                return match failure {
                    Some(failure) => Err(failure.into()),
                    None => Ok(root.of_status(status)?),
                };
            }
        }
    }
}

/// A file opened anew, to be read alone: what came by a pipe root has written itself.
fn to_be_read(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// What root's floe has to do with the user's.
struct Root {
    socket: UnixStream,
    worker: nix::unistd::Pid,
    /// Whether an image is to be published, and was not yet.
    is_wanted: bool,
    intake: Option<Intake>,
    /// Whether no user namespace is to be mapped any more.
    is_mapped: bool,
    space: Option<UserSpace>,
    interrupted: &'static AtomicBool,
    /// When the user's floe was told to stop.
    told: Option<Instant>,
}

impl Root {
    /// Tells the user's floe to stop when root's was. It may take its time for that, though not all.
    fn hand_on_signals(&mut self) -> Result<(), Errno> {
        let is_again = self.interrupted.swap(false, Ordering::Relaxed);
        match self.told {
            None if is_again => {
                self.told = Some(Instant::now());
                kill(self.worker, Signal::SIGTERM)
            }
            Some(since) if is_again || since.elapsed() > PATIENCE => kill(self.worker, Signal::SIGKILL),
            _ => Ok(()),
        }
    }

    /// Does what the user's floe asks for; whether it may ask again. It does not wait for that one.
    fn answer(&mut self) -> io::Result<bool> {
        let mut asked = [0];
        match self.socket.read(&mut asked) {
            Ok(1) => {}
            Ok(_) => return Ok(false),
            Err(error) => {
                let again = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind());
                let is_gone = error.kind() == io::ErrorKind::ConnectionReset;
                return if again || is_gone { Ok(again) } else { Err(error) };
            }
        }
        let done = match asked[0] {
            deed if deed == Deed::Publish as u8 => match self.intake.take() {
                Some(_) if self.told.is_some() => Err("told to stop".to_owned()),
                Some(intake) => intake.publish(self.interrupted).map_err(|error| format!("{error:#}")),
                None => return Ok(false),
            },
            deed if deed == Deed::Map as u8 => match self.space.take() {
                Some(space) => space
                    .give_to(Pid::new(self.worker.as_raw()))
                    .map_err(|error| error.to_string()),
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        self.is_wanted &= done.is_err() || asked[0] != Deed::Publish as u8;
        self.is_mapped |= done.is_ok() && asked[0] == Deed::Map as u8;
        let text = done.map_or_else(|text| text, |()| String::new());
        let mut answer = (text.len() as u32).to_le_bytes().to_vec();
        answer.extend(text.into_bytes());
        // Whoever is gone meanwhile shows by its end.
        Ok(self.socket.write_all(&answer).is_ok())
    }

    /// The status to end with, where the user's floe ended with this one: it is the user who says so.
    fn of_status(&self, status: i32) -> anyhow::Result<i32> {
        anyhow::ensure!(
            status != 0 || !self.is_wanted,
            "the floe of that user ended as if all were done, and there is no image"
        );
        anyhow::ensure!(
            status != 0 || self.is_mapped,
            "the floe of that user ended as if all were done, and has not begun"
        );
        Ok(status)
    }
}

/// How long the user's floe may go on once it was told to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often is looked whether floe was told to stop, which may be just before it waits.
const GLANCE: u8 = 50;

/// The worker's exit status, 128 and the signal where one ended it.
fn ended(worker: nix::unistd::Pid) -> Outcome {
    loop {
        match waitpid(worker, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
