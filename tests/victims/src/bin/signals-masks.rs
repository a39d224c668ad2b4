//! The mask of blocked signals, of each thread.

use victims::{Findings, Team, call, play};

fn main() {
    play(|_| {
        let mut team = Team::default();
        for n in 0..6_u64 {
            team.spawn(&format!("thread {n}"), move || {
                member(0x5a5a_0000_0000_0400 << n | 1 << 33)
            });
        }
        let mut own = member(1 << (libc::SIGUSR1 - 1) | 1 << 63);
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    })
}

fn member(mask: u64) -> impl FnMut(&mut Findings) {
    exchange(Some(mask));
    let before = exchange(None);
    move |findings| {
        if findings.sabotage() {
            exchange(Some(0));
        }
        findings.same("mask", &format!("{before:016x}"), &format!("{:016x}", exchange(None)));
    }
}

fn exchange(new: Option<u64>) -> u64 {
    let mut old = 0_u64;
    let given = new.as_ref().map_or(0, |mask| &raw const *mask as usize);
    let args = [libc::SIG_SETMASK as usize, given, &raw mut old as usize, 8];
    // SAFETY: eight bytes are read and written.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
    old
}
