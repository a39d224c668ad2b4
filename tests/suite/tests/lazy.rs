//! `restore --lazy`: memory that comes while the tree runs is what it was, whatever the tree does meanwhile and whoever is
//! killed; or the sandbox is ended. Nothing of it is left when all is there.

use floe_suite::{Host, PID_METHODS, Program, Traces, Victim, has, run, signal, source, spawn, until, wait};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    fs,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const VICTIM: &str = "memory-comes";
const MEANWHILE: &str = "memory-meanwhile";
/// Descriptors that floe may have.
const FEW: usize = 64;
/// Pages of each of its five fields.
const PAGES: &str = "6144";
/// So many that they come for a while.
const MANY_PAGES: &str = "20480";
const END: &str = "the sandbox is ended";

/// Processes of one restore, by what they call themselves: the two that bring pages, the guard first, and the monitor.
struct Around {
    guard: i32,
    server: i32,
    monitor: i32,
}

/// Processes with this name that were begun for a host's image.
fn named(host: &Host, name: &str) -> Vec<i32> {
    let mine = host.path("").display().to_string();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == name && read("cmdline").contains(&mine)
    };
    numbers.filter(is_one).collect()
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind = stat.rsplit_once(") ").map_or("", |(_, behind)| behind);
    behind
        .split(' ')
        .nth(1)
        .map_or(0, |text| text.parse().expect("a number"))
}

impl Around {
    /// `None` where all memory is there already.
    fn find(host: &Host) -> Option<Self> {
        let pages = named(host, "floe-pages");
        // Each is asked once: it may end at any time, and then has no parent.
        let mut both = pages.iter().map(|pid| (parent(*pid), *pid));
        let (guard, server) = both.find(|(above, _)| pages.contains(above))?;
        let monitor = named(host, "floe-monitor").pop()?;
        Some(Self { guard, server, monitor })
    }
}

fn image(host: &Host) -> String {
    host.path("image.floe").display().to_string()
}

/// A saved victim.
fn saved<'a>(host: &'a Host, pages: &str) -> Victim<'a> {
    let victim = Victim::start(host, VICTIM, &[], &[pages]);
    host.done(&["checkpoint", VICTIM, "-o", &image(host)]);
    victim
}

fn all_is_there(host: &Host) {
    until("all memory", || named(host, "floe-pages").is_empty());
}

/// Nothing is looked after any more.
fn expect_nothing_left(host: &Host, sandbox: &str) {
    all_is_there(host);
    let pid = host.pid1(sandbox);
    let mappings = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
    let flags = mappings.lines().filter(|line| line.starts_with("VmFlags:"));
    let watched: Vec<&str> = flags.filter(|line| line.split(' ').any(|flag| flag == "um")).collect();
    assert!(watched.is_empty(), "{watched:?}");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        assert!(!target.to_string_lossy().contains("userfaultfd"), "{target:?}");
    }
}

#[test]
fn comes_whole_while_it_is_used() {
    let host = Host::new();
    let mut victim = saved(&host, PAGES);
    for (round, name) in [VICTIM, "another", VICTIM].iter().enumerate() {
        if round > 0 {
            host.done(&["checkpoint", &victim.sandbox, "-o", &image(&host)]);
        }
        let method = PID_METHODS[round % 2];
        let line = [
            "restore",
            "-d",
            "--lazy",
            "--name",
            name,
            "--pid-method",
            method,
            &image(&host),
        ];
        let outcome = host.floe(&line);
        assert!(outcome.err.contains("to come"), "{}", outcome.err);
        assert_eq!(outcome.expect_done().trim(), *name);
        (*name).clone_into(&mut victim.sandbox);
        victim.check(&format!("in round {round}"));
        expect_nothing_left(&host, name);
    }
}

/// Another victim, which does one thing, saved.
fn saved_to<'a>(host: &'a Host, what: &str) -> Victim<'a> {
    let victim = Victim::start(host, MEANWHILE, &[], &[MANY_PAGES, what]);
    host.done(&["checkpoint", MEANWHILE, "-o", &image(host)]);
    victim
}

/// Restores, and holds memory back until the victim has done its part. How much it did while memory came. Where all memory came
/// before the first thread was stopped, it is saved and restored again.
fn restored_and_held_back(host: &Host) -> usize {
    for _ in 0..10 {
        host.done(&["restore", "-d", "--lazy", &image(host)]);
        let done = Around::find(host).map_or(0, |around| around.held_back(host));
        if done > 0 {
            return done;
        }
        all_is_there(host);
        host.done(&["checkpoint", MEANWHILE, "-o", &image(host)]);
    }
    0
}

impl Around {
    /// By stopping threads of the server again and again: those that bring what nobody waits for yet.
    fn held_back(&self, host: &Host) -> usize {
        let mut held = Vec::new();
        while meanwhile(host) == 0 && named(host, "floe-pages").contains(&self.server) {
            let more = self.ahead().filter(|thread| !held.contains(thread));
            // Those that end meanwhile are no matter.
            let more: Vec<_> = more
                .filter(|thread| ptrace::seize(*thread, ptrace::Options::empty()).is_ok())
                .collect();
            held.extend(more);
            held.retain(|thread| is_stopped(*thread));
            std::thread::sleep(Duration::from_millis(200));
            // They may hold locks that the others need.
            held.retain(|thread| ptrace::cont(*thread, None).is_ok());
        }
        for thread in held {
            if is_stopped(thread) {
                let _ = ptrace::detach(thread, None);
            }
        }
        meanwhile(host)
    }

    fn ahead(&self) -> impl Iterator<Item = Pid> {
        let tasks = format!("/proc/{}/task", self.server);
        let threads = fs::read_dir(&tasks).into_iter().flatten().flatten();
        let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        let name = move |thread: &i32| fs::read_to_string(format!("{tasks}/{thread}/comm")).unwrap_or_default();
        threads
            .filter(move |thread| name(thread).trim() == "floe-ahead")
            .map(Pid::from_raw)
    }
}

/// Whether a thread that is traced has stopped when it was told so.
fn is_stopped(thread: Pid) -> bool {
    let stopped = |status| matches!(status, Ok(WaitStatus::PtraceEvent(..)));
    ptrace::interrupt(thread).is_ok() && stopped(waitpid(thread, Some(WaitPidFlag::__WALL)))
}

/// How much it did while memory came.
fn meanwhile(host: &Host) -> usize {
    let note = host.path(&format!("stage-{MEANWHILE}")).join("meanwhile");
    let note = fs::read_to_string(note).unwrap_or_default();
    // It may not be all there yet.
    note.strip_suffix('\n').and_then(|note| note.parse().ok()).unwrap_or(0)
}

#[test]
fn more_children_than_descriptors_come_and_go() {
    let host = Host::behind(&["prlimit", &format!("--nofile={FEW}")]);
    let mut victim = saved_to(&host, "children");
    let children = restored_and_held_back(&host);
    assert!(children > 2 * FEW, "only {children}");
    victim.check("with children");
    expect_nothing_left(&host, MEANWHILE);
}

#[test]
fn threads_unmap_and_move_what_others_have_left() {
    let host = Host::new();
    let mut victim = saved_to(&host, "threads");
    assert!(restored_and_held_back(&host) > 0);
    victim.check("moved about");
    expect_nothing_left(&host, MEANWHILE);
}

#[test]
fn what_a_child_does_not_get_does_not_come_to_it() {
    let host = Host::new();
    let mut victim = saved_to(&host, "not-inherited");
    assert!(restored_and_held_back(&host) > 0);
    // While the child lives.
    expect_nothing_left(&host, MEANWHILE);
    victim.check("with a child");
}

#[test]
fn a_stream_in_the_foreground() {
    let host = Host::new();
    let mut victim = saved(&host, "2048");
    let mut command = host.command(&["restore", "--lazy", "-"]);
    let stream = fs::File::open(image(&host)).expect("the image");
    let floe = spawn(command.stdin(stream).stdout(Stdio::null()));
    until("the sandbox", || host.state(VICTIM) == "running");
    victim.check("out of a stream");
    host.done(&["kill", VICTIM]);
    assert_eq!(wait(floe), 137);
    all_is_there(&host);
}

#[test]
fn is_saved_again_frozen_and_looked_into_while_it_comes() {
    let host = Host::new();
    let mut victim = saved(&host, PAGES);
    let restore = ["restore", "-d", "--lazy", &image(&host)];
    for round in 0..3 {
        host.done(&restore);
        host.done(&["checkpoint", VICTIM, "-o", &image(&host)]);
        if round == 0 {
            host.done(&["restore", "-d", &image(&host)]);
            victim.check("at once, of what was saved while it came");
            host.done(&["checkpoint", VICTIM, "-o", &image(&host)]);
        }
    }
    host.done(&restore);
    host.done(&["freeze", VICTIM]);
    assert_eq!(host.state(VICTIM), "frozen");
    host.done(&["ps", VICTIM]);
    // It comes to who stands still, too.
    all_is_there(&host);
    host.done(&["thaw", VICTIM]);
    assert_eq!(host.done(&["exec", VICTIM, "--", "echo", "there"]), "there\n");
    victim.check("thawed");
    host.done(&["kill", VICTIM]);
    host.done(&["rm", "-f", VICTIM]);
    // Ended while it comes.
    host.done(&restore);
    host.done(&["rm", "-f", VICTIM]);
    all_is_there(&host);
}

/// Restores lazily, has somebody killed after a while, and expects that the victim is whole or is ended. Whether it was ended.
fn killed(host: &Host, delay: Duration, whom: &dyn Fn(&Around) -> Vec<i32>, when: &str) -> bool {
    let folder = host.path(&format!("stage-{VICTIM}"));
    host.done(&["restore", "-d", "--lazy", &image(host)]);
    let pid1 = host.pid1(VICTIM);
    std::thread::sleep(delay);
    if let Some(around) = Around::find(host) {
        for pid in whom(&around) {
            // It may have ended since, or because of the other.
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    all_is_there(host);
    // Its monitor may be dead, and not tell.
    let is_ended = || {
        let stat = fs::read_to_string(format!("/proc/{pid1}/stat")).unwrap_or_default();
        !stat.contains(VICTIM) || stat.contains(") Z")
    };
    let round = fs::read_dir(&folder).expect("its folder").count();
    let (question, answer) = (
        folder.join(format!("check.{round}")),
        folder.join(format!("result.{round}")),
    );
    fs::write(&question, "").expect("ask the victim");
    let mut ended = false;
    until(&format!("a word of the victim, or its end, {when}"), || {
        ended = is_ended();
        ended || answer.exists()
    });
    if !ended {
        assert_eq!(fs::read_to_string(&answer).expect("what it says"), "ok", "{when}");
    }
    let log = host.floe(&["logs", VICTIM]).out;
    assert!(!log.contains("FAIL"), "{when}: {log}");
    // Only a monitor writes the log.
    if ended && host.state(VICTIM) != "lost" {
        until("its status", || host.state(VICTIM) == "exited");
        let log = host.floe(&["logs", VICTIM]).out;
        assert!(log.contains(END), "{when}: {log}");
    }
    host.done(&["rm", "-f", VICTIM]);
    all_is_there(host);
    // A new life counts anew.
    for entry in fs::read_dir(&folder).expect("its folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("check.") || name.starts_with("result.") {
            fs::remove_file(entry.path()).expect("remove it");
        }
    }
    ended
}

#[test]
fn whoever_is_killed_it_is_whole_or_ended() {
    let host = Host::new();
    drop(saved(&host, PAGES));
    type Choice = (&'static str, fn(&Around) -> Vec<i32>);
    let choices: [Choice; 6] = [
        ("the server", |around| vec![around.server]),
        ("the guard", |around| vec![around.guard]),
        ("server and guard", |around| vec![around.server, around.guard]),
        ("guard and server", |around| vec![around.guard, around.server]),
        ("the monitor and the server", |around| {
            vec![around.monitor, around.server]
        }),
        ("the monitor and the guard", |around| vec![around.monitor, around.guard]),
    ];
    for (who, whom) in choices {
        let mut ended = 0;
        for delay in [0, 20, 60, 150] {
            let when = format!("{who} killed after {delay} ms");
            ended += i32::from(killed(&host, Duration::from_millis(delay), &whom, &when));
        }
        assert!(who == "the guard" || ended > 0, "{who}: always too late");
    }
}

#[test]
fn a_monitor_that_is_killed_alone_changes_nothing() {
    let host = Host::new();
    let mut victim = saved(&host, PAGES);
    host.done(&["restore", "-d", "--lazy", &image(&host)]);
    let monitor = named(&host, "floe-monitor").pop().expect("the monitor");
    signal(monitor, libc::SIGKILL);
    victim.check("without its monitor");
    all_is_there(&host);
}

#[test]
fn an_image_that_is_damaged_later_ends_the_sandbox() {
    let host = Host::new();
    drop(saved(&host, PAGES));
    let whole = fs::read(image(&host)).expect("the image");
    let other = vec![7; whole.len()];
    let (mut cut, mut ended) = (true, 0);
    for _ in 0..6 {
        fs::write(image(&host), &whole).expect("write the image");
        host.done(&["restore", "-d", "--lazy", &image(&host)]);
        let file = fs::File::options().write(true).open(image(&host)).expect("the image");
        if cut {
            file.set_len(1000).expect("cut it short");
        } else {
            file.write_all_at(&other, 0).expect("write over it");
        }
        all_is_there(&host);
        if host.state(VICTIM) == "running" {
            // It was quick.
            host.done(&["kill", VICTIM]);
        } else {
            let log = host.floe(&["logs", VICTIM]).out;
            assert!(log.contains("the chunk of pages") && log.contains(END), "{log}");
            (ended, cut) = (ended + 1, !cut);
        }
        host.done(&["rm", "-f", VICTIM]);
    }
    assert!(ended > 1, "always too late");
}

#[test]
fn a_restore_that_fails_or_is_killed_leaves_nothing() {
    let host = Host::new();
    let folder = host.folder("nothing");
    let name = host.name("nothing");
    drop(Victim::start_as(&name, &host, VICTIM, &[], &["1024"]));
    host.done(&["checkpoint", &name, "-o", &image(&host)]);
    let before = Traces::look(&host, &[&name], &[&folder]);
    let line = ["restore", "-d", "--lazy", &image(&host)];
    for stage in host.done(&["restore", "--stages"]).lines() {
        for how in ["", ":panic"] {
            let outcome = run(host.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            assert_ne!(outcome.status, 0, "{stage}{how}");
            before.expect_again(&host, &[&name], &[&folder], &format!("after a failure at {stage}{how}"));
        }
    }
    let begun = Instant::now();
    host.done(&line);
    let whole = begun.elapsed();
    host.done(&["rm", "-f", &name]);
    for number in 0..60 {
        let mut floe = spawn(host.command(&line).stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(whole * number / 50);
        floe.kill().expect("kill floe");
        assert!(matches!(wait(floe), 0 | 137));
        // It came about, or nothing of it is left: PID 1 is there or not.
        until("the end of what was begun", || {
            let state = host.state(&name);
            state == "running" || state == "none"
        });
        if host.state(&name) == "running" {
            host.done(&["rm", "-f", &name]);
        }
        before.expect_again(&host, &[&name], &[&folder], &format!("killed at {number} of 50"));
    }
}

#[test]
fn an_ordinary_user_gets_it_at_once_and_is_told() {
    let host = Host::of_ordinary_user();
    let mut victim = saved(&host, "1024");
    let outcome = host.floe(&["restore", "-d", "--lazy", &image(&host)]);
    assert!(outcome.err.contains("memory came at once: "), "{}", outcome.err);
    assert_eq!(outcome.expect_done().trim(), VICTIM);
    victim.check("all at once");
}

/// Saved and restored lazily a few times, each time at once again.
fn round_trips(host: &Host, program: &Program<'_>) {
    for round in 0..5 {
        // No race is waited for: any moment will do.
        std::thread::sleep(Duration::from_millis(100));
        host.done(&["checkpoint", &program.name, "-o", &program.image]);
        let method = PID_METHODS[round % 2];
        host.done(&["restore", "-d", "--lazy", "--pid-method", method, &program.image]);
    }
}

#[test]
fn the_java_virtual_machine_under_load() {
    let host = Host::new();
    if !has("javac") {
        return;
    }
    let folder = host.folder("java");
    fs::copy(source("Load.java"), folder.join("Load.java")).expect("copy");
    let built = Command::new("javac").arg(folder.join("Load.java")).status();
    assert!(built.expect("javac").success());
    let program = Program::start(&host, "java", &["java", "-Xmx256m", "Load"]);
    program.await_file("ready");
    round_trips(&host, &program);
    program.finish();
    assert_eq!(program.result(), "connected true\nwhole true\n");
}

#[test]
fn redis_under_load() {
    let host = Host::new();
    if !has("redis-server") {
        return;
    }
    let folder = host.folder("redis");
    fs::copy(source("redis.sh"), folder.join("redis.sh")).expect("copy");
    let program = Program::start_with(&host, "redis", &["--net", "none"], &["bash", "redis.sh"]);
    program.await_file("ready");
    round_trips(&host, &program);
    program.finish();
    let log = fs::read_to_string(program.file("server.log")).unwrap_or_default();
    assert_eq!(program.result(), "counted\ncounted\nended 0\n", "{log}");
}
