//! The numbers that a network namespace gives to others: RTM_GETNSID, linux/net_namespace.h.

use super::{attributes, message};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `struct rtgenmsg` with what aligns the attributes behind it.
const HEAD: usize = 4;

/// The number that the calling thread's network namespace has for another one, or for itself, if it has given one.
///
/// # Errors
/// Those of netlink; EINVAL where the descriptor is no network namespace.
pub fn namespace_number(namespace: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
    let mut body = vec![0; HEAD];
    message::attribute(&mut body, NETNSA_FD, &namespace.as_raw_fd().to_ne_bytes());
    let answers = message::Request::new(RTM_GETNSID, 0, &body).answers()?;
    let told = answers.iter().find_map(|answer| {
        let mut all = attributes(answer.get(HEAD..)?);
        let (_, value) = all.find(|(kind, _)| *kind == NETNSA_NSID)?;
        Some(i32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
    });
    // -1 says that there is none.
    told.map(|number| (number >= 0).then_some(number)).ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::namespace_number;
    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn a_new_namespace_has_given_no_numbers() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let open = |path| File::open(path).expect("a namespace");
        for path in ["/proc/thread-self/ns/net", "/proc/self/ns/net"] {
            assert_eq!(namespace_number(open(path).as_fd()), Ok(None));
        }
        assert_eq!(namespace_number(open("/proc/self/ns/uts").as_fd()), Err(Errno::EINVAL));
    }
}
