//! A process whose program is a sealed memfd: it is still that one, sealed, and can be executed.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    process::{Command, Stdio},
};
use victims::{Findings, call, descriptor::borrowed, play};

const LINK: &str = "/memfd:program (deleted)";
const SEALS: i32 = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

fn main() {
    become_a_memfd();
    play(|stage| {
        stage.child("child", |_| check);
        check
    })
}

/// Executes a copy of the program that has no name.
fn become_a_memfd() {
    let here = fs::read_link("/proc/self/exe").expect("the own program");
    if std::env::args_os().len() < 2 || here.as_os_str() == OsStr::new(LINK) {
        return;
    }
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name ends with a NUL.
    let fd = unsafe { libc::memfd_create(c"program".as_ptr(), flags) };
    assert!(fd >= 0, "memfd_create");
    let program = fs::read("/proc/self/exe").expect("read the program");
    std::io::Write::write_all(&mut &*borrowed(fd), &program).expect("copy the program");
    call::fcntl(fd, libc::F_ADD_SEALS, SEALS).expect("F_ADD_SEALS");
    let reader = File::open(format!("/proc/self/fd/{fd}")).expect("open it for reading");
    call::close(fd);
    let words: Vec<CString> = std::env::args_os()
        .map(|word| CString::new(word.into_vec()).expect("no NUL"))
        .collect();
    let pointers: Vec<_> = words
        .iter()
        .map(|word| word.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: a list of strings that ends with a null pointer; the environment is the process's own.
    unsafe { libc::fexecve(reader.as_raw_fd(), pointers.as_ptr(), libc::environ.cast_const().cast()) };
    panic!("execute the copy: {}", std::io::Error::last_os_error());
}

fn check(findings: &mut Findings) {
    let link = fs::read_link("/proc/self/exe").unwrap_or_default();
    let file = findings.take("open the program", File::open("/proc/self/exe"));
    let seals = file.map(|file| call::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0).unwrap_or(-1));
    let wanted = if findings.sabotage() { 0 } else { SEALS };
    findings.same("the program", LINK.as_bytes(), link.as_os_str().as_bytes());
    findings.same("its seals", &Some(wanted), &seals);
    // Without arguments it is a wrong usage.
    let ran = Command::new("/proc/self/exe").stderr(Stdio::null()).status();
    findings.that(
        ran.is_ok_and(|status| status.code() == Some(2)),
        "the program can't be executed any more",
    );
}
