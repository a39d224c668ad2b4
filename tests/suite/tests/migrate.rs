//! `floe migrate` and `floe receive`: a tree goes to another host and back; whatever breaks or is killed on the way, at each
//! frame, one copy runs and nothing is left of another.

use crate::rootless::Delegated;
use floe_suite::{
    Counting, Host, PID_METHODS, Traces, TwoNetworks, Victim, is_followed,
    migration::{Point, Receiver, Way, children, expect_one, keys, kill_all, monitor, pretend_ssh, settle},
    run, signal, skip, spawn, times, until, wait,
};
use std::{
    path::Path,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

fn hosts() -> [Host; 2] {
    [Host::new(), Host::new()]
}

#[test]
fn there_and_back() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let tasks = tree.lasting(&job).len();
    for method in PID_METHODS {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let socket = format!("unix:{}", to.path(&format!("{method}.sock")).display());
            let receiver = Receiver::start_with(to, &socket, &["--pid-method", method], |_| {});
            let summary = floe_suite::json(&from.done(&["migrate", &job, receiver.address(), "--json"]));
            assert_eq!(summary["runs_there"], true, "{summary}");
            assert!(summary["frozen_ms"].as_f64() > Some(0.0), "{summary}");
            expect_one([from, to], &job, "moved");
            assert_eq!(to.state(&job), "running");
            tree.expect_alive("moved");
        }
    }
    assert_eq!(tree.lasting(&job).len(), tasks);
}

#[test]
fn a_victim_finds_itself_as_it_was() {
    for name in [
        "many-tasks",
        "memory-shared-anonymous",
        "descriptors-many",
        "clocks-go-on",
    ] {
        let [here, there] = hosts();
        let mut victim = Victim::start(&here, name, &[], &[]);
        for (from, to) in [(&here, &there), (&there, &here)] {
            let receiver = Receiver::start(to);
            from.done(&["migrate", name, receiver.address()]);
        }
        victim.check("after it went there and back");
    }
}

#[test]
fn a_dry_run_moves_nothing() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let outcome = here.floe(&["migrate", &job, receiver.address(), "--dry-run"]);
    assert!(outcome.err.contains("nothing stands in the way"), "{}", outcome.err);
    assert_eq!(outcome.status, 0);
    assert_eq!(
        (here.state(&job).as_str(), there.state(&job).as_str()),
        ("running", "none")
    );
    tree.expect_alive("after a dry run");
}

#[test]
fn what_stands_in_the_way_there_is_told_here_before_anything_stops() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    there.done(&["run", "-d", "--name", &job, "--", "sleep", "1000"]);
    let receiver = Receiver::start(&there);
    let error = here.floe(&["migrate", &job, receiver.address()]).expect_failed();
    assert!(error.contains("there is one of this name already"), "{error}");
    tree.expect_alive("refused there");
    there.done(&["rm", "-f", &job]);
    expect_one([&here, &there], &job, "refused there");
}

#[test]
fn what_stands_in_the_way_here_is_told_in_one_list() {
    let [here, there] = hosts();
    let name = here.name("odd");
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = outside.local_addr().expect("an address").port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} 4<>/dev/tcp/127.0.0.1/{port}; exec sleep 1000");
    here.done(&["run", "-d", "--name", &name, "--", "bash", "-c", &script]);
    let _ends = [outside.accept().expect("a client"), outside.accept().expect("a client")];
    let receiver = Receiver::start(&there);
    let error = here.floe(&["migrate", &name, receiver.address()]).expect_failed();
    assert_eq!(error.matches("\n  - ").count(), 2, "no list of two: {error}");
    assert_eq!(
        (here.state(&name).as_str(), there.state(&name).as_str()),
        ("running", "none")
    );
}

/// The stages at which a side can fail, by the verb that has them.
fn stages(host: &Host, verb: &str) -> Vec<String> {
    host.done(&[verb, "--stages"]).lines().map(str::to_owned).collect()
}

#[test]
fn a_failure_at_any_stage_of_the_source_leaves_the_tree_running() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let before = [&here, &there].map(|host| Traces::look(host, &[&job], &[]));
    for stage in stages(&here, "checkpoint") {
        for how in ["", ":panic"] {
            let line = ["migrate", &job, receiver.address()];
            let outcome = run(here.command(&line).env("FLOE_FAIL_AT", format!("{stage}{how}")));
            let when = format!("after a failure at {stage}{how}");
            assert_ne!(outcome.status, 0, "{when}: {}", outcome.err);
            for (host, before) in [&here, &there].into_iter().zip(&before) {
                before.expect_again(host, &[&job], &[], &when);
            }
            tree.expect_alive(&when);
        }
    }
    here.done(&["migrate", &job, receiver.address()]);
    tree.expect_alive("moved at last");
}

#[test]
fn a_failure_at_any_stage_of_the_target_leaves_the_tree_running() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let before = [&here, &there].map(|host| Traces::look(host, &[&job], &[]));
    for stage in stages(&here, "restore") {
        for how in ["", ":panic"] {
            let socket = format!("unix:{}", there.path("failing.sock").display());
            let at = format!("{stage}{how}");
            let receiver = Receiver::start_with(&there, &socket, &[], |command| {
                command.env("FLOE_FAIL_AT", &at);
            });
            let error = here.floe(&["migrate", &job, receiver.address()]).expect_failed();
            drop(receiver);
            let when = format!("after a failure at {at}");
            assert!(error.contains("runs on here"), "{when}: {error}");
            for (host, before) in [&here, &there].into_iter().zip(&before) {
                before.expect_again(host, &[&job], &[], &when);
            }
            tree.expect_alive(&when);
        }
    }
    let receiver = Receiver::start(&there);
    here.done(&["migrate", &job, receiver.address()]);
    tree.expect_alive("moved at last");
}

/// Every message of a migration, and some data.
const FRAMES: [(&str, usize); 16] = [
    ("hello", 1),
    ("hello", 2),
    ("offer", 1),
    ("data", 1),
    ("end", 1),
    ("accepted", 1),
    ("round", 1),
    ("data", 2),
    ("end", 2),
    ("image", 1),
    ("data", 5),
    ("end", 3),
    ("stage", 8),
    ("prepared", 1),
    ("decided", 1),
    ("done", 1),
];

/// What ends besides the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    Nobody,
    Source,
    SourcesWorker,
    Receiver,
    /// It is told to, as everybody may be.
    ReceiverStops,
    Sessions,
    Both,
}

fn at_each_frame(who: Victims) {
    let hosts = hosts();
    let [here, _] = &hosts;
    let job = here.name("job");
    let tree = Counting::start(here, &job, &[]);
    let way = (&FRAMES[..], &["--rounds", "1"][..]);
    breaks_at_each(&hosts, (&job, who), way, &mut |when| tree.expect_alive(when));
}

/// Has a sandbox of the first host move, with something going wrong at each of these frames; then one copy runs, and is as it was.
pub fn breaks_at_each(
    hosts: &[Host; 2],
    (job, who): (&str, Victims),
    (frames, options): (&[(&'static str, usize)], &[&str]),
    is_alive: &mut dyn FnMut(&str),
) {
    let [here, there] = hosts;
    let mut receivers = [Receiver::start(here), Receiver::start(there)];
    let mut at = 0;
    for (order, (frame, number)) in frames.iter().copied().enumerate() {
        // In a short run each frame comes through, or does not.
        let both = [order % 2 == 0, order % 2 != 0];
        for passes in both.into_iter().take(times(2)) {
            let point = Point { frame, number, passes };
            let when = format!("{who:?} at {point:?}");
            let (from, to) = (&hosts[at], 1 - at);
            let source = Arc::new(AtomicI32::new(0));
            let receiver = receivers[to].pid();
            let act = {
                let source = Arc::clone(&source);
                move || {
                    until("the source is known", || source.load(Ordering::SeqCst) != 0);
                    let source = source.load(Ordering::SeqCst);
                    let source_too = matches!(who, Victims::Source | Victims::Both);
                    let receiver_too = matches!(who, Victims::Receiver | Victims::Both);
                    match who {
                        Victims::SourcesWorker => kill_all(&children(source)),
                        Victims::Sessions => kill_all(&children(receiver)),
                        Victims::ReceiverStops => signal(receiver, libc::SIGTERM),
                        _ => {}
                    }
                    kill_all(if source_too { std::slice::from_ref(&source) } else { &[] });
                    kill_all(if receiver_too {
                        std::slice::from_ref(&receiver)
                    } else {
                        &[]
                    });
                }
            };
            let socket = receivers[to]
                .address()
                .strip_prefix("unix:")
                .expect("a socket")
                .to_owned();
            let way = Way::make(from.path("way.sock"), Path::new(&socket), point, Box::new(act));
            // It waits for its standard input, so that nothing happens before its PID is known.
            let line = ["migrate", job, &way.address(), "--timeout", "5"];
            let child = spawn(&mut from.command(&[&line[..], options].concat()));
            source.store(child.id() as i32, Ordering::SeqCst);
            // The receiver may end at any moment of these, and who waits for one waits until there is one again.
            let mut to_its_end = |mut child: Child| {
                until(&format!("{when}: floe migrate has ended"), || {
                    receivers[to].restart();
                    child.try_wait().expect("wait for floe").is_some()
                });
                wait(child)
            };
            assert!(to_its_end(child) < 256);
            // A source that was killed has said nothing more; the tree that it held is let go by the kernel.
            assert_eq!(
                to_its_end(spawn(&mut from.command(&["migrate", "--settle"]))),
                0,
                "{when}"
            );
            at = expect_one([here, there], job, &when);
            is_alive(&when);
        }
    }
}

#[test]
fn the_connection_breaks_at_each_frame() {
    at_each_frame(Victims::Nobody);
}

#[test]
fn the_source_is_killed_at_each_frame() {
    at_each_frame(Victims::Source);
}

#[test]
fn the_process_that_saves_is_killed_at_each_frame() {
    at_each_frame(Victims::SourcesWorker);
}

#[test]
fn the_receiver_is_killed_at_each_frame() {
    at_each_frame(Victims::Receiver);
}

#[test]
fn the_receiver_is_told_to_stop_at_each_frame() {
    at_each_frame(Victims::ReceiverStops);
}

#[test]
fn the_process_of_the_connection_is_killed_at_each_frame() {
    at_each_frame(Victims::Sessions);
}

#[test]
fn both_are_killed_at_each_frame() {
    at_each_frame(Victims::Both);
}

#[test]
fn over_tls_between_two_networks_and_back() {
    let networks = TwoNetworks::new();
    let hosts = networks.hosts();
    let [here, there] = &hosts;
    let [(own, _), (other, _)] = &hosts.each_ref().map(keys);
    let pin = |host: &Host, folder: &str, name: &str, of: &Host| {
        host.done(&["keys", "--keys", folder, "pin", name, &keys(of).1]);
    };
    let job = here.name("job");
    let tree = Counting::start(here, &job, &["--net", "none"]);
    let receive = |host, address: &str, folder: &str| Receiver::start_with(host, address, &["--keys", folder], |_| {});
    let error = there
        .floe(&["receive", "--listen", "10.9.0.2:0", "--keys", other])
        .expect_failed();
    assert!(error.contains("no key of another host is pinned"), "{error}");
    {
        // It knows another one alone.
        pin(there, other, "stranger", &Host::new());
        let receiver = receive(there, "10.9.0.2:0", other);
        let line = ["migrate", &job, receiver.address(), "--keys", own];
        let error = here.floe(&line).expect_failed();
        assert!(error.contains("no key of another host is pinned"), "{error}");
        pin(here, own, "stranger", &Host::new());
        let error = here.floe(&line).expect_failed();
        assert!(error.contains("agree on keys with"), "{error}");
        pin(here, own, "there", there);
        let error = here.floe(&line).expect_failed();
        assert!(error.contains("does not let this host in"), "{error}");
        let insecure = here
            .floe(&["migrate", &job, receiver.address(), "--insecure"])
            .expect_failed();
        assert!(insecure.contains("is no loopback address"), "{insecure}");
        assert_eq!(
            (here.state(&job).as_str(), there.state(&job).as_str()),
            ("running", "none")
        );
    }
    pin(there, other, "here", here);
    tree.expect_alive("refused");
    for (from, to, address, folders) in [
        (here, there, "10.9.0.2:0", [own, other]),
        (there, here, "10.9.0.1:0", [other, own]),
    ] {
        let receiver = receive(to, address, folders[1]);
        let line = ["migrate", &job, receiver.address(), "--keys", folders[0]];
        from.done(&line);
        expect_one([from, to], &job, "moved");
        tree.expect_alive("moved");
    }
    // A name that is pinned means its key, and no other that is pinned.
    let receiver = receive(there, "10.9.0.2:0", other);
    pin(here, own, "10.9.0.2", &Host::new());
    let line = ["migrate", &job, receiver.address(), "--keys", own];
    let error = here.floe(&line).expect_failed();
    assert!(error.contains("agree on keys with"), "{error}");
    here.done(&["keys", "--keys", own, "unpin", "10.9.0.2"]);
    here.done(&[&line[..], &["--dry-run"]].concat());
    // Who is unpinned is not let in any more, also by one that waits already.
    there.done(&["keys", "--keys", other, "unpin", "here"]);
    let error = here
        .floe(&["migrate", &job, receiver.address(), "--keys", own])
        .expect_failed();
    assert!(error.contains("does not let this host in"), "{error}");
    tree.expect_alive("unpinned");
    let unlike = there
        .floe(&["receive", "--listen", "10.9.0.2:0", "--insecure"])
        .expect_failed();
    assert!(unlike.contains("is no loopback address"), "{unlike}");
}

#[test]
fn plain_bytes_of_a_stranger_end_their_connection_alone() {
    let networks = TwoNetworks::new();
    let [here, there] = networks.hosts();
    let (folder, fingerprint) = keys(&there);
    there.done(&["keys", "--keys", &folder, "pin", "itself", &fingerprint]);
    let receivers = [
        Receiver::start_with(&there, "10.9.0.2:0", &["--keys", &folder], |_| {}),
        Receiver::start_with(&there, "127.0.0.1:0", &["--insecure"], |_| {}),
        Receiver::start(&there),
    ];
    for receiver in &receivers[..2] {
        let (address, port) = receiver.address().rsplit_once(':').expect("a port");
        for bytes in [
            "GET / HTTP/1.1\\r\\n\\r\\n",
            "\\x16\\x03\\x01\\xff\\xff",
            "m\\xff\\xff\\xff\\xff",
            "d\\x01\\x00\\x00\\x00x",
        ] {
            let talk = format!(
                "exec 3<>/dev/tcp/{address}/{port}; printf '{bytes}' >&3 || true; timeout 10 cat <&3 >/dev/null || true"
            );
            networks.shell(1, &talk);
        }
    }
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &["--net", "none"]);
    here.done(&["migrate", &job, receivers[2].address()]);
    tree.expect_alive("moved");
}

/// The way between the two networks is cut while the image goes over it: by a rule that drops all packets, or by the cable.
#[test]
fn a_way_that_is_cut_while_the_image_goes_over_it() {
    let networks = TwoNetworks::new();
    let hosts = networks.hosts();
    let [here, there] = &hosts;
    for (host, other) in [(here, there), (there, here)] {
        let (folder, fingerprint) = (keys(host).0, keys(other).1);
        host.done(&["keys", "--keys", &folder, "pin", "other", &fingerprint]);
    }
    // Random memory, which takes seconds at this rate.
    networks.shell(0, "tc qdisc add dev eth0 root tbf rate 40mbit burst 64kb latency 400ms");
    let job = here.name("job");
    let script = "import os, time\nm = os.urandom(24 << 20)\nn = 0\nwhile True:\n n += 1; open('count', 'w').write(str(n)); time.sleep(0.02)";
    let folder = here.folder("big");
    let place = folder.display().to_string();
    here.done(&[
        "run", "-d", "--net", "none", "--name", &job, "-w", &place, "--", "python3", "-c", script,
    ]);
    let count = || std::fs::read_to_string(folder.join("count")).unwrap_or_default();
    let goes_on = |when: &str| {
        let before = count();
        until(&format!("{when}: it counts on"), || {
            !count().is_empty() && count() != before
        });
    };
    goes_on("at the start");
    let (own, other) = (keys(here).0, keys(there).0);
    for (cut, mend) in [
        (
            "nft add table inet cut; nft add chain inet cut in '{ type filter hook input priority 0; policy drop; }'",
            "nft delete table inet cut",
        ),
        ("ip link set eth0 down", "ip link set eth0 up"),
    ] {
        let receiver = Receiver::start_with(there, "10.9.0.2:0", &["--keys", &other, "--timeout", "3"], |_| {});
        let line = ["migrate", &job, receiver.address(), "--keys", &own, "--timeout", "2"];
        let child = spawn(&mut here.command(&line));
        let sent = || {
            let text = std::fs::read_to_string(format!("/proc/{}/net/dev", child.id())).unwrap_or_default();
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with("eth0"))
                .unwrap_or_default();
            line.split_ascii_whitespace()
                .nth(9)
                .and_then(|bytes| bytes.parse().ok())
                .unwrap_or(0_u64)
        };
        let before = sent();
        until("some of the image is sent", || sent() > before + (4 << 20));
        networks.shell(0, cut);
        let status = wait(child);
        networks.shell(0, mend);
        assert_ne!(status, 0);
        goes_on(cut);
        assert_eq!(settle_with(here, &["--keys", &own]).status, 0);
        expect_one([here, there], &job, cut);
    }
    networks.shell(0, "tc qdisc del dev eth0 root");
    let receiver = Receiver::start_with(there, "10.9.0.2:0", &["--keys", &other], |_| {});
    here.done(&["migrate", &job, receiver.address(), "--keys", &own]);
    goes_on("moved at last");
    assert_eq!(there.state(&job), "running");
}

fn settle_with(host: &Host, options: &[&str]) -> floe_suite::Outcome {
    host.floe(&[&["migrate", "--settle"], options].concat())
}

#[test]
fn a_socket_of_another_user_is_not_talked_to() {
    let here = Host::new();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let socket = here.path("foreign.sock");
    let script = "import os, socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\nos.setuid(65534)\n\
                  s.listen()\nopen(sys.argv[2], 'w').close()\nsys.stdin.read()";
    let ready = here.folder("for-all");
    std::fs::set_permissions(&ready, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("open to all");
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(&socket).arg(ready.join("ready"));
    let mut foreign = spawn(command.stdin(std::process::Stdio::piped()));
    until("it listens", || ready.join("ready").exists());
    let outcome = here.floe(&["migrate", &job, &format!("unix:{}", socket.display())]);
    drop(foreign.stdin.take());
    assert_eq!(wait(foreign), 0);
    let error = outcome.expect_failed();
    assert!(error.contains("user 65534 is at the other end"), "{error}");
    tree.expect_alive("not moved");
}

#[test]
fn ssh_carries_it() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let path = pretend_ssh(&here, &there, "-p 2222 -T -e none -- me@oak");
    let outcome = run(here.command(&["migrate", &job, "ssh://me@oak:2222"]).env("PATH", &path));
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    expect_one([&here, &there], &job, "moved by ssh");
    tree.expect_alive("moved by ssh");
    // One that does not come through.
    let outcome = run(there.command(&["migrate", &job, "ssh://you@elm"]).env("PATH", &path));
    assert_eq!(outcome.status, 1, "{}", outcome.err);
    tree.expect_alive("not moved");
}

#[test]
fn a_target_without_room_is_told_of_here() {
    let [here, there] = hosts();
    let (job, small) = (here.name("job"), there.folder("small"));
    let place = here.folder("big").display().to_string();
    let script = "import os, time\nm = os.urandom(16 << 20)\nopen('ready', 'w').close()\ntime.sleep(1000)";
    here.done(&["run", "-d", "--name", &job, "-w", &place, "--", "python3", "-c", script]);
    until("it has its memory", || here.path("big/ready").exists());
    let mounted = Mount::tmpfs(&small, "4m");
    let socket = format!("unix:{}", there.path("receive.sock").display());
    let receiver = Receiver::start_with(&there, &socket, &[], |command| {
        command.env("TMPDIR", &small);
    });
    let error = here.floe(&["migrate", &job, receiver.address()]).expect_failed();
    assert!(error.contains("No space left on device"), "{error}");
    expect_one([&here, &there], &job, "no room");
    assert_eq!(here.state(&job), "running");
    assert!(
        !is_followed(here.pid1(&job)),
        "a round was made, and what it writes is followed still"
    );
    drop((receiver, mounted));
}

/// A mount that goes when it is dropped.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(place: &Path, size: &str) -> Self {
        let place = place.to_owned();
        let line = format!("mount -t tmpfs -o size={size} tmpfs {}", place.display());
        assert_eq!(run(Command::new("bash").args(["-c", &line])).status, 0, "{line}");
        Self(place)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(run(Command::new("umount").arg(&self.0)));
    }
}

/// The last message is lost, and the source is gone for good.
#[test]
fn who_knows_that_the_source_is_gone_decides_at_the_target() {
    for (verb, expected) in [("--commit", "running"), ("--abort", "none")] {
        let [here, there] = hosts();
        let job = here.name("job");
        let tree = Counting::start(&here, &job, &[]);
        let receiver = Receiver::start(&there);
        let socket = receiver.address().strip_prefix("unix:").expect("a socket").to_owned();
        let source = Arc::new(AtomicI32::new(0));
        let known = Arc::clone(&source);
        let point = Point {
            frame: "decided",
            number: 1,
            passes: false,
        };
        let kill = move || {
            until("the source is known", || known.load(Ordering::SeqCst) != 0);
            kill_all(&[known.load(Ordering::SeqCst)]);
        };
        let way = Way::make(here.path("way.sock"), Path::new(&socket), point, Box::new(kill));
        let child = spawn(&mut here.command(&["migrate", &job, &way.address()]));
        source.store(child.id() as i32, Ordering::SeqCst);
        assert_eq!(wait(child), 128 + libc::SIGKILL);
        until("it is held", || there.state(&job) == "held");
        until("the other one has ended", || here.state(&job) == "none");
        for line in [
            &["thaw", &job][..],
            &["checkpoint", &job, "-o", "/dev/null"],
            &["migrate", &job, "unix:/none"],
        ] {
            let error = there.floe(line).expect_failed();
            assert!(error.contains("is not decided yet"), "{line:?}: {error}");
        }
        there.done(&["receive", verb, &job]);
        until("it is as was said", || there.state(&job) == expected);
        if expected == "running" {
            tree.expect_alive("decided by hand");
        }
        // Where none is left at either side, who settles hears so.
        assert_eq!(settle(&here).status, i32::from(expected == "none"));
        assert!(!here.path("state/.migrations").exists());
    }
}

/// Another floe comes to be at the address before it is settled: what that one does not hold tells nothing.
#[test]
fn a_floe_that_never_held_it_is_not_believed() {
    let ([here, there], other) = (hosts(), Host::new());
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    for point in [("decided", false), ("prepared", false)] {
        let receiver = Receiver::start(&there);
        let address = receiver.address().to_owned();
        let socket = address.strip_prefix("unix:").expect("a socket").to_owned();
        let source = Arc::new(AtomicI32::new(0));
        let known = Arc::clone(&source);
        let (frame, passes) = point;
        let point = Point {
            frame,
            number: 1,
            passes,
        };
        let kill = move || {
            until("the source is known", || known.load(Ordering::SeqCst) != 0);
            kill_all(&[known.load(Ordering::SeqCst)]);
        };
        let way = Way::make(here.path("way.sock"), Path::new(&socket), point, Box::new(kill));
        let child = spawn(&mut here.command(&["migrate", &job, &way.address()]));
        source.store(child.id() as i32, Ordering::SeqCst);
        assert_eq!(wait(child), 128 + libc::SIGKILL);
        until("it is held", || there.state(&job) == "held");
        drop(receiver);
        {
            let _receiver = Receiver::start_with(&other, &address, &[], |_| {});
            let outcome = settle(&here);
            assert!(outcome.err.contains("is not who has accepted it"), "{}", outcome.err);
            assert_eq!((outcome.status, there.state(&job).as_str()), (1, "held"));
            assert!(here.path("state/.migrations").exists());
        }
        let _receiver = Receiver::start(&there);
        assert_eq!(settle(&here).status, 0, "{frame}");
        let at = expect_one([&here, &there], &job, frame);
        tree.expect_alive(frame);
        if at == 1 {
            let receiver = Receiver::start(&here);
            there.done(&["migrate", &job, receiver.address()]);
        }
    }
}

/// Is a target that accepts, and then shows that it lives for as long as somebody is there.
fn dribble(stream: &mut std::os::unix::net::UnixStream) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let await_word = |stream: &mut std::os::unix::net::UnixStream, word: &str| loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize];
        stream.read_exact(&mut body)?;
        if head[0] == b'm' && String::from_utf8_lossy(&body).contains(word) {
            return Ok::<(), std::io::Error>(());
        }
    };
    let instance = r#"{"boot":"","device":0,"inode":0,"made":null}"#;
    for (heard, said) in [
        ("hello", r#"{"type":"hello","version":3,"floe":"0"}"#.to_owned()),
        ("\"end\"", format!(r#"{{"type":"accepted","instance":{instance}}}"#)),
    ] {
        await_word(stream, heard)?;
        let head = [&b"m"[..], &(said.len() as u32).to_le_bytes()].concat();
        stream.write_all(&[&head, said.as_bytes()].concat())?;
    }
    let mut reader = stream.try_clone()?;
    // What comes is taken, and not looked at.
    std::thread::spawn(move || while reader.read(&mut [0; 4096]).is_ok_and(|got| got > 0) {});
    loop {
        stream.write_all(b"a\0\0\0\0")?;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A target that says a word now and then, and never that it holds the tree.
#[test]
fn a_target_that_dribbles_does_not_keep_the_tree_from_running() {
    let here = Host::new();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let socket = here.path("dribble.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Nobody is there any more where it fails.
            drop(dribble(&mut stream));
        }
    });
    let address = format!("unix:{}", socket.display());
    // Nor whether it has kept a round.
    for (rounds, says) in [("0", "stood still for more than 3 s"), ("1", "timed out")] {
        let line = [
            "migrate",
            &job,
            &address,
            "--timeout",
            "2",
            "--stop-limit",
            "3",
            "--rounds",
            rounds,
        ];
        let error = here.floe(&line).expect_failed();
        assert!(error.contains(says), "{error}");
        tree.expect_alive("dribbled");
    }
}

/// Nobody but floe itself is left to let it run.
#[test]
fn the_monitor_of_a_copy_is_killed_while_it_is_held() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let socket = receiver.address().strip_prefix("unix:").expect("a socket").to_owned();
    let point = Point {
        frame: "prepared",
        number: 1,
        passes: true,
    };
    let (state, name) = (there.path("state"), job.clone());
    let kill = move || kill_all(&[monitor(&state, &name)]);
    let way = Way::make(here.path("way.sock"), Path::new(&socket), point, Box::new(kill));
    let status = wait(spawn(&mut here.command(&["migrate", &job, &way.address()])));
    if status != 0 {
        assert_eq!(settle(&here).status, 0);
    }
    let states = [here.state(&job), there.state(&job)];
    assert!(
        states == ["none", "lost"] || states == ["running", "none"],
        "not one copy: {states:?}"
    );
    tree.expect_alive("its monitor was killed");
    if status == 0 {
        there.done(&["rm", "-f", &job]);
    }
}

/// A process that stands still until this is dropped.
struct Stopped(i32);

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: plain numbers; a process of a sandbox of the test, which may have ended.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }
}

/// Whether somebody calls a monitor that has not let them in yet.
fn a_monitor_is_called() -> bool {
    let all = std::fs::read_to_string("/proc/net/unix").expect("sockets");
    // One that nobody has accepted has no inode.
    all.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        words.get(6) == Some(&"0") && words.get(7).is_some_and(|path| path.starts_with("/proc/self/fd/"))
    })
}

/// The source is killed behind its order to a monitor that does not get to it for long: what it was ordered is done when it
/// does, and until then nobody settles it.
#[test]
fn the_source_is_killed_while_a_slow_monitor_has_its_order() {
    let [here, there] = hosts();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let receiver = Receiver::start(&there);
    let socket = receiver.address().strip_prefix("unix:").expect("a socket").to_owned();
    let slow = monitor(&here.path("state"), &job);
    let point = Point {
        frame: "prepared",
        number: 1,
        passes: true,
    };
    let stop = move || signal(slow, libc::SIGSTOP);
    let stopped = Stopped(slow);
    let way = Way::watch(here.path("way.sock"), Path::new(&socket), point, Box::new(stop));
    let child = spawn(&mut here.command(&["migrate", &job, &way.address()]));
    until("its monitor stands still", || {
        std::fs::read_to_string(format!("/proc/{slow}/stat")).is_ok_and(|stat| stat.contains(") T "))
    });
    until("its monitor is called", a_monitor_is_called);
    kill_all(&[child.id() as i32]);
    assert_eq!(wait(child), 128 + libc::SIGKILL);
    let early = settle(&here);
    assert_eq!(there.state(&job), "held");
    drop(stopped);
    assert!(
        early.status == 1 && early.err.contains("does not answer"),
        "{}",
        early.err
    );
    assert_eq!(settle(&here).status, 0);
    expect_one([&here, &there], &job, "killed behind its order");
    tree.expect_alive("killed behind its order");
}

#[test]
fn an_ordinary_users_sandbox_goes_where_it_can_be_frozen() {
    let Some((_delegated, here, there)) = Delegated::with_hosts() else {
        skip("no cgroup version 2 is mounted");
        return;
    };
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    {
        let receiver = Receiver::start(&there);
        here.done(&["migrate", &job, receiver.address()]);
        expect_one([&here, &there], &job, "moved");
        tree.expect_alive("moved");
    }
    let receiver = Receiver::start(&here);
    let error = there.floe(&["migrate", &job, receiver.address()]).expect_failed();
    assert!(error.contains("cgroup freezer"), "{error}");
    tree.expect_alive("refused");
    assert_eq!(there.state(&job), "running");
}
