//! A checkpoint in the background: the tree runs on while its memory is being saved, the image is of one instant all the same,
//! and nothing of the saving is left in the tree.

use floe_suite::{Host, PID_METHODS, Program, Traces, Victim, has, run, source, spawn, times, until, wait};
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

const VICTIM: &str = "memory-in-motion";

/// Numbers of the tasks of a sandbox, in there, and how many children each has, zombies among them.
fn tasks(host: &Host, sandbox: &str) -> Vec<String> {
    let tasks: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json", sandbox])).expect("JSON");
    let tell = |task: &serde_json::Value| {
        let pid = &task["nspid"][0];
        // It may have ended since.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_ascii_whitespace().count();
        format!("{} {} {} {children}", task["nspid"][1], task["ppid"], task["threads"])
    };
    tasks.as_array().expect("a list").iter().map(tell).collect()
}

#[test]
fn an_image_of_one_instant() {
    an_image_of_one_instant_on(&Host::new());
}

#[test]
fn an_image_of_one_instant_of_an_ordinary_user() {
    an_image_of_one_instant_on(&Host::of_ordinary_user());
}

fn an_image_of_one_instant_on(host: &Host) {
    const IMAGES: usize = 4;
    let mut victim = Victim::start(host, VICTIM, &[], &[]);
    let before = tasks(host, VICTIM);
    let image = |number: usize| host.path(&format!("{number}.floe")).display().to_string();
    for number in 0..IMAGES {
        host.done(&["checkpoint", VICTIM, "--background", "-o", &image(number)]);
        assert_eq!(tasks(host, VICTIM), before, "after checkpoint {number}");
    }
    victim.check("after all of them");
    for number in 0..IMAGES {
        host.done(&["rm", "-f", VICTIM]);
        host.done(&["restore", "-d", "--pid-method", PID_METHODS[number % 2], &image(number)]);
        victim.check(&format!("restored from image {number}"));
        assert_eq!(tasks(host, VICTIM), before, "restored from image {number}");
    }
}

/// More than the script has in memory that is saved while it stands still.
const STOPPED: usize = 8 << 20;

/// Random memory in a parent and a child that share a part of it, and what a program may do while the output waits.
const SCRIPT: &str = r#"
import hashlib, mmap, os, signal, sys, time
def there(name): return os.path.exists(name)
def say(name, what=""):
    with open(name + ".new", "w") as f: f.write(what)
    os.rename(name + ".new", name)
def await_(name):
    while not there(name): time.sleep(0.003)
common = os.urandom(4 << 20)
inherited = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
inherited[:4 << 20] = common
wiped = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
wiped[:] = os.urandom(2 << 20)
wiped.madvise(18)  # MADV_WIPEONFORK
kept = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kept[:] = os.urandom(2 << 20)
kept.madvise(mmap.MADV_DONTFORK)
shared = mmap.mmap(-1, 2 << 20)
shared[:] = os.urandom(2 << 20)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    own = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    own[:] = os.urandom(16 << 20)
    os.close(reader)
    def digest(): return hashlib.blake2b(bytes(inherited) + bytes(own)).hexdigest()
    before = digest()
    say("child")
    await_("go")
    if there("first"):
        own.madvise(mmap.MADV_DONTNEED)
        own.close()
        os.close(writer)
        os.execvp("sleep", ["sleep", "1000"])
    say("child-verdict", "same" if digest() == before else "differs")
    signal.pause()
os.close(writer)
memory = bytearray(os.urandom(32 << 20))
def digest():
    return hashlib.blake2b(bytes(memory) + bytes(inherited) + bytes(wiped) + bytes(kept) + bytes(shared)).hexdigest()
before = digest()
await_("child")
say("ready")
await_("go")
if there("first"):
    for i in range(0, len(memory), 4096): memory[i] = 1
    inherited[:] = bytes(8 << 20)
    wiped.close()
    shared[:] = bytes(2 << 20)
    # The child's is the only end, unless somebody else holds it open.
    say("end", repr(os.read(reader, 1)))
    os.kill(child, signal.SIGKILL)
    say("reaped", repr(os.wait()[0] == child))
    await_("saved")
    try: os.waitpid(-1, 0x40000000)  # __WALL
    except ChildProcessError: say("childless")
else:
    say("verdict", "same" if digest() == before else "differs")
signal.pause()
"#;

/// A checkpoint whose output takes nothing behind the first bytes, by which the tree runs on.
fn begin_to_save(host: &Host, name: &str) -> (Child, ChildStdout, Vec<u8>) {
    let mut saving = host.command(&["checkpoint", name, "--background", "-o", "-"]);
    let saving = saving.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut saving = saving.expect("start floe");
    let mut output = saving.stdout.take().expect("a pipe");
    let mut image = vec![0; STOPPED];
    if output.read_exact(&mut image).is_err() {
        let ended = saving.wait_with_output().expect("the end of floe");
        panic!("{}", String::from_utf8_lossy(&ended.stderr));
    }
    (saving, output, image)
}

/// The output takes nothing, so the copies have to wait; what the tree does meanwhile does not show in the image, and what
/// it closes is closed.
#[test]
fn what_the_tree_does_meanwhile_is_not_in_the_image() {
    what_the_tree_does_meanwhile_is_not_in_the_image_on(&Host::new());
}

#[test]
fn what_the_tree_does_meanwhile_is_not_in_the_image_of_an_ordinary_user() {
    what_the_tree_does_meanwhile_is_not_in_the_image_on(&Host::of_ordinary_user());
}

fn what_the_tree_does_meanwhile_is_not_in_the_image_on(host: &Host) {
    let (name, folder) = (host.name("meanwhile"), host.folder("meanwhile"));
    let place = folder.display().to_string();
    host.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", SCRIPT,
    ]);
    until("its state", || folder.join("ready").exists());
    let (saving, mut output, mut image) = begin_to_save(host, &name);
    fs::write(folder.join("first"), "").expect("tell it that it is the first");
    fs::write(folder.join("go"), "").expect("tell it to go on");
    let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    until("the pipe's end", || folder.join("end").exists());
    assert_eq!(text("end"), "b''", "somebody held the pipe open");
    until("the child's end", || folder.join("reaped").exists());
    assert_eq!(text("reaped"), "True");
    output.read_to_end(&mut image).expect("the rest");
    let ended = saving.wait_with_output().expect("the end of floe");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    fs::write(folder.join("saved"), "").expect("tell it that the image is complete");
    until("that it has no child", || folder.join("childless").exists());
    host.done(&["rm", "-f", &name]);
    fs::remove_file(folder.join("first")).expect("the restored one is the second");
    let path = host.path("meanwhile.floe");
    fs::write(&path, &image).expect("the image");
    host.done(&["restore", "-d", path.to_str().expect("a plain path")]);
    for verdict in ["verdict", "child-verdict"] {
        until(verdict, || folder.join(verdict).exists());
        assert_eq!(text(verdict), "same", "{verdict}");
    }
}

#[test]
fn one_that_fails_at_any_stage_leaves_the_tree_as_it_was() {
    let host = Host::new();
    let (folder, name) = (host.folder("images"), host.name("failing"));
    let image = folder.join("image.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, VICTIM, &[], &[]);
    let before = Traces::look(&host, &[&name], &[&folder]);
    let tree = tasks(&host, &name);
    let stages = host.done(&["checkpoint", "--background", "--stages"]);
    assert!(stages.lines().any(|stage| stage == "let-go"), "{stages}");
    for stage in stages.lines() {
        for how in ["", ":panic"] {
            let line = ["checkpoint", &name, "--background", "-o", &image];
            let outcome = run(host.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            let when = format!("after a failure at {stage}{how}");
            assert_ne!(outcome.status, 0, "{when}: {}", outcome.err);
            assert!(outcome.err.contains(stage), "{when}: {}", outcome.err);
            before.expect_again(&host, &[&name], &[&folder], &when);
            assert_eq!(tasks(&host, &name), tree, "{when}");
        }
    }
    victim.check("at the end");
}

#[test]
fn ones_that_are_killed_leave_the_tree_as_it_was() {
    let host = Host::new();
    let (folder, name) = (host.folder("images"), host.name("killed"));
    let image = folder.join("image.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, VICTIM, &[], &[]);
    let line = ["checkpoint", &name, "--background", "-o", &image];
    let begin = std::time::Instant::now();
    host.done(&line);
    let usual = begin.elapsed().as_micros() as u64;
    let before = Traces::look(&host, &[&name], &[&folder]);
    let tree = tasks(&host, &name);
    let (mut state, mut stopped) = (0x5eed_0005_u64, 0);
    for round in 0..times(40) {
        let signal = [libc::SIGKILL, libc::SIGTERM, libc::SIGKILL][round % 3];
        let child = spawn(&mut host.command(&line));
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(std::time::Duration::from_micros((state >> 33) % usual));
        // SAFETY: plain numbers; the child is not reaped yet, so its number is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        stopped += u32::from(wait(child) != 0);
        let when = format!("after round {round}");
        // What was killed was the front; who saves lets go a moment later.
        until(&format!("the tree as it was {when}"), || tasks(&host, &name) == tree);
        before.expect_again(&host, &[&name], &[&folder], &when);
    }
    assert!(stopped > times(40) / 5, "only {stopped} were stopped");
    victim.check("after all of that");
    host.done(&line);
    host.done(&["rm", "-f", &name]);
    host.done(&["restore", "-d", &image]);
    victim.check("restored");
}

/// Where the tree may have no more processes its memory is saved while it stands still, and floe says so.
#[test]
fn without_room_for_a_copy_the_tree_stands_still() {
    let host = Host::new();
    let name = host.name("full");
    let image = host.path("full.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, VICTIM, &["--pids", "3"], &[]);
    let outcome = host.floe(&["checkpoint", &name, "--background", "-o", &image]);
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    assert!(outcome.err.contains("pids.max"), "{}", outcome.err);
    victim.check("after it");
    host.done(&["rm", "-f", &name]);
    host.done(&["restore", "-d", &image]);
    victim.check("restored");
}

/// Calls of these are turned into signals, by what a byte of their memory says; of floe's they are not, for a moment.
#[test]
fn calls_that_are_dispatched_are_so_in_the_image() {
    let host = Host::new();
    let name = host.name("dispatched");
    let image = host.path("dispatched.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, "call-dispatch", &[], &[]);
    host.done(&["checkpoint", &name, "--background", "-o", &image]);
    victim.check("after it");
    host.done(&["rm", "-f", &name]);
    host.done(&["restore", "-d", &image]);
    victim.check("restored");
}

const FROZEN: &str = "it had been frozen, and stays so";

/// A tree that had been frozen is saved while it stands still, and stays frozen.
#[test]
fn what_is_frozen_stays_so() {
    let host = Host::new();
    let name = host.name("still");
    let image = host.path("still.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, VICTIM, &[], &[]);
    host.done(&["freeze", &name]);
    let outcome = host.floe(&["checkpoint", &name, "--background", "-o", &image]);
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    assert!(outcome.err.contains(FROZEN), "{}", outcome.err);
    host.done(&["thaw", &name]);
    victim.check("thawed");
}

/// One process of a tree is frozen by itself: nothing can be run in it afterwards.
#[test]
fn a_frozen_part_stays_so() {
    let host = Host::new();
    let name = host.name("part");
    let image = host.path("part.floe").display().to_string();
    let mut victim = Victim::start_as(&name, &host, VICTIM, &[], &[]);
    let sandboxes = floe_suite::json(&host.done(&["ps", "--json"]));
    let cgroup = sandboxes[0]["cgroup"].as_str().expect("a cgroup");
    let part = Path::new(cgroup).join("part");
    if !Path::new(cgroup).join("cgroup.freeze").exists() {
        return floe_suite::skip("the freezer is not version 2's");
    }
    let child = &floe_suite::json(&host.done(&["ps", "--json", &name]))[1]["nspid"][0];
    fs::create_dir(&part).expect("a cgroup below");
    fs::write(part.join("cgroup.procs"), child.to_string()).expect("move the child");
    fs::write(part.join("cgroup.freeze"), "1").expect("freeze it");
    let events = || fs::read_to_string(part.join("cgroup.events")).expect("events");
    until("that it is frozen", || events().contains("frozen 1"));
    let outcome = host.floe(&["checkpoint", &name, "--background", "-o", &image]);
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    assert_eq!(outcome.err.matches(FROZEN).count(), 1, "{}", outcome.err);
    assert!(events().contains("frozen 1"), "it was thawed");
    fs::write(part.join("cgroup.freeze"), "0").expect("thaw it");
    victim.check("thawed");
}

/// The end of PID 1 is the end of the copy, and of the checkpoint, which says so.
#[test]
fn a_tree_that_ends_meanwhile_is_told_of() {
    let host = Host::new();
    let (name, folder) = (host.name("ending"), host.folder("ending"));
    let place = folder.display().to_string();
    let script = "import os, time\nmemory = os.urandom(64 << 20)\nopen('ready', 'w').close()\ntime.sleep(1000)";
    host.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", script,
    ]);
    until("its memory", || folder.join("ready").exists());
    let (saving, mut output, mut image) = begin_to_save(&host, &name);
    host.done(&["kill", "-s", "KILL", &name]);
    // Zombies are not told of.
    until("the end of the copy", || tasks(&host, &name).is_empty());
    output.read_to_end(&mut image).expect("the rest");
    let ended = saving.wait_with_output().expect("the end of floe");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !ended.status.success() && told.contains("was ended before it was saved"),
        "{told}"
    );
}

/// Whatever is refused meanwhile passes: a client that is connecting, say.
fn save(host: &Host, program: &Program<'_>) {
    until("a checkpoint", || {
        let line = ["checkpoint", &program.name, "--background", "-o", &program.image];
        let outcome = host.floe(&line);
        let refused = outcome.err.lines().any(|line| line.starts_with("  - "));
        assert!(outcome.status == 0 || refused, "{}", outcome.err);
        outcome.status == 0
    });
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
    (0..5).for_each(|_| save(&host, &program));
    host.done(&["rm", "-f", &program.name]);
    host.done(&["restore", "-d", &program.image]);
    program.finish();
    assert_eq!(program.result(), "connected true\nwhole true\n");
}

/// A server of keys is saved again and again; its clients lose nothing.
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
    for _ in 0..5 {
        save(&host, &program);
        host.done(&["verify", &program.image]);
    }
    program.finish();
    let log = fs::read_to_string(program.file("server.log")).unwrap_or_default();
    assert_eq!(program.result(), "counted\ncounted\nended 0\n", "{log}");
}
