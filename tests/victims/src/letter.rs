//! Messages with descriptors and senders' names beside their bytes.

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg},
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// What was received.
#[derive(Debug)]
pub struct Letter {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What came beside (SCM_RIGHTS).
    pub files: Vec<OwnedFd>,
    /// PID, user and group of the sender (SCM_CREDENTIALS).
    pub sender: Option<(i32, u32, u32)>,
    /// Name of the socket it came from: a path, or a NUL and an abstract name.
    pub from: Vec<u8>,
}

/// Sends a message.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: RawFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if files.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<UnixAddr>(
        socket,
        &[IoSlice::new(bytes)],
        control,
        flags,
        None,
    )?)
}

/// Receives up to `most` bytes; `None` where nothing waits. `flags` are MSG_*.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: RawFd, most: usize, flags: i32) -> io::Result<Option<Letter>> {
    let from = sender(socket);
    let mut bytes = vec![0; most];
    let mut control = cmsg_space!([RawFd; 253], UnixCredentials, [u8; 256]);
    let mut vector = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let got = match recvmsg::<()>(socket, &mut vector, Some(&mut control), flags) {
        Err(nix::Error::EAGAIN) => return Ok(None),
        got => got?,
    };
    let (mut files, mut sender) = (Vec::new(), None);
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(numbers) => {
                // SAFETY: the kernel has just given these numbers.
                files.extend(
                    numbers
                        .into_iter()
                        .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
                );
            }
            ControlMessageOwned::ScmCredentials(told) => sender = Some((told.pid(), told.uid(), told.gid())),
            _ => {}
        }
    }
    let length = got.bytes;
    bytes.truncate(length);
    Ok(Some(Letter {
        bytes,
        files,
        sender,
        from,
    }))
}

/// Bytes of the address that the next message came from.
fn sender(socket: RawFd) -> Vec<u8> {
    let mut name = libc::sockaddr_un {
        sun_family: 0,
        sun_path: [0; 108],
    };
    let mut length = size_of_val(&name) as libc::socklen_t;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: room for an address, and for no bytes.
    let got = unsafe {
        let place = (&raw mut name).cast();
        libc::recvfrom(socket, std::ptr::null_mut(), 0, flags, place, &raw mut length)
    };
    if got < 0 {
        return Vec::new();
    }
    let bytes = name.sun_path.iter().take((length as usize).saturating_sub(2));
    let bytes: Vec<u8> = bytes.map(|byte| *byte as u8).collect();
    match bytes.split_last() {
        Some((0, path)) if path.first().is_some_and(|first| *first != 0) => path.to_vec(),
        _ => bytes,
    }
}
