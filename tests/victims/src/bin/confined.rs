//! Executes a program with a seccomp filter that allows all, or all but one call: `confined [--but NUMBER] PROGRAM [ARGUMENT…]`.

use std::os::unix::process::CommandExt;
use victims::seccomp::{ALLOW, ERRNO, install, on_call};

fn main() {
    let mut words = std::env::args_os().skip(1).peekable();
    let mut filter = on_call(0, ALLOW);
    if words.next_if(|word| word == "--but").is_some() {
        let number = words.next().and_then(|word| word.to_str()?.parse().ok());
        filter = on_call(number.expect("the number of a call"), ERRNO | libc::EPERM as u32);
    }
    let program = words
        .next()
        .expect("usage: confined [--but NUMBER] PROGRAM [ARGUMENT…]");
    install(&filter, 0).expect("a filter");
    let error = std::process::Command::new(program).args(words).exec();
    panic!("execute: {error}");
}
