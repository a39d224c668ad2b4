//! A process whose own program file was deleted, with a child that executes it too: code, data and what a debugger wrote
//! into it.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};
use victims::{Findings, play};

/// Data that the file has another value of.
static mut WRITTEN: u64 = 0x1111_2222_3333_4444;

fn main() {
    become_a_copy();
    play(|stage| {
        // SAFETY: one thread.
        unsafe { WRITTEN = 0x5555_6666_7777_8888 };
        let size = fs::metadata("/proc/self/exe").expect("the program").len();
        stage.child("child", move |_| move |findings: &mut Findings| check(findings, size));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                // SAFETY: one thread.
                unsafe { WRITTEN = 0 };
            }
            check(findings, size);
        }
    })
}

/// Executes a copy of the program in the victim's folder and deletes it there.
fn become_a_copy() {
    if std::env::args_os().len() < 2 {
        return;
    }
    let own = std::env::current_exe().expect("the own path");
    if own.as_os_str().as_bytes().ends_with(b"/copy") {
        fs::remove_file(own).expect("delete the program");
        return;
    }
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.find(|argument| argument != "--sabotage").unwrap_or_default();
    let copy = Path::new(&folder).join("copy");
    fs::copy(&own, &copy).expect("copy the program");
    let error = Command::new(copy).args(std::env::args_os().skip(1)).exec();
    panic!("execute the copy: {error}");
}

fn check(findings: &mut Findings, size: u64) {
    // SAFETY: one thread.
    findings.same("written data", &0x5555_6666_7777_8888, &unsafe { WRITTEN });
    let link = fs::read_link("/proc/self/exe").unwrap_or_default();
    findings.that(
        link.as_os_str().as_bytes().ends_with(b" (deleted)"),
        format!("the program is {}", link.display()),
    );
    let now = fs::metadata("/proc/self/exe").map_or(0, |metadata| metadata.len());
    findings.same("size of the program", &size, &now);
    // It must still be a program that can be executed; without arguments it is a wrong usage.
    let ran = Command::new("/proc/self/exe").stderr(Stdio::null()).status();
    findings.that(
        ran.is_ok_and(|status| status.code() == Some(2)),
        "the program can't be executed any more",
    );
}
