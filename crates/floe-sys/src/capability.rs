//! Who a process is, credentials(7), capabilities(7).

use nix::errno::Errno;

/// _LINUX_CAPABILITY_VERSION_3, include/uapi/linux/capability.h.
const VERSION: u32 = 0x2008_0522;

/// Makes the calling thread, and it alone, this user of this group, without capabilities, and without other groups where its
/// user namespace lets groups be given up. For
/// processes that [`fork::child`](crate::fork::child) made: libc's functions would look for threads that are not there.
///
/// # Errors
/// EPERM, EINVAL for ids that its user namespace does not know.
pub fn become_powerless(user: u32, group: u32) -> Result<(), Errno> {
    drop_groups()?;
    become_user(user, group)?;
    give_up()
}

fn become_user(user: u32, group: u32) -> Result<(), Errno> {
    call(libc::SYS_setresgid, [group as usize; 3])?;
    call(libc::SYS_setresuid, [user as usize; 3])
}

/// Makes the calling thread, and it alone, this user of this group, with the capabilities that it has. For children as
/// above, before they enter a user namespace that may not know the user.
///
/// # Errors
/// As for [`become_powerless`].
pub fn become_powerful(user: u32, group: u32) -> Result<(), Errno> {
    const SECBIT_NO_SETUID_FIXUP: usize = 4;
    let (users, groups) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
    let is_already = [users.real, users.effective, users.saved].map(|id| id.as_raw()) == [user; 3]
        && [groups.real, groups.effective, groups.saved].map(|id| id.as_raw()) == [group; 3];
    if is_already {
        return drop_groups();
    }
    call(
        libc::SYS_prctl,
        [libc::PR_SET_SECUREBITS as usize, SECBIT_NO_SETUID_FIXUP, 0],
    )?;
    drop_groups()?;
    become_user(user, group)
}

/// Gives up all capabilities of the calling thread.
///
/// # Errors
/// None that is known.
pub fn give_up() -> Result<(), Errno> {
    // `struct __user_cap_header_struct`: version, pid. Two of `struct __user_cap_data_struct`: effective, permitted,
    // inheritable.
    let header = [VERSION, 0];
    let sets = [0_u32; 6];
    call(libc::SYS_capset, [header.as_ptr() as usize, sets.as_ptr() as usize, 0])
}

/// Gives the caller a session keyring of its own, and with it up what whoever started it keeps in theirs: session-keyring(7).
///
/// # Errors
/// EDQUOT, ENOMEM.
pub fn leave_keyring() -> Result<(), Errno> {
    /// linux/keyctl.h.
    const JOIN_SESSION_KEYRING: usize = 1;
    match call(libc::SYS_keyctl, [JOIN_SESSION_KEYRING, 0, 0]) {
        // A kernel without keys.
        Ok(()) | Err(Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

fn drop_groups() -> Result<(), Errno> {
    match call(libc::SYS_setgroups, [0, 0, 0]) {
        // Nobody may change groups in there (/proc/PID/setgroups in user_namespaces(7)), or it knows none.
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the calling thread, and it alone, this user of this group, with these supplementary groups alone; where there are
/// to be none and its user namespace lets none be given up, it keeps them. For children as above.
///
/// # Errors
/// EPERM; EINVAL for ids that its user namespace does not know.
pub fn become_member(user: u32, group: u32, groups: &[u32]) -> Result<(), Errno> {
    if groups.is_empty() {
        drop_groups()?;
    } else {
        call(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize, 0])?;
    }
    call(libc::SYS_setresgid, [group as usize; 3])?;
    call(libc::SYS_setresuid, [user as usize; 3])
}

/// Has the capabilities of the calling thread outlast an exec, which takes them from whoever is not root: ambient ones. Root keeps them anyway.
///
/// # Errors
/// Those of capget(2), capset(2) and prctl(2).
pub fn keep_over_exec() -> Result<(), Errno> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let header = [VERSION, 0];
    // Two of `struct __user_cap_data_struct`: effective, permitted, inheritable.
    let mut sets = [0_u32; 6];
    call(
        libc::SYS_capget,
        [header.as_ptr() as usize, sets.as_mut_ptr() as usize, 0],
    )?;
    let permitted = [sets[1], sets[4]];
    [sets[2], sets[5]] = permitted;
    call(libc::SYS_capset, [header.as_ptr() as usize, sets.as_ptr() as usize, 0])?;
    let all = u64::from(permitted[0]) | u64::from(permitted[1]) << 32;
    for number in (0..64).filter(|number| all & 1 << number != 0) {
        // SAFETY: plain numbers.
        let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        Errno::result(raised)?;
    }
    Ok(())
}

/// Makes the calling thread, and it alone, root of its user namespace, without other groups, as far as that knows these
/// numbers. For children as above, that have just entered it and have all its capabilities.
///
/// # Errors
/// Those of setresgid(2) and setresuid(2), but for numbers that are not known.
pub fn become_root() -> Result<(), Errno> {
    drop_groups()?;
    for number in [libc::SYS_setresgid, libc::SYS_setresuid] {
        match call(number, [0; 3]) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Acts as another user, without the capabilities that root loses by that: with effective ids that are the calling thread's
/// alone.
///
/// # Errors
/// EPERM; EINVAL for ids that its user namespace does not know.
pub fn as_user<T>((uid, gid): (u32, u32), act: impl FnOnce() -> T) -> Result<T, Errno> {
    const SAME: usize = u32::MAX as usize;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if own == (uid, gid) {
        return Ok(act());
    }
    let set = |number, id: u32| call(number, [SAME, id as usize, SAME]);
    visibly(|| {
        set(libc::SYS_setresgid, gid)?;
        set(libc::SYS_setresuid, uid)?;
        let result = act();
        set(libc::SYS_setresuid, own.0)?;
        set(libc::SYS_setresgid, own.1)?;
        Ok(result)
    })
}

/// Makes files as another user, with all capabilities that have nothing to do with files: with ids that are the calling
/// thread's alone, setfsuid(2).
///
/// # Errors
/// EINVAL for ids that its user namespace does not know, or that it may not take.
pub fn making_files_of<T>((uid, gid): (u32, u32), act: impl FnOnce() -> T) -> Result<T, Errno> {
    // They tell which id there was, never that it could not be set; this one is nobody's.
    let now = |number| {
        // SAFETY: a number.
        unsafe { libc::syscall(number, u32::MAX) as u32 }
    };
    let set = |number, id: u32| {
        // SAFETY: a number.
        unsafe { libc::syscall(number, id) };
        if now(number) == id { Ok(()) } else { Err(Errno::EINVAL) }
    };
    let (user, group) = (libc::SYS_setfsuid, libc::SYS_setfsgid);
    let own = (now(user), now(group));
    if own == (uid, gid) {
        return Ok(act());
    }
    visibly(|| {
        let changed = set(group, gid).and_then(|()| set(user, uid));
        let result = changed.map(|()| act());
        set(user, own.0)?;
        set(group, own.1)?;
        result
    })
}

/// The kernel hides a process of which a thread changes its user, also from itself where it is root of a user namespace:
/// PR_SET_DUMPABLE in prctl(2).
fn visibly<T>(act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let was = nix::sys::prctl::get_dumpable()?;
    let result = act();
    if was {
        nix::sys::prctl::set_dumpable(true)?;
    }
    result
}

fn call(number: i64, [a, b, c]: [usize; 3]) -> Result<(), Errno> {
    // SAFETY: of the calls above capset and capget take addresses, of two arrays that outlive the call and are as long as this
    // version says, and setgroups that of a slice, with its length.
    Errno::result(unsafe { libc::syscall(number, a, b, c) }).map(drop)
}
