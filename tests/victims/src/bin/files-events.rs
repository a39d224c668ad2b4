//! Counters, files of signals, timers that are read, and epoll instances: what each has and says, and what an instance
//! watches, by numbers that are closed by now or stand for other files too.

use std::{io, os::fd::RawFd};
use victims::{Findings, Stage, call, play, stage::fork};

const MINUTE: i64 = 60;

type Check = Box<dyn FnMut(&mut Findings)>;
/// What epoll_wait tells: data, events.
type Told = (u64, u32);

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(counters()),
            Box::new(signals()),
            Box::new(timers()),
            Box::new(processes()),
            Box::new(shared(stage)),
            Box::new(watches()),
            Box::new(moved()),
            Box::new(nested(stage)),
            Box::new(by_its_own_number()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn counters() -> impl FnMut(&mut Findings) {
    // Value and flags.
    let cases = [
        (0_u64, 0),
        (5, libc::EFD_SEMAPHORE),
        (7, libc::EFD_NONBLOCK),
        (u64::MAX - 1, libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE),
    ];
    let counters = cases.map(|(value, flags)| {
        // SAFETY: plain numbers.
        let counter = checked(unsafe { libc::eventfd(0, flags) });
        if value > 0 {
            put(counter, value);
        }
        counter
    });
    move |findings| {
        for ((value, flags), counter) in cases.into_iter().zip(counters) {
            let blocks = flags & libc::EFD_NONBLOCK == 0;
            let status = fcntl(counter, libc::F_GETFL);
            findings.same("O_NONBLOCK of a counter", &blocks, &(status & libc::O_NONBLOCK == 0));
            if findings.sabotage() {
                put(counter, 1);
            }
            if value == 0 {
                findings.same("an empty counter is readable", &false, &is_readable(counter));
                continue;
            }
            let step = if flags & libc::EFD_SEMAPHORE == 0 { value } else { 1 };
            findings.same(format!("read of counter {value}"), &step, &take(counter));
            put(counter, step);
            let lines = info(counter);
            let told = format!("eventfd-count: {value:>16x}");
            findings.that(lines.contains(&told), format!("counter {value}: {lines}"));
        }
    }
}

fn signals() -> impl FnMut(&mut Findings) {
    // 1 << (N - 1) for signal N.
    let mask: u64 = 1 << (libc::SIGUSR2 - 1) | 1 << (40 - 1);
    let how = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &how) }.expect("rt_sigprocmask");
    let args = [usize::MAX, &raw const mask as usize, 8, libc::SFD_NONBLOCK as usize];
    // SAFETY: as above.
    let file = unsafe { call::raw(libc::SYS_signalfd4, &args) }.expect("signalfd4") as RawFd;
    let send = || {
        call::kill(std::process::id() as i32, 40).expect("kill");
        call::kill(std::process::id() as i32, libc::SIGUSR2).expect("kill");
    };
    send();
    move |findings| {
        let mut told = Vec::new();
        // SAFETY: zeros are a valid value.
        let mut one: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        // SAFETY: room for one.
        while unsafe { libc::read(file, (&raw mut one).cast(), size_of_val(&one)) } > 0 {
            told.push((one.ssi_signo as i32, one.ssi_pid));
        }
        let own = std::process::id();
        findings.same("signals read", &vec![(libc::SIGUSR2, own), (40, own)], &told);
        send();
    }
}

fn timers() -> impl FnMut(&mut Findings) {
    let clocks = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM,
        libc::CLOCK_BOOTTIME_ALARM,
    ];
    let long = clocks.map(|clock| {
        let timer = timer(clock);
        set(timer, 0, (10 * MINUTE, 0), (MINUTE, 5));
        timer
    });
    // Until a time of the clock, and a jump of the clock would end it.
    let of_day = timer(libc::CLOCK_REALTIME);
    let end = now(libc::CLOCK_REALTIME) + 10 * MINUTE;
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    set(of_day, flags, (end, 0), (0, 0));
    let idle = timer(libc::CLOCK_MONOTONIC);
    // Not armed, though it has an interval; and not armed, but a jump of the clock would be told.
    let paused = timer(libc::CLOCK_MONOTONIC);
    set(paused, 0, (0, 0), (0, 2_000_000));
    let jumps = timer(libc::CLOCK_REALTIME);
    set(jumps, flags, (0, 0), (0, 0));
    // Expired and not read.
    let expired = timer(libc::CLOCK_MONOTONIC);
    set(expired, 0, (0, 1), (0, 0));
    let pacing = timer(libc::CLOCK_MONOTONIC);
    set(pacing, 0, (0, 1_000_000), (0, 1_000_000));
    // Due soon, whenever that is.
    let due = timer(libc::CLOCK_BOOTTIME);
    set(due, 0, (0, 400_000_000), (0, 0));
    let mut rounds = 0;
    move |findings| {
        for (clock, timer) in clocks.into_iter().zip(long) {
            let (left, interval) = get(timer);
            findings.same(format!("interval of clock {clock}"), &(MINUTE, 5), &interval);
            let range = 8 * MINUTE..=10 * MINUTE;
            findings.that(range.contains(&left.0), format!("clock {clock}: {left:?} left"));
        }
        let left = get(of_day).0.0;
        let should = end - now(libc::CLOCK_REALTIME);
        findings.that(
            (left - should).abs() <= 2,
            format!("{left} left until a time of day, not {should}"),
        );
        findings.that(info(of_day).contains("settime flags: 03"), info(of_day));
        findings.same("idle timer", &((0, 0), (0, 0)), &get(idle));
        findings.same("paused timer", &((0, 0), (0, 2_000_000)), &get(paused));
        findings.same("paused timer is readable", &false, &is_readable(paused));
        findings.that(info(jumps).contains("settime flags: 03"), info(jumps));
        findings.same("timer of jumps", &((0, 0), (0, 0)), &get(jumps));
        findings.same("expired timer is readable", &true, &is_readable(expired));
        findings.that(info(expired).contains("ticks: 1\n"), info(expired));
        findings.that(take(pacing) > 0, "the pace is lost");
        findings.that(take(pacing) > 0, "the pace is lost");
        if rounds == 0 {
            findings.same("expiries of the one that was due", &1, &take(due));
        }
        rounds += 1;
        findings.same("the one that was due is readable", &false, &is_readable(due));
    }
}

/// Descriptors of the victim itself, and of a child that ends in the check, which epoll watches too.
fn processes() -> impl FnMut(&mut Findings) {
    const THREAD: i32 = libc::O_EXCL;
    let open = |pid: i32, flags: i32| {
        // SAFETY: plain numbers.
        checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as i32)
    };
    let child = || {
        fork(|| {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        })
    };
    let own = std::process::id() as i32;
    let (whole, thread) = (open(own, 0), open(own, THREAD));
    let instance = epoll();
    let dead = {
        let pid = fork(|| std::process::exit(0));
        let dead = open(pid, 0);
        // SAFETY: no status is wanted.
        checked(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) });
        dead
    };
    let mut pid = child();
    let mut of_child = open(pid, libc::O_NONBLOCK);
    watch(instance, libc::EPOLL_CTL_ADD, of_child, libc::EPOLLIN as u32, 5);
    move |findings| {
        let told = |file: RawFd| {
            let text = info(file);
            let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|ids| ids.split_whitespace().last()?.parse::<i32>().ok())
        };
        for (file, who, flags) in [
            (whole, own, 0),
            (thread, own, THREAD),
            (of_child, pid, libc::O_NONBLOCK),
        ] {
            findings.same("process of a pidfd", &Some(who), &told(file));
            let has = fcntl(file, libc::F_GETFL) & (libc::O_NONBLOCK | THREAD);
            findings.same("flags of a pidfd", &flags, &has);
            findings.same("a pidfd of the living is readable", &false, &is_readable(file));
        }
        if findings.sabotage() {
            call::close(whole);
        }
        findings.that(info(dead).contains("Pid:\t-1\n"), info(dead));
        findings.same("a pidfd of the dead is readable", &true, &is_readable(dead));
        findings.same("what epoll tells", &Vec::<Told>::new(), &wait(instance));
        // SAFETY: numbers, and no information about the signal.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, of_child, libc::SIGKILL, 0, 0) };
        findings.same("signal by a pidfd", &0, &sent);
        let ended = victims::wait_until(|| is_readable(of_child));
        findings.that(ended, "the end of a process is not told");
        let told: Vec<Told> = vec![(5, libc::EPOLLIN as u32)];
        findings.same("what epoll tells", &told, &wait(instance));
        // SAFETY: a structure of zeros, which the kernel fills.
        let (waited, about) = unsafe {
            let mut about: libc::siginfo_t = std::mem::zeroed();
            let waited = libc::waitid(libc::P_PIDFD, of_child as u32, &raw mut about, libc::WEXITED);
            (waited, about.si_pid())
        };
        findings.same("process that was waited for", &(0, pid), &(waited, about));
        // Children have it too, so closing alone does not end the watch.
        watch(instance, libc::EPOLL_CTL_DEL, of_child, 0, 0);
        call::close(of_child);
        pid = child();
        of_child = open(pid, libc::O_NONBLOCK);
        watch(instance, libc::EPOLL_CTL_ADD, of_child, libc::EPOLLIN as u32, 5);
    }
}

/// One counter by several numbers and in two processes.
fn shared(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    // SAFETY: plain numbers.
    let counter = checked(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
    // SAFETY: as above.
    let other = checked(unsafe { libc::dup(counter) });
    stage.child("with a shared counter", |_| move |_: &mut Findings| put(counter, 3));
    move |findings| {
        put(other, 4);
        // The child adds to it at its own time.
        let mut sum = 0;
        victims::wait_until(|| {
            sum += if is_readable(counter) { take(counter) } else { 0 };
            sum >= 7
        });
        findings.same("sum in a shared counter", &7, &sum);
    }
}

fn watches() -> impl FnMut(&mut Findings) {
    let instance = epoll();
    let [reads, writes] = call::pipe(0);
    let [full, _other] = call::pipe(0);
    let events = [
        (reads, libc::EPOLLIN as u32, 1),
        (writes, (libc::EPOLLOUT | libc::EPOLLET) as u32, u64::MAX),
        (full, (libc::EPOLLIN | libc::EPOLLONESHOT) as u32, 0xdead_beef_1234_5678),
    ];
    for (file, events, data) in events {
        watch(instance, libc::EPOLL_CTL_ADD, file, events, data);
    }
    wait(instance);
    let before = sorted(instance);
    move |findings| {
        if findings.sabotage() {
            watch(instance, libc::EPOLL_CTL_DEL, reads, 0, 0);
        }
        findings.same("watches", &before, &sorted(instance));
        write_byte(writes);
        let told = wait(instance);
        findings.that(
            told.contains(&(1, libc::EPOLLIN as u32)),
            format!("a pipe with a byte: {told:?}"),
        );
        read_byte(reads);
        // By number: it is the one that it was added by.
        watch(
            instance,
            libc::EPOLL_CTL_MOD,
            writes,
            (libc::EPOLLOUT | libc::EPOLLET) as u32,
            u64::MAX,
        );
        let told = wait(instance);
        findings.that(
            told.contains(&(u64::MAX, libc::EPOLLOUT as u32)),
            format!("a pipe with room: {told:?}"),
        );
    }
}

/// Files whose numbers were closed or given to others, and watched by two numbers.
fn moved() -> impl FnMut(&mut Findings) {
    let instance = epoll();
    // SAFETY: plain numbers.
    let dup = |file: RawFd| checked(unsafe { libc::dup(file) });
    // SAFETY: as above.
    let close = |file: RawFd| checked(unsafe { libc::close(file) });
    let [closed_reads, closed_writes] = call::pipe(0);
    let closed = dup(closed_reads);
    watch(instance, libc::EPOLL_CTL_ADD, closed, libc::EPOLLIN as u32, 11);
    let [reused_reads, reused_writes] = call::pipe(0);
    let reused = dup(reused_reads);
    watch(instance, libc::EPOLL_CTL_ADD, reused, libc::EPOLLIN as u32, 12);
    let [new_reads, new_writes] = call::pipe(0);
    // The number stands for another file, which is watched by it too.
    // SAFETY: plain numbers.
    checked(unsafe { libc::dup2(new_reads, reused) });
    watch(instance, libc::EPOLL_CTL_ADD, reused, libc::EPOLLIN as u32, 13);
    close(closed);
    let before = sorted(instance);
    let pairs = [
        (closed_reads, closed_writes, 11),
        (reused_reads, reused_writes, 12),
        (new_reads, new_writes, 13),
    ];
    move |findings| {
        findings.same("watches by other numbers", &before, &sorted(instance));
        for (reads, writes, data) in pairs {
            write_byte(writes);
            findings.same(
                format!("told of {data}"),
                &vec![(data, libc::EPOLLIN as u32)],
                &wait(instance),
            );
            read_byte(reads);
        }
        findings.same("told of none", &Vec::new(), &wait(instance));
        let (one, other) = (link(reused), link(new_reads));
        findings.same("number given to another file", &other, &one);
        findings.same("its flags", &0, &fcntl(reused, libc::F_GETFD));
    }
}

/// An instance that watches a file by the number that is its own by now.
fn by_its_own_number() -> impl FnMut(&mut Findings) {
    let instance = epoll();
    let [reads, writes] = call::pipe(0);
    // SAFETY: plain numbers.
    let number = checked(unsafe { libc::dup(reads) });
    watch(instance, libc::EPOLL_CTL_ADD, number, libc::EPOLLIN as u32, 31);
    // SAFETY: as above.
    checked(unsafe { libc::dup2(instance, number) });
    // SAFETY: as above.
    checked(unsafe { libc::close(instance) });
    let before = sorted(number);
    move |findings| {
        findings.same("watches by its own number", &before, &sorted(number));
        write_byte(writes);
        findings.same("told by it", &vec![(31, libc::EPOLLIN as u32)], &wait(number));
        read_byte(reads);
        findings.same("told by it of none", &Vec::new(), &wait(number));
    }
}

/// An instance that watches another one, and a child that has both; what it watches only the child has open.
fn nested(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (outer, inner) = (epoll(), epoll());
    let [reads, writes] = call::pipe(0);
    watch(inner, libc::EPOLL_CTL_ADD, reads, libc::EPOLLIN as u32, 21);
    watch(outer, libc::EPOLL_CTL_ADD, inner, libc::EPOLLIN as u32, 22);
    stage.child("with the watched end", move |_| {
        move |findings: &mut Findings| {
            findings.that(link(reads).starts_with("pipe:"), "the watched end is lost");
        }
    });
    // SAFETY: a number.
    checked(unsafe { libc::close(reads) });
    let before = (sorted(outer), sorted(inner));
    move |findings| {
        findings.same("nested watches", &before, &(sorted(outer), sorted(inner)));
        if before.0.is_empty() {
            findings.add("nothing is watched");
        }
        write_byte(writes);
        findings.same("outer", &vec![(22, libc::EPOLLIN as u32)], &wait(outer));
        findings.same("inner", &vec![(21, libc::EPOLLIN as u32)], &wait(inner));
        // Only the child has the other end, so the byte stays there; the next check finds it, and one more.
    }
}

fn checked(result: i32) -> i32 {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

fn fcntl(file: RawFd, command: i32) -> i32 {
    // SAFETY: commands without arguments.
    unsafe { libc::fcntl(file, command) }
}

fn put(counter: RawFd, value: u64) {
    // SAFETY: eight bytes are read.
    let written = unsafe { libc::write(counter, (&raw const value).cast(), 8) };
    assert!(written == 8, "write to a counter: {}", io::Error::last_os_error());
}

fn take(counter: RawFd) -> u64 {
    let mut value = 0_u64;
    // SAFETY: room for eight bytes.
    let got = unsafe { libc::read(counter, (&raw mut value).cast(), 8) };
    assert!(got == 8, "read of a counter or timer: {}", io::Error::last_os_error());
    value
}

fn is_readable(file: RawFd) -> bool {
    let mut asked = libc::pollfd {
        fd: file,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut asked, 1, 0) == 1 }
}

fn write_byte(file: RawFd) {
    // SAFETY: one byte is read.
    assert!(unsafe { libc::write(file, c"x".as_ptr().cast(), 1) } == 1);
}

fn read_byte(file: RawFd) {
    let mut byte = 0_u8;
    // SAFETY: room for one byte.
    assert!(unsafe { libc::read(file, (&raw mut byte).cast(), 1) } == 1);
}

fn info(file: RawFd) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{file}")).expect("fdinfo")
}

fn link(file: RawFd) -> String {
    let target = std::fs::read_link(format!("/proc/self/fd/{file}")).expect("a link");
    target.to_string_lossy().into_owned()
}

fn timer(clock: i32) -> RawFd {
    // SAFETY: plain numbers.
    checked(unsafe { libc::timerfd_create(clock, 0) })
}

type Time = (i64, i64);

fn set(timer: RawFd, flags: i32, value: Time, interval: Time) {
    let time = |(tv_sec, tv_nsec): Time| libc::timespec { tv_sec, tv_nsec };
    let new = libc::itimerspec {
        it_interval: time(interval),
        it_value: time(value),
    };
    // SAFETY: `new` is read.
    checked(unsafe { libc::timerfd_settime(timer, flags, &raw const new, std::ptr::null_mut()) });
}

/// What is left, and the interval.
fn get(timer: RawFd) -> (Time, Time) {
    // SAFETY: zeros are valid times.
    let mut now: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer.
    checked(unsafe { libc::timerfd_gettime(timer, &raw mut now) });
    let pair = |time: libc::timespec| (time.tv_sec, time.tv_nsec);
    (pair(now.it_value), pair(now.it_interval))
}

fn now(clock: i32) -> i64 {
    // SAFETY: zeros are a valid time, and there is room for the answer.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    checked(unsafe { libc::clock_gettime(clock, &raw mut time) });
    time.tv_sec
}

fn epoll() -> RawFd {
    // SAFETY: a number.
    checked(unsafe { libc::epoll_create1(0) })
}

fn watch(instance: RawFd, what: i32, file: RawFd, events: u32, data: u64) {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the event is read.
    checked(unsafe { libc::epoll_ctl(instance, what, file, &raw mut event) });
}

/// What it tells without waiting.
fn wait(instance: RawFd) -> Vec<Told> {
    let mut room = [libc::epoll_event { events: 0, u64: 0 }; 8];
    // SAFETY: room for eight.
    let got = checked(unsafe { libc::epoll_wait(instance, room.as_mut_ptr(), 8, 0) });
    room[..got as usize]
        .iter()
        .map(|event| (event.u64, event.events))
        .collect()
}

/// What it watches: number, events, data.
fn sorted(instance: RawFd) -> Vec<String> {
    let text = info(instance);
    let watched = text.lines().filter(|line| line.starts_with("tfd:"));
    let mut watched: Vec<String> = watched
        .map(|line| line.split("pos:").next().unwrap_or_default().trim().to_owned())
        .collect();
    watched.sort();
    watched
}
