//! Executes a program with a seccomp filter that allows all: `confined PROGRAM [ARGUMENT…]`.

use std::os::unix::process::CommandExt;
use victims::seccomp::{ALLOW, install, on_call};

fn main() {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().expect("usage: confined PROGRAM [ARGUMENT…]");
    install(&on_call(0, ALLOW), 0).expect("a filter");
    let error = std::process::Command::new(program).args(words).exec();
    panic!("execute: {error}");
}
