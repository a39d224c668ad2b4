//! A look at what waits in a unix socket, unix(7), with all that comes beside the bytes; addresses of sockets by their bytes.

use crate::descriptor::adopt;
use nix::{
    errno::Errno,
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
        socket::{MsgFlags, SockaddrLike, SockaddrStorage, recv},
    },
};
use std::{
    mem::offset_of,
    net::SocketAddr,
    num::NonZeroUsize,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// A message, or as much of a stream as comes at once.
#[derive(Debug)]
pub struct Peeked {
    /// How many bytes there are in the buffer.
    pub bytes: usize,
    /// Whether it has more of them.
    pub is_longer: bool,
    /// Bytes of the sender's address in `sun_path`, of a path without its NUL; empty where it has none.
    pub from: Vec<u8>,
    /// Descriptors that come with it (SCM_RIGHTS): duplicates, which are the caller's.
    pub files: Vec<OwnedFd>,
    /// Whether there are more of them than the caller may have open.
    pub lacks_files: bool,
    /// PID, user and group of the sender (SCM_CREDENTIALS), where the socket wants to know (SO_PASSCRED).
    pub sender: Option<[u32; 3]>,
}

/// linux/socket.h.
const SCM_PIDFD: i32 = 4;
/// SCM_MAX_FD descriptors, credentials, a pidfd, a label, a time stamp.
const CONTROL_BYTES: usize = 4096;
/// struct cmsghdr.
const HEADER: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER);

/// Looks at what waits next, without taking it out (MSG_PEEK), and without waiting. `flags` are more of recvmsg(2).
///
/// # Errors
/// EAGAIN where nothing waits, and others of recvmsg(2).
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> Result<Peeked, Errno> {
    let vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the vector names a buffer of that size, which nobody else has.
    unsafe { peek_into(socket, vector, flags) }
}

/// How many bytes of the next `most` belong to pieces of a stream that end within them: those in which they were sent, of
/// which each may have come with descriptors of its own. There must be more than `most`.
///
/// Bytes are told apart by where there is no room for more: of a piece that does not fit into accessible memory the kernel
/// tells nothing.
///
/// # Errors
/// Those of recvmsg(2) and mmap(2).
pub fn whole_pieces(socket: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    const PAGE: usize = 4096;
    let accessible = most.next_multiple_of(PAGE);
    let length = NonZeroUsize::new(accessible + PAGE).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping, wherever there is room.
    let memory = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE)? };
    let look = || {
        if accessible > 0 {
            // SAFETY: the beginning of the mapping just made.
            unsafe { mprotect(memory, accessible, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)? };
        }
        let vector = libc::iovec {
            // SAFETY: inside of the mapping.
            iov_base: unsafe { memory.as_ptr().byte_add(accessible - most) },
            iov_len: most + PAGE,
        };
        // SAFETY: the vector names memory of the mapping, which nobody else has; where it ends being accessible the kernel
        // stops.
        match unsafe { peek_into(socket, vector, 0) } {
            Ok(seen) => Ok(seen.bytes),
            Err(Errno::EFAULT) => Ok(0),
            Err(error) => Err(error),
        }
    };
    let result = look();
    // SAFETY: nobody has the mapping any more.
    unsafe { munmap(memory, length.get())? };
    result
}

/// # Safety
/// The vector must name memory that nobody else uses.
unsafe fn peek_into(socket: BorrowedFd<'_>, mut vector: libc::iovec, flags: i32) -> Result<Peeked, Errno> {
    let mut control = vec![0_u64; CONTROL_BYTES / 8];
    let mut name = libc::sockaddr_un {
        sun_family: 0,
        sun_path: [0; 108],
    };
    // SAFETY: a struct of numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of_val(&name) as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names places of the stated sizes, which outlive the call.
    let got = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let path = (header.msg_namelen as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path));
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut peeked = Peeked {
        bytes: got as usize,
        is_longer: header.msg_flags & libc::MSG_TRUNC != 0,
        from: without_nul(name.sun_path.iter().take(path).map(|byte| *byte as u8).collect()),
        files: Vec::new(),
        lacks_files: header.msg_flags & libc::MSG_CTRUNC != 0,
        sender: None,
    };
    peeked.take(&control[..header.msg_controllen.min(CONTROL_BYTES)]);
    Ok(peeked)
}

/// Binds a socket to an address, bind(2), of which these are the bytes.
///
/// # Errors
/// Those of bind(2).
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which are there.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// Connects a socket to an address, connect(2), of which these are the bytes.
///
/// # Errors
/// Those of connect(2).
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which are there.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// The bytes of a socket's own address, getsockname(2).
///
/// # Errors
/// Those of getsockname(2).
pub fn own_address(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let (mut place, mut length) = (vec![0_u8; ADDRESS_BYTES], ADDRESS_BYTES as libc::socklen_t);
    // SAFETY: room for as many bytes as are said.
    let result = unsafe { libc::getsockname(socket.as_raw_fd(), place.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    place.truncate(length as usize);
    Ok(place)
}

/// The same of its other end, getpeername(2).
///
/// # Errors
/// ENOTCONN and others of getpeername(2).
pub fn other_address(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let (mut place, mut length) = (vec![0_u8; ADDRESS_BYTES], ADDRESS_BYTES as libc::socklen_t);
    // SAFETY: room for as many bytes as are said.
    let result = unsafe { libc::getpeername(socket.as_raw_fd(), place.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    place.truncate(length as usize);
    Ok(place)
}

/// struct sockaddr_storage.
const ADDRESS_BYTES: usize = 128;

/// What comes beside a message: level, kind, bytes.
pub type Beside = (i32, i32, Vec<u8>);

/// Sends a message to an address with what comes beside it, sendmsg(2). `flags` are MSG_*.
///
/// # Errors
/// Those of sendmsg(2); EMSGSIZE where not all of it was taken.
pub fn send_beside(
    socket: BorrowedFd<'_>,
    to: SocketAddr,
    bytes: &[u8],
    beside: &[Beside],
    flags: i32,
) -> Result<(), Errno> {
    let to = SockaddrStorage::from(to);
    // By words, which is how struct cmsghdr has to lie.
    let mut control: Vec<u64> = Vec::new();
    for (level, kind, value) in beside {
        control.push((HEADER + value.len()) as u64);
        let head = [level.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let words = [&head, value].into_iter().flat_map(|bytes| bytes.chunks(8));
        control.extend(words.map(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        }));
    }
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a struct of numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = 8 * control.len();
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header names places of the stated sizes, which outlive the call, and which sending only reads.
    let sent = Errno::result(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) })?;
    if sent as usize == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EMSGSIZE)
    }
}

/// Throws away the first error that waits with what it is about (MSG_ERRQUEUE).
///
/// # Errors
/// EAGAIN where none does, and others of recvmsg(2).
pub fn drop_error(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0; 1], flags).map(drop)
}

/// Whether urgent data is what would be read next (SIOCATMARK).
///
/// # Errors
/// Those of ioctl(2).
pub fn is_at_mark(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    /// linux/sockios.h.
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut answer: libc::c_int = 0;
    // SAFETY: room for the number.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut answer) })?;
    Ok(answer != 0)
}

impl Peeked {
    /// Takes what comes beside the bytes.
    fn take(&mut self, mut control: &[u8]) {
        while let Some(length) = word(control, 0) {
            let length = length as usize;
            let (Some(value), Some(kind)) = (control.get(HEADER..length), word(control, 12)) else {
                return;
            };
            let numbers = value.chunks_exact(4).filter_map(|four| word(four, 0));
            match kind as i32 {
                libc::SCM_RIGHTS => self.files.extend(numbers.map(|number| adopt(number as RawFd))),
                libc::SCM_CREDENTIALS => self.sender = numbers.collect::<Vec<_>>().try_into().ok(),
                // The sender's, as is told by its PID. Negative where it has ended.
                SCM_PIDFD => numbers
                    .map(|number| number as RawFd)
                    .filter(|number| *number >= 0)
                    .map(adopt)
                    .for_each(drop),
                _ => {}
            }
            control = control.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

/// A path comes with one.
fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let [first, .., 0] = name[..]
        && first != 0
    {
        name.pop();
    }
    name
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(four))
}

#[cfg(test)]
mod tests {
    use super::{peek, whole_pieces};
    use crate::socket::set_option;
    use nix::{
        errno::Errno,
        sys::socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, sendmsg, socketpair,
        },
    };
    use std::{
        io::IoSlice,
        os::fd::{AsFd, AsRawFd},
    };

    #[test]
    fn all_that_comes_with_a_message_is_told_as_often_as_it_is_asked_for() {
        const SO_PASSPIDFD: i32 = 76;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, two) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).expect("a pair");
        let name = format!("floe-peek-{}", std::process::id());
        bind(
            one.as_raw_fd(),
            &UnixAddr::new_abstract(name.as_bytes()).expect("a name"),
        )
        .expect("bind");
        for option in [libc::SO_PASSCRED, SO_PASSPIDFD] {
            set_option(two.as_fd(), libc::SOL_SOCKET, option, &1_i32.to_ne_bytes()).expect("set");
        }
        let mut buffer = [0; 8];
        assert_eq!(peek(two.as_fd(), &mut buffer, 0).expect_err("nothing"), Errno::EAGAIN);
        let numbers = [one.as_raw_fd(), two.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let bytes = [IoSlice::new(b"more than fits")];
        sendmsg::<UnixAddr>(one.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).expect("send");
        for _ in 0..3 {
            let seen = peek(two.as_fd(), &mut buffer, 0).expect("a message");
            assert_eq!((seen.bytes, seen.is_longer, seen.files.len()), (8, true, 2));
            assert_eq!(seen.from, [&[0], name.as_bytes()].concat());
            assert_eq!(seen.sender.map(|sender| sender[0]), Some(std::process::id()));
            assert!(!seen.lacks_files);
        }
    }

    #[test]
    fn pieces_of_a_stream_are_told_apart() {
        let (one, two) = std::os::unix::net::UnixStream::pair().expect("a pair");
        for piece in [&[1; 6000][..], &[2; 10], &[3; 5]] {
            std::io::Write::write_all(&mut &one, piece).expect("write");
        }
        for (most, whole) in [
            (6014, 6010),
            (6010, 6010),
            (6009, 6000),
            (6000, 6000),
            (5999, 0),
            (1, 0),
            (0, 0),
        ] {
            assert_eq!(whole_pieces(two.as_fd(), most).expect("look"), whole, "{most}");
        }
    }
}
