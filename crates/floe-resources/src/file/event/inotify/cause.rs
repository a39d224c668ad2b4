//! Makes events happen, one by one: the watch that is to tell of one tells of nothing else, and of that for a moment only.

use super::{
    Body, Watch,
    waiting::{Event, was_directory},
};
use crate::file::FileError;
use floe_sys::{
    descriptor::bytes_to_read,
    event::{add_inotify_watch, remove_inotify_watch, set_next_inotify_watch},
    mount,
};
use nix::sys::{
    stat::{UtimensatFlags, utimensat},
    time::TimeSpec,
};
use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

/// A watch has to be one of something. Nothing is deleted that is watched still.
const SILENT: u32 = libc::IN_DELETE_SELF;

/// Adds a watch with a number of choice, which tells of nothing yet.
pub(super) fn add_silent(instance: BorrowedFd<'_>, file: BorrowedFd<'_>, number: i32) -> Result<(), FileError> {
    let name = || format!("with watch {number}");
    set_next_inotify_watch(instance, number).map_err(FileError::system("choose the number of a watch,", name()))?;
    match add_inotify_watch(instance, file, SILENT).map_err(FileError::system("watch a file", name()))? {
        got if got == number => Ok(()),
        _ => Err(FileError::Unknown {
            id: 0,
            what: format!("watch {number} can't be given its number"),
        }),
    }
}

/// The first path that an event is about and that is not there, or is no file of its kind.
pub(super) fn missing(body: &Body, root: BorrowedFd<'_>) -> Option<PathBuf> {
    let about = |event: &Event| body.watches.iter().find(|watch| watch.number == event.watch);
    let lacking = |event: &Event| {
        let watch = about(event)?;
        let there = open_object(watch, event, root).and_then(|file| Object::of(file).map_err(system(event)));
        let fits = there.is_ok_and(|object| object.fits(event));
        (!fits).then(|| watch.path().join(OsStr::from_bytes(&event.name)))
    };
    body.events.iter().find_map(lacking)
}

/// Causes all events of `body`, whose watches are silent.
pub(super) fn all(instance: BorrowedFd<'_>, body: &Body, root: BorrowedFd<'_>) -> Result<(), FileError> {
    let mut stage = None;
    let mut bytes = waiting(instance)?;
    let mut deleted = None;
    for event in &body.events {
        // The last event of a watch comes with the deletion of its file.
        let came = deleted.take() == Some(event.watch);
        let watch = body.watches.iter().find(|watch| watch.number == event.watch);
        match watch {
            Some(watch) => cause_at(instance, watch, event, root)?,
            None if came => {}
            None => {
                let stage = match &mut stage {
                    Some(stage) => stage,
                    none => none.insert(Stage::new().map_err(system(event))?),
                };
                stage.cause(instance, event, &body.events)?;
            }
        }
        if event.what() == libc::IN_DELETE_SELF {
            deleted = Some(event.watch);
            bytes += EVENT_BYTES;
        }
        if !came {
            bytes += event_bytes(event);
        }
        if waiting(instance)? != bytes {
            return Err(FileError::Unknown {
                id: 0,
                what: format!("event {:#x} of watch {} did not come", event.mask, event.watch),
            });
        }
    }
    Ok(())
}

/// `struct inotify_event` without a name.
const EVENT_BYTES: usize = 16;

/// Names are padded to whole structures, with a NUL at least.
fn event_bytes(event: &Event) -> usize {
    match event.name.len() {
        0 => EVENT_BYTES,
        length => EVENT_BYTES + (length + 1).next_multiple_of(EVENT_BYTES),
    }
}

fn waiting(instance: BorrowedFd<'_>) -> Result<usize, FileError> {
    let bytes = bytes_to_read(instance).map_err(FileError::system("look for events in", "an inotify instance"))?;
    Ok(bytes as usize)
}

fn system(event: &Event) -> impl FnOnce(io::Error) -> FileError {
    let object = format!("event {:#x} of watch {}", event.mask, event.watch);
    move |source| FileError::System {
        action: "cause",
        object,
        source,
    }
}

fn open_object(watch: &Watch, event: &Event, root: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
    if event.name.is_empty() {
        return watch.open(root);
    }
    let path = watch.path().join(OsStr::from_bytes(&event.name));
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let name = path.display().to_string();
    floe_sys::descriptor::open_in_root(root, &path, flags, 0)
        .map_err(FileError::system("open what an event is about,", name))
}

/// Of a file that is there.
fn cause_at(instance: BorrowedFd<'_>, watch: &Watch, event: &Event, root: BorrowedFd<'_>) -> Result<(), FileError> {
    let watched = watch.open(root)?;
    let object = open_object(watch, event, root)?;
    let object = Object::of(object).map_err(system(event))?;
    let moment = Moment {
        instance,
        watched: watched.as_fd(),
    };
    object.cause(event, &moment).map_err(system(event))
}

/// A watch, which tells of one thing for a moment.
struct Moment<'a> {
    instance: BorrowedFd<'a>,
    watched: BorrowedFd<'a>,
}

impl Moment<'_> {
    fn tell_of(&self, event: &Event, happen: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        add_inotify_watch(self.instance, self.watched, event.what())?;
        happen()?;
        add_inotify_watch(self.instance, self.watched, SILENT)?;
        Ok(())
    }
}

/// What an event is about.
struct Object {
    path: String,
    metadata: Metadata,
    _file: File,
}

impl Object {
    fn of(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        Ok(Self {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()),
            metadata: file.metadata()?,
            _file: file,
        })
    }

    /// Files that do nothing when they are opened.
    fn fits(&self, event: &Event) -> bool {
        let kind = self.metadata.file_type();
        if event.is_directory() {
            kind.is_dir()
        } else {
            kind.is_file()
        }
    }

    fn cause(&self, event: &Event, moment: &Moment<'_>) -> io::Result<()> {
        if !self.fits(event) {
            return Err(io::Error::other("it is about another kind of file by now"));
        }
        let writes = event.what() == libc::IN_CLOSE_WRITE;
        let open = || {
            let mut options = OpenOptions::new();
            options.read(!writes).write(writes).custom_flags(libc::O_NONBLOCK);
            options.open(&self.path)
        };
        match event.what() {
            libc::IN_OPEN => {
                let mut opened = None;
                moment.tell_of(event, || {
                    opened = Some(open()?);
                    Ok(())
                })
            }
            libc::IN_CLOSE_WRITE | libc::IN_CLOSE_NOWRITE => {
                let opened = open()?;
                moment.tell_of(event, || {
                    drop(opened);
                    Ok(())
                })
            }
            what => moment.tell_of(event, || self.set_times(what)),
        }
    }

    /// To what they are. What is told depends on which of them are set.
    fn set_times(&self, what: u32) -> io::Result<()> {
        let time = |set: bool, seconds, nanoseconds| match set {
            true => TimeSpec::new(seconds, nanoseconds),
            false => TimeSpec::UTIME_OMIT,
        };
        let about = &self.metadata;
        let access = time(what != libc::IN_MODIFY, about.atime(), about.atime_nsec());
        let change = time(what != libc::IN_ACCESS, about.mtime(), about.mtime_nsec());
        let here = nix::fcntl::AT_FDCWD;
        utimensat(
            here,
            Path::new(&self.path),
            &access,
            &change,
            UtimensatFlags::FollowSymlink,
        )?;
        Ok(())
    }
}

/// A place of floe's own for watches that are none any more.
struct Stage {
    root: OwnedFd,
    /// What each watches.
    watched: HashMap<i32, OwnedFd>,
}

impl Stage {
    fn new() -> io::Result<Self> {
        Ok(Self {
            root: mount::file_system(c"tmpfs")?,
            watched: HashMap::new(),
        })
    }

    fn path(&self, watch: i32) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{watch}", self.root.as_raw_fd()))
    }

    fn cause(&mut self, instance: BorrowedFd<'_>, event: &Event, events: &[Event]) -> Result<(), FileError> {
        let own = self.path(event.watch);
        let is_directory = was_directory(event.watch, events);
        let watched = match self.watched.entry(event.watch) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let file = make(&own, is_directory).map_err(system(event))?;
                add_silent(instance, file.as_fd(), event.watch)?;
                entry.insert(file)
            }
        };
        let moment = Moment {
            instance,
            watched: watched.as_fd(),
        };
        match event.what() {
            libc::IN_IGNORED => {
                let removed = remove_inotify_watch(instance, event.watch).map_err(io::Error::from);
                return removed.map_err(system(event));
            }
            libc::IN_DELETE_SELF => {
                // It is silent, but for this. Its last user has to go.
                self.watched.remove(&event.watch);
                return remove(&own, is_directory).map_err(system(event));
            }
            _ => {}
        }
        let path = match event.name.is_empty() {
            true => own,
            false => own.join(OsStr::from_bytes(&event.name)),
        };
        happen(event, &path, &moment).map_err(system(event))
    }
}

/// Makes an event happen at a path of floe's own.
fn happen(event: &Event, path: &Path, moment: &Moment<'_>) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(metadata) => Some(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let creates = event.what() == libc::IN_CREATE;
    if let Some(was_directory) = there.filter(|kind| creates || *kind != event.is_directory()) {
        remove(path, was_directory)?;
    }
    if creates {
        return moment.tell_of(event, || make(path, event.is_directory()).map(drop));
    }
    let object = if there == Some(event.is_directory()) {
        open_path(path)?
    } else {
        make(path, event.is_directory())?
    };
    if event.what() == libc::IN_DELETE {
        return moment.tell_of(event, || remove(path, event.is_directory()));
    }
    Object::of(object)?.cause(event, moment)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    options.open(path).map(OwnedFd::from)
}

/// A new directory or file.
fn make(path: &Path, directory: bool) -> io::Result<OwnedFd> {
    if directory {
        fs::create_dir(path)?;
    } else {
        File::create_new(path)?;
    }
    open_path(path)
}

fn remove(path: &Path, directory: bool) -> io::Result<()> {
    if directory {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}
