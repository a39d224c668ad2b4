//! Names of sockets: what stands at a path when a tree is restored, and what is left there when that fails; ports, and
//! ends that are outside of the tree.

use floe_suite::{Host, PID_METHODS, Victim, enter_own_network, run, until};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

/// A victim with a socket that listens at a path, saved and ended; with its image and that path.
struct Saved<'a> {
    host: &'a Host,
    victim: Victim<'a>,
    image: String,
    path: PathBuf,
}

impl<'a> Saved<'a> {
    fn new(host: &'a Host) -> Self {
        let victim = Victim::start(host, "sockets-unix", &[], &[]);
        let image = host.path("saved.floe").display().to_string();
        host.done(&["checkpoint", &victim.sandbox, "-o", &image]);
        let path = host.path(&format!("stage-{}/listens here", victim.sandbox));
        assert!(path.exists(), "{} is not there", path.display());
        Self {
            host,
            victim,
            image,
            path,
        }
    }

    fn refusal(&self) -> String {
        let dry = self.host.floe(&["restore", "--dry-run", &self.image]).expect_failed();
        let real = self.host.floe(&["restore", "-d", &self.image]).expect_failed();
        assert_eq!(dry, real, "a dry run finds the same");
        real
    }

    fn comes_back(&mut self, when: &str) {
        self.host.done(&["restore", "-d", &self.image]);
        self.victim.check(when);
    }
}

#[test]
fn a_path_that_others_use_is_in_the_way() {
    let host = Host::new();
    let mut saved = Saved::new(&host);
    fs::remove_file(&saved.path).expect("remove the old socket");
    let other = UnixListener::bind(&saved.path).expect("bind");
    let found = saved.refusal();
    assert!(found.contains("a process of this host has a socket at"), "{found}");
    drop(other);
    fs::remove_file(&saved.path).expect("remove the other socket");
    fs::write(&saved.path, "precious").expect("write");
    let found = saved.refusal();
    assert!(found.contains("is no socket here"), "{found}");
    assert_eq!(fs::read_to_string(&saved.path).expect("read"), "precious");
    fs::remove_file(&saved.path).expect("remove the file");
    saved.comes_back("after its path had been others'");
}

#[test]
fn a_second_one_beside_the_first_is_refused() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "sockets-unix", &[], &[]);
    let image = host.path("saved.floe").display().to_string();
    host.done(&["checkpoint", &victim.sandbox, "--leave-running", "-o", &image]);
    let line = ["restore", "-d", "--name", "second", &image];
    let found = host.floe(&line).expect_failed();
    assert!(found.contains("a process of this host has a socket at"), "{found}");
    victim.check("beside one that was refused");
}

#[test]
fn a_restore_that_fails_leaves_no_names() {
    let host = Host::new();
    let mut saved = Saved::new(&host);
    let names = [saved.path.clone(), saved.path.with_file_name("datagrams")];
    for name in &names {
        fs::remove_file(name).expect("remove the old socket");
    }
    let stages = host.done(&["restore", "--stages"]);
    for stage in stages.lines() {
        for how in ["", ":panic"] {
            let failure = format!("{stage}{how}");
            let outcome = run(host
                .command(&["restore", "-d", &saved.image])
                .env("FLOE_FAIL_AT", &failure));
            assert_ne!(outcome.status, 0, "{failure}: {}", outcome.err);
            for name in &names {
                assert!(
                    !name.exists(),
                    "{} is left after a failure at {failure}",
                    name.display()
                );
            }
        }
    }
    saved.comes_back("after all of that");
}

#[test]
fn an_end_outside_is_refused_and_goes_on() {
    let host = Host::new();
    let job = host.name("job");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; while read -r line <&3; do echo \"got $line\" >&3; done");
    host.done(&["run", "-d", "--name", &job, "--", "bash", "-c", &script]);
    let (mut outside, _) = listener.accept().expect("accept");
    let image = host.path("job.floe").display().to_string();
    let found = host.floe(&["checkpoint", &job, "-o", &image]).expect_failed();
    let reason = format!("the other end of this TCP connection, 127.0.0.1:{port}, is outside of the tree");
    assert!(found.contains(&reason), "{found}");
    outside.write_all(b"one\n").expect("write");
    let mut bytes = [0; 8];
    outside.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"got one\n");
}

#[test]
fn a_port_that_is_taken_ends_the_restore_and_nothing_is_left() {
    let host = Host::new();
    let job = host.name("job");
    let script = "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\n\
                  open('port', 'w').write(str(s.getsockname()[1]))\ntime.sleep(1000)";
    let folder = host.path("work");
    fs::create_dir(&folder).expect("a folder");
    let place = folder.display().to_string();
    host.done(&["run", "-d", "--name", &job, "-w", &place, "--", "python3", "-c", script]);
    let port = || fs::read_to_string(folder.join("port")).unwrap_or_default();
    until("the port", || !port().is_empty());
    let image = host.path("job.floe").display().to_string();
    host.done(&["checkpoint", &job, "-o", &image]);
    let taken = TcpListener::bind(format!("127.0.0.1:{}", port())).expect("bind");
    let found = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(found.contains("is somebody else's in this network"), "{found}");
    let found = host.floe(&["restore", "--dry-run", &image]).expect_failed();
    assert!(found.contains("is somebody else's in this network"), "{found}");
    drop(taken);
    host.done(&["restore", "-d", &image]);
}

/// Connections within a tree wait for a minute when it has ended; where nobody has set SO_REUSEADDR they hold its port.
#[test]
fn what_ended_connections_of_the_tree_have_left_is_not_in_the_way() {
    let host = Host::new();
    let job = host.name("job");
    let script = "import os, socket, time\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n\
                  pairs = [(socket.create_connection(s.getsockname()), s.accept()[0]) for _ in range(20)]\nn = 0\n\
                  while True:\n  for a, b in pairs:\n    a.sendall(b'x')\n    assert b.recv(1) == b'x'\n  n += 1\n\
                  \u{20} open('new', 'w').write(f'{n}')\n  os.rename('new', 'count')\n  time.sleep(0.01)";
    let folder = host.path("work");
    fs::create_dir(&folder).expect("a folder");
    let place = folder.display().to_string();
    host.done(&["run", "-d", "--name", &job, "-w", &place, "--", "python3", "-c", script]);
    let count = || {
        let text = fs::read_to_string(folder.join("count")).unwrap_or_default();
        text.parse::<u64>().unwrap_or(0)
    };
    until("the first bytes", || count() > 0);
    let image = host.path("job.floe").display().to_string();
    for method in PID_METHODS {
        host.done(&["checkpoint", &job, "-o", &image]);
        let before = count();
        host.done(&["restore", "--dry-run", &image]);
        host.done(&["restore", "-d", "--pid-method", method, &image]);
        until("more bytes", || count() > before);
    }
}

#[test]
fn a_unix_end_outside_is_refused_with_who_has_it() {
    let host = Host::new();
    let job = host.name("job");
    let path = host.path("outside");
    let listener = UnixListener::bind(&path).expect("bind");
    let script = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                  while True:\n s.sendall(b'got ' + s.recv(100))";
    let name = path.display().to_string();
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", script, &name]);
    let (mut outside, _) = listener.accept().expect("accept");
    let image = host.path("job.floe").display().to_string();
    let found = host.floe(&["checkpoint", &job, "-o", &image]).expect_failed();
    let own = std::process::id();
    let who = fs::read_to_string("/proc/self/comm").expect("its own name");
    let reason = format!("is held outside of the tree, by {} ({own}), at {name}", who.trim());
    assert!(found.contains(&reason), "{found}");
    outside.write_all(b"one").expect("write");
    let mut bytes = [0; 7];
    outside.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"got one");
}

#[test]
fn a_unix_connection_from_outside_that_waits_is_refused() {
    let host = Host::new();
    let job = host.name("job");
    let path = host.path("inside").display().to_string();
    let script = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n\
                  open(sys.argv[1] + '.ready', 'w')\ntime.sleep(1000)";
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", script, &path]);
    until("the socket", || Path::new(&format!("{path}.ready")).exists());
    let mut outside = UnixStream::connect(&path).expect("connect");
    let image = host.path("job.floe").display().to_string();
    let line = ["checkpoint", "--patience", "0", &job, "-o", &image];
    let found = host.floe(&line).expect_failed();
    let own = std::process::id();
    let reason = format!("({own}), outside of the tree, waits to be accepted");
    assert!(found.contains(&reason), "{found}");
    // What nobody has any more waits like others.
    outside.write_all(b"farewell").expect("write");
    drop(outside);
    host.done(&["checkpoint", &job, "-o", &image]);
}

/// A daemon that binds, and shuts itself up then: nobody in the tree could bind there again.
#[test]
fn a_path_outside_of_all_roots_is_refused() {
    let host = Host::new();
    let folder = host.path("work");
    fs::create_dir_all(folder.join("jail")).expect("a folder");
    let job = host.name("job");
    let script = "import os, socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(os.getcwd() + '/s')\ns.listen(5)\n\
                  os.chroot('jail')\nos.chdir('/')\nopen('ready', 'w')\ntime.sleep(1000)";
    let place = folder.display().to_string();
    host.done(&["run", "-d", "--name", &job, "-w", &place, "--", "python3", "-c", script]);
    until("python", || folder.join("jail/ready").exists());
    let image = host.path("job.floe").display().to_string();
    let found = host.floe(&["checkpoint", &job, "-o", &image]).expect_failed();
    assert!(
        found.contains("from a root directory alone that no process of the tree has"),
        "{found}"
    );
}

/// Where there are not many ports the kernel would choose for floe's own ends what the tree's sockets have.
#[test]
fn ports_of_the_tree_are_left_to_it() {
    enter_own_network();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50000 50149").expect("a range of ports");
    let host = Host::new();
    let mut victim = Victim::start(&host, "sockets-urgent", &["--net", "host"], &[]);
    for method in PID_METHODS.iter().cycle().take(4) {
        victim.round_trip("sockets-urgent", method);
        victim.check("where ports are few");
    }
}
