//! Makes the mounts, in PID 1 of a new sandbox.

use super::{Mount, Mounts, Points, RootDirectory, Shown, devices};
use crate::first::{Failure, failed};
use floe_sys::mount::{
    NewFilesystem, add_attributes, attach,
    attributes::{NODEV, NOEXEC, NOSUID, RDONLY},
    clone_mount, clone_tree, replace_root, set_attributes,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, fstat, umask},
};
use std::{
    collections::BTreeSet,
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// What is to be shown is found from the caller's root directory, which is another one afterwards.
pub fn make(mounts: &Mounts) -> Result<(), Failure> {
    if mounts.root.is_none() && mounts.all.is_empty() {
        return Ok(());
    }
    let before = umask(Mode::empty());
    let made = Making::of(mounts);
    umask(before);
    made
}

struct Making {
    top: OwnedFd,
    /// Device numbers of filesystems that the sandbox alone has.
    own: BTreeSet<u64>,
    points: Points,
}

impl Making {
    fn of(mounts: &Mounts) -> Result<(), Failure> {
        let ordered = mounts.ordered();
        // While nothing hides what they show.
        let shown = ordered
            .iter()
            .map(|mount| source(mount))
            .collect::<Result<Vec<_>, _>>()?;
        let mut making = Self {
            top: directory("/").map_err(failed("open the root directory"))?,
            own: BTreeSet::new(),
            points: Points::default(),
        };
        if let Some(root) = &mounts.root {
            making.furnish(root)?;
        }
        for (mount, source) in ordered.into_iter().zip(shown) {
            if matches!(mount.shows, Shown::Tmpfs { .. }) {
                making.note(&source)?;
            }
            making.place(&source, &mount.point, mount.is_directory())?;
        }
        // They are in what the sandbox alone has.
        making.points.keep();
        match &mounts.root {
            Some(_) => replace_root(making.top.as_fd()).map_err(failed("make it the root directory")),
            None => Ok(()),
        }
    }

    /// Puts the new root over the old one, with what every system has.
    fn furnish(&mut self, root: &RootDirectory) -> Result<(), Failure> {
        let name = || format!("the root directory {}", root.path.display());
        let opened = directory(&root.path).map_err(failed(format!("open {}", name())))?;
        let new = clone_tree(opened.as_fd()).map_err(failed(format!("bind {}", name())))?;
        if root.read_only {
            add_attributes(new.as_fd(), RDONLY, true).map_err(failed(format!("make {} read-only", name())))?;
        }
        attach(new.as_fd(), self.top.as_fd()).map_err(failed(format!("mount {}", name())))?;
        self.top = new;
        let proc = clone_of("/proc").map_err(failed("bind the private /proc"))?;
        self.place(&proc, Path::new("/proc"), true)?;
        // Only who owns the network namespace may mount it.
        match filesystem("sysfs", &[], RDONLY | NOSUID | NODEV | NOEXEC) {
            Ok(sys) => self.place(&sys, Path::new("/sys"), true)?,
            Err(Errno::EPERM) => {
                tracing::info!("/sys stays empty: it takes a network namespace of its own (--net none)");
            }
            Err(error) => return Err(failed("mount /sys")(error)),
        }
        let options = [("mode", "755"), ("size", "65536k")];
        let dev = filesystem("tmpfs", &options, NOSUID).map_err(failed("mount /dev"))?;
        self.note(&dev)?;
        self.place(&dev, Path::new("/dev"), true)?;
        devices::make(dev.as_fd())?;
        let terminals = clone_of("/dev/pts").map_err(failed("bind the private devpts"))?;
        let options = [("mode", "1777"), ("size", "65536k")];
        let memory = filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC).map_err(failed("mount /dev/shm"))?;
        self.note(&memory)?;
        let queues = filesystem("mqueue", &[], NOSUID | NODEV | NOEXEC).map_err(failed("mount /dev/mqueue"))?;
        for (mount, point) in [(terminals, "/dev/pts"), (memory, "/dev/shm"), (queues, "/dev/mqueue")] {
            self.place(&mount, Path::new(point), true)?;
        }
        Ok(())
    }

    fn note(&mut self, made: &OwnedFd) -> Result<(), Failure> {
        let found = fstat(made).map_err(failed("look at a new filesystem"))?;
        self.own.insert(found.st_dev);
        Ok(())
    }

    /// Mounts something, on a mount point that is made where that is the sandbox's alone.
    fn place(&mut self, mount: &OwnedFd, point: &Path, is_directory: bool) -> Result<(), Failure> {
        let may = |folder: &OwnedFd| Ok(self.own.contains(&fstat(folder)?.st_dev));
        let place = self.points.add(self.top.as_fd(), (point, is_directory), &may)?;
        let wrap = failed(format!("mount something on {}", point.display()));
        attach(mount.as_fd(), place.as_fd()).map_err(wrap)
    }
}

/// A mount that is nowhere yet.
fn source(mount: &Mount) -> Result<OwnedFd, Failure> {
    match &mount.shows {
        Shown::Path { source, read_only } => {
            let wrap = || failed(format!("bind {}", source.display()));
            let opened = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(wrap())?;
            let made = clone_tree(opened.as_fd()).map_err(wrap())?;
            if *read_only {
                add_attributes(made.as_fd(), RDONLY, true).map_err(wrap())?;
            }
            Ok(made)
        }
        Shown::Tmpfs { options, attributes } => {
            let options: Vec<(&str, &str)> = options
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            let made = filesystem("tmpfs", &options, NOSUID | NODEV | attributes);
            made.map_err(failed(format!("mount a tmpfs on {}", mount.point.display())))
        }
    }
}

fn filesystem(kind: &str, options: &[(&str, &str)], attributes: u32) -> Result<OwnedFd, Errno> {
    let new = NewFilesystem::new(&CString::new(kind).map_err(|_| Errno::EINVAL)?)?;
    new.set(b"source", kind.as_bytes())?;
    for (key, value) in options {
        new.set(key.as_bytes(), value.as_bytes())?;
    }
    let made = new.mount()?;
    set_attributes(made.as_fd(), attributes)?;
    Ok(made)
}

fn directory(path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path.as_ref(), flags, Mode::empty())
}

fn clone_of(path: &str) -> Result<OwnedFd, Errno> {
    clone_mount(directory(path)?.as_fd())
}
