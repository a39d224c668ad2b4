//! Where an image goes: an unnamed file that gets its name when it is complete and synced, or a stream.

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::linkat,
};
use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// Where to.
#[derive(Debug)]
pub enum Output {
    /// A file.
    Path(PathBuf),
    /// A stream that is open already, e.g. standard output.
    Stream(File),
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
pub enum OpenOutput {
    Unnamed { file: File, path: PathBuf },
    Stream(File),
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.display().to_string();
    move |source| OutputError { action, path, source }
}

impl Output {
    /// Opens it.
    pub fn open(self) -> Result<OpenOutput, OutputError> {
        let path = match self {
            Self::Stream(file) => return Ok(OpenOutput::Stream(file)),
            Self::Path(path) => path,
        };
        let directory = directory(&path);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(&directory, flags, Mode::from_bits_retain(0o600))
            .map_err(|source| wrap("create an image in", &directory)(source.into()))?;
        Ok(OpenOutput::Unnamed {
            file: File::from(fd),
            path,
        })
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
    pub fn sink(&self) -> Result<Box<dyn Write + Send>, OutputError> {
        let (file, path) = match self {
            Self::Unnamed { file, path } => (file, path.as_path()),
            Self::Stream(file) => (file, Path::new("the output stream")),
        };
        Ok(Box::new(file.try_clone().map_err(wrap("duplicate", path))?))
    }

    /// Makes what was written safe on its disk.
    pub fn sync(&self) -> Result<(), OutputError> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::Unnamed { file, path } => file.sync_all().map_err(wrap("sync", path)),
        }
    }

    /// Gives the file its name, in one step for whoever looks. What had the name before is kept if that fails.
    pub fn publish(self) -> Result<(), OutputError> {
        let (file, path) = match self {
            Self::Stream(_) => return Ok(()),
            Self::Unnamed { file, path } => (file, path),
        };
        let magic = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let link = |to: &Path| linkat(AT_FDCWD, &magic, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
        match link(&path) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                // There is no way to link over a file; a name beside it is renamed over it.
                let beside = path.with_extension(format!("floe-{}", std::process::id()));
                link(&beside).map_err(|source| wrap("name", &beside)(source.into()))?;
                std::fs::rename(&beside, &path).map_err(|error| {
                    // What stands there is this image alone, under a name that nobody asked for.
                    drop(std::fs::remove_file(&beside));
                    wrap("replace", &path)(error)
                })?;
            }
            Err(source) => return Err(wrap("name", &path)(source.into())),
        }
        let parent = directory(&path);
        File::open(&parent)
            .and_then(|file| file.sync_all())
            .map_err(wrap("sync", &parent))
    }
}
