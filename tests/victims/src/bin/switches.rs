//! Small switches: of a thread (time stamp counter, cpuid, machine checks, memory policy, scheduling attributes), of a
//! process (executable memory, merging, huge pages), of a session (autogroup), and the login of audit. What the host
//! does not let anybody set stays as it is.

use std::{
    fs, io,
    sync::atomic::{AtomicU32, Ordering},
};
use victims::{
    Findings, Stage, Team, call,
    memory::{Mapping, flags_at},
    play,
};

const ARCH_SET_CPUID: usize = 0x1012;
const ARCH_GET_CPUID: usize = 0x1011;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
/// A bind to node 0, by numbers that stay; and others.
const MPOL_BIND: usize = 2;
const MPOL_INTERLEAVE: usize = 3;
const MPOL_LOCAL: usize = 4;
const MPOL_F_STATIC_NODES: usize = 1 << 15;

thread_local! {
    static FAULTS: AtomicU32 = const { AtomicU32::new(0) };
}

/// Goes on behind rdtsc (2 bytes) or cpuid (2 bytes).
extern "C" fn fault(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    FAULTS.with(|count| count.fetch_add(1, Ordering::Relaxed));
    // SAFETY: the kernel gives the handler a context of its own.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
}

fn main() {
    play(|stage| {
        // Whoever has no login yet may set one.
        fs::write("/proc/self/loginuid", "4711").expect("a login");
        catch_faults();
        stage.child("other session", |stage| {
            // SAFETY: no arguments.
            unsafe { libc::setsid() };
            fs::write("/proc/self/autogroup", "7").expect("nice value of the session");
            stage.child("in it", member);
            member(stage)
        });
        stage.child("merged", |stage| {
            prctl(PR_SET_MEMORY_MERGE, [1, 0]);
            let left_alone = Mapping::private(8 * 4096);
            // SAFETY: the mapping is the victim's own.
            unsafe {
                libc::madvise(
                    left_alone.address as *mut libc::c_void,
                    left_alone.len,
                    libc::MADV_UNMERGEABLE,
                )
            };
            let flags = merged(&left_alone);
            let mut own = member(stage);
            move |findings: &mut Findings| {
                own(findings);
                findings.same("merging of memory left alone", &flags, &merged(&left_alone));
            }
        });
        stage.child("denied", |stage| {
            prctl(PR_SET_THP_DISABLE, [1, 2]);
            prctl(PR_SET_MDWE, [1, 0]);
            let before = may_gain_execution();
            let mut own = member(stage);
            move |findings: &mut Findings| {
                own(findings);
                findings.same("whether memory may become executable", &before, &may_gain_execution());
            }
        });
        let mut team = Team::default();
        team.spawn("policy", || {
            policy(MPOL_BIND | MPOL_F_STATIC_NODES, 1);
            machine_check(1);
            watch()
        });
        team.spawn("forbidden", || {
            forbid();
            policy(MPOL_LOCAL, 0);
            machine_check(0);
            watch()
        });
        team.spawn("slice", || {
            attributes(&[56, libc::SCHED_BATCH as u32, 0, 0, 3, 0, 5_000_000, 0, 0, 0, 0, 0, 0, 0]);
            watch()
        });
        team.spawn("deadline", || {
            let (reclaim, overrun) = (2, 4);
            attributes(&[
                56,
                libc::SCHED_DEADLINE as u32,
                reclaim | overrun,
                0,
                0,
                0,
                2_000_000,
                0,
                100_000_000,
                0,
                100_000_000,
                0,
                0,
                0,
            ]);
            watch()
        });
        policy(MPOL_INTERLEAVE, 1);
        let mut own = member(stage);
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    })
}

fn catch_faults() {
    // SAFETY: a structure of numbers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler steps over an instruction that this victim has issued.
    unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) };
}

fn prctl(option: i32, args: [usize; 2]) {
    call::prctl(option, [args[0], args[1], 0, 0]).expect("prctl");
}

fn policy(mode: usize, nodes: u64) {
    let place = if nodes == 0 { 0 } else { &raw const nodes as usize };
    // SAFETY: one word of nodes is read.
    unsafe { call::raw(libc::SYS_set_mempolicy, &[mode, place, 65]) }.expect("memory policy");
}

fn machine_check(policy: usize) {
    prctl(libc::PR_MCE_KILL, [1, policy]);
}

/// Some processors can't forbid cpuid.
fn forbid() {
    prctl(libc::PR_SET_TSC, [libc::PR_TSC_SIGSEGV as usize, 0]);
    // SAFETY: plain numbers.
    let cpuid = unsafe { call::raw(libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]) };
    let known = |error: &io::Error| error.raw_os_error() == Some(libc::ENODEV);
    assert!(cpuid.as_ref().map_or_else(known, |_| true), "cpuid: {cpuid:?}");
}

fn attributes(words: &[u32; 14]) {
    // SAFETY: 56 bytes are read.
    unsafe { call::raw(libc::SYS_sched_setattr, &[0, words.as_ptr() as usize, 0]) }.expect("attributes");
}

/// Whether the time stamp counter, and cpuid, end in a SIGSEGV.
fn faults() -> [bool; 2] {
    let count = || FAULTS.with(|count| count.load(Ordering::Relaxed));
    let before = count();
    // SAFETY: reads a counter, or is a fault that the handler steps over.
    unsafe { std::arch::x86_64::_rdtsc() };
    let tsc = count() - before;
    std::arch::x86_64::__cpuid(0);
    [tsc > 0, count() - before - tsc > 0]
}

fn watch() -> impl FnMut(&mut Findings) + use<> {
    let before = settings();
    move |findings| {
        if findings.sabotage() {
            policy(MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, 1);
        }
        for (before, now) in before.iter().zip(settings()) {
            findings.same("setting", before, &now);
        }
    }
}

fn member(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    watch()
}

fn settings() -> Vec<String> {
    let mut all = vec![format!("tsc, cpuid forbidden: {:?}", faults())];
    let ask = |option, first| call::prctl(option, [first, 0, 0, 0]).map_err(|error| error.raw_os_error());
    let mut tsc = 0_i32;
    let asked = ask(libc::PR_GET_TSC, &raw mut tsc as usize);
    all.push(format!("tsc {asked:?} {tsc}"));
    // SAFETY: plain numbers.
    let cpuid = unsafe { call::raw(libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]) };
    all.push(format!("cpuid {:?}", cpuid.ok()));
    for kind in 0..3 {
        all.push(format!("speculation {kind} {:?}", ask(PR_GET_SPECULATION_CTRL, kind)));
    }
    for option in [
        libc::PR_MCE_KILL_GET,
        PR_GET_MDWE,
        PR_GET_MEMORY_MERGE,
        PR_GET_THP_DISABLE,
        libc::PR_GET_SECUREBITS,
    ] {
        all.push(format!("switch {option} {:?}", ask(option, 0)));
    }
    let (mut mode, mut nodes) = (0_u32, [0_u64; 16]);
    let arguments = [&raw mut mode as usize, nodes.as_mut_ptr() as usize, 1024, 0, 0];
    // SAFETY: room for a number and 1024 bits.
    let asked = unsafe { call::raw(libc::SYS_get_mempolicy, &arguments) };
    all.push(format!("memory policy {:?} {mode:#x} {nodes:?}", asked.ok()));
    let mut words = [0_u32; 14];
    let arguments = [0, words.as_mut_ptr() as usize, 56, 0];
    // SAFETY: room for 56 bytes.
    let asked = unsafe { call::raw(libc::SYS_sched_getattr, &arguments) };
    all.push(format!("attributes {:?} {words:?}", asked.ok()));
    let autogroup = fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
    all.push(format!(
        "nice value of the session {:?}",
        autogroup.split(' ').next_back()
    ));
    all.push(format!("login {:?}", fs::read_to_string("/proc/self/loginuid").ok()));
    let session = fs::read_to_string("/proc/self/sessionid").unwrap_or_default();
    all.push(format!("session {}", session != u32::MAX.to_string()));
    all
}

/// Whether a mapping is one that may be merged.
fn merged(mapping: &Mapping) -> bool {
    flags_at(mapping.address).iter().any(|flag| flag == "mg")
}

fn may_gain_execution() -> Option<i32> {
    let area = Mapping::private(4096);
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: the mapping is the victim's own.
    let status = unsafe { libc::mprotect(area.address as *mut libc::c_void, area.len, prot) };
    (status != 0)
        .then(|| io::Error::last_os_error().raw_os_error())
        .flatten()
}
