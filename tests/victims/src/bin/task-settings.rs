//! What a process and a thread are set to: directories, umask, names, limits, scheduling, and the many switches of
//! prctl(2) and /proc.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use victims::{Findings, Stage, Team, call, memory::Mapping, own, play, stage::fork, wait_until};

const IOPRIO_WHO_PROCESS: usize = 1;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;

fn main() {
    play(|stage| {
        stage.child("other directories", |stage| {
            let inner = stage.path("root/inner");
            fs::create_dir_all(&inner).expect("a folder");
            std::env::set_current_dir(&inner).expect("change there");
            process_settings(7);
            member(stage)
        });
        stage.child("scheduled otherwise", |stage| {
            limits();
            schedule(libc::SCHED_BATCH, 5, 0);
            stage.child("inherits it", member);
            let mut team = Team::default();
            for (n, policy) in [libc::SCHED_IDLE, libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_OTHER]
                .into_iter()
                .enumerate()
            {
                team.spawn(&format!("thread {n}"), move || thread_member(n, policy));
            }
            let mut own = member(stage);
            move |findings: &mut Findings| {
                own(findings);
                team.check(findings);
            }
        });
        let mut jailed = Jailed::start(stage);
        let mut own = member(stage);
        move |findings: &mut Findings| {
            own(findings);
            jailed.check(findings);
        }
    })
}

/// A child with another root directory, where it can't see the victim's folder: asked and answering in shared memory.
struct Jailed {
    pid: i32,
    round: u32,
    asked: &'static AtomicU32,
    answered: &'static AtomicU32,
    links: Vec<String>,
}

impl Jailed {
    fn start(stage: &Stage) -> Self {
        let inside = stage.path("jail");
        fs::create_dir_all(inside.join("deep")).expect("a folder");
        fs::write(inside.join("mark"), "here").expect("write");
        let page = Mapping::anonymous(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let counter = |n: usize| {
            let place = (page.address as *const AtomicU32).wrapping_add(n);
            // SAFETY: the page is mapped for good, and zeros are good counters.
            unsafe { &*place }
        };
        let (asked, answered) = (counter(0), counter(1));
        let pid = fork(|| {
            std::os::unix::fs::chroot(&inside).expect("chroot");
            std::env::set_current_dir("/deep").expect("change there");
            loop {
                let round = asked.load(Ordering::Relaxed);
                // Only when it is asked: what it has open meanwhile would show.
                let is_asked = round != answered.load(Ordering::Relaxed);
                let here = || std::env::current_dir().is_ok_and(|path| path.as_os_str() == "/deep");
                if is_asked && here() && fs::read_to_string("/mark").is_ok_and(|text| text == "here") {
                    answered.store(round, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut jailed = Self {
            pid,
            round: 0,
            asked,
            answered,
            links: vec![],
        };
        assert!(jailed.answers(), "the jailed child lives");
        jailed.links = jailed.links();
        jailed
    }

    fn links(&self) -> Vec<String> {
        let read = |link| fs::read_link(format!("/proc/{}/{link}", self.pid));
        ["root", "cwd"].map(|link| format!("{:?}", read(link).ok())).into()
    }

    fn answers(&mut self) -> bool {
        self.round += 1;
        self.asked.store(self.round, Ordering::Relaxed);
        wait_until(|| self.answered.load(Ordering::Relaxed) == self.round)
    }

    fn check(&mut self, findings: &mut Findings) {
        findings.same("root and directory of the jailed child", &self.links, &self.links());
        findings.that(self.answers(), "the jailed child finds itself elsewhere");
    }
}

fn process_settings(n: u32) {
    // SAFETY: plain numbers.
    unsafe { libc::umask(0o135) };
    // SAFETY: plain numbers: ADDR_NO_RANDOMIZE and SHORT_INODE.
    unsafe { libc::personality(0x004_0000 | 0x100_0000) };
    let set = |option, value: usize| call::prctl(option, [value, 0, 0, 0]).expect("prctl");
    set(libc::PR_SET_CHILD_SUBREAPER, 1);
    set(libc::PR_SET_PDEATHSIG, libc::SIGUSR2 as usize);
    set(libc::PR_SET_TIMERSLACK, 123_456);
    set(PR_SET_THP_DISABLE, 1);
    set(libc::PR_SET_NAME, c"a) (b\tc".as_ptr() as usize);
    for command in [1 << 2, 1 << 4, 1 << 8] {
        // SAFETY: plain numbers.
        unsafe { call::raw(libc::SYS_membarrier, &[command, 0, 0]) }.expect("register for membarrier");
    }
    fs::write("/proc/self/oom_score_adj", (100 + n).to_string()).expect("oom_score_adj");
    fs::write("/proc/self/coredump_filter", "0x3f").expect("coredump_filter");
}

/// Every limit differs, soft from hard.
fn limits() {
    for resource in 0..16_u32 {
        let n = u64::from(resource);
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: room for the answer.
        unsafe { libc::getrlimit(resource, &raw mut limit) };
        let hard = limit.rlim_max.min((1 << 40) + n);
        let new = libc::rlimit {
            rlim_cur: hard - hard.min(n + 1),
            rlim_max: hard,
        };
        // SAFETY: a valid limit.
        let status = unsafe { libc::setrlimit(resource, &raw const new) };
        assert!(status == 0, "limit {resource}");
    }
}

fn thread_member(n: usize, policy: i32) -> impl FnMut(&mut Findings) {
    let priority = if [libc::SCHED_FIFO, libc::SCHED_RR].contains(&policy) {
        3
    } else {
        0
    };
    schedule(policy, n as i32, priority);
    call::prctl(libc::PR_SET_TIMERSLACK, [77_000 + n, 0, 0, 0]).expect("timer slack");
    call::prctl(libc::PR_SET_PDEATHSIG, [40 + n, 0, 0, 0]).expect("parent death signal");
    let before = thread_settings();
    move |findings| {
        if findings.sabotage() {
            call::prctl(libc::PR_SET_TIMERSLACK, [1, 0, 0, 0]).expect("timer slack");
        }
        findings.same("settings", &before, &thread_settings());
    }
}

fn schedule(policy: i32, nice: i32, priority: i32) {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    let flags = if nice == 2 { libc::SCHED_RESET_ON_FORK } else { 0 };
    // SAFETY: a valid parameter.
    let status = unsafe { libc::sched_setscheduler(0, policy | flags, &raw const parameter) };
    assert!(status == 0, "policy {policy}: {}", std::io::Error::last_os_error());
    // SAFETY: plain numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    let class = 2 << 13 | nice as usize;
    // SAFETY: plain numbers.
    unsafe { call::raw(libc::SYS_ioprio_set, &[IOPRIO_WHO_PROCESS, 0, class]) }.expect("I/O priority");
    let cpus = 1_u64 << (nice % 2);
    let args = [0, 8, &raw const cpus as usize];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_sched_setaffinity, &args) }.expect("affinity");
}

fn thread_settings() -> Vec<String> {
    let mut all = vec![text("thread-self/comm")];
    let mut attributes = [0_u32; 14];
    let args = [0, attributes.as_mut_ptr() as usize, 56, 0];
    // SAFETY: room for 56 bytes.
    let got = unsafe { call::raw(libc::SYS_sched_getattr, &args) };
    all.push(format!("attributes {:?} {attributes:?}", got.is_ok()));
    // SAFETY: plain numbers.
    let priority = unsafe { call::raw(libc::SYS_ioprio_get, &[IOPRIO_WHO_PROCESS, 0]) };
    all.push(format!("I/O priority {:?}", priority.ok()));
    all.push(format!("processors {}", own::status("Cpus_allowed")));
    let mut signal = 0_i32;
    call::prctl(libc::PR_GET_PDEATHSIG, [&raw mut signal as usize, 0, 0, 0]).expect("parent death signal");
    all.push(format!("parent death signal {signal}"));
    all.push(format!(
        "timer slack {:?}",
        call::prctl(libc::PR_GET_TIMERSLACK, [0; 4]).ok()
    ));
    all
}

fn member(_: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let before = settings();
    move |findings| {
        if findings.sabotage() {
            // SAFETY: plain numbers.
            unsafe { libc::umask(0o777) };
        }
        for (before, now) in before.iter().zip(settings()) {
            findings.same("setting", before, &now);
        }
    }
}

fn settings() -> Vec<String> {
    let mut all = thread_settings();
    for file in [
        "cmdline",
        "environ",
        "limits",
        "personality",
        "oom_score_adj",
        "coredump_filter",
    ] {
        all.push(format!("{file}: {}", text(&format!("self/{file}"))));
    }
    all.push(format!("auxv {:?}", fs::read("/proc/self/auxv").ok()));
    for link in ["exe", "cwd", "root"] {
        all.push(format!(
            "{link}: {:?}",
            fs::read_link(format!("/proc/self/{link}")).ok()
        ));
    }
    for key in ["Umask", "THP_enabled", "Threads"] {
        all.push(format!("{key} {}", own::status(key)));
    }
    // SAFETY: plain numbers.
    let registered = unsafe { call::raw(libc::SYS_membarrier, &[1 << 9, 0, 0]) };
    all.push(format!("membarrier {:?}", registered.ok()));
    let mut flag = 0_i32;
    call::prctl(libc::PR_GET_CHILD_SUBREAPER, [&raw mut flag as usize, 0, 0, 0]).expect("subreaper");
    all.push(format!("subreaper {flag}"));
    all.push(format!(
        "huge pages off {:?}",
        call::prctl(PR_GET_THP_DISABLE, [0; 4]).ok()
    ));
    all
}

fn text(file: &str) -> String {
    fs::read(format!("/proc/{file}")).map_or_else(
        |error| error.to_string(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}
