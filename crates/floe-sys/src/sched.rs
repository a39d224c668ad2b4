//! Scheduling of another thread: sched_getattr(2), sched_setattr(2), sched_getaffinity(2), ioprio_get(2); and
//! get_robust_list(2), which asks about another thread likewise.

use crate::Pid;
use nix::errno::Errno;

/// `struct sched_attr`, include/uapi/linux/sched/types.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes of the structure; filled in by the functions here.
    pub size: u32,
    /// SCHED_* policy.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value; also of policies that take no account of it.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// SCHED_DEADLINE: nanoseconds; for other policies the slice on new kernels.
    pub runtime: u64,
    /// SCHED_DEADLINE: nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE: nanoseconds.
    pub period: u64,
    /// Least utilisation that is assumed of it, of 1024; both are 0 where the kernel knows no clamps.
    pub utilisation_min: u32,
    /// Most.
    pub utilisation_max: u32,
}
const _: () = assert!(size_of::<Attributes>() == 56);

const IOPRIO_WHO_PROCESS: i32 = 1;
const CPU_BYTES: usize = 1024;

/// Reads a thread's policy.
///
/// # Errors
/// ESRCH, EPERM.
pub fn attributes(tid: Pid) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes at most `size` bytes to `attributes`, which is that long.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.raw(), &raw mut attributes, size, 0) };
    Errno::result(result)?;
    if !attributes.is_fair() {
        attributes.nice = nice(tid)?;
    }
    Ok(attributes)
}

impl Attributes {
    /// Whether the policy is one of those that sched_setattr(2) knows a nice value of. A thread of another one has one too,
    /// from before or by setpriority(2), and it counts again when the thread comes back.
    #[must_use]
    pub fn is_fair(&self) -> bool {
        [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE]
            .iter()
            .any(|policy| *policy as u32 == self.policy)
    }
}

/// A thread's nice value.
fn nice(tid: Pid) -> Result<i32, Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.raw()) };
    // The call itself gives 20 less the value, so that none is negative.
    Errno::result(result).map(|result| 20 - result as i32)
}

fn set_nice(tid: Pid, nice: i32) -> Result<(), Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid.raw(), nice) };
    Errno::result(result).map(drop)
}

/// Sets a thread's policy.
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn set_attributes(tid: Pid, attributes: &Attributes) -> Result<(), Errno> {
    if !attributes.is_fair() && nice(tid)? != attributes.nice {
        set_nice(tid, attributes.nice)?;
    }
    let sized = Attributes {
        size: size_of::<Attributes>() as u32,
        ..*attributes
    };
    // SAFETY: the kernel reads `size` bytes of `sized`, which is that long.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.raw(), &raw const sized, 0) };
    Errno::result(result).map(drop)
}

/// Takes from a thread, and from those that it makes, what puts it before others: a policy of real time, a nice value below 0, a real-time
/// class of I/O.
///
/// # Errors
/// ESRCH, EPERM.
pub fn give_up_precedence(tid: Pid) -> Result<(), Errno> {
    /// IOPRIO_CLASS_RT and IOPRIO_CLASS_SHIFT of linux/ioprio.h.
    const REAL_TIME: u32 = 1;
    const CLASS_SHIFT: u32 = 13;
    let before = attributes(tid)?;
    if !before.is_fair() || before.nice < 0 {
        let fair = Attributes {
            policy: if before.is_fair() {
                before.policy
            } else {
                libc::SCHED_OTHER as u32
            },
            nice: before.nice.max(0),
            ..Attributes::default()
        };
        set_attributes(tid, &fair)?;
    }
    if io_priority(tid)? >> CLASS_SHIFT == REAL_TIME {
        set_io_priority(tid, 0)?;
    }
    Ok(())
}

/// Has the calling thread stand back by this much for others that wait for a processor: it is added to its nice value, of which
/// 19 is the most.
///
/// # Errors
/// EPERM where that is forbidden altogether (seccomp).
pub fn stand_back(by: i32) -> Result<(), Errno> {
    const MOST: i32 = 19;
    let own = Pid::new(0);
    set_nice(own, nice(own)?.saturating_add(by).min(MOST))
}

/// What this host gives threads that ask for nothing.
#[derive(Debug, Clone, Copy)]
pub struct Usual {
    /// Their slice in nanoseconds; 0 where threads have no such thing (before Linux 6.12), or the calling one is of a policy
    /// without.
    pub slice: u64,
    online: u32,
}

impl Usual {
    /// Finds it out; the slice by asking for none.
    ///
    /// # Errors
    /// Those of [`attributes`] and [`set_attributes`].
    pub fn find() -> Result<Self, Errno> {
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        let online = online.ok().flatten().and_then(|count| u32::try_from(count).ok());
        Ok(Self {
            slice: default_slice()?,
            online: online.unwrap_or(1),
        })
    }

    /// Whether a thread that may run on these may run on all that are online, and so was likely never kept from any.
    #[must_use]
    pub fn is_everywhere(&self, cpus: &[u32]) -> bool {
        (0..self.online).all(|cpu| cpus.contains(&cpu))
    }
}

fn default_slice() -> Result<u64, Errno> {
    let own = Pid::new(0);
    let before = attributes(own)?;
    if before.runtime == 0 || is_deadline(before.policy) {
        return Ok(0);
    }
    set_attributes(own, &Attributes { runtime: 0, ..before })?;
    let usual = attributes(own)?.runtime;
    if usual != before.runtime {
        set_attributes(own, &before)?;
    }
    Ok(usual)
}

/// Whether `runtime` is that of SCHED_DEADLINE and no slice.
#[must_use]
pub fn is_deadline(policy: u32) -> bool {
    policy == libc::SCHED_DEADLINE as u32
}

/// The processors a thread may run on, lowest first.
///
/// # Errors
/// ESRCH, EPERM.
pub fn affinity(tid: Pid) -> Result<Vec<u32>, Errno> {
    let mut set = [0u8; CPU_BYTES];
    // SAFETY: the kernel writes at most `CPU_BYTES` bytes to `set`, which is that long.
    let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.raw(), CPU_BYTES, set.as_mut_ptr()) };
    let bytes = Errno::result(result)? as usize;
    Ok((0..bytes as u32 * 8)
        .filter(|cpu| set[*cpu as usize / 8] & (1 << (cpu % 8)) != 0)
        .collect())
}

/// All processors that there can be, those too that are not there yet.
#[must_use]
pub fn everywhere() -> Vec<u32> {
    (0..CPU_BYTES as u32 * 8).collect()
}

/// Sets the processors a thread may run on.
///
/// # Errors
/// ESRCH, EPERM, EINVAL where none of them exists here.
pub fn set_affinity(tid: Pid, cpus: &[u32]) -> Result<(), Errno> {
    let mut set = [0u8; CPU_BYTES];
    for cpu in cpus {
        *set.get_mut(*cpu as usize / 8).ok_or(Errno::EINVAL)? |= 1 << (cpu % 8);
    }
    // SAFETY: the kernel reads `CPU_BYTES` bytes of `set`, which is that long.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid.raw(), CPU_BYTES, set.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Keeps the calling thread on the processor that it runs on. Two threads that wait for each other in turns, as a tracer
/// and its tracee do, are several times faster on one processor than on two: nobody has to wake another one up.
///
/// Dropped, the thread may run where it might before.
#[derive(Debug)]
pub struct OneProcessor {
    processor: u32,
    before: Vec<u32>,
}

impl OneProcessor {
    /// Stays here.
    ///
    /// # Errors
    /// Those of [`affinity`] and [`set_affinity`].
    pub fn stay() -> Result<Self, Errno> {
        let before = affinity(Pid::new(0))?;
        // SAFETY: the call takes nothing and gives a number.
        let processor = Errno::result(unsafe { libc::sched_getcpu() })? as u32;
        set_affinity(Pid::new(0), &[processor])?;
        Ok(Self { processor, before })
    }

    /// Brings a thread here too; it stays.
    ///
    /// # Errors
    /// Those of [`set_affinity`].
    pub fn bring(&self, tid: Pid) -> Result<(), Errno> {
        set_affinity(tid, &[self.processor])
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        // It fails only where none of them is left, and then the kernel has chosen others.
        let _ = set_affinity(Pid::new(0), &self.before);
    }
}

/// A thread's I/O priority, class and level as ioprio_get(2) packs them.
///
/// # Errors
/// ESRCH, EPERM.
pub fn io_priority(tid: Pid) -> Result<u32, Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.raw()) };
    Errno::result(result).map(|priority| priority as u32)
}

/// Sets a thread's I/O priority.
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn set_io_priority(tid: Pid, priority: u32) -> Result<(), Errno> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.raw(), priority) };
    Errno::result(result).map(drop)
}

/// Address and size of the head of a thread's robust futex list; address 0 for none.
///
/// # Errors
/// ESRCH, EPERM.
pub fn robust_list(tid: Pid) -> Result<(u64, u64), Errno> {
    let mut head = 0u64;
    let mut size = 0u64;
    // SAFETY: `head` and `size` are 8 bytes each, as the kernel writes them.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid.raw(), &raw mut head, &raw mut size) };
    Errno::result(result)?;
    Ok((head, size))
}

#[cfg(test)]
mod tests {
    use super::{Pid, nice, stand_back};

    #[test]
    fn stands_back_as_far_as_there_is_room() {
        let own = || nice(Pid::new(0)).expect("a nice value");
        // A thread of its own: nobody but the superuser comes back from it.
        let stands_back = move || {
            let before = own();
            for wanted in [before + 10, 19, 19] {
                stand_back(10).expect("stand back");
                assert_eq!(own(), wanted.min(19));
            }
        };
        let before = own();
        std::thread::spawn(stands_back).join().expect("no panic");
        assert_eq!(own(), before, "others stay where they are");
    }
}
