//! User namespaces that know many users.

use crate::{call, stage::fork};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use std::fs;

/// Leaves for new namespaces, of which one is of users with maps that its parent writes.
///
/// # Panics
/// Where that fails.
pub fn new_user(flags: impl FnOnce() -> CloneFlags) {
    let [ready, written] = [call::pipe(0), call::pipe(0)];
    let own = std::process::id();
    let helper = fork(|| {
        call::read(ready[0], 1).expect("ready");
        fs::write(format!("/proc/{own}/uid_map"), "0 1000 1000\n5000 20000 3\n").expect("a map");
        fs::write(format!("/proc/{own}/gid_map"), "0 1000 1000\n").expect("a map");
        call::write(written[1], b".").expect("tell");
    });
    unshare(flags()).expect("unshare");
    call::write(ready[1], b".").expect("tell");
    call::read(written[0], 1).expect("maps");
    for end in ready.into_iter().chain(written) {
        call::close(end);
    }
    call::wait(helper, 0).expect("reap");
}

/// Becomes a user of such a namespace.
///
/// # Panics
/// Where it may not.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).expect("setgroups");
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).expect("setresgid");
    setresuid(uid, uid, uid).expect("setresuid");
    // Its files in /proc are its own again.
    call::prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).expect("dumpable");
}

/// Maps root to that of the new user namespace that the caller is in.
///
/// # Panics
/// Where that fails.
pub fn become_root() {
    fs::write("/proc/self/setgroups", "deny").expect("deny");
    fs::write("/proc/self/uid_map", "0 0 1").expect("a map");
    fs::write("/proc/self/gid_map", "0 0 1").expect("a map");
}
