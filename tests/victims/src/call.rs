//! System calls by number, and results as `io::Result`.

use std::io;

/// The result of a call that returns -1 and sets errno on failure.
///
/// # Errors
/// errno.
pub fn checked(status: i64) -> io::Result<i64> {
    if status == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(status)
    }
}

/// A system call by its number.
///
/// # Errors
/// errno.
///
/// # Safety
/// Whatever the call demands of its arguments.
pub unsafe fn raw(number: i64, args: &[usize]) -> io::Result<i64> {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: handed on to the caller.
    checked(unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) })
}

/// The calling thread's id.
#[must_use]
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// prctl.
///
/// # Errors
/// errno.
pub fn prctl(option: i32, args: [usize; 4]) -> io::Result<i64> {
    // SAFETY: victims call it with options that take numbers, or pointers to memory that lives on.
    unsafe { raw(libc::SYS_prctl, &[option as usize, args[0], args[1], args[2], args[3]]) }
}

/// An empty pipe: read end, write end.
#[must_use]
pub fn pipe(flags: i32) -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both numbers.
    let status = unsafe { libc::pipe2(ends.as_mut_ptr(), flags) };
    assert!(status == 0, "pipe2: {}", io::Error::last_os_error());
    ends
}

/// Closes a descriptor.
pub fn close(fd: i32) {
    // SAFETY: the victim made this descriptor and holds no owner of it.
    unsafe { libc::close(fd) };
}

/// Reads what is there, at most `len` bytes.
///
/// # Errors
/// errno.
pub fn read(fd: i32, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    // SAFETY: the buffer has `len` bytes.
    let got = checked(unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) } as i64)?;
    bytes.truncate(got as usize);
    Ok(bytes)
}

/// Writes; how many bytes were taken.
///
/// # Errors
/// errno.
pub fn write(fd: i32, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    checked(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as i64).map(|count| count as usize)
}

/// fcntl with a number.
///
/// # Errors
/// errno.
pub fn fcntl(fd: i32, command: i32, arg: i32) -> io::Result<i32> {
    // SAFETY: victims use commands that take numbers.
    checked(unsafe { libc::fcntl(fd, command, arg) }.into()).map(|value| value as i32)
}

/// Sends a signal.
///
/// # Errors
/// errno.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    checked(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Waits for a child: its id (0: nothing yet) and status.
///
/// # Errors
/// errno.
pub fn wait(pid: i32, options: i32) -> io::Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: room for the status.
    let got = checked(unsafe { libc::waitpid(pid, &raw mut status, options) }.into())?;
    Ok((got as i32, status))
}
