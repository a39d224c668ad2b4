//! Several IPC namespaces in a tree, made by the programs that people have for it (unshare, ipcmk, ipcs); and what of them is
//! refused.

use floe_suite::{Host, PID_METHODS, has, json, run, skip, spawn, until};
use std::process::{Child, Command};

/// Two containers, one of a user namespace, with objects of the same keys, beside those of the sandbox.
const CONTAINERS: &str = "ipcmk -M 4096 -S 2 -Q >/dev/null; ipcmk -Q >/dev/null
    unshare --ipc sh -c 'ipcmk -M 8192 -S 3 -Q >/dev/null; echo 10000 > /proc/sys/kernel/msgmax; exec sleep 1001' &
    unshare --user --map-root-user --ipc --fork --pid sh -c \
        'ipcmk -M 12288 -S 4 >/dev/null; ipcmk -M 4096 -p 0640 >/dev/null; sleep 1002 & wait' &
    exec sleep 1000";

/// The host's ids of the tasks of a sandbox that sleep, by how long.
fn sleepers(host: &Host, name: &str) -> Vec<(String, i64)> {
    let tasks = json(&host.done(&["ps", name, "--json"]));
    let mut found: Vec<(String, i64)> = (tasks.as_array().expect("a list").iter())
        .filter_map(|task| {
            let pid = task["nspid"][0].as_i64()?;
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let text = String::from_utf8_lossy(&command).replace('\0', " ");
            text.starts_with("sleep ").then_some((text, pid))
        })
        .collect();
    found.sort();
    found
}

fn inside(pid: i64, command: &[&str]) -> Command {
    let mut all = Command::new("nsenter");
    all.args(["-i", "-t", &pid.to_string(), "--"]).args(command);
    all
}

/// What ipcs says in each namespace: identifiers, keys, owners, permissions and sizes; and a limit.
fn objects(host: &Host, name: &str) -> Vec<String> {
    let look = |(_, pid): (String, i64)| {
        let lists = run(&mut inside(pid, &["ipcs"])).expect_done();
        let limit = run(&mut inside(pid, &["cat", "/proc/sys/kernel/msgmax"])).expect_done();
        format!("{lists}{limit}")
    };
    sleepers(host, name).into_iter().map(look).collect()
}

fn start(host: &Host, name: &str, script: &str, sleeping: usize) {
    host.done(&["run", "-d", "--name", name, "--", "sh", "-c", script]);
    until("its sleepers", || sleepers(host, name).len() == sleeping);
}

#[test]
fn containers_keep_their_objects() {
    if !has("ipcmk") || !has("nsenter") {
        return skip("there is no ipcmk or no nsenter");
    }
    let host = Host::new();
    let name = host.name("several");
    start(&host, &name, CONTAINERS, 3);
    let before = objects(&host, &name);
    assert!(
        before[1].contains("8192") && before[1].ends_with("10000\n"),
        "{before:#?}"
    );
    assert!(before[2].contains("12288") && before[2].contains("640"), "{before:#?}");
    let image = host.path("several.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS.iter().cycle().take(3) {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        assert_eq!(objects(&host, &name), before, "after a restore by {method}");
    }
}

/// A program of the host's that has entered a namespace of the tree, and what it does there.
struct Guest(Child);

impl Guest {
    /// It has the segment attached that it made.
    fn attach(pid: i64) -> Self {
        let script = "import ctypes,time\nlibc=ctypes.CDLL(None,use_errno=True)\nlibc.shmat.restype=ctypes.c_void_p\n\
            assert libc.shmat(libc.shmget(77,4096,0o1600),None,0)!=2**64-1\ntime.sleep(1000)";
        Self(spawn(&mut inside(pid, &["python3", "-c", script])))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.kill().expect("it lives");
        self.0.wait().expect("reap");
    }
}

fn refusal(host: &Host, name: &str) -> String {
    host.floe(&["checkpoint", name, "-o", "/dev/null", "--dry-run"])
        .expect_failed()
}

#[test]
fn what_others_have_attached_in_one_is_refused() {
    if !has("python3") || !has("nsenter") {
        return skip("there is no python3 or no nsenter");
    }
    let host = Host::new();
    let name = host.name("attached");
    start(&host, &name, "unshare --ipc sleep 1001 & exec sleep 1000", 2);
    let inner = sleepers(&host, &name)[1].1;
    let guest = Guest::attach(inner);
    let is_attached = || {
        let lists = run(&mut inside(inner, &["ipcs", "-m"])).expect_done();
        lists.contains("0x0000004d")
    };
    until("the guest's segment", is_attached);
    let told = || refusal(&host, &name);
    until("its attachment", || {
        told().contains("it is attached outside of the tree")
    });
    let text = told();
    let inode = std::fs::read_link(format!("/proc/{inner}/ns/ipc")).expect("a link");
    let title = format!("System V shared memory 0 of IPC namespace {}", inode.display());
    assert!(text.contains(&title), "{text}");
    let shared = format!(
        "ipc namespace {}: processes outside of the tree are in it",
        inode.display()
    );
    assert!(text.contains(&shared), "{text}");
    drop(guest);
    host.done(&[
        "checkpoint",
        &name,
        "-o",
        host.path("attached.floe").to_str().expect("a path"),
    ]);
}

/// A program of Python that does this and then sleeps; the path of its source.
fn program(host: &Host, text: &str) -> String {
    let source = host.path("program.py");
    let text = format!("import ctypes, os\nlibc = ctypes.CDLL(None)\n{text}\nos.execvp('sleep', ['sleep', '1001'])\n");
    std::fs::write(&source, text).expect("write it");
    source.display().to_string()
}

#[test]
fn segments_that_would_go_with_their_maker_are_refused() {
    if !has("python3") {
        return skip("there is no python3");
    }
    let host = Host::new();
    let name = host.name("forced");
    let text = "open('/proc/sys/kernel/shm_rmid_forced', 'w').write('1')\nassert libc.shmget(77, 4096, 0o1600) >= 0";
    let program = program(&host, text);
    let script = format!("unshare --ipc python3 {program} & exec sleep 1000");
    start(&host, &name, &script, 2);
    let text = refusal(&host, &name);
    let wanted = "sysctl kernel.shm_rmid_forced of IPC namespace ipc:[";
    assert!(text.contains(wanted), "{text}");
}

/// Mounts of the queues of a namespace that the tree's root is not in.
#[test]
fn mounts_of_queues_come_back_in_their_namespaces() {
    if !has("python3") {
        return skip("there is no python3");
    }
    let host = Host::new();
    let name = host.name("queues");
    let place = host.folder("shown").display().to_string();
    let program = program(&host, "assert libc.mq_open(b'/inner', 0o102, 0o600, None) >= 0");
    let mount = format!("mount -t mqueue none {place}; exec python3 {program}");
    let script = format!("unshare --ipc --mount sh -c '{mount}' & exec sleep 1000");
    start(&host, &name, &script, 2);
    let shown = || {
        let inner = sleepers(&host, &name)[1].1.to_string();
        run(Command::new("nsenter").args(["-m", "-t", &inner, "--", "ls", &place])).expect_done()
    };
    assert_eq!(shown(), "inner\n");
    let image = host.path("queues.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        assert_eq!(shown(), "inner\n", "after a restore by {method}");
    }
}
