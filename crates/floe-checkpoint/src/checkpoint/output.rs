//! Where an image goes: an unnamed file that gets its name when it is complete and synced, or a stream.

use floe_sys::fork;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat},
    poll::{PollFd, PollFlags, poll},
    sys::{
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Where to.
#[derive(Debug)]
pub enum Output {
    /// A file.
    Path(PathBuf),
    /// A stream that is open already, e.g. standard output.
    Stream(File),
    /// A pipe to somebody else, who keeps what comes by it.
    Handed(File, Publish),
}

/// Has a complete image given its place by somebody else.
pub struct Publish(pub Box<dyn FnOnce() -> io::Result<()>>);

impl std::fmt::Debug for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publish")
    }
}

/// An output that could not be opened or completed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct OutputError {
    action: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

/// An output that is being written.
#[derive(Debug)]
pub enum OpenOutput {
    /// A file without a name yet.
    Unnamed {
        /// Itself.
        file: File,
        /// Its name to be, for messages.
        path: PathBuf,
        /// The same in its folder.
        name: OsString,
        /// Its folder, whatever becomes of the path to it.
        parent: File,
    },
    /// A stream.
    Stream(File),
    /// A pipe to somebody else.
    Handed(File, Publish),
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.display().to_string();
    move |source| OutputError { action, path, source }
}

impl Output {
    /// Opens it.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn open(self) -> Result<OpenOutput, OutputError> {
        let path = match self {
            Self::Stream(file) => return Ok(OpenOutput::Stream(file)),
            Self::Handed(file, publish) => return Ok(OpenOutput::Handed(file, publish)),
            Self::Path(path) => path,
        };
        // A name that is no regular file's (/dev/null, a fifo) is not to be replaced by one.
        if let Ok(found) = std::fs::metadata(&path)
            && !found.is_file()
        {
            let reason = "it is no regular file; an image can be sent elsewhere by -o -";
            return Err(wrap("replace", &path)(io::Error::other(reason)));
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Err(wrap("make", &path)(io::Error::other("it is no name of a file")));
        };
        let directory = directory(&path);
        let parent = File::open(&directory).map_err(wrap("open", &directory))?;
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = openat(&parent, ".", flags, Mode::from_bits_retain(0o600))
            .map_err(|source| wrap("create an image in", &directory)(source.into()))?;
        Ok(OpenOutput::Unnamed {
            file: File::from(fd),
            path,
            name,
            parent,
        })
    }
}

/// Does something in a process that no signal to floe reaches, and waits for its end.
fn apart(act: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    let child = fork::child(|| {
        fork::leave_session("floe-publish");
        // All numbers of errors fit into an exit status.
        act().map_or_else(|error| error as i32, |()| 0)
    })?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, number)) => return Err(io::Error::from_raw_os_error(number)),
            Ok(other) => {
                return Err(io::Error::other(format!(
                    "the process that does it ended otherwise: {other:?}"
                )));
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is written to, whose reader or disk may take its time: waiting for it ends when floe is told to stop.
struct Stream {
    file: File,
    /// How many bytes can be written without waiting once there is room.
    most: usize,
    interrupted: &'static AtomicBool,
}

/// How often is looked whether floe was told to stop; the signal may have come to another thread.
const GLANCE: u8 = 50;

impl Stream {
    fn new(file: &File, interrupted: &'static AtomicBool) -> io::Result<Self> {
        let stream = |file, most| Self {
            file,
            most,
            interrupted,
        };
        if !file.metadata()?.file_type().is_fifo() {
            return Ok(stream(file.try_clone()?, usize::MAX));
        }
        // O_NONBLOCK belongs to the open file, which others share; so the pipe is opened anew.
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
            Ok(opened) => Ok(stream(File::from(opened), usize::MAX)),
            // Another user made it. A pipe that can be written to takes a buffer of this size, pipe(7).
            Err(Errno::EACCES) => Ok(stream(file.try_clone()?, libc::PIPE_BUF)),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self) -> io::Result<()> {
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(io::Error::other("told to stop"));
            }
            match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], GLANCE) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(self.most)];
        loop {
            self.wait()?;
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

impl OpenOutput {
    /// What to write to.
    pub fn sink(&self, interrupted: &'static AtomicBool) -> Result<Box<dyn Write + Send>, OutputError> {
        let (file, name) = match self {
            Self::Unnamed { file, path, .. } => (file, path.as_path()),
            Self::Stream(file) => (file, Path::new("the output stream")),
            Self::Handed(file, _) => (file, Path::new("the output")),
        };
        let stream = Stream::new(file, interrupted).map_err(wrap("write to", name))?;
        Ok(Box::new(stream))
    }

    /// Makes what was written safe on its disk.
    pub fn sync(&self) -> Result<(), OutputError> {
        match self {
            Self::Stream(_) | Self::Handed(..) => Ok(()),
            Self::Unnamed { file, path, .. } => file.sync_all().map_err(wrap("sync", path)),
        }
    }

    /// Gives the file its name, in one step for whoever looks. What had the name before is kept if that fails.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn publish(self) -> Result<(), OutputError> {
        let (file, path, name, parent) = match self {
            Self::Stream(_) => return Ok(()),
            Self::Handed(_, publish) => return (publish.0)().map_err(wrap("publish", Path::new("the output"))),
            Self::Unnamed {
                file,
                path,
                name,
                parent,
            } => (file, path, name, parent),
        };
        let magic = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let link = |to: &OsStr| linkat(AT_FDCWD, &magic, &parent, to, AtFlags::AT_SYMLINK_FOLLOW);
        match link(&name) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                // There is no way to link over a file; a name beside it is renamed over it. A process of its own does
                // both, so that nothing stays half done should floe be killed.
                let beside = Path::new(&name).with_extension(format!("floe-{}", std::process::id()));
                let beside = beside.as_os_str();
                apart(|| {
                    link(beside)?;
                    let renamed = renameat(&parent, beside, &parent, name.as_os_str());
                    if renamed.is_err() {
                        // The first error is the one to tell.
                        let _ = unlinkat(&parent, beside, UnlinkatFlags::NoRemoveDir);
                    }
                    renamed
                })
                .map_err(wrap("replace", &path))?;
            }
            Err(source) => return Err(wrap("name", &path)(source.into())),
        }
        // The image is there under its name now, so the tree must not run on as if it were not.
        if let Err(error) = parent.sync_all() {
            tracing::warn!(%error, "the image may not survive a crash of this host: sync its folder");
        }
        Ok(())
    }
}
