//! Unix sockets that are connected with somebody outside of their tree, and connect anew when it is restored.

use floe_suite::{Host, ask, enter_own_mounts};
use std::{
    fs,
    io::{Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    path::Path,
    time::Duration,
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Connects with argument 1 and answers there.
const CONNECTS: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
place = sys.argv[1]
s.connect(('\\0' + place[1:]) if place[0] == '@' else place)
n = 0
while True:
    got = s.recv(100)
    n += 1
    s.sendall(b'%d %s' % (n, got))";

#[test]
fn a_stream_connects_anew_with_who_listens_at_a_path() {
    let host = Host::new();
    let path = text(&host.path("service"));
    let listener = UnixListener::bind(&path).expect("bind");
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", CONNECTS, &path]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "a"), "1 a");
    let line = ["checkpoint", &job, "-o", &image];
    let rule = format!("unix:{path}");
    let found = host.floe(&line).expect_failed();
    assert!(found.contains(&format!("(--external {rule})")), "{found}");
    let line = [&line[..], &["--external", &rule]].concat();
    host.done(&line);
    let (restore, permit) = (["restore", "-d", &image], ["--external", &rule]);
    // Only this test stops it, so the end of the old connection comes with the tree's.
    assert_eq!(end.read(&mut [0; 10]).expect("its end"), 0);
    let found = host.floe(&restore).expect_failed();
    assert!(
        found.contains(&format!(
            "connecting anew with what is outside of the tree takes --external {rule}"
        )),
        "{found}"
    );
    let permitted = [&restore[..], &permit].concat();
    drop(listener);
    let found = host.floe(&permitted).expect_failed();
    assert!(
        found.contains(&format!("nobody has the socket {path} to connect with")),
        "{found}"
    );
    fs::remove_file(&path).expect("remove");
    let found = host.floe(&permitted).expect_failed();
    assert!(
        found.contains(&format!("there is no socket {path} to connect with")),
        "{found}"
    );
    let letters = UnixDatagram::bind(&path).expect("bind");
    let found = host.floe(&permitted).expect_failed();
    assert!(found.contains("is another kind of socket here"), "{found}");
    drop(letters);
    fs::remove_file(&path).expect("remove");
    let listener = UnixListener::bind(&path).expect("bind");
    host.done(&permitted);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "b"), "2 b");
    // What came and is not read would be lost with the connection.
    host.done(&["freeze", &job]);
    end.write_all(b"not read").expect("write");
    let found = host.floe(&[&line[..], &["--patience", "0"]].concat()).expect_failed();
    assert!(
        found.contains("bytes from outside of the tree wait in this socket"),
        "{found}"
    );
    host.done(&["rm", "-f", &job]);
}

#[test]
fn a_stream_connects_anew_with_an_abstract_name() {
    let host = Host::new();
    let name = host.name("service");
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("bind");
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    let place = format!("@{name}");
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", CONNECTS, &place]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "a"), "1 a");
    let rule = format!("unix:{place}");
    host.done(&["checkpoint", &job, "-o", &image, "--external", &rule]);
    host.done(&["restore", "-d", "--external", &rule, &image]);
    let (mut end, _) = listener.accept().expect("accept");
    assert_eq!(ask(&mut end, "b"), "2 b");
    host.done(&["rm", "-f", &job]);
}

/// Tells the system's log a number when a file with it appears.
const LOGS: &str = "import os, sys, syslog, time
n = 0
syslog.openlog('job', syslog.LOG_NDELAY | syslog.LOG_PID)
while True:
    n += 1
    syslog.syslog('number %d' % n)
    while not os.path.exists('%s/go.%d' % (sys.argv[1], n)):
        time.sleep(0.005)";

#[test]
fn a_program_goes_on_telling_the_systems_log() {
    // A /dev/log that nobody else sees.
    enter_own_mounts();
    let host = Host::new();
    let folder = text(&host.path("work"));
    fs::create_dir(&folder).expect("a folder");
    let go = |number: u32| fs::write(format!("{folder}/go.{number}"), "").expect("write");
    let heard = |log: &UnixDatagram, number: u32| {
        let mut bytes = [0; 1000];
        let count = log.recv(&mut bytes).expect("a letter");
        let line = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(
            line.contains("job[") && line.ends_with(&format!("number {number}")),
            "{line}"
        );
    };
    let listen = || {
        let log = UnixDatagram::bind("/dev/log").expect("bind");
        log.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("SO_RCVTIMEO");
        log
    };
    let log = listen();
    let (job, image) = (host.name("job"), text(&host.path("job.floe")));
    // A path leads out of a network of its own, too.
    let run = ["run", "-d", "--net", "none", "--name", &job, "--"];
    host.done(&[&run[..], &["python3", "-c", LOGS, &folder]].concat());
    heard(&log, 1);
    go(1);
    heard(&log, 2);
    host.done(&["checkpoint", &job, "-o", &image]);
    go(2);
    drop(log);
    let found = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(
        found.contains("nobody has the socket /dev/log to connect with"),
        "{found}"
    );
    fs::remove_file("/dev/log").expect("remove");
    let log = listen();
    host.done(&["restore", "-d", &image]);
    heard(&log, 3);
    go(3);
    heard(&log, 4);
    host.done(&["rm", "-f", &job]);
}
