//! The alternate signal stack of each thread; disabled in one; used by a handler.

use std::cell::Cell;
use victims::{Findings, Team, memory::Mapping, play};

thread_local! {
    /// Where the calling thread's last handler ran.
    static WHERE: Cell<usize> = const { Cell::new(0) };
}

extern "C" fn note(_: i32) {
    let local = 0_u8;
    WHERE.set(&raw const local as usize);
}

fn main() {
    play(|_| {
        let action = libc::sigaction {
            sa_sigaction: note as *const () as usize,
            sa_flags: libc::SA_ONSTACK,
            sa_restorer: None,
            // SAFETY: zeros are an empty set.
            sa_mask: unsafe { std::mem::zeroed() },
        };
        // SAFETY: a handler of the right type.
        unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        let mut team = Team::default();
        for n in 1..5 {
            team.spawn(&format!("thread {n}"), move || member(Some(n * 65536)));
        }
        team.spawn("thread without", || member(None));
        let mut own = member(Some(32768));
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    })
}

fn member(size: Option<usize>) -> impl FnMut(&mut Findings) {
    let area = Mapping::private(size.unwrap_or(4096));
    let flags = if size.is_some() { 0 } else { libc::SS_DISABLE };
    set(area.address, area.len, flags);
    let before = get();
    move |findings| {
        if findings.sabotage() {
            set(0, 0, if size.is_some() { libc::SS_DISABLE } else { 0 });
        }
        findings.same("alternate stack", &before, &get());
        // SAFETY: a signal to the calling thread, which has a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        let used = WHERE.get();
        let inside = area.address <= used && used < area.address + area.len;
        findings.same("handler ran on it", &size.is_some(), &inside);
    }
}

fn set(address: usize, size: usize, flags: i32) {
    let stack = libc::stack_t {
        ss_sp: address as *mut _,
        ss_flags: flags,
        ss_size: size,
    };
    // SAFETY: the area, if one is given, lives on.
    unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
}

fn get() -> (usize, i32, usize) {
    let mut stack = libc::stack_t {
        ss_sp: std::ptr::null_mut(),
        ss_flags: 0,
        ss_size: 0,
    };
    // SAFETY: room for the answer.
    unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) };
    (stack.ss_sp as usize, stack.ss_flags, stack.ss_size)
}
