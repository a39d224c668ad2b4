//! ptrace(2) on seized threads, one function a request. Who may be asked what, and when, is floe-tracee's business.
//!
//! Every call names a thread that the calling thread traces; the kernel answers ESRCH otherwise.

use crate::Pid;
use nix::errno::Errno;
use std::mem::MaybeUninit;

/// NT_PRSTATUS: general registers.
pub const NT_PRSTATUS: i32 = 1;
/// NT_PRFPREG: the area of FXSAVE.
pub const NT_PRFPREG: i32 = 2;
/// NT_X86_XSTATE: the XSAVE area.
pub const NT_X86_XSTATE: i32 = 0x202;
/// Bytes of a `siginfo_t`.
pub const SIGINFO_BYTES: usize = 128;

const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;

/// `struct ptrace_rseq_configuration`, include/uapi/linux/ptrace.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of the thread's rseq area; 0 where none is registered.
    pub address: u64,
    /// Bytes of the area.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
    /// Flags, 0 today.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// `struct ptrace_sud_config`, include/uapi/linux/ptrace.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchConfiguration {
    /// PR_SYS_DISPATCH_OFF 0, PR_SYS_DISPATCH_ON 1.
    pub mode: u64,
    /// Address of the selector.
    pub selector: u64,
    /// Start of the range whose calls are let through.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}
const _: () = assert!(size_of::<DispatchConfiguration>() == 32);

/// `struct ptrace_peeksiginfo_args`, include/uapi/linux/ptrace.h.
#[repr(C)]
struct PeekSigInfo {
    off: u64,
    flags: u32,
    nr: i32,
}
const _: () = assert!(size_of::<PeekSigInfo>() == 16);

/// Which queue of pending signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The thread's own.
    Thread,
    /// The one all threads of the process share.
    Process,
}

/// A change of a tracee, as waitpid(2) reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A signal is about to be delivered.
    Signal(i32),
    /// System-call entry or exit (PTRACE_O_TRACESYSGOOD).
    Call,
    /// A PTRACE_EVENT_* stop: event, signal.
    Event(i32, i32),
    /// Ended: the raw wait status.
    Ended(i32),
}

fn request(request: u32, tid: Pid, address: usize, data: usize) -> Result<i64, Errno> {
    // SAFETY: callers in this file pass addresses only for requests whose buffers they hold for the whole call, with
    // the sizes that the request demands; all other arguments are numbers.
    let result = unsafe { libc::ptrace(request, tid.raw(), address, data) };
    Errno::result(result)
}

/// Begins to trace a thread without stopping it.
///
/// # Errors
/// ESRCH, EPERM (also where another tracer has it).
pub fn seize(tid: Pid, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Changes the tracing options.
///
/// # Errors
/// ESRCH where the thread isn't stopped.
pub fn set_options(tid: Pid, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// Makes a seized thread stop soon, without a signal.
///
/// # Errors
/// ESRCH.
pub fn interrupt(tid: Pid) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread run on, delivering `signal` unless it is 0.
///
/// # Errors
/// ESRCH.
pub fn resume(tid: Pid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped thread run to its next system-call entry or exit, delivering `signal` unless it is 0.
///
/// # Errors
/// ESRCH.
pub fn resume_to_call(tid: Pid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Stops tracing; the thread runs on, with `signal` delivered unless it is 0.
///
/// # Errors
/// ESRCH.
pub fn detach(tid: Pid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// Reads a register set into `buffer` and returns how many bytes it has.
///
/// # Errors
/// ESRCH, EINVAL for a set the machine lacks.
pub fn registers(tid: Pid, set: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    request(libc::PTRACE_GETREGSET, tid, set as usize, (&raw mut vector) as usize)?;
    Ok(vector.iov_len)
}

/// Writes a register set.
///
/// # Errors
/// ESRCH, EINVAL or EIO for contents the processor would not take.
pub fn set_registers(tid: Pid, set: i32, bytes: &[u8]) -> Result<(), Errno> {
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    request(libc::PTRACE_SETREGSET, tid, set as usize, (&raw mut vector) as usize).map(drop)
}

/// The blocked signals; within sigsuspend(2) and its like those that will be blocked behind the call.
///
/// # Errors
/// ESRCH.
pub fn signal_mask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, size_of::<u64>(), (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals.
///
/// # Errors
/// ESRCH.
pub fn set_signal_mask(tid: Pid, mask: u64) -> Result<(), Errno> {
    request(PTRACE_SETSIGMASK, tid, size_of::<u64>(), (&raw const mask) as usize).map(drop)
}

/// Copies a queue of pending signals, oldest first, without taking them out.
///
/// # Errors
/// ESRCH.
pub fn pending_signals(tid: Pid, queue: Queue) -> Result<Vec<[u8; SIGINFO_BYTES]>, Errno> {
    const AT_ONCE: usize = 64;
    let mut all = Vec::new();
    let mut batch = [[0u8; SIGINFO_BYTES]; AT_ONCE];
    loop {
        let arguments = PeekSigInfo {
            off: all.len() as u64,
            flags: if queue == Queue::Process {
                PTRACE_PEEKSIGINFO_SHARED
            } else {
                0
            },
            nr: AT_ONCE as i32,
        };
        let got = request(
            PTRACE_PEEKSIGINFO,
            tid,
            (&raw const arguments) as usize,
            batch.as_mut_ptr() as usize,
        )?;
        all.extend_from_slice(&batch[..got as usize]);
        if got < AT_ONCE as i64 {
            return Ok(all);
        }
    }
}

/// The message of the event a thread stopped for, e.g. the new thread's id.
///
/// # Errors
/// ESRCH.
pub fn event_message(tid: Pid) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message) as usize)?;
    Ok(message)
}

/// The rseq registration of a stopped thread (Linux 5.13).
///
/// # Errors
/// ESRCH, EIO where the kernel has no rseq.
pub fn rseq_configuration(tid: Pid) -> Result<RseqConfiguration, Errno> {
    let mut configuration = MaybeUninit::<RseqConfiguration>::zeroed();
    request(
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>(),
        configuration.as_mut_ptr() as usize,
    )?;
    // SAFETY: every bit pattern is a valid RseqConfiguration, and it was zeroed before the kernel wrote to it.
    Ok(unsafe { configuration.assume_init() })
}

/// The syscall user dispatch of a stopped thread. A kernel that can't tell (before 6.4) is taken to have it off.
///
/// # Errors
/// ESRCH.
pub fn dispatch_configuration(tid: Pid) -> Result<DispatchConfiguration, Errno> {
    let mut configuration = DispatchConfiguration::default();
    let asked = request(
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<DispatchConfiguration>(),
        (&raw mut configuration) as usize,
    );
    match asked {
        Ok(_) => Ok(configuration),
        Err(Errno::EIO | Errno::EINVAL) => Ok(DispatchConfiguration::default()),
        Err(error) => Err(error),
    }
}

/// Sets the syscall user dispatch of a stopped thread (Linux 6.4).
///
/// # Errors
/// EINVAL for a range that is none, EFAULT for a selector that is no user address, EIO on older kernels, ESRCH.
pub fn set_dispatch_configuration(tid: Pid, configuration: &DispatchConfiguration) -> Result<(), Errno> {
    request(
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<DispatchConfiguration>(),
        std::ptr::from_ref(configuration) as usize,
    )
    .map(drop)
}

/// The program of a stopped thread's seccomp filter number `index`, the oldest being 0: `struct sock_filter` after `struct
/// sock_filter`, 8 bytes each (Linux 4.4).
///
/// # Errors
/// ENOENT where it has no such filter, EINVAL where it has none at all, EACCES without CAP_SYS_ADMIN in the first user
/// namespace, ESRCH.
pub fn seccomp_filter(tid: Pid, index: usize) -> Result<Vec<u8>, Errno> {
    const INSTRUCTION_BYTES: usize = 8;
    let count = request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0)?;
    let mut program = vec![0; count as usize * INSTRUCTION_BYTES];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    Ok(program)
}

/// The flags (SECCOMP_FILTER_FLAG_*) of a stopped thread's seccomp filter, as far as the kernel tells them: LOG alone
/// (Linux 4.16; an older one tells none).
///
/// # Errors
/// As [`seccomp_filter`].
pub fn seccomp_filter_flags(tid: Pid, index: usize) -> Result<u64, Errno> {
    // `struct seccomp_metadata`, include/uapi/linux/ptrace.h: number of the filter, flags.
    let mut metadata = [index as u64, 0];
    let size = size_of_val(&metadata);
    match request(PTRACE_SECCOMP_GET_METADATA, tid, size, metadata.as_mut_ptr() as usize) {
        Ok(_) => Ok(metadata[1]),
        Err(Errno::EIO) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Waits for a change of one tracee; `None` where `block` is false and there is none.
///
/// # Errors
/// ECHILD where the thread isn't traced by the calling thread.
pub fn wait(tid: Pid, block: bool) -> Result<Option<Wait>, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is a valid int for the whole call.
        let result = unsafe { libc::waitpid(tid.raw(), &raw mut status, flags) };
        match Errno::result(result) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(classify(status))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn classify(status: i32) -> Wait {
    if !libc::WIFSTOPPED(status) {
        return Wait::Ended(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Wait::Call,
        0 => Wait::Signal(signal),
        event => Wait::Event(event, signal),
    }
}
