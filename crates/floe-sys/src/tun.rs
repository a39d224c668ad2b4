//! Files of /dev/net/tun and the network devices behind them: Documentation/networking/tuntap.rst, linux/if_tun.h.

use crate::descriptor::owned;
use nix::{
    errno::Errno,
    sys::stat::{major, minor},
};
use std::{
    ffi::CStr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

const fn set(number: u8) -> libc::Ioctl {
    nix::request_code_write!(b'T', number, size_of::<i32>())
}

const fn get(number: u8) -> libc::Ioctl {
    nix::request_code_read!(b'T', number, size_of::<u32>())
}

const TUNSETIFF: libc::Ioctl = set(202);
const TUNGETIFF: libc::Ioctl = get(210);
const TUNSETQUEUE: libc::Ioctl = set(217);
const TUNGETFILTER: libc::Ioctl = nix::request_code_read!(b'T', 219, 16);
/// linux/sockios.h.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// Major and minor number, linux/miscdevice.h.
const NUMBER: (u64, u64) = (10, 200);

/// Whether a file is one of /dev/net/tun, by its type (S_IFMT) and number.
#[must_use]
pub fn is_it(kind: u32, number: u64) -> bool {
    kind == libc::S_IFCHR && (major(number), minor(number)) == NUMBER
}

const IFF_DETACH_QUEUE: u16 = 0x400;

/// `struct ifreq`: a name, and of what follows the flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &[u8], flags: u16) -> Result<Self, Errno> {
        let mut request = Self {
            name: [0; 16],
            flags,
            rest: [0; 22],
        };
        let place = request.name[..15].get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
        place.copy_from_slice(name);
        Ok(request)
    }

    fn send(&mut self, file: BorrowedFd<'_>, request: libc::Ioctl) -> Result<(), Errno> {
        // SAFETY: a struct ifreq, which the kernel reads and writes.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(self)) }).map(drop)
    }
}

/// What is set by a number of its own, and whether the kernel takes that by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Whether the device stays when nobody has it.
    Persist,
    /// The user who may attach to it.
    Owner,
    /// The group.
    Group,
    /// TUN_F_*: what who reads does itself.
    Offload,
    /// Bytes that may be on their way.
    SendBuffer,
    /// Bytes in front of each packet.
    HeaderBytes,
    /// Whether these are little-endian.
    LittleEndian,
    /// Whether these are big-endian.
    BigEndian,
    /// Whether there is a line.
    Carrier,
}

impl Setting {
    fn numbers(self) -> (u8, Option<u8>, bool) {
        match self {
            Self::Persist => (203, None, false),
            Self::Owner => (204, None, false),
            Self::Group => (206, None, false),
            Self::Offload => (208, None, false),
            Self::SendBuffer => (212, Some(211), true),
            Self::HeaderBytes => (216, Some(215), true),
            Self::LittleEndian => (220, Some(221), true),
            Self::BigEndian => (222, Some(223), true),
            Self::Carrier => (226, None, true),
        }
    }

    /// Sets it.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn set(self, file: BorrowedFd<'_>, value: u32) -> Result<(), Errno> {
        let (number, _, by_address) = self.numbers();
        let argument = if by_address {
            (&raw const value) as u64
        } else {
            u64::from(value)
        };
        // SAFETY: a number, or the address of one, which is read.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), set(number), argument) }).map(drop)
    }

    /// What it is.
    ///
    /// # Errors
    /// Those of ioctl(2); EINVAL for what is told nowhere, or not on this machine.
    pub fn get(self, file: BorrowedFd<'_>) -> Result<u32, Errno> {
        let number = self.numbers().1.ok_or(Errno::EINVAL)?;
        let mut value = 0_u32;
        // SAFETY: room for a number.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), get(number), &raw mut value) })?;
        Ok(value)
    }
}

/// The name of a file's device, and IFF_* of linux/if_tun.h, of which IFF_NO_PI is not to be relied on; whether its
/// queue is switched off. `None` for a file without a device.
///
/// # Errors
/// Those of ioctl(2).
pub fn device(file: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, u16, bool)>, Errno> {
    let mut request = Request::new(b"", 0)?;
    match request.send(file, TUNGETIFF) {
        Ok(()) => {}
        Err(Errno::EBADFD) => return Ok(None),
        Err(error) => return Err(error),
    }
    let name = CStr::from_bytes_until_nul(&request.name).map_err(|_| Errno::EPROTO)?;
    let detached = request.flags & IFF_DETACH_QUEUE != 0;
    Ok(Some((
        name.to_bytes().to_vec(),
        request.flags & !IFF_DETACH_QUEUE,
        detached,
    )))
}

/// Makes the device of a file, or gives one that is there another queue.
///
/// # Errors
/// EBUSY, EINVAL where the name is another device's.
pub fn attach(file: BorrowedFd<'_>, name: &[u8], flags: u16) -> Result<(), Errno> {
    Request::new(name, flags)?.send(file, TUNSETIFF)
}

/// Switches a file's queue off.
///
/// # Errors
/// Those of ioctl(2).
pub fn detach_queue(file: BorrowedFd<'_>) -> Result<(), Errno> {
    Request::new(b"", IFF_DETACH_QUEUE)?.send(file, TUNSETQUEUE)
}

/// Whether packets are filtered by a program of the classic kind.
///
/// # Errors
/// Those of ioctl(2).
pub fn has_filter(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    // struct sock_fprog: how many instructions, and where.
    let mut program = [0_u64; 2];
    // SAFETY: room for the structure.
    match Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETFILTER, program.as_mut_ptr()) }) {
        Ok(_) => Ok(program[0] as u16 != 0),
        // A tun has none.
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The network namespace in which a file was opened.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN there.
pub fn namespace(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument is read.
    owned(i64::from(unsafe { libc::ioctl(file.as_raw_fd(), SIOCGSKNS, 0) }))
}
