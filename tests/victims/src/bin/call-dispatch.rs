//! Syscall user dispatch: calls that come as SIGSYS. One child has it off by its selector most of the time, one has it
//! always on but for the calls of one function, and one the other way round where the kernel knows that.

use std::{
    arch::asm,
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
};
use victims::{Findings, Team, call, play};

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const EXCLUSIVE: usize = 1;
const INCLUSIVE: usize = 2;
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;
/// A number that no call has.
const NO_CALL: i64 = 4242;
const ENOSYS: i64 = libc::ENOSYS as i64;

thread_local! {
    static SELECTOR: AtomicU8 = const { AtomicU8::new(ALLOW) };
    static CAUGHT: AtomicU32 = const { AtomicU32::new(0) };
}

/// Notes the call; the handler's own return would be caught too, so it lets calls through.
extern "C" fn caught(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SELECTOR.with(|selector| selector.store(ALLOW, Ordering::Relaxed));
    CAUGHT.with(|count| count.fetch_add(1, Ordering::Relaxed));
    // SAFETY: the kernel gives the handler a context and an information of its own.
    let (context, code) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), (*info).si_code) };
    // SYS_USER_DISPATCH: what the call answers.
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = if code == 2 { 77 } else { 78 };
}

fn main() {
    play(|_stage| {
        // SAFETY: a structure of numbers.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler touches the thread's own state alone.
        unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
        let mut team = Team::default();
        team.spawn("blocks now and then", || {
            dispatch(EXCLUSIVE, [0, 0]).expect("dispatch");
            watch()
        });
        team.spawn("lets one place through", || {
            dispatch(EXCLUSIVE, [0x1000, 0x1000]).expect("dispatch");
            watch()
        });
        team.spawn("catches one place", || {
            let page = no_call as *const () as usize & !0xfff;
            let known = dispatch(INCLUSIVE, [page, 0x2000]).is_ok();
            let mut check = watch();
            move |findings: &mut Findings| {
                findings.that(known || answers() == [-ENOSYS; 2], "calls are caught");
                check(findings);
            }
        });
        let spinning = Spinning::start();
        move |findings: &mut Findings| {
            team.check(findings);
            spinning.check(findings);
        }
    })
}

fn dispatch(mode: usize, [start, length]: [usize; 2]) -> std::io::Result<i64> {
    let selector = SELECTOR.with(AtomicU8::as_ptr) as usize;
    call::prctl(PR_SET_SYSCALL_USER_DISPATCH, [mode, start, length, selector])
}

fn watch() -> impl FnMut(&mut Findings) + use<> {
    let before = answers();
    move |findings| {
        if findings.sabotage() {
            call::prctl(PR_SET_SYSCALL_USER_DISPATCH, [0; 4]).expect("dispatch off");
        }
        findings.same("answers with calls let through, and blocked", &before, &answers());
    }
}

/// What a call answers with the selector at either value.
fn answers() -> [i64; 2] {
    let set = |value| SELECTOR.with(|selector| selector.store(value, Ordering::Relaxed));
    set(ALLOW);
    let allowed = no_call();
    set(BLOCK);
    let blocked = no_call();
    set(ALLOW);
    [allowed, blocked]
}

#[inline(never)]
fn no_call() -> i64 {
    let mut answer = NO_CALL;
    // SAFETY: a call that does nothing.
    unsafe { asm!("syscall", inout("rax") answer, out("rcx") _, out("r11") _) };
    answer
}

/// A thread that is stopped while its calls are blocked: it spins, and never makes one.
struct Spinning {
    rounds: &'static AtomicU32,
    lost: &'static AtomicU32,
}

impl Spinning {
    fn start() -> Self {
        let [rounds, lost]: [&'static AtomicU32; 2] = [(); 2].map(|()| &*Box::leak(Box::new(AtomicU32::new(0))));
        std::thread::spawn(|| {
            dispatch(EXCLUSIVE, [0, 0]).expect("dispatch");
            loop {
                SELECTOR.with(|selector| selector.store(BLOCK, Ordering::Relaxed));
                (0..1_000_000).for_each(|_| std::hint::spin_loop());
                if no_call() != 77 {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let spinning = Self { rounds, lost };
        assert!(spinning.counts(), "it spins");
        spinning
    }

    fn counts(&self) -> bool {
        let before = self.rounds.load(Ordering::Relaxed);
        victims::wait_until(|| self.rounds.load(Ordering::Relaxed) > before + 1)
    }

    fn check(&self, findings: &mut Findings) {
        findings.that(self.counts(), "the thread whose calls are blocked does not go on");
        findings.same("calls that were let through", &0, &self.lost.load(Ordering::Relaxed));
    }
}
