//! Mounts that are made apart from where they go: fsopen(2), fsmount(2), open_tree(2), move_mount(2) (Linux 5.2),
//! mount_setattr(2) (5.12). A mount is known by a descriptor of its root directory.

use crate::descriptor::owned;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    unistd::{chdir, fchdir, pivot_root},
};
use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSPICK_CLOEXEC: u32 = 1;
const FSPICK_EMPTY_PATH: u32 = 8;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
const FSMOUNT_CLOEXEC: u32 = 1;
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
/// linux/fcntl.h.
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const MOVE_MOUNT_SET_GROUP: u32 = 0x100;

/// MOUNT_ATTR_* of linux/mount.h: what a single mount allows. Neither NOATIME nor STRICTATIME is `relatime`.
pub mod attributes {
    #![expect(missing_docs, reason = "their names are those of linux/mount.h")]
    pub const RDONLY: u32 = 0x1;
    pub const NOSUID: u32 = 0x2;
    pub const NODEV: u32 = 0x4;
    pub const NOEXEC: u32 = 0x8;
    pub const NOATIME: u32 = 0x10;
    pub const STRICTATIME: u32 = 0x20;
    pub const NODIRATIME: u32 = 0x80;
    pub const NOSYMFOLLOW: u32 = 0x20_0000;
    /// All of these.
    pub const ALL: u32 = RDONLY | NOSUID | NODEV | NOEXEC | NOATIME | STRICTATIME | NODIRATIME | NOSYMFOLLOW;
}

/// The bits that choose among NOATIME, STRICTATIME and neither, MOUNT_ATTR__ATIME.
const ATIME: u32 = 0x70;

/// How a mount takes part in what is mounted elsewhere, linux/fs.h (MS_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in mount_namespaces(7)")]
#[repr(u64)]
pub enum Propagation {
    Unbindable = 1 << 17,
    Private = 1 << 18,
    Slave = 1 << 19,
    Shared = 1 << 20,
}

/// A filesystem that is to be made.
#[derive(Debug)]
pub struct NewFilesystem(OwnedFd);

impl NewFilesystem {
    /// One of a type.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ENODEV where the kernel has no such type.
    pub fn new(kind: &CStr) -> Result<Self, Errno> {
        // SAFETY: a name that ends with a NUL, and a number.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets an option that has a value.
    ///
    /// # Errors
    /// EINVAL where the type knows no such option or value.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        let (key, value) = (terminated(key)?, terminated(value)?);
        configure(&self.0, FSCONFIG_SET_STRING, Some(&key), Some(&value), 0)
    }

    /// Sets an option that has none.
    ///
    /// # Errors
    /// EINVAL where the type knows no such option.
    pub fn set_flag(&self, key: &[u8]) -> Result<(), Errno> {
        configure(&self.0, FSCONFIG_SET_FLAG, Some(&terminated(key)?), None, 0)
    }

    /// Sets an option whose value is an open file.
    ///
    /// # Errors
    /// EINVAL where the type knows no such option, or none by open files (layers of overlayfs: Linux 6.13).
    pub fn set_file(&self, key: &[u8], file: BorrowedFd<'_>) -> Result<(), Errno> {
        configure(
            &self.0,
            FSCONFIG_SET_FD,
            Some(&terminated(key)?),
            None,
            file.as_raw_fd(),
        )
    }

    /// Makes it: a mount of all of it that is nowhere yet, and goes with its last descriptor.
    ///
    /// # Errors
    /// Those of mount(2).
    pub fn mount(self) -> Result<OwnedFd, Errno> {
        configure(&self.0, FSCONFIG_CMD_CREATE, None, None, 0)?;
        // SAFETY: plain numbers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
    }
}

fn terminated(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

fn configure(
    context: &OwnedFd,
    command: u32,
    key: Option<&CStr>,
    value: Option<&CStr>,
    number: i32,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let (key, value) = (pointer(key), pointer(value));
    // SAFETY: strings that end with a NUL and outlive the call, or null where the command takes none; numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, number) })
        .map(drop)
}

/// The root directory of a filesystem of a type that is mounted nowhere: an empty one of `tmpfs`, which goes with the last
/// file that is open there; that of the caller's IPC namespace of `mqueue`.
///
/// # Errors
/// EPERM for who lacks CAP_SYS_ADMIN; ENODEV where the kernel has no such type.
pub fn file_system(kind: &CStr) -> Result<OwnedFd, Errno> {
    NewFilesystem::new(kind)?.mount()
}

/// Lets nobody write to the filesystem of a mount any more, through whichever mount.
///
/// # Errors
/// EBUSY where somebody writes.
pub fn make_filesystem_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: an empty path that ends with a NUL, and numbers.
    let picked = unsafe {
        let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
        libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), flags)
    };
    let context = owned(picked)?;
    configure(&context, FSCONFIG_SET_FLAG, Some(c"ro"), None, 0)?;
    configure(&context, FSCONFIG_CMD_RECONFIGURE, None, None, 0)
}

/// A mount of what an open file or directory (O_PATH will do) shows, without what is mounted on it; it is nowhere yet.
///
/// # Errors
/// EINVAL where it is on a mount of another mount namespace, or may not be bound (MS_UNBINDABLE).
pub fn clone_mount(what: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: an empty path that ends with a NUL, and numbers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, what.as_raw_fd(), c"".as_ptr(), flags) })
}

/// As [`clone_mount`], with all that is mounted on it.
///
/// # Errors
/// As there.
pub fn clone_tree(what: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | libc::AT_EMPTY_PATH as u32;
    // SAFETY: an empty path that ends with a NUL, and numbers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, what.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Puts a mount that is nowhere yet on top of an open file or directory (O_PATH will do).
///
/// # Errors
/// ENOTDIR where one is a directory and the other is none; others of move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(mount, place, 0)
}

/// Makes a private mount one of the group that another one of its filesystem shares mounts with (Linux 5.15).
///
/// # Errors
/// EINVAL where its root does not lie in that of the other.
pub fn join_group(of: BorrowedFd<'_>, mount: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(of, mount, MOVE_MOUNT_SET_GROUP)
}

fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH | flags;
    let (from, to, empty) = (from.as_raw_fd(), to.as_raw_fd(), c"".as_ptr());
    // SAFETY: empty paths that end with a NUL, and numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) }).map(drop)
}

/// struct mount_attr, linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

/// Sets exactly these [`attributes`] of a mount.
///
/// # Errors
/// EBUSY where somebody writes to what is to be read-only; EPERM.
pub fn set_attributes(mount: BorrowedFd<'_>, wanted: u32) -> Result<(), Errno> {
    set_attr(
        mount,
        &MountAttr {
            set: u64::from(wanted & attributes::ALL),
            clear: u64::from(attributes::ALL & !wanted | ATIME),
            propagation: 0,
            user_namespace: 0,
        },
    )
}

/// Sets some of these [`attributes`] of a mount, and of those on it where `recursive`; the others stay.
///
/// # Errors
/// EBUSY where somebody writes to what is to be read-only; EPERM.
pub fn add_attributes(mount: BorrowedFd<'_>, more: u32, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr {
        set: u64::from(more & attributes::ALL),
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let flags = if recursive { AT_RECURSIVE as i32 } else { 0 };
    set_attr_with(mount, &attr, flags)
}

/// Makes what is mounted on top of the root directory the root in its place, pivot_root(2): for all who have that as their
/// root or working directory. The old one goes, with all that is mounted on it.
///
/// # Errors
/// EINVAL where the old root, or what it is mounted on, shares mounts; EPERM.
pub fn replace_root(new: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(new)?;
    pivot_root(".", ".")?;
    // Which lies on top of the new one now.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Lets a mount alone be read without a trace of it.
///
/// # Errors
/// EPERM.
pub fn leave_times_alone(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attr(
        mount,
        &MountAttr {
            set: u64::from(attributes::NOATIME),
            clear: u64::from(ATIME),
            propagation: 0,
            user_namespace: 0,
        },
    )
}

/// Sets how a mount takes part in what is mounted elsewhere.
///
/// # Errors
/// EPERM.
pub fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> Result<(), Errno> {
    set_attr(
        mount,
        &MountAttr {
            set: 0,
            clear: 0,
            propagation: propagation as u64,
            user_namespace: 0,
        },
    )
}

fn set_attr(mount: BorrowedFd<'_>, attr: &MountAttr) -> Result<(), Errno> {
    set_attr_with(mount, attr, 0)
}

fn set_attr_with(mount: BorrowedFd<'_>, attr: &MountAttr, flags: i32) -> Result<(), Errno> {
    // SAFETY: an empty path that ends with a NUL, and a structure of the stated size that is only read.
    Errno::result(unsafe {
        let size = size_of::<MountAttr>();
        let attr: *const MountAttr = attr;
        let mount = mount.as_raw_fd();
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            attr,
            size,
        )
    })
    .map(drop)
}

/// Whether an open file or directory is what a mount shows at its place.
///
/// # Errors
/// Those of statx(2).
pub fn is_root(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path that ends with a NUL, and room for the answer.
    Errno::result(unsafe {
        let (file, empty) = (file.as_raw_fd(), c"".as_ptr());
        libc::statx(file, empty, libc::AT_EMPTY_PATH, libc::STATX_TYPE, found.as_mut_ptr())
    })?;
    // SAFETY: all zeros is a value of the structure, and the kernel has filled it.
    let found = unsafe { found.assume_init() };
    Ok(found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}
