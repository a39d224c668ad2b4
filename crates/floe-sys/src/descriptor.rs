//! Descriptors of other processes and in other roots: pidfd_open(2), pidfd_getfd(2), openat2(2), tee(2),
//! splice(2).

use crate::Pid;
use crate::namespace::Kind;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use std::{
    ffi::{CStr, CString},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `struct open_how`, include/uapi/linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}
const _: () = assert!(size_of::<OpenHow>() == 24);

const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

/// include/uapi/asm-generic/fcntl.h.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_NOTIFY: i32 = 1026;
const F_GETOWN_EX: i32 = 16;
/// The same; CONFIG_CHECKPOINT_RESTORE.
const F_GETOWNER_UIDS: i32 = 17;
const F_OWNER_PGRP: i32 = 2;

pub use crate::arch::O_LARGEFILE;

/// The descriptor that a system call has just made, which nobody else owns.
pub(crate) fn owned(result: i64) -> Result<OwnedFd, Errno> {
    let number = Errno::result(result)? as RawFd;
    // SAFETY: the kernel just made this descriptor for the caller, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// linux/pidfd.h.
pub const PIDFD_THREAD: i32 = libc::O_EXCL;

/// A descriptor that stands for a process.
///
/// # Errors
/// ESRCH.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: all arguments are numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.raw(), 0) })
}

/// A descriptor that stands for a process, or for one thread that leads none (Linux 6.9).
///
/// # Errors
/// ESRCH; EINVAL where the kernel knows no descriptors of threads.
pub fn pidfd_of_task(tid: Pid) -> Result<OwnedFd, Errno> {
    match pidfd_open(tid) {
        Err(Errno::EINVAL | Errno::ENOENT) => pidfd_of_thread(tid),
        opened => opened,
    }
}

/// A descriptor that stands for one thread, also for a process's first (PIDFD_THREAD, Linux 6.9).
///
/// # Errors
/// ESRCH; EINVAL where the kernel knows no descriptors of threads.
pub fn pidfd_of_thread(tid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: all arguments are numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, tid.raw(), PIDFD_THREAD) })
}

/// How the task that a pidfd stands for ended, where it has and was waited for: as wait(2) tells it (PIDFD_GET_INFO,
/// Linux 6.15).
///
/// # Errors
/// ENOTTY where the kernel does not keep it.
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
    /// The first version of struct pidfd_info, linux/pidfd.h: what is asked for, and what was answered; numbers; the status.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const GET_INFO: libc::Ioctl = nix::request_code_readwrite!(0xff, 11, size_of::<Info>());
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        cgroup: 0,
        ids: [0; 11],
        exit_code: 0,
    };
    // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
    Errno::result(unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) })?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

/// Opens a file by its handle, name_to_handle_at(2), on the filesystem of `mount`.
///
/// # Errors
/// ESTALE where there is no such file any more; EOPNOTSUPP, EINVAL where the filesystem knows no handles; EPERM.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    // struct file_handle: length, kind, bytes.
    let mut bytes = (handle.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(handle);
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the structure has as many bytes as it says, and is only read.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), bytes.as_ptr(), flags) })
}

/// Type and bytes of a file's handle, name_to_handle_at(2).
///
/// # Errors
/// EOPNOTSUPP where its filesystem knows none that can be opened.
pub fn handle(file: BorrowedFd<'_>) -> Result<(i32, Vec<u8>), Errno> {
    /// MAX_HANDLE_SZ, linux/fs.h.
    const MOST: usize = 128;
    // struct file_handle: length, kind, bytes.
    let mut bytes = [0; 8 + MOST];
    bytes[..4].copy_from_slice(&(MOST as u32).to_ne_bytes());
    let mut mount = 0_i32;
    // SAFETY: an empty path; the structure has as many bytes as it says; room for a number.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            bytes.as_mut_ptr(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let number = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let length = (number(0) as usize).min(MOST);
    Ok((number(4), bytes[8..8 + length].to_vec()))
}

/// How many bytes can be read (FIONREAD).
///
/// # Errors
/// ENOTTY where nobody can tell.
pub fn bytes_to_read(file: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut bytes = 0;
    // SAFETY: room for the number.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes)
}

/// A duplicate of another process's descriptor, close-on-exec (Linux 5.6; needs ptrace access).
///
/// # Errors
/// EBADF, EPERM, EMFILE, ESRCH.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: all arguments are numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// Allows the calling process as many open files as it may have at all: the soft limit becomes the hard one.
///
/// # Errors
/// Those of setrlimit(2).
pub fn allow_most() -> Result<(), Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Opens `path` as if `root` were the root directory, following no magic links of /proc (Linux 5.6).
///
/// # Errors
/// Those of openat2(2).
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    open_resolved(root, path, (flags, mode), RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

/// Opens what is below `directory`, following no symbolic links at all; over mounts it goes.
///
/// # Errors
/// ELOOP where there is a link; EXDEV where the path leads out; others of openat2(2).
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    open_resolved(directory, path, (flags, mode), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
}

/// Opens what is below `directory`, by its path only (O_PATH), crossing neither symbolic links nor mounts. The empty path is
/// that of the directory itself, which may be a file then.
///
/// # Errors
/// EXDEV where a mount is in the way; others of openat2(2).
pub fn open_on_mount(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    if path.as_os_str().is_empty() {
        return fcntl(directory, FcntlArg::F_DUPFD_CLOEXEC(0)).map(adopt);
    }
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    open_resolved(directory, path, (libc::O_PATH | libc::O_NOFOLLOW, 0), resolve)
}

/// Opens what is below `directory`, crossing neither symbolic links nor mounts.
///
/// # Errors
/// EXDEV where a mount is in the way, ELOOP where a link is; others of openat2(2).
pub fn open_on_same_mount(directory: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    open_resolved(directory, path, (flags, mode), resolve)
}

/// Whether a file may not be changed, or only be added to, by whoever it is (chattr(1); statx(2)).
///
/// # Errors
/// Those of statx(2).
pub fn is_fixed(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    const FIXED: u64 = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64;
    Ok(statx(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?.stx_attributes & FIXED != 0)
}

fn open_resolved(from: BorrowedFd<'_>, path: &Path, (flags, mode): (i32, u32), resolve: u64) -> Result<OwnedFd, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: u64::from(mode),
        resolve,
    };
    // SAFETY: `path` ends with a NUL and `how` has the stated size; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            from.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    };
    owned(result)
}

/// Whether two directories are one, reached by the same mount (statx(2), Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn is_same_place(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let place = |directory: BorrowedFd<'_>| {
        let found = statx(directory.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
        let device = (found.stx_dev_major, found.stx_dev_minor);
        Ok((device, found.stx_ino, found.stx_mnt_id))
    };
    Ok(place(one)? == place(other)?)
}

/// Whether two open files, on which nobody has a lock of flock(2), are the same file, also where they have the same device and
/// inode number though they are not: segments of System V in different IPC namespaces.
///
/// # Errors
/// EWOULDBLOCK where somebody has such a lock; those of flock(2).
pub fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let lock = |file: BorrowedFd<'_>, operation: i32| {
        // SAFETY: numbers.
        Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) })
    };
    let (take, leave) = (libc::LOCK_EX | libc::LOCK_NB, libc::LOCK_UN);
    lock(one, take)?;
    let same = match lock(other, take) {
        Ok(_) => lock(other, leave).map(|_| false),
        Err(Errno::EWOULDBLOCK) => Ok(true),
        Err(error) => Err(error),
    };
    lock(one, leave)?;
    same
}

/// The number of the mount that a file is reached by, as mountinfo tells it; links are followed (statx(2), Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn mount_of(path: &CStr) -> Result<u64, Errno> {
    Ok(statx(libc::AT_FDCWD, path, 0)?.stx_mnt_id)
}

fn statx(directory: RawFd, path: &CStr, flags: i32) -> Result<libc::statx, Errno> {
    // SAFETY: an all-zero statx is valid: numbers alone.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: the path ends with a NUL, and `found` is room for the answer.
    let result = unsafe { libc::statx(directory, path.as_ptr(), flags, mask, &raw mut found) };
    Errno::result(result).map(|_| found)
}

/// Copies up to `bytes` from one pipe to another without taking them out.
///
/// # Errors
/// EAGAIN where the source is empty, EINVAL where one is no pipe.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> Result<usize, Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), bytes, libc::SPLICE_F_NONBLOCK) };
    Errno::result(result).map(|n| n as usize)
}

/// Moves up to `bytes` from one pipe to another, without waiting: buffers that are moved whole stay what they are.
///
/// # Errors
/// EAGAIN where the source is empty, or the destination full; EINVAL where one is no pipe.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> Result<usize, Errno> {
    let (from, to, none) = (from.as_raw_fd(), to.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: numbers, and no offsets.
    let result = unsafe { libc::splice(from, none, to, none, bytes, libc::SPLICE_F_NONBLOCK) };
    Errno::result(result).map(|n| n as usize)
}

/// The names of a file's extended attributes, each ended by a NUL; none where its filesystem has none.
///
/// # Errors
/// Those of listxattr(2) but ENOTSUP.
pub fn extended_attributes(path: &Path) -> Result<Vec<u8>, Errno> {
    attribute_names(libc::listxattr, path)
}

/// The value of a file's extended attribute.
///
/// # Errors
/// Those of getxattr(2).
pub fn extended_attribute(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    attribute_value(libc::getxattr, path, name)
}

/// As [`extended_attributes`], of a symbolic link that the path ends with itself.
///
/// # Errors
/// Those of llistxattr(2) but ENOTSUP.
pub fn attributes_of_link(path: &Path) -> Result<Vec<u8>, Errno> {
    attribute_names(libc::llistxattr, path)
}

/// As [`extended_attribute`], of a symbolic link that the path ends with itself.
///
/// # Errors
/// Those of lgetxattr(2).
pub fn attribute_of_link(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    attribute_value(libc::lgetxattr, path, name)
}

/// listxattr(2) or llistxattr(2).
type ListAttributes = unsafe extern "C" fn(*const libc::c_char, *mut libc::c_char, usize) -> libc::ssize_t;
/// getxattr(2) or lgetxattr(2).
type GetAttribute =
    unsafe extern "C" fn(*const libc::c_char, *const libc::c_char, *mut libc::c_void, usize) -> libc::ssize_t;

fn attribute_names(list: ListAttributes, path: &Path) -> Result<Vec<u8>, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // Mostly there are none, or few. XATTR_LIST_MAX: no file has a longer list.
    for room in [256, 65_536] {
        let mut names = vec![0u8; room];
        // SAFETY: `path` ends with a NUL and `names` has the stated length; both outlive the call.
        let result = unsafe { list(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        match Errno::result(result) {
            Ok(bytes) => {
                names.truncate(bytes as usize);
                return Ok(names);
            }
            Err(Errno::ENOTSUP) => return Ok(Vec::new()),
            Err(Errno::ERANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ERANGE)
}

fn attribute_value(get: GetAttribute, path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // XATTR_SIZE_MAX: no value is longer.
    let mut value = vec![0u8; 65_536];
    // SAFETY: both strings end with a NUL and `value` has the stated length; all outlive the call.
    let result = unsafe { get(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(Errno::result(result)? as usize);
    Ok(value)
}

/// Sets an extended attribute of what is at a path, of a symbolic link itself.
///
/// # Errors
/// Those of lsetxattr(2).
pub fn set_attribute_of_link(path: &Path, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both strings end with a NUL and `value` has the stated length; all outlive the call.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Removes an extended attribute of what is at a path, of a symbolic link itself.
///
/// # Errors
/// Those of lremovexattr(2).
pub fn remove_attribute_of_link(path: &Path, name: &[u8]) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both strings end with a NUL; both outlive the call.
    Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Sets an extended attribute of an open file.
///
/// # Errors
/// Those of fsetxattr(2).
pub fn set_extended_attribute(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` ends with a NUL and `value` has the stated length; both outlive the call.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// What an owner of a file's signals is, F_OWNER_* of include/uapi/asm-generic/fcntl.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum OwnerKind {
    /// F_OWNER_TID.
    Thread = 0,
    /// F_OWNER_PID.
    Process = 1,
    /// F_OWNER_PGRP.
    Group = 2,
}

/// Signals about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals {
    /// Who gets them, as F_SETOWN, a lease or F_NOTIFY said.
    pub owner: Option<(OwnerKind, i32)>,
    /// Real and effective user of who said so.
    pub users: [u32; 2],
    /// F_GETSIG; 0 for SIGIO.
    pub signal: i32,
}

/// Who gets signals about a file, and which.
///
/// # Errors
/// EBADF; EINVAL of a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn signals(file: BorrowedFd<'_>) -> Result<Signals, Errno> {
    let (mut owner, mut users) = ([0_i32; 2], [0_u32; 2]);
    // SAFETY: the kernel writes a struct f_owner_ex, which is two numbers.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    // SAFETY: F_GETSIG takes no argument.
    let signal = Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_GETSIG) })?;
    let kind = match owner[0] {
        F_OWNER_PGRP => OwnerKind::Group,
        0 => OwnerKind::Thread,
        _ => OwnerKind::Process,
    };
    if owner[1] != 0 {
        // SAFETY: room for two users.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_GETOWNER_UIDS, users.as_mut_ptr()) })?;
    }
    Ok(Signals {
        owner: (owner[1] != 0).then_some((kind, owner[1])),
        users,
        signal,
    })
}

/// Sets who gets signals about a file, and which; the users are the caller's.
///
/// # Errors
/// EBADF; ESRCH where the owner has ended.
pub fn set_signals(file: BorrowedFd<'_>, signals: Signals) -> Result<(), Errno> {
    let (kind, id) = signals.owner.unwrap_or((OwnerKind::Process, 0));
    let owner = [kind as i32, id];
    // SAFETY: the kernel reads a struct f_owner_ex, which is two numbers.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) })?;
    // SAFETY: numbers.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signals.signal) }).map(drop)
}

/// Has a directory tell of `events` (DN_*) by a signal, of none where that is 0 (F_NOTIFY).
///
/// # Errors
/// ENOTDIR; EINVAL where the kernel tells of nothing.
pub fn directory_notice(directory: BorrowedFd<'_>, events: u32) -> Result<(), Errno> {
    // SAFETY: numbers.
    Errno::result(unsafe { libc::fcntl(directory.as_raw_fd(), F_NOTIFY, events) }).map(drop)
}

/// Lets a descriptor survive exec under its number.
pub fn keep_over_exec(number: RawFd) {
    // SAFETY: F_SETFD takes a number; a bad descriptor is an error that exec then shows.
    unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
}

/// Takes ownership of a descriptor that a call just returned as a bare number.
#[must_use]
pub fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: callers pass numbers that the kernel has just given them, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Takes a descriptor that this program was started with. It is closed on exec from now on; of a standard stream it is a
/// duplicate.
///
/// # Errors
/// EBADF where there is none, or it was opened by the program itself.
pub fn take_inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_GETFD takes a number, and a bad descriptor is an error.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if number <= libc::STDERR_FILENO {
        // SAFETY: the same of F_DUPFD_CLOEXEC.
        let own = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) })?;
        return Ok(adopt(own));
    }
    if flags & libc::FD_CLOEXEC != 0 {
        // What came by exec is not closed by it; all that this program opens is.
        return Err(Errno::EBADF);
    }
    // SAFETY: F_SETFD takes numbers.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it came by exec, so nothing here owns it; and from now on the flag tells that it is taken.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor of a namespace of the process a pidfd stands for (linux/pidfd.h, PIDFD_GET_*_NAMESPACE, Linux 6.11).
///
/// # Errors
/// ENOTTY, EINVAL of an older kernel; EPERM, ESRCH, EOPNOTSUPP.
pub fn namespace_of(pidfd: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd, Errno> {
    const PIDFS_IOCTL: u64 = 0xff << 8;
    let request = match kind {
        Kind::Cgroup => 1,
        Kind::Ipc => 2,
        Kind::Mount => 3,
        Kind::Network => 4,
        Kind::Pid => 5,
        Kind::Time => 7,
        Kind::User => 9,
        Kind::Uts => 10,
    };
    // SAFETY: these take no argument.
    let number = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFS_IOCTL | request, 0) };
    owned(i64::from(number))
}

/// Sends SIGKILL to the process a pidfd stands for.
///
/// # Errors
/// ESRCH, EPERM.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    pidfd_signal(pidfd, libc::SIGKILL)
}

/// Sends a signal to the process a pidfd stands for.
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: all arguments are numbers, and a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Puts /dev/null in the place of the three standard streams.
pub fn null_streams() {
    use nix::{fcntl::OFlag, sys::stat::Mode};
    if let Ok(null) = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        for stream in 0..3 {
            // SAFETY: all arguments are numbers; the standard streams belong to no Rust value.
            unsafe { libc::dup2(null.as_raw_fd(), stream) };
        }
        if null.as_raw_fd() < 3 {
            // It landed on a stream's own number and is to stay there.
            std::mem::forget(null);
        }
    }
}
