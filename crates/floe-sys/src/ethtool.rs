//! What a network device does by itself, ethtool(8): linux/ethtool.h.

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::os::fd::{AsRawFd, OwnedFd};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GLINK: u32 = 0xa;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SS_FEATURES: u32 = 4;
/// ETH_GSTRING_LEN.
const NAME_BYTES: usize = 32;
/// More features than there are.
const MOST: usize = 1024;

/// Asks for something: the buffer begins with a command, and has as much room as the answer needs.
fn ask(socket: &OwnedFd, name: &[u8], buffer: &mut [u32]) -> Result<(), Errno> {
    // struct ifreq: a name and an address.
    let mut request = [0_u64; 5];
    let mut padded = [0; 16];
    let place = padded[..15].get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
    place.copy_from_slice(name);
    for (word, bytes) in request.iter_mut().zip(padded.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    request[2] = buffer.as_mut_ptr() as u64;
    // SAFETY: a struct ifreq; the callers give a buffer with room for what their command answers.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, request.as_mut_ptr()) }).map(drop)
}

/// Has the kernel notice now whether a device in the network namespace of the caller has a line, and do what follows. It
/// would by itself, a moment later.
///
/// # Errors
/// ENODEV.
pub fn sync_line(name: &[u8]) -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    match ask(&socket, name, &mut [GLINK, 0]) {
        // One whose line never changes.
        Err(Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// The names of the features that a device in the network namespace of the caller has switched on.
///
/// # Errors
/// ENODEV.
pub fn active_features(name: &[u8]) -> Result<Vec<String>, Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // Command, nothing, which sets (64 bits), and the size of the first one.
    let mut sets = [GSSET_INFO, 0, 1 << SS_FEATURES, 0, 0];
    ask(&socket, name, &mut sets)?;
    let count = sets[4] as usize;
    if count > MOST {
        return Err(Errno::EPROTO);
    }
    // Command, set, how many, and their names.
    let mut names = vec![0; 3 + count * NAME_BYTES / 4];
    names[..3].copy_from_slice(&[GSTRINGS, SS_FEATURES, count as u32]);
    ask(&socket, name, &mut names)?;
    // Command, how many blocks of 32 features, and of each what there is, what is wanted, what is on and what never changes.
    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + 4 * blocks];
    features[..2].copy_from_slice(&[GFEATURES, blocks as u32]);
    ask(&socket, name, &mut features)?;
    let bytes: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_on = |index: usize| features[2 + 4 * (index / 32) + 2] & 1 << (index % 32) != 0;
    let named = bytes
        .chunks_exact(NAME_BYTES)
        .enumerate()
        .filter(|(index, _)| is_on(*index));
    let text = named.map(|(_, name)| {
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    });
    Ok(text.collect())
}
