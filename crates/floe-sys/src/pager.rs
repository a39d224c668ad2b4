//! Memory that somebody else looks after: userfaultfd(2), linux/userfaultfd.h.
//!
//! A [`Pager`] is one address space's. What its owner finds missing there it waits for until it is filled; and what its
//! owner does to its mappings meanwhile is told, and waits until that is read. What is written to memory is followed by
//! another kind of it, [`userfault`](crate::userfault).

use crate::descriptor::{adopt, owned};
use nix::errno::Errno;
use std::{
    mem::size_of,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Api>() == 24);

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Default)]
struct Span {
    start: u64,
    bytes: u64,
}
const _: () = assert!(size_of::<Span>() == 16);

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<Register>() == 32);

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Default)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}
const _: () = assert!(size_of::<Copy>() == 40);

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Default)]
struct Zero {
    range: Span,
    mode: u64,
    done: i64,
}
const _: () = assert!(size_of::<Zero>() == 32);

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Default)]
struct WriteProtect {
    range: Span,
    mode: u64,
}
const _: () = assert!(size_of::<WriteProtect>() == 24);

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x00, size_of::<Register>());
const UFFDIO_WAKE: libc::Ioctl = nix::request_code_read!(0xaa, 0x02, size_of::<Span>());
const UFFDIO_COPY: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x03, size_of::<Copy>());
const UFFDIO_ZEROPAGE: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x04, size_of::<Zero>());
const UFFDIO_WRITEPROTECT: libc::Ioctl = nix::request_code_readwrite!(0xaa, 0x06, size_of::<WriteProtect>());
const MODE_MISSING: u64 = 1;
/// Any address of a process.
const SOMEWHERE: u64 = 1 << 32;
/// UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP.
const ALL_EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
const PAGE: u64 = 4096;

/// `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;
/// Messages that are read at once.
const MESSAGES: usize = 64;

/// What became of an address space, or is wanted in it.
#[derive(Debug)]
pub enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// It was copied: this is the copy's. The one who forked goes on once this is read.
    Fork(Pager),
    /// A range was moved.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How long it was.
        bytes: u64,
    },
    /// What is in a range is dropped (MADV_DONTNEED, MADV_FREE): it is empty from now on.
    Remove(Range<u64>),
    /// A range is not mapped any more.
    Unmap(Range<u64>),
}

/// What is going on in an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// Nothing: all changes so far have been read.
    Still,
    /// Changes of mappings are under way, or have not been read.
    Changing,
    /// Nobody has it any more: its last process has ended, or executes something else.
    Gone,
}

/// Pages that were not copied: how many bytes were, and why not all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{done} bytes went in, then: {why}")]
pub struct Partly {
    /// Bytes that went in.
    pub done: usize,
    /// EEXIST: something is there already. EAGAIN: an event waits to be read. ENOENT: not one mapping that is looked after.
    /// ESRCH: the address space is gone. ENOMEM.
    pub why: Errno,
}

/// What an address space is looked after for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its owner runs: what it misses is brought, and what it does to its mappings is heard.
    Serve,
    /// Its owner stands still, and touches nothing of what is looked after: that is filled, and let go of.
    Fill,
}

impl Purpose {
    /// The argument of userfaultfd(2), in the owner of the address space. To fill takes no privilege (UFFD_USER_MODE_ONLY,
    /// Linux 5.11).
    #[must_use]
    pub const fn flags(self) -> u64 {
        const UFFD_USER_MODE_ONLY: i32 = 1;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        match self {
            Self::Serve => flags as u64,
            Self::Fill => (flags | UFFD_USER_MODE_ONLY) as u64,
        }
    }
}

/// What looks after an address space. When the last descriptor of one is closed, all that is missing there is zeros.
#[derive(Debug)]
pub struct Pager(OwnedFd);

impl Pager {
    /// One of the caller's own address space, to find out whether there may be any that is told all events, and faults of
    /// the kernel's own accesses.
    ///
    /// # Errors
    /// ENOSYS where the kernel was built without; EPERM without CAP_SYS_PTRACE in the first user namespace.
    pub fn of_own() -> Result<Self, Errno> {
        // SAFETY: a number.
        let file = owned(unsafe { libc::syscall(libc::SYS_userfaultfd, Purpose::Serve.flags()) })?;
        Self::agree(file, Purpose::Serve)
    }

    /// Takes over a descriptor that the owner of an address space has opened for this purpose.
    ///
    /// # Errors
    /// To serve: EPERM without CAP_SYS_PTRACE in the first user namespace; EINVAL where the kernel knows not all events.
    pub fn agree(file: OwnedFd, purpose: Purpose) -> Result<Self, Errno> {
        let mut api = Api {
            api: UFFD_API,
            features: match purpose {
                Purpose::Serve => ALL_EVENTS,
                Purpose::Fill => 0,
            },
            ..Api::default()
        };
        // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Self(file))
    }

    /// Looks after what is missing in a range of whole mappings of private anonymous memory.
    ///
    /// # Errors
    /// EINVAL where other memory lies there; EBUSY where another one looks after it.
    pub fn register(&self, range: &Range<u64>) -> Result<(), Errno> {
        let mut register = Register {
            range: span(range),
            mode: MODE_MISSING,
            ..Register::default()
        };
        // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) }).map(drop)
    }

    /// Fills pages that are missing, whole ones, and wakes who waits for them.
    ///
    /// # Errors
    /// [`Partly`].
    pub fn copy(&self, to: u64, bytes: &[u8]) -> Result<(), Partly> {
        let mut copy = Copy {
            to,
            from: bytes.as_ptr() as u64,
            bytes: bytes.len() as u64,
            ..Copy::default()
        };
        // SAFETY: the kernel reads and writes the structure, and reads the borrowed bytes; what it writes besides is another
        // process's, or pages of this one that are missing, which nothing can refer to.
        let result = Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) });
        result.map(drop).map_err(|error| partly(copy.done, error))
    }

    /// Has the page at an address be zeros, and wakes who waits for it.
    ///
    /// # Errors
    /// As those of [`Partly`].
    pub fn zero(&self, at: u64) -> Result<(), Errno> {
        let mut zero = Zero {
            range: span(&(at..at + PAGE)),
            ..Zero::default()
        };
        // SAFETY: the kernel reads and writes the structure, whose size the number of the request holds.
        let result = Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) });
        result.map(drop).map_err(|error| partly(zero.done, error).why)
    }

    /// Has those look again who wait for pages of a range.
    pub fn wake(&self, range: &Range<u64>) {
        let span = span(range);
        // SAFETY: the kernel reads the structure.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw const span) };
        debug_assert_eq!(result, 0, "it takes any range");
    }

    /// Whether changes of mappings are under way, or have not been read yet.
    #[must_use]
    pub fn motion(&self) -> Motion {
        let mut protect = WriteProtect {
            range: span(&(SOMEWHERE..SOMEWHERE + PAGE)),
            mode: 0,
        };
        // SAFETY: the kernel reads the structure. It takes protection off nothing: no memory is registered for that.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) };
        match Errno::result(result) {
            Err(Errno::EAGAIN) => Motion::Changing,
            Err(Errno::ESRCH) => Motion::Gone,
            // ENOENT, as a rule.
            Ok(_) | Err(_) => Motion::Still,
        }
    }

    /// Whether a range lies in one mapping that is looked after, be it filled or not. This holds for good where [`Pager::motion`] says
    /// afterwards that nothing changes, and no event was read in between.
    ///
    /// # Errors
    /// Whatever the kernel says else, EAGAIN and ESRCH among it.
    pub fn is_registered(&self, range: &Range<u64>) -> Result<bool, Errno> {
        let mut copy = Copy {
            to: range.start,
            from: nowhere()?,
            bytes: range.end - range.start,
            ..Copy::default()
        };
        // SAFETY: the kernel reads and writes the structure. It has nothing to copy: the source can't be read, which it finds
        // out when it has found the mapping.
        let result = Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) });
        match result.map_err(|error| partly(copy.done, error).why) {
            Err(Errno::EFAULT | Errno::EEXIST) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
            Ok(_) => unreachable!("a page that can't be read was copied"),
        }
    }

    /// Reads what waits to be read, without waiting for more. Faults come before other events, whenever they came about.
    ///
    /// # Errors
    /// EMFILE where a copy's descriptor finds no room: it can be read later.
    pub fn read(&self) -> Result<Vec<Event>, Errno> {
        let mut buffer = [0; MESSAGE_BYTES * MESSAGES];
        match nix::unistd::read(&self.0, &mut buffer) {
            Ok(got) => Ok(buffer[..got].chunks_exact(MESSAGE_BYTES).filter_map(event).collect()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Pager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The address of a page of this process that can't be read.
fn nowhere() -> Result<u64, Errno> {
    static PLACE: OnceLock<Result<u64, Errno>> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, where the kernel chooses, which nobody can access.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, libc::PROT_NONE, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(place as u64)
    })
}

fn span(range: &Range<u64>) -> Span {
    Span {
        start: range.start,
        bytes: range.end - range.start,
    }
}

/// The kernel answers a call that went in partly with EAGAIN, and with the error itself in the place of the bytes where
/// nothing went in.
fn partly(done: i64, error: Errno) -> Partly {
    Partly {
        done: usize::try_from(done).unwrap_or(0),
        why: match i32::try_from(-done) {
            Ok(number @ 1..) => Errno::from_raw(number),
            _ => error,
        },
    }
}

/// `None` for what nobody asked for.
fn event(message: &[u8]) -> Option<Event> {
    let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 of 32 bytes"));
    Some(match message[0] {
        0x12 => Event::Fault(word(16) & !(PAGE - 1)),
        0x13 => Event::Fork(Pager(adopt(word(8) as u32 as i32))),
        0x14 => Event::Remap {
            from: word(8),
            to: word(16),
            bytes: word(24),
        },
        0x15 => Event::Remove(word(8)..word(16)),
        0x16 => Event::Unmap(word(8)..word(16)),
        _ => return None,
    })
}
