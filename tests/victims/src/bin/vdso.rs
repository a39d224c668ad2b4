//! The vDSO: where it was, and right: its clock agrees with the kernel's. With the argument `anywhere` the kernel may have it elsewhere.

use std::time::Duration;
use victims::{Findings, call, play};

fn main() {
    play(|_| {
        let (place, entry) = (mapped(), vector());
        let anywhere = std::env::args().any(|argument| argument == "anywhere");
        let started = monotonic();
        move |findings: &mut Findings| {
            let vdso = if findings.sabotage() { entry + 4096 } else { entry };
            findings.same("address in the auxiliary vector", &vdso, &vector());
            if !anywhere {
                findings.same("mappings", &place, &mapped());
            }
            for clock in [
                libc::CLOCK_REALTIME,
                libc::CLOCK_MONOTONIC,
                libc::CLOCK_REALTIME_COARSE,
                libc::CLOCK_BOOTTIME,
            ] {
                // The kernel's clock before and after must enclose the vDSO's.
                let (before, between, after) = (kernel(clock), vdso_time(clock), kernel(clock));
                let slack = Duration::from_millis(20);
                let fits = before <= between + slack && between <= after + slack;
                findings.that(
                    fits,
                    format!("clock {clock}: {between:?} between {before:?} and {after:?}"),
                );
            }
            findings.that(monotonic() >= started, "time ran backwards");
        }
    })
}

fn monotonic() -> Duration {
    vdso_time(libc::CLOCK_MONOTONIC)
}

fn vdso_time(clock: i32) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the time. glibc takes it from the vDSO.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn kernel(clock: i32) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the time.
    unsafe { call::raw(libc::SYS_clock_gettime, &[clock as usize, &raw mut time as usize]) }.expect("clock_gettime");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn vector() -> u64 {
    // SAFETY: a number comes back.
    unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) }
}

fn mapped() -> Vec<(usize, usize, String)> {
    let own = |rest: &str| {
        ["[vdso]", "[vvar]", "[vvar_vclock]"]
            .iter()
            .any(|name| rest.ends_with(name))
    };
    victims::own::maps()
        .into_iter()
        .filter(|(_, _, rest)| own(rest))
        .collect()
}
