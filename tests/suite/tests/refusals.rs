//! What can't be carried is found before anything is changed, all of it in one list, and the workload runs on.

use floe_suite::{Host, Victim};
use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
};

/// A kind of state: its name in the victim, what the object's name holds, and what the reason holds.
type Case = (&'static str, &'static [&'static str], &'static str);

const MEMORY: [Case; 8] = [
    (
        "aio-ring",
        &["mapping ", "/[aio]", "(AIO ring)"],
        "1 requests are under way",
    ),
    (
        "aio-ring-part",
        &["mapping ", "/[aio]", "(AIO ring)"],
        "a part of a ring",
    ),
    ("io-uring", &["mapping ", "anon_inode:[io_uring]"], "io_uring"),
    ("perf-buffer", &["mapping ", "anon_inode:[perf_event]"], "perf"),
    (
        "memfd-secret",
        &["mapping ", "/secretmem", "(memfd_secret)"],
        "nobody else",
    ),
    ("device-memory", &["/dev/mem"], "memory of a device"),
    (
        "userfaultfd",
        &["mapping ", "(userfaultfd (missing pages))"],
        "another program serves",
    ),
    (
        "protection-key",
        &["mapping ", "(protection key "],
        "protection keys are not carried yet",
    ),
];

const SOCKETS: [Case; 25] = [
    (
        "socket-raw-waiting",
        &["(socket:["],
        "packets that wait in a raw socket",
    ),
    (
        "socket-netlink-waiting",
        &["(socket:["],
        "messages that wait in a netlink socket",
    ),
    (
        "socket-netlink-netfilter",
        &["(socket:["],
        "a netlink socket of netfilter",
    ),
    (
        "socket-packet-waiting",
        &["(socket:["],
        "packets that wait in a packet socket",
    ),
    ("socket-packet-ring", &["(socket:["], "a ring of a packet socket"),
    ("socket-mptcp", &["(socket:["], "MPTCP"),
    ("socket-vsock", &["(socket:["], "vsock"),
    ("socket-xdp", &["(socket:["], "AF_XDP"),
    ("socket-alg", &["(socket:["], "AF_ALG"),
    ("socket-tcp-urgent", &["(socket:["], "which gets SIGURG was not told of"),
    ("socket-udp-waiting", &["(socket:["], "which came to a group"),
    ("socket-error-queue", &["(socket:["], "a time stamp of what was sent"),
    (
        "socket-error-shared",
        &["(socket:["],
        "others have the socket's address too",
    ),
    ("socket-gathering", &["(socket:["], "it is to be told when it is sent"),
    ("socket-raw-gathering", &["(socket:["], "gathered in a raw socket"),
    ("socket-bpf-filter", &["(socket:["], "a socket filter of bpf(2)"),
    ("socket-bpf-choice", &["(socket:["], "chooses among sockets"),
    ("socket-unix-bpf-filter", &["(socket:["], "a socket filter of bpf(2)"),
    ("socket-tcp-bpf-filter", &["(socket:["], "a socket filter of bpf(2)"),
    (
        "socket-tcp-filter-waiting",
        &["(socket:["],
        "a filter of the connection from",
    ),
    ("socket-tcp-signature", &["(socket:["], "signatures of TCP segments"),
    ("socket-unix-waiting", &["(socket:["], "and no task has it"),
    (
        "socket-unix-flight",
        &["file on its way through descriptor", "bpf-map"],
        "a map of bpf(2)",
    ),
    ("socket-unix-urgent", &["(socket:["], "urgent data beside descriptors"),
    (
        "socket-unix-nameless",
        &["(socket:["],
        "that sends to one without a name",
    ),
];

const DESCRIPTORS: [Case; 31] = [
    ("epoll-of-nobody", &["[eventpoll]"], "that no task of the tree has open"),
    ("inotify", &["inotify"], "IN_CREATE made of watch 1"),
    (
        "fanotify-event",
        &["[fanotify]"],
        "events of fanotify that nobody has read",
    ),
    ("fanotify-question", &["[fanotify]"], "is asked for permission"),
    ("userfaultfd-descriptor", &["[userfaultfd]"], "which memory it serves"),
    ("io-uring-descriptor", &["[io_uring]"], "which requests are under way"),
    ("bpf-map-of-programs", &["bpf-map"], "a map of bpf(2) of kind 3"),
    (
        "bpf-map-of-a-program",
        &["bpf-map"],
        "a map of bpf(2) that 1 others have",
    ),
    ("bpf-program", &["bpf-prog"], "a program of bpf(2)"),
    ("types", &["btf"], "types for bpf(2)"),
    ("ruleset", &["[landlock-ruleset]"], "a ruleset of Landlock"),
    (
        "tun-elsewhere",
        &["(/dev/net/tun)"],
        "of a network namespace that no task of the tree is in",
    ),
    ("fuse", &["(/dev/fuse)"], "a file system that its process serves"),
    ("kvm", &["(/dev/kvm)"], "virtual machines"),
    ("perf", &["[perf_event]"], "how far it has counted"),
    ("memfd-secret-descriptor", &["/secretmem"], "memfd_secret"),
    ("large-buffers", &["(pipe:["], "buffers of more than a page"),
    ("deleted-fifo", &["/deleted fifo (deleted)"], "a deleted fifo"),
    ("terminal-discipline", &["(/dev/pts/"], "another line discipline"),
    ("terminal-echo", &["(/dev/pts/"], "echoes of what was typed"),
    ("kernel-log", &["(/dev/kmsg)"], "the device /dev/kmsg"),
    ("block-device", &["(/dev/"], "the block device"),
    (
        "pressure-trigger",
        &["(/proc/pressure/cpu)"],
        "what it was told to watch",
    ),
    ("proc-device", &["(/proc/bus)"], "it stands for a device"),
    (
        "namespace",
        &["(pid:["],
        "that PID namespace is below another one that has ended",
    ),
    (
        "cgroup-file",
        &["/cpu.pressure)"],
        "what it was told can't be read back",
    ),
    ("debugfs", &["(/"], "a file of debugfs"),
    (
        "message-queue",
        &["(/floe-victim"],
        "it belongs to the host's IPC namespace",
    ),
    ("path-of-a-pipe", &["(pipe:["], "O_PATH descriptor of what has no path"),
    ("ending-lease", &["/ending lease)"], "a lease that is about to end"),
    ("mapped-lease", &["/mapped lease)"], "a lease for writing"),
];

/// A victim whose checkpoint is refused.
struct Refused<'a> {
    host: &'a Host,
    victim: Victim<'a>,
    images: PathBuf,
}

impl<'a> Refused<'a> {
    fn start(host: &'a Host, name: &str, options: &[&str], kinds: &[&str]) -> Self {
        let images = host.path(&format!("images-{name}"));
        fs::create_dir(&images).expect("a folder");
        Self {
            host,
            victim: Victim::start(host, name, options, kinds),
            images,
        }
    }

    /// Kinds that this machine lacks; prints them.
    fn skipped(&self) -> String {
        let path = self.host.path(&format!("stage-{}/skipped", self.victim.sandbox));
        let text = fs::read_to_string(path).expect("what was skipped");
        text.lines().for_each(floe_suite::skip);
        text
    }

    /// The findings of a checkpoint, which are those of a dry run too; it leaves no file, and the victim is unharmed.
    fn findings(&mut self) -> Vec<String> {
        let name = self.victim.sandbox.clone();
        let image = self.images.join("image.floe");
        // What is refused here does not pass.
        let patience = ["checkpoint", "--patience", "0"];
        let dry = self
            .host
            .floe(&[&patience[..], &["--dry-run", &name]].concat())
            .expect_failed();
        let image = image.to_str().expect("a plain path");
        let line = [&patience[..], &[&name, "-o", image]].concat();
        let real = self.host.floe(&line).expect_failed();
        assert_eq!(dry, real, "a dry run finds the same");
        let left: Vec<_> = fs::read_dir(&self.images).expect("the folder").collect();
        assert!(left.is_empty(), "{left:?}");
        self.victim.check("after a checkpoint that was refused");
        let mut lines = real.lines();
        let findings: Vec<String> = lines
            .by_ref()
            .skip(1)
            .take_while(|line| line.starts_with("  - "))
            .map(|line| line[4..].to_owned())
            .collect();
        let head = real.lines().next().unwrap_or_default();
        let number = match findings.len() {
            1 => "floe: 1 thing stands in the way of this checkpoint".to_owned(),
            more => format!("floe: {more} things stand in the way of this checkpoint"),
        };
        assert_eq!(head, number, "{real}");
        findings
    }

    fn subject(&self) -> String {
        format!("task 1 (host {}, refused): ", self.host.pid1(&self.victim.sandbox))
    }
}

/// A finding is `SUBJECT: OBJECT: REASON; ADVICE`.
fn is_about(finding: &str, subject: &str, objects: &[&str], reason: &str) -> bool {
    let Some(rest) = finding.strip_prefix(subject) else {
        return false;
    };
    let Some((front, advice)) = rest.rsplit_once("; ") else {
        return false;
    };
    objects.iter().all(|object| front.contains(object)) && front.contains(reason) && !advice.is_empty()
}

fn each_is_refused(cases: &[Case]) {
    for (kind, objects, reason) in cases {
        let host = Host::new();
        let mut refused = Refused::start(&host, "refused", &[], &[kind]);
        if refused.skipped().is_empty() {
            let (findings, subject) = (refused.findings(), refused.subject());
            let found = findings
                .iter()
                .any(|finding| is_about(finding, &subject, objects, reason));
            assert!(found, "{kind}: {findings:#?}");
        }
    }
}

/// All cases in one tree: each is found, in one list.
fn all_are_refused_at_once(cases: &[Case], options: &[&str]) -> Vec<String> {
    let host = Host::new();
    let kinds: Vec<&str> = cases.iter().map(|(kind, ..)| *kind).collect();
    let mut refused = Refused::start(&host, "refused", options, &kinds);
    let skipped = refused.skipped();
    let (findings, subject) = (refused.findings(), refused.subject());
    for (kind, objects, reason) in cases {
        if skipped.lines().any(|line| line.starts_with(&format!("{kind}:"))) {
            continue;
        }
        let found = findings
            .iter()
            .any(|finding| is_about(finding, &subject, objects, reason));
        assert!(found, "{kind}: {findings:#?}");
    }
    findings
}

#[test]
fn memory_is_refused() {
    each_is_refused(&MEMORY);
}

#[test]
fn descriptors_are_refused() {
    each_is_refused(&DESCRIPTORS);
}

#[test]
fn sockets_are_refused() {
    each_is_refused(&SOCKETS);
}

#[test]
fn everything_is_refused_in_one_list() {
    let cases: Vec<Case> = MEMORY.into_iter().chain(DESCRIPTORS).chain(SOCKETS).collect();
    let findings = all_are_refused_at_once(&cases, &[]);
    assert!(findings.len() > 40, "{findings:#?}");
    // Nothing is said twice, and no end of a pipe that has its other end in the tree is called held outside.
    let mut unique = findings.clone();
    unique.dedup();
    assert_eq!(unique.len(), findings.len(), "{findings:#?}");
    assert!(
        !findings.iter().any(|finding| finding.contains("held outside")),
        "{findings:#?}"
    );
}

#[test]
fn what_a_sandbox_holds_is_refused() {
    let cases = [
        ("mount", "mount ", "ramfs has no limit"),
        (
            "foreign-segment",
            "task ",
            "it belongs to an IPC namespace that no task of the tree is in",
        ),
        (
            "network-device",
            "network device victim",
            "of this kind are not carried",
        ),
        (
            "discipline",
            "network device lo: ",
            "of u32 (tc filter): filters with actions are not carried",
        ),
        ("transform", "IPsec (ip xfrm): ", "they are not carried"),
        ("listened", "network device lo: ", "it listens to 333301020304"),
        (
            "legacy-filter",
            "packet filter: table filter of iptables-legacy",
            "it has a rule with quota",
        ),
        (
            "recent-list",
            "packet filter: list victims of recent addresses",
            "can't be told back",
        ),
        (
            "owned-table",
            "packet filter: table ip owned",
            "it belongs to a process",
        ),
    ];
    let host = Host::new();
    let kinds = cases.map(|(kind, ..)| kind);
    let mut refused = Refused::start(&host, "refused", &["--net", "none"], &kinds);
    let skipped = refused.skipped();
    let findings = refused.findings();
    for (kind, object, reason) in cases {
        let found = findings
            .iter()
            .any(|finding| finding.starts_with(object) && finding.contains(reason) && finding.contains("; "));
        assert!(found || skipped.contains(kind), "{kind}: {findings:#?}");
    }
}

#[test]
fn packets_that_wait_in_a_tun_are_refused() {
    let host = Host::new();
    let mut refused = Refused::start(&host, "refused", &["--net", "none"], &["tun-waiting"]);
    assert_eq!(refused.skipped(), "");
    let findings = refused.findings();
    let is_told = findings[0].contains("packets that wait in a tun");
    assert!(findings.len() == 1 && is_told, "{findings:#?}");
}

/// A tree that floe did not start and that has no IPC namespace of its own.
#[test]
fn system_v_memory_of_the_host_is_refused() {
    is_refused_on_the_host("host-segment", ["/SYSV", "it belongs to the host's IPC namespace"]);
}

#[test]
fn pidfds_of_others_are_refused() {
    is_refused_on_the_host("pidfd-of-a-parent", ["[pidfd]", "a process that is not in the tree"]);
}

/// In a tree that floe did not start.
fn is_refused_on_the_host(kind: &str, texts: [&str; 2]) {
    let host = Host::new();
    let folder = host.path("stage");
    fs::create_dir(&folder).expect("a folder");
    let mut command = Command::new(floe_suite::program("refused"));
    command.arg(&folder).arg(kind).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the victim");
    while !folder.join("ready").exists() {
        assert_eq!(child.try_wait().expect("its state"), None, "the victim ended");
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    let error = host.floe(&["checkpoint", "--dry-run", "--pid", &pid]).expect_failed();
    assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    child.kill().expect("end it");
    child.wait().expect("reap it");
}

#[test]
fn a_fifo_whose_other_end_is_outside_is_refused() {
    let host = Host::new();
    let mut refused = Refused::start(&host, "refused", &[], &["fifo"]);
    let path = host.path("stage-refused/fifo");
    let writer = File::options().write(true).open(&path).expect("the other end");
    let findings = refused.findings();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let own = format!("({})", std::process::id());
    assert!(
        findings[0].contains("held outside of the tree") && findings[0].contains(&own),
        "{findings:#?}"
    );
    drop(writer);
    // Nothing else stands in the way.
    host.done(&["checkpoint", "--dry-run", "refused"]);
}

#[test]
fn a_fifo_that_is_in_use_stands_in_the_way_of_a_restore() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "refused", &[], &["fifo"]);
    let (path, image) = (host.path("stage-refused/fifo"), host.path("image.floe"));
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", "refused", "-o", image]);
    let both = File::options().read(true).write(true).open(&path).expect("the fifo");
    let error = host.floe(&["restore", "-d", image]).expect_failed();
    assert!(error.contains("is open in a process of this host"), "{error}");
    assert!(host.sandboxes().is_empty());
    drop(both);
    host.done(&["restore", "-d", image]);
    victim.check("restored at last");
}

#[test]
fn a_lock_that_somebody_else_has_stands_in_the_way_of_a_restore() {
    let host = Host::new();
    let (path, image) = (host.path("locked"), host.path("image.floe"));
    let (place, image) = (
        path.to_str().expect("a plain path"),
        image.to_str().expect("a plain path"),
    );
    let holds = "exec 9>$0; flock 9; touch $0.ready; sleep 1000";
    host.done(&["run", "-d", "--name", "holder", "--", "bash", "-c", holds, place]);
    floe_suite::until("the lock", || path.with_extension("ready").exists());
    host.done(&["checkpoint", "holder", "-o", image]);
    let other = File::open(&path).expect("the file");
    other.lock().expect("nobody has it now");
    let error = host.floe(&["restore", "-d", image]).expect_failed();
    assert!(
        error.contains("take a file lock, which another process may have now"),
        "{error}"
    );
    assert!(host.sandboxes().is_empty());
    drop(other);
    host.done(&["restore", "-d", image]);
    let other = File::open(&path).expect("the file");
    assert!(other.try_lock().is_err(), "the lock is not held");
}

/// The tree sees all processes of the host.
#[test]
fn a_file_of_proc_about_a_process_outside_is_refused() {
    let host = Host::new();
    let of = |pid: String| {
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-c", "exec sleep 1000 <$0", &format!("/proc/{pid}/status")])
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn().expect("start a shell");
        let comm = format!("/proc/{}/comm", child.id());
        while fs::read_to_string(&comm).expect("its name") != "sleep\n" {
            std::thread::yield_now();
        }
        let tree = child.id().to_string();
        let told = host.floe(&["checkpoint", "--dry-run", "--pid", &tree]);
        child.kill().expect("end it");
        child.wait().expect("reap it");
        told
    };
    const REASON: &str = "it is about a process that is not in the tree";
    let error = of(std::process::id().to_string()).expect_failed();
    assert!(error.contains(REASON), "{error}");
    // What else the test's own environment may hold is another matter.
    let told = of("self".to_owned()).err;
    assert!(!told.contains(REASON), "{told}");
}

/// A tree that floe did not start.
#[test]
fn a_pipe_to_a_process_outside_is_refused() {
    let host = Host::new();
    let mut command = Command::new("setsid");
    command
        .args(["sleep", "1000"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start sleep");
    let comm = format!("/proc/{}/comm", child.id());
    while fs::read_to_string(&comm).expect("its name") != "sleep\n" {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    let image = host.path("image.floe");
    let line = ["checkpoint", "--pid", &pid, "-o", image.to_str().expect("a plain path")];
    let error = host.floe(&line).expect_failed();
    assert!(
        error.contains("(pipe:[") && error.contains("held outside of the tree"),
        "{error}"
    );
    assert!(!image.exists());
    child.kill().expect("end the shell");
    child.wait().expect("reap it");
}

/// A terminal whose master no child gets.
fn terminal() -> nix::pty::OpenptyResult {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let pair = nix::pty::openpty(None, None).expect("a terminal");
    fcntl(&pair.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close-on-exec");
    pair
}

/// It has no descriptor of it, but its session does have it.
#[test]
fn a_controlling_terminal_of_a_tree_that_floe_did_not_start_is_refused() {
    let host = Host::new();
    let pair = terminal();
    let terminal = pair.slave.as_raw_fd();
    let mut command = Command::new("sleep");
    command
        .arg("1000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let control = move || {
        nix::unistd::setsid()?;
        // SAFETY: a plain number.
        let status = unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) };
        nix::errno::Errno::result(status)
            .map(drop)
            .map_err(std::io::Error::from)
    };
    // SAFETY: only system calls.
    let mut child = unsafe { command.pre_exec(control) }.spawn().expect("start sleep");
    let pid = child.id().to_string();
    let error = host.floe(&["checkpoint", "--dry-run", "--pid", &pid]).expect_failed();
    assert!(
        error.contains("controlling terminal: a terminal whose other end is outside"),
        "{error}"
    );
    child.kill().expect("end it");
    child.wait().expect("reap it");
}

/// It has no descriptor of the terminal, but /dev/tty would open it.
#[test]
fn a_terminal_that_is_had_through_a_leader_outside_is_refused() {
    let host = Host::new();
    let pair = terminal();
    let mut command = Command::new("setsid");
    command
        .args(["-c", "bash", "-c", "sleep 1000 < /dev/null & echo $!; wait"])
        .stdin(pair.slave);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start bash");
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().expect("its output"));
    std::io::BufRead::read_line(&mut output, &mut line).expect("the number of sleep");
    let pid = line.trim().to_owned();
    let comm = format!("/proc/{pid}/comm");
    floe_suite::until("sleep", || fs::read_to_string(&comm).expect("its name") == "sleep\n");
    let error = host.floe(&["checkpoint", "--dry-run", "--pid", &pid]).expect_failed();
    assert!(
        error
            .contains("controlling terminal: the leader of its session, through which it has the terminal, is outside"),
        "{error}"
    );
    floe_suite::signal(pid.parse().expect("a number"), libc::SIGKILL);
    child.wait().expect("reap it");
    drop(pair.master);
}

#[test]
fn a_terminal_whose_other_end_is_outside_is_refused() {
    let host = Host::new();
    let pair = terminal();
    let mut command = Command::new("setsid");
    command.args(["sleep", "1000"]).stdin(pair.slave);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start sleep");
    let comm = format!("/proc/{}/comm", child.id());
    floe_suite::until("sleep", || fs::read_to_string(&comm).expect("its name") == "sleep\n");
    let pid = child.id().to_string();
    let error = host.floe(&["checkpoint", "--dry-run", "--pid", &pid]).expect_failed();
    assert!(
        error.contains("descriptor 0 (/dev/pts/") && error.contains("whose other end is outside of the tree"),
        "{error}"
    );
    child.kill().expect("end it");
    child.wait().expect("reap it");
    drop(pair.master);
}
