//! Terminal ioctls that take a pointer to bytes, and settings of terminals as the kernel keeps them: ioctl_tty(2),
//! termios(3).

use nix::errno::Errno;
use std::{
    cmp::Ordering,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// Bytes of the largest structure that the terminal requests used here take (`struct termios2`).
pub const LARGEST: usize = 44;

/// include/uapi/asm-generic/ioctls.h.
const TIOCGPTPEER: libc::c_ulong = 0x5441;

/// Major device number of the slaves of pseudo-terminals; the minor one is the terminal's.
pub const SLAVES: u64 = 136;

/// Runs the request `request` on `terminal` with a copy of `bytes`, which then holds what the kernel left there.
///
/// The copy is large enough for every request of ioctl_tty(2), so a request with a larger structure than `bytes` writes
/// to nothing that isn't floe's.
///
/// # Errors
/// ENOTTY, EINVAL, EIO; EINVAL where `bytes` is longer than [`LARGEST`].
pub fn control(terminal: RawFd, request: libc::c_ulong, bytes: &mut [u8]) -> Result<i32, Errno> {
    let mut room = [0u8; 256];
    if bytes.len() > LARGEST {
        return Err(Errno::EINVAL);
    }
    room[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: requests of ioctl_tty(2) read and write at most LARGEST bytes at the pointer, and `room` has more.
    let result = unsafe { libc::ioctl(terminal, request, room.as_mut_ptr()) };
    let result = Errno::result(result)?;
    bytes.copy_from_slice(&room[..bytes.len()]);
    Ok(result)
}

/// Runs a request whose argument is a number.
///
/// # Errors
/// ENOTTY, EINVAL, EIO.
pub fn command(terminal: BorrowedFd<'_>, request: libc::c_ulong, argument: i32) -> Result<i32, Errno> {
    // SAFETY: the argument is a number to the requests of ioctl_tty(2) that callers name; to one that takes a pointer it
    // would be an address below 2 GiB in which nothing of floe's is mapped, and the kernel answers EFAULT.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), request, argument) })
}

/// The answer to a request that leaves a number.
///
/// # Errors
/// ENOTTY, EIO.
pub fn number(terminal: BorrowedFd<'_>, request: libc::c_ulong) -> Result<i32, Errno> {
    let mut bytes = [0; 4];
    control(terminal.as_raw_fd(), request, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Puts bytes into what waits to be read from an end, as if they had been written to the other one (TIOCSTI).
///
/// # Errors
/// EPERM, EIO without CAP_SYS_ADMIN.
pub fn type_in(terminal: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    for byte in bytes {
        control(terminal.as_raw_fd(), libc::TIOCSTI, &mut [*byte])?;
    }
    Ok(())
}

/// A master whose terminal has the number `wanted`, opened by `open`. A devpts gives the lowest number that is free, so
/// those below are taken meanwhile, and put into `placeholders`.
///
/// # Errors
/// EEXIST where it is taken; those of opening.
pub fn numbered(
    wanted: u32,
    placeholders: &mut Vec<OwnedFd>,
    open: impl Fn() -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    loop {
        let master = open()?;
        match (number(master.as_fd(), libc::TIOCGPTN)? as u32).cmp(&wanted) {
            Ordering::Less => placeholders.push(master),
            Ordering::Equal => return Ok(master),
            Ordering::Greater => return Err(Errno::EEXIST),
        }
    }
}

/// Locks or unlocks the slave of a master (TIOCSPTLCK).
///
/// # Errors
/// ENOTTY.
pub fn lock(master: BorrowedFd<'_>, locked: bool) -> Result<(), Errno> {
    control(
        master.as_raw_fd(),
        libc::TIOCSPTLCK,
        &mut i32::from(locked).to_ne_bytes(),
    )
    .map(drop)
}

/// Opens the slave of a master.
///
/// # Errors
/// EIO where it is locked.
pub fn open_slave(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number, of open(2) flags.
    crate::descriptor::owned(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags)
    }))
}

/// Settings of a terminal: `struct termios2` as TCGETS2 gives it, include/uapi/asm-generic/termbits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSettings([u8; Self::BYTES]);

const TCGETS2: libc::c_ulong = nix::request_code_read!(b'T', 0x2A, TerminalSettings::BYTES);
const TCSETS2: libc::c_ulong = nix::request_code_write!(b'T', 0x2B, TerminalSettings::BYTES);

/// The flags of settings, in the order of the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    /// `c_iflag`.
    Input = 0,
    /// `c_oflag`.
    Output = 4,
    /// `c_lflag`.
    Local = 12,
}

impl TerminalSettings {
    /// Bytes of the structure.
    pub const BYTES: usize = 44;
    /// Behind four words of flags and the number of the line discipline.
    const KEYS: usize = 17;
    const KEY_COUNT: usize = 19;

    /// Takes the structure's bytes; `None` where there are not exactly [`Self::BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The structure's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a terminal's.
    ///
    /// # Errors
    /// ENOTTY.
    pub fn read(terminal: RawFd) -> io::Result<Self> {
        let mut settings = Self([0; Self::BYTES]);
        control(terminal, TCGETS2, &mut settings.0)?;
        Ok(settings)
    }

    /// Some of the flags.
    #[must_use]
    pub fn flags(&self, which: Flags) -> u32 {
        let at = which as usize;
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Sets some of the flags.
    pub fn set_flags(&mut self, which: Flags, flags: u32) {
        let at = which as usize;
        self.0[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Whether all of these flags are set.
    #[must_use]
    pub fn has(&self, which: Flags, flags: u32) -> bool {
        self.flags(which) & flags == flags
    }

    /// Whether the kernel edits lines and gives them to programs when they end.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.has(Flags::Local, libc::ICANON)
    }

    /// A key (V*); 0 is none.
    #[must_use]
    pub fn key(&self, key: usize) -> u8 {
        self.0[Self::KEYS + key]
    }

    /// Sets a key.
    pub fn set_key(&mut self, key: usize, byte: u8) {
        self.0[Self::KEYS + key] = byte;
    }

    /// Leaves no key but these.
    pub fn keep_keys(&mut self, keep: &[usize]) {
        for key in (0..Self::KEY_COUNT).filter(|key| !keep.contains(key)) {
            self.set_key(key, 0);
        }
    }

    fn is_key(&self, key: usize, byte: u8) -> bool {
        byte != 0 && self.key(key) == byte
    }

    /// Whether this byte, typed, leaves no unfinished line behind.
    #[must_use]
    pub fn ends_line(&self, byte: u8) -> bool {
        let signals = [libc::VINTR, libc::VQUIT, libc::VSUSP];
        let ends = [libc::VEOF, libc::VEOL, libc::VEOL2, libc::VKILL];
        let carriage_return = byte == b'\r' && self.has(Flags::Input, libc::ICRNL);
        let signal = self.has(Flags::Local, libc::ISIG) && signals.iter().any(|key| self.is_key(*key, byte));
        let end = byte == b'\n' || carriage_return || ends.iter().any(|key| self.is_key(*key, byte));
        !self.is_canonical() || signal || end
    }

    /// Whether this byte, typed, takes back the one before.
    #[must_use]
    pub fn erases(&self, byte: u8) -> bool {
        self.is_key(libc::VERASE, byte)
    }

    /// Sets a terminal's.
    ///
    /// # Errors
    /// ENOTTY, EIO.
    pub fn apply(&self, terminal: RawFd) -> io::Result<()> {
        control(terminal, TCSETS2, &mut self.0.clone())?;
        Ok(())
    }
}
