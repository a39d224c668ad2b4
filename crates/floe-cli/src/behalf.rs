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
//! What the user's floe prints root prints on, without control characters. Killed, root's floe takes the user's along as by SIGTERM.

use crate::{failure::Outcome, output};
use anyhow::Context as _;
use floe_checkpoint::checkpoint::{OpenOutput, Output, Publish};
use floe_image::{
    ImageFiles,
    record::{IdRange, OwnerRecord, UserNamespaceRecord},
};
use floe_sandbox::{Ids, Owner, UserSpace, become_root_by};
use floe_sys::{
    Pid, capability,
    descriptor::{self, keep_over_exec, take_inherited},
    fork, interrupt,
    namespace::is_in_first_user,
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, geteuid, getpid},
};
use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStringExt, fs::MetadataExt, net::UnixStream},
    },
    str::FromStr,
    sync::atomic::Ordering,
};

/// Whether floe is the host's root, who acts for others.
pub fn is_host_root() -> anyhow::Result<bool> {
    Ok(geteuid().is_root() && is_in_first_user()?)
}

/// What the user's floe asks root for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Give the image its name.
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

    /// Where the image is to go, if that is not standard output.
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
    pub inherited: Vec<RawFd>,
}

impl Behalf {
    /// Does it. No thread may have been started.
    pub fn perform(mut self) -> Outcome {
        // Told to stop, root's floe waits until the user's has stopped.
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let interrupted = interrupt::note_signals(&signals)?;
        let image: Vec<File> = self
            .image
            .take()
            .map_or_else(Vec::new, |files| files.into_files().collect());
        let (socket, theirs) = UnixStream::pair()?;
        let (out, err) = (io::pipe()?, io::pipe()?);
        // An image on its way to standard output is nothing to be printed.
        let output = match &self.output {
            Some(OpenOutput::Unnamed { file, .. }) => Some(file),
            _ => None,
        };
        let is_streamed = matches!(self.output, Some(OpenOutput::Stream(_)));
        let start = Start::prepare(&self.owner, (theirs.as_raw_fd(), output, &image))?;
        let front = getpid();
        let worker = fork::child(|| {
            let streams = (!is_streamed).then_some(&out.1);
            let error = start.execute(front, (streams, &err.1), &self.inherited);
            output::error(&format!("floe: start it as user {}: {error}", self.owner.user));
            1
        })?;
        drop((theirs, out.1, err.1, image));
        let pidfd = descriptor::pidfd_open(Pid::new(worker.as_raw()))?;
        let mut streams = [
            Relay::new(out.0.into(), output::line)?,
            Relay::new(err.0.into(), output::error)?,
        ];
        let mut asks = true;
        let mut was_told = false;
        loop {
            if interrupted.load(Ordering::Relaxed) && !was_told {
                was_told = true;
                kill(worker, Signal::SIGTERM)?;
            }
            let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            polled.extend(streams.iter().filter(|stream| stream.is_open).map(Relay::polled));
            if asks {
                polled.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
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
                asks = self.answer(&socket, worker)?;
            }
            for stream in &mut streams {
                stream.pass_on()?;
            }
            if has_ended {
                streams.iter_mut().for_each(Relay::end);
                return ended(worker);
            }
        }
    }

    /// Does what the user's floe asks for; whether it may ask again.
    fn answer(&mut self, mut socket: &UnixStream, worker: nix::unistd::Pid) -> io::Result<bool> {
        let mut asked = [0];
        match socket.read(&mut asked) {
            Ok(1) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        let done = match asked[0] {
            deed if deed == Deed::Publish as u8 => match self.output.take() {
                Some(output) => output.publish().map_err(|error| told(&error)),
                None => Err("there is nothing to be named".to_owned()),
            },
            deed if deed == Deed::Map as u8 => match self.space.take() {
                Some(space) => space
                    .give_to(Pid::new(worker.as_raw()))
                    .map_err(|error| error.to_string()),
                None => Err("there is nobody to be mapped".to_owned()),
            },
            _ => return Ok(false),
        };
        let text = done.map_or_else(|text| text, |()| String::new());
        let mut answer = (text.len() as u32).to_le_bytes().to_vec();
        answer.extend(text.into_bytes());
        // Whoever is gone meanwhile shows by its end.
        Ok(socket.write_all(&answer).is_ok())
    }
}

/// How often is looked whether floe was told to stop, which may be just before it waits.
const GLANCE: u8 = 50;

fn told(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(error.source(), |error| error.source());
    chain.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

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

/// All that the child needs to become that user's floe.
struct Start {
    program: File,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    owner: Owner,
    handed: Vec<RawFd>,
    null: File,
}

impl Start {
    fn prepare(owner: &Owner, (socket, output, image): (RawFd, Option<&File>, &[File])) -> anyhow::Result<Self> {
        let output = output.map(AsRawFd::as_raw_fd);
        let image: Vec<RawFd> = image.iter().map(AsRawFd::as_raw_fd).collect();
        let text = |numbers: &[RawFd]| numbers.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        let numbers = format!("{socket}:{}:{}", text(output.as_slice()), text(&image));
        let mut own = std::env::args_os().map(OsStringExt::into_vec);
        let mut arguments = vec![
            own.next().unwrap_or_default(),
            b"--handed".to_vec(),
            numbers.into_bytes(),
        ];
        arguments.extend(own);
        // Root's other variables are none of the user's business.
        let kept = ["PATH", "FLOE_STATE_DIR", "FLOE_FAIL_AT"];
        let mut environment: Vec<Vec<u8>> = kept
            .iter()
            .filter_map(|name| Some([name.as_bytes(), b"=", &std::env::var_os(name)?.into_vec()].concat()))
            .collect();
        if let Some(runtime) = runtime_of(owner) {
            environment.push(format!("XDG_RUNTIME_DIR={runtime}").into_bytes());
        }
        let strings = |all: Vec<Vec<u8>>| all.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            program: File::open("/proc/self/exe").context("open the program of floe")?,
            arguments: strings(arguments)?,
            environment: strings(environment)?,
            owner: owner.clone(),
            handed: std::iter::once(socket).chain(output).chain(image).collect(),
            null: File::open("/dev/null").context("open /dev/null")?,
        })
    }

    /// Becomes the user and executes floe; returns only if it failed.
    fn execute(
        &self,
        front: nix::unistd::Pid,
        (out, err): (Option<&io::PipeWriter>, &io::PipeWriter),
        inherited: &[RawFd],
    ) -> Errno {
        let attempt = || -> Result<(), Errno> {
            dup2_stdin(&self.null)?;
            dup2_stderr(err)?;
            out.map_or(Ok(()), dup2_stdout)?;
            // Root's terminal is none of the user's business, and its keys neither.
            nix::unistd::setsid()?;
            capability::leave_keyring()?;
            fork::default_signals();
            fork::close_on_exec_from(3);
            self.handed
                .iter()
                .chain(inherited)
                .for_each(|number| keep_over_exec(*number));
            let Owner { user, group, groups } = &self.owner;
            capability::become_member(*user, *group, groups)?;
            capability::give_up()?;
            // A change of user would undo it.
            fork::signal_at_parents_end(Signal::SIGTERM, front)
        };
        match attempt() {
            Ok(()) => fork::execute_descriptor(self.program.as_raw_fd(), &self.arguments, &self.environment),
            Err(error) => error,
        }
    }
}

/// Where that user's sandboxes are by default: the directory that a login gives them.
pub fn runtime_of(owner: &Owner) -> Option<String> {
    let path = format!("/run/user/{}", owner.user);
    let found = std::fs::metadata(&path).ok()?;
    (found.is_dir() && found.uid() == owner.user).then_some(path)
}

/// What the user's floe prints, printed line by line.
struct Relay {
    from: File,
    line: Vec<u8>,
    print: fn(&str),
    is_open: bool,
}

/// Longer lines are printed in parts.
const LINE_BYTES: usize = 1 << 16;

impl Relay {
    fn new(from: OwnedFd, print: fn(&str)) -> Result<Self, Errno> {
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            from: from.into(),
            line: Vec::new(),
            print,
            is_open: true,
        })
    }

    fn polled(&self) -> PollFd<'_> {
        PollFd::new(self.from.as_fd(), PollFlags::POLLIN)
    }

    /// Prints what is there.
    fn pass_on(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        // No more than a pipe holds, so that one who prints without end does not keep root from what else there is to do.
        for _ in 0..16 {
            if !self.is_open {
                break;
            }
            let count = match self.from.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.is_open = count > 0;
            for byte in &bytes[..count] {
                if *byte == b'\n' || self.line.len() == LINE_BYTES {
                    self.print_line();
                }
                if *byte != b'\n' {
                    self.line.push(*byte);
                }
            }
        }
        Ok(())
    }

    fn print_line(&mut self) {
        (self.print)(&String::from_utf8_lossy(&std::mem::take(&mut self.line)));
    }

    /// Prints what has no end of a line.
    fn end(&mut self) {
        if !self.line.is_empty() {
            self.print_line();
        }
    }
}

/// The record of a user namespace.
pub fn record(space: &UserSpace) -> OwnerRecord {
    let ranges = |ids: &[Ids]| {
        let range = |ids: &Ids| IdRange {
            inside: ids.inside,
            above: ids.host,
            count: ids.count,
        };
        ids.iter().map(range).collect()
    };
    OwnerRecord {
        namespace: UserNamespaceRecord {
            maker: space.owner,
            users: ranges(&space.users),
            groups: ranges(&space.groups),
            setgroups: space.setgroups,
        },
    }
}

/// The user namespace of a record.
pub fn space(record: &OwnerRecord) -> UserSpace {
    let ids = |ranges: &[IdRange]| {
        let ids = |range: &IdRange| Ids {
            inside: range.inside,
            host: range.above,
            count: range.count,
        };
        ranges.iter().map(ids).collect()
    };
    let namespace = &record.namespace;
    UserSpace {
        owner: namespace.maker,
        users: ids(&namespace.users),
        groups: ids(&namespace.groups),
        setgroups: namespace.setgroups,
    }
}
