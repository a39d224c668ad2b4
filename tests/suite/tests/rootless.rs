//! As an ordinary user, with no right of root's: all that a sandbox does, in a user namespace that floe makes by itself.

use floe_suite::{Host, ORDINARY, PID_METHODS, Victim, enter_own_network, has, run, skip, until};
use std::{
    fs::Permissions,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::Command,
};

/// Victims that are root of their network, too.
const WITH_NETWORK: &str = "sockets-";

fn survives(name: &str, options: &[&str]) {
    let host = Host::of_ordinary_user();
    let sandbox = host.name(name);
    let net = if name.starts_with(WITH_NETWORK) { "none" } else { "host" };
    let options = [options, &["--net", net]].concat();
    let mut victim = Victim::start_as(&sandbox, &host, name, &options, &[]);
    for (into, method) in [("first", PID_METHODS[0]), ("second", PID_METHODS[1])] {
        victim.round_trip_unseen(&host.name(into), method);
    }
    victim.check("after two round trips of an ordinary user");
}

macro_rules! victims {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            survives($name, OPTIONS);
        })+
    };
}

/// As usual: the user is root there.
const OPTIONS: &[&str] = &[];

victims! {
    memory_shared_anonymous "memory-shared-anonymous",
    many_tasks "many-tasks",
    stopped "stopped",
    sysctls "sysctls",
    interrupted_by_signal "interrupted-by-signal",
    memory_locked "memory-locked",
    memory_policy "memory-policy",
    call_dispatch "call-dispatch",
    clocks_go_on "clocks-go-on",
    clone_sharing "clone-sharing",
    descriptors_many "descriptors-many",
    fifos "fifos",
    files_chroot "files-chroot",
    files_devices "files-devices",
    files_directories "files-directories",
    files_inherited "files-inherited",
    files_leases "files-leases",
    files_locks "files-locks",
    files_namespaces "files-namespaces",
    files_paths "files-paths",
    files_proc "files-proc",
    files_regular "files-regular",
    files_shared "files-shared",
    heap "heap",
    interrupted_calls "interrupted-calls",
    interval_timers "interval-timers",
    leader_ended "leader-ended",
    many_mappings "many-mappings",
    memory_advice "memory-advice",
    memory_file_private "memory-file-private",
    memory_file_shared "memory-file-shared",
    memory_locked_future "memory-locked-future",
    memory_private "memory-private",
    memory_sealed "memory-sealed",
    memory_untouched "memory-untouched",
    pidfds "pidfds",
    pids_nested "pids-nested",
    pipes_blocked "pipes-blocked",
    pipes_contents "pipes-contents",
    pipes_packets "pipes-packets",
    registers "registers",
    robust_futexes "robust-futexes",
    rseq_sequence "rseq-sequence",
    signals_actions "signals-actions",
    signals_all_caught "signals-all-caught",
    signals_masks "signals-masks",
    signals_pending "signals-pending",
    signals_stacks "signals-stacks",
    sockets_ended "sockets-ended",
    sockets_inet "sockets-inet",
    sockets_netlink "sockets-netlink",
    sockets_tcp "sockets-tcp",
    stack_grows "stack-grows",
    threads "threads",
    tree_relations "tree-relations",
    vdso "vdso",
    zombies "zombies",
}

/// The same where nobody is root, and floe is not, either. A restore takes the same user by itself.
mod without_root {
    use super::survives;

    const OPTIONS: &[&str] = &["--map-user", "54321"];

    victims! {
        files_devices "files-devices",
        files_inherited "files-inherited",
        files_leases "files-leases",
        files_locks "files-locks",
        files_regular "files-regular",
        files_shared "files-shared",
        interval_timers "interval-timers",
        leader_ended "leader-ended",
        many_tasks "many-tasks",
        memory_private "memory-private",
        signals_actions "signals-actions",
        signals_pending "signals-pending",
        sockets_ended "sockets-ended",
        sockets_inet "sockets-inet",
        sockets_tcp "sockets-tcp",
        stopped "stopped",
        tree_relations "tree-relations",
        zombies "zombies",
    }
}

/// Unix sockets of every sort, whose makers the kernel tells, and one with an owner who is told of it; counts in a file as long as
/// all is as it was.
const SOCKETS: &str = "
import fcntl, os, signal, socket, time
signal.signal(signal.SIGIO, lambda *what: None)
stream, letters = socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
server, client, unnamed = (socket.socket(socket.AF_UNIX) for _ in range(3))
server.bind('\\0floe-rootless-%d' % os.getpid())
server.listen()
client.connect(server.getsockname())
accepted = server.accept()[0]
fcntl.fcntl(stream[0], fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(stream[0], fcntl.F_SETFL, fcntl.fcntl(stream[0], fcntl.F_GETFL) | os.O_ASYNC)
letters[0].send(b'waits')
credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
count = 0
while True:
    for one, other in [stream, (client, accepted), (accepted, client)]:
        one.send(b'x')
        assert other.recv(9) == b'x'
    letters[0].send(b'next')
    assert letters[1].recv(99) == (b'next' if count else b'waits')
    assert fcntl.fcntl(stream[0], fcntl.F_GETOWN) == os.getpid()
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12) == credentials
    count += 1
    with open('count', 'w') as file:
        file.write(str(count))
    time.sleep(0.01)
";

/// What the host has in memory, as /run and often /tmp, is the host's, and not saved.
#[test]
fn a_directory_of_a_tmpfs_of_the_hosts() {
    let host = Host::of_ordinary_user();
    let there = tempfile::Builder::new()
        .prefix("floe-suite.")
        .tempdir_in("/dev/shm")
        .expect("a folder");
    std::fs::set_permissions(there.path(), Permissions::from_mode(0o755)).expect("for everybody");
    std::fs::write(there.path().join("file"), "first").expect("write");
    let (name, image) = (host.name("shows"), host.path("shows.floe"));
    let image = image.to_str().expect("a plain path");
    let place = there.path().display();
    let (folder, file) = (format!("{place}:/mnt"), format!("{place}/file:/etc/hosts:ro"));
    let line = [
        "run", "-d", "--name", &name, "-v", &folder, "-v", &file, "--", "sleep", "1000",
    ];
    host.done(&line);
    let shown = || host.done(&["exec", &name, "--", "cat", "/mnt/file", "/etc/hosts"]);
    assert_eq!(shown(), "firstfirst");
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", image]);
        std::fs::write(there.path().join("file"), method).expect("write");
        host.done(&["restore", "-d", "--files", "ignore", "--pid-method", method, image]);
        assert_eq!(shown(), format!("{method}{method}"));
    }
}

#[test]
fn sockets_where_nobody_is_root() {
    let host = Host::of_ordinary_user();
    let (name, image) = (host.name("sockets"), host.path("sockets.floe"));
    let image = image.to_str().expect("a plain path");
    let count = || {
        let text = std::fs::read_to_string(host.path("count")).unwrap_or_default();
        text.parse::<u64>().unwrap_or(0)
    };
    for map in ["1000", "1000:7"] {
        host.done(&[
            "run",
            "-d",
            "--map-user",
            map,
            "--name",
            &name,
            "--",
            "python3",
            "-c",
            SOCKETS,
        ]);
        for trip in 0..3 {
            let before = count();
            until(&format!("--map-user {map}, trip {trip}"), || count() > before.max(3));
            host.done(&["checkpoint", &name, "-o", image]);
            host.done(&[
                "restore",
                "-d",
                "--map-user",
                map,
                "--pid-method",
                PID_METHODS[trip % 2],
                image,
            ]);
        }
        host.done(&["rm", "-f", &name]);
        std::fs::remove_file(host.path("count")).expect("remove it");
    }
}

const SERVER: &str = r#"
import http.server, os, threading
count, lock = 0, threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global count
        with lock:
            count += 1
            text = f"{count} {os.getpid()} {os.getuid()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8765), Handler).serve_forever()
"#;

/// The body of an answer; `None` where nobody listens.
fn get() -> Option<String> {
    let mut socket = TcpStream::connect("127.0.0.1:8765").ok()?;
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        .expect("ask");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    text.rsplit_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn a_python_server() {
    enter_own_network();
    let host = Host::of_ordinary_user();
    let (name, image) = (host.name("server"), host.path("server.floe"));
    let image = image.to_str().expect("a plain path");
    host.done(&["run", "-d", "--name", &name, "--", "python3", "-c", SERVER]);
    until("the server", || TcpStream::connect("127.0.0.1:8765").is_ok());
    let mut count = 0;
    for method in PID_METHODS.iter().cycle().take(5) {
        for _ in 0..20 {
            count += 1;
            assert_eq!(get(), Some(format!("{count} 1 0")));
        }
        // Threads of it may be about to end, and what they talked with.
        host.done(&["checkpoint", &name, "--tcp", "close", "-o", image]);
        assert_eq!(get(), None, "it is away");
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, image]);
    }
    assert_eq!(get(), Some(format!("{} 1 0", count + 1)));
}

/// Files of /etc in which the ordinary user has a name, and a range of users and groups.
pub(crate) fn files_with_a_range() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("floe-suite.")
        .tempdir()
        .expect("a folder");
    let known = std::fs::read_to_string("/etc/passwd").expect("the users");
    let user = format!("{known}ordinary:x:{ORDINARY}:{ORDINARY}::/:/bin/sh\n");
    let range = "ordinary:700000:65536\n".to_owned();
    for (name, text) in [("passwd", &user), ("subuid", &range), ("subgid", &range)] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("write it");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("for everybody");
    }
    folder
}

/// A script of root's that executes its arguments where these files say so.
pub(crate) fn script_with_a_range(files: &tempfile::TempDir) -> String {
    let bind = |name: &str| format!("mount --bind {}/{name} /etc/{name} && ", files.path().display());
    ["passwd", "subuid", "subgid"].map(bind).concat() + "exec \"$@\""
}

/// The files that say so, which must stay longer, and a host of a user who was given a range; `None` where nobody maps it.
fn host_with_a_range() -> Option<(tempfile::TempDir, Host)> {
    if !has("newuidmap") {
        skip("newuidmap is not installed");
        return None;
    }
    let files = files_with_a_range();
    let script = script_with_a_range(&files);
    let host = Host::ordinary_behind(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    Some((files, host))
}

/// One of them runs the command, which makes a user namespace of its own.
#[test]
fn a_user_of_a_range_that_was_given_nests_another() {
    let Some((_files, host)) = host_with_a_range() else {
        return;
    };
    let (name, image) = (host.name("nested"), host.path("nested.floe"));
    let image = image.to_str().expect("a plain path");
    let options = [
        "run",
        "-d",
        "--map-auto",
        "--user",
        "1000:33",
        "--net",
        "none",
        "-w",
        "/tmp",
    ];
    let command = ["--name", &name, "--", "sh", "-c", "unshare -Ur sleep 1000; true"];
    host.done(&[&options[..], &command].concat());
    let told = || {
        let script =
            "for p in 1 2; do grep -E '^(Uid|Gid):' /proc/$p/status; cat /proc/$p/uid_map; cat /proc/$p/comm; done";
        let text = host.done(&["exec", &name, "--", "sh", "-c", script]);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    until("the command", || told().ends_with("sleep"));
    let before = told();
    let users = format!("Uid: 1000 1000 1000 1000 Gid: 33 33 33 33 0 {ORDINARY} 1 1 700000 65536 sh");
    assert!(before.starts_with(&users), "{before}");
    assert!(before.contains("Gid: 33 33 33 33 0 1000 1 sleep"), "{before}");
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--map-auto", "--pid-method", method, image]);
        assert_eq!(told(), before);
    }
}

/// Without the programs that map a range nothing is made, and their package is named; nor without a range.
#[test]
fn what_a_range_takes_is_told_by_name() {
    let host = Host::of_ordinary_user();
    let refused = |host: &Host, path: Option<&str>| {
        let mut command = host.command(&["run", "--map-auto", "--", "true"]);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let outcome = run(&mut command);
        assert_eq!(outcome.status, 125, "{}", outcome.err);
        assert!(host.sandboxes().is_empty());
        outcome.err
    };
    assert!(refused(&host, None).contains("usermod --add-subuids"));
    let Some((_files, host)) = host_with_a_range() else {
        return;
    };
    let programs = host.folder("programs");
    for name in ["sh", "unshare", "mount", "setpriv"] {
        let place = run(Command::new("sh").args(["-c", &format!("command -v {name}")])).expect_done();
        std::os::unix::fs::symlink(place.trim(), programs.join(name)).expect("a link");
    }
    let told = refused(&host, programs.to_str());
    assert!(
        told.contains("package uidmap") && told.contains("newuidmap: not found"),
        "{told}"
    );
}

#[test]
fn other_users_of_a_range_that_was_given() {
    let Some((_files, host)) = host_with_a_range() else {
        return;
    };
    let name = host.name("many");
    let script = "import os, time\nif os.fork() == 0:\n os.setgroups([27, 100]); os.setgid(33); os.setuid(1000)\ntime.sleep(1000)";
    host.done(&[
        "run",
        "-d",
        "--map-auto",
        "--name",
        &name,
        "--",
        "python3",
        "-c",
        script,
    ]);
    let users = || {
        let line = "cat /proc/[0-9]/status | grep -E '^(Uid|Gid|Groups):' | tr '\\t\\n' '  '";
        host.done(&["exec", &name, "--", "sh", "-c", line])
    };
    until("the other user", || users().contains("1000"));
    let is_there = || users().contains("Uid: 1000 1000 1000 1000 Gid: 33 33 33 33 Groups: 27 100");
    assert!(is_there());
    let image = host.path("many.floe");
    let image = image.to_str().expect("a plain path");
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--map-auto", "--pid-method", method, image]);
        assert!(is_there(), "{}", users());
    }
    host.done(&["checkpoint", &name, "-o", image]);
    let alone = host.floe(&["restore", "-d", image]).expect_failed();
    assert!(
        alone.contains("it is of user 1000, whom this user namespace does not know"),
        "{alone}"
    );
}

#[test]
fn a_terminal() {
    let host = Host::of_ordinary_user();
    let name = host.name("terminal");
    host.done(&[
        "run",
        "-d",
        "-t",
        "--name",
        &name,
        "--",
        "sh",
        "-c",
        "tty; stty -echo; cat",
    ]);
    until("the terminal", || host.done(&["logs", &name]).contains("/dev/pts/"));
    assert_eq!(
        host.done(&["exec", &name, "--", "stat", "-c", "%F", "/dev/pts/0"])
            .trim(),
        "character special file"
    );
}

#[test]
fn another_users_tree_is_in_the_way() {
    let root = Host::new();
    let name = root.name("other");
    root.done(&[
        "run", "-d", "--name", &name, "--", "setpriv", "--reuid", "33", "sleep", "1000",
    ]);
    until("the program", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", root.pid1(&name)));
        status.is_ok_and(|text| text.contains("Uid:\t33\t"))
    });
    let host = Host::of_ordinary_user();
    let image = host.path("other.floe");
    let image = image.to_str().expect("a plain path");
    root.done(&["checkpoint", &name, "-o", image]);
    std::os::unix::fs::chown(image, Some(ORDINARY), None).expect("give it away");
    let error = host.floe(&["restore", "-d", image]).expect_failed();
    assert!(
        error.contains("process 1: it is of user 33, whom this user namespace does not know"),
        "{error}"
    );
    assert!(host.sandboxes().is_empty());
}

#[test]
fn it_is_root_in_there_and_nobody_outside() {
    let host = Host::of_ordinary_user();
    let name = host.sleeper("job");
    let inside = host.done(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; hostname",
    ]);
    let words: Vec<&str> = inside.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", &ORDINARY.to_string(), "1", &name]);
    let tasks = floe_suite::json(&host.done(&["ps", &name, "--json"]));
    assert_eq!(
        (tasks[0]["pid"].as_i64(), tasks[0]["comm"].as_str()),
        (Some(1), Some("sleep"))
    );
    let host_pid = host.pid1(&name);
    let status = std::fs::read_to_string(format!("/proc/{host_pid}/status")).expect("its status");
    assert!(status.contains(&format!("Uid:\t{ORDINARY}\t")), "{status}");
    // Whoever is not that user has no right to it.
    let other =
        run(Command::new("setpriv").args(["--reuid", "54322", "--clear-groups", "kill", &host_pid.to_string()]));
    assert_ne!(other.status, 0);
    let outcome = host.floe(&["freeze", &name]);
    assert!(
        outcome
            .expect_failed()
            .contains("has no cgroup, which it takes to freeze it")
    );
    host.done(&["kill", "-s", "KILL", &name]);
    assert_eq!(host.done(&["wait", &name]).trim(), "137");
}

#[test]
fn what_the_hosts_root_alone_may_look_at_is_refused_by_name() {
    let host = Host::of_ordinary_user();
    let name = host.name("memfd");
    // It maps what it has no descriptor of any more.
    let _victim = Victim::start_as(&name, &host, "memory-memfd", &[], &[]);
    let image = host.path("none.floe");
    let error = host
        .floe(&["checkpoint", &name, "-o", image.to_str().expect("a plain path")])
        .expect_failed();
    assert!(
        error.contains("only the host's root may look at mapped files that have no name"),
        "{error}"
    );
    assert!(!image.exists());
    assert_eq!(host.state(&name), "running");
}

#[test]
fn what_root_alone_may_do_is_refused_by_name() {
    for (kind, reason) in [
        (
            "socket-unix-sender",
            "a message waits in it with its sender's name (SO_PASSCRED), which only the host's root may give",
        ),
        (
            "shared-guard",
            "what lies behind it floe could read only as the host's root",
        ),
    ] {
        let host = Host::of_ordinary_user();
        let name = host.name("refused");
        let mut victim = Victim::start_as(&name, &host, "refused", &[], &[kind]);
        let error = host.floe(&["checkpoint", "--dry-run", &name]).expect_failed();
        assert!(error.contains(reason), "{kind}: {error}");
        victim.check("after it was refused");
    }
}

#[test]
fn messages_that_only_root_may_send_again_are_in_the_way() {
    let root = Host::new();
    let name = root.name("sender");
    let _victim = Victim::start_as(&name, &root, "refused", &[], &["socket-unix-sender"]);
    let host = Host::of_ordinary_user();
    let image = host.path("sender.floe");
    let image = image.to_str().expect("a plain path");
    root.done(&["checkpoint", &name, "-o", image]);
    std::os::unix::fs::chown(image, Some(ORDINARY), None).expect("give it away");
    let error = host.floe(&["restore", "--dry-run", image]).expect_failed();
    assert!(
        error.contains("which only the host's root may give") && error.contains("in the way of this restore"),
        "{error}"
    );
}

#[test]
fn a_segment_that_nobody_has_attached_is_refused_by_name() {
    let host = Host::of_ordinary_user();
    let name = host.sleeper("segment");
    host.done(&["exec", &name, "--", "ipcmk", "-M", "4096"]);
    let error = host.floe(&["checkpoint", "--dry-run", &name]).expect_failed();
    let reason = "System V shared memory 0: only the host's root may look at what is mapped and has no name";
    assert!(error.contains(reason), "{error}");
    assert_eq!(host.state(&name), "running");
}

#[test]
fn settings_that_only_root_may_make_are_in_the_way() {
    let root = Host::new();
    let name = root.name("setting");
    root.done(&["run", "-d", "--name", &name, "--", "sleep", "1000"]);
    root.done(&["exec", &name, "--", "sh", "-c", "echo 1 > /proc/sys/vm/memfd_noexec"]);
    let host = Host::of_ordinary_user();
    let image = host.path("setting.floe");
    let image = image.to_str().expect("a plain path");
    root.done(&["checkpoint", &name, "-o", image]);
    std::os::unix::fs::chown(image, Some(ORDINARY), None).expect("give it away");
    let error = host.floe(&["restore", "--dry-run", image]).expect_failed();
    assert!(
        error.contains("sysctl vm.memfd_noexec: it can't be set to 1 here"),
        "{error}"
    );
    root.done(&["restore", "-d", "--owner", "none", image]);
    let value = root.done(&["exec", &name, "--", "cat", "/proc/sys/vm/memfd_noexec"]);
    assert_eq!(value, "1\n");
}

#[test]
fn what_the_kernels_memory_alone_tells_is_refused_by_name() {
    for (kind, reason) in [
        (
            "socket-gathering",
            "a datagram that is being gathered (UDP_CORK, MSG_MORE), or on its way",
        ),
        (
            "socket-tcp-urgent-waiting",
            "urgent data of a TCP connection is told by the kernel's memory alone",
        ),
        (
            "socket-tcp-urgent-read",
            "what waits behind an urgent byte of a TCP connection is told by the kernel's memory alone",
        ),
    ] {
        let host = Host::of_ordinary_user();
        let name = host.name("refused");
        let _victim = Victim::start_as(&name, &host, "refused", &["--net", "none"], &[kind]);
        let error = host
            .floe(&["checkpoint", "--patience", "0", "--dry-run", &name])
            .expect_failed();
        assert!(error.contains(reason), "{kind}: {error}");
        assert_eq!(host.state(&name), "running");
    }
}

/// A cgroup of version 2 that is an ordinary user's. Dropped, it is removed.
pub(crate) struct Delegated(pub(crate) std::path::PathBuf);

impl Delegated {
    pub(crate) fn new() -> Option<Self> {
        let mounted = run(Command::new("findmnt").args(["-rn", "-t", "cgroup2", "-o", "TARGET"])).out;
        let place = mounted.lines().next()?;
        let path = std::path::Path::new(place).join(format!("floe-suite-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup");
        let made = Self(path);
        for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            std::os::unix::fs::chown(made.0.join(name), Some(ORDINARY), Some(ORDINARY)).expect("give it away");
        }
        Some(made)
    }

    /// Two hosts of an ordinary user, the second of which has it, so that what comes there can be held.
    pub(crate) fn with_hosts() -> Option<(Self, Host, Host)> {
        let delegated = Self::new()?;
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", delegated.0.display());
        let (here, there) = (
            Host::of_ordinary_user(),
            Host::ordinary_behind(&["sh", "-c", &enter, "sh"]),
        );
        Some((delegated, here, there))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // The last process may be about to leave.
        until("the cgroup is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_cgroup_that_was_delegated_freezes() {
    let Some(delegated) = Delegated::new() else {
        skip("no cgroup version 2 is mounted");
        return;
    };
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", delegated.0.display());
    let host = Host::ordinary_behind(&["sh", "-c", &enter, "sh"]);
    let name = host.name("frozen");
    let script = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done";
    host.done(&["run", "-d", "--name", &name, "--", "bash", "-c", script]);
    let count = || host.done(&["logs", &name]).lines().count();
    until("it counts", || count() > 2);
    let list = floe_suite::json(&host.done(&["ps", "--json"]));
    let cgroup = list[0]["cgroup"].as_str().expect("a path").to_owned();
    assert!(cgroup.starts_with(&delegated.0.display().to_string()), "{cgroup}");
    let freezes_and_goes_on = || {
        host.done(&["freeze", &name]);
        assert_eq!(host.state(&name), "frozen");
        let still = count();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(count(), still, "a frozen tree counts on");
        host.done(&["thaw", &name]);
        until("it counts on", || count() > still);
    };
    let image = host.path("frozen.floe");
    let image = image.to_str().expect("a plain path");
    freezes_and_goes_on();
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", image]);
        host.done(&["restore", "-d", "--pid-method", method, image]);
        freezes_and_goes_on();
    }
    let told = host.floe(&["check"]).out;
    let line = told.lines().find(|line| line.contains("freezer")).unwrap_or_default();
    assert!(line.contains("yes"), "{told}");
    host.done(&["rm", "-f", &name]);
    assert!(!std::path::Path::new(&cgroup).exists(), "the sandbox's cgroup is left");
}
