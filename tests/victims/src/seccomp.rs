//! Seccomp filters, as short programs.

use crate::call;
use std::io;

/// What a filter of [`on_call`] answers, SECCOMP_RET_*.
pub const ALLOW: u32 = 0x7fff_0000;
/// Done, and logged.
pub const LOG: u32 = 0x7ffc_0000;
/// The error in the lower half.
pub const ERRNO: u32 = 0x0005_0000;
/// SIGSYS.
pub const TRAP: u32 = 0x0003_0000;
/// The process ends.
pub const KILL: u32 = 0x8000_0000;
/// The flag that gives all threads the filter.
pub const FLAG_TSYNC: usize = 1;
/// The flag that has answers other than [`ALLOW`] logged.
pub const FLAG_LOG: usize = 2;

const PR_SET_NO_NEW_PRIVS: i32 = 38;

/// A program that gives `answer` for one call and allows all others.
#[must_use]
pub fn on_call(number: i64, answer: u32) -> Vec<libc::sock_filter> {
    vec![
        load(0),
        jump(number as u32, [0, 1]),
        answer_with(answer),
        answer_with(ALLOW),
    ]
}

/// A program that allows these calls alone, and gives `answer` for all others.
#[must_use]
pub fn only(numbers: &[i64], answer: u32) -> Vec<libc::sock_filter> {
    let mut program = vec![load(0)];
    for (n, number) in numbers.iter().enumerate() {
        program.push(jump(*number as u32, [(numbers.len() - n) as u8, 0]));
    }
    program.extend([answer_with(answer), answer_with(ALLOW)]);
    program
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, [0, 0])
}

fn jump(value: u32, jumps: [u8; 2]) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, jumps)
}

fn answer_with(answer: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, answer, [0, 0])
}

fn instruction(code: u32, k: u32, jumps: [u8; 2]) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: jumps[0],
        jf: jumps[1],
        k,
    }
}

/// Adds a filter to the calling thread.
///
/// # Errors
/// errno.
pub fn install(program: &[libc::sock_filter], flags: usize) -> io::Result<()> {
    let list = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let arguments = [1, flags, &raw const list as usize];
    // SAFETY: the program is read.
    unsafe { call::raw(libc::SYS_seccomp, &arguments) }.map(drop)
}

/// Enters strict mode.
///
/// # Errors
/// errno.
pub fn strict() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe { call::raw(libc::SYS_seccomp, &[0, 0, 0]) }.map(drop)
}

/// Gives up privileges to come.
pub fn no_new_privileges() {
    call::prctl(PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).expect("no_new_privs");
}
