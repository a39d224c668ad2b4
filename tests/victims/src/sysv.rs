//! System V IPC.

/// Who made an object, who owns it, and what they may do, `struct ipc_perm`.
#[derive(Debug, PartialEq, Eq)]
pub struct Permission {
    key: i32,
    owner: [u32; 2],
    creator: [u32; 2],
    mode: u16,
}

impl Permission {
    /// As shmctl(2) and its kin tell it.
    #[must_use]
    pub fn of(found: &libc::ipc_perm) -> Self {
        Self {
            key: found.__key,
            owner: [found.uid, found.gid],
            creator: [found.cuid, found.cgid],
            mode: found.mode,
        }
    }
}
