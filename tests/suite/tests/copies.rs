//! A tree that is restored under another name while the first one still runs: what both can have does not clash, and what only
//! one can have is told before anything is made.

use floe_suite::{Host, PID_METHODS, enter_own_network, has, json, until};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// Has objects of IPC, a queue, an abstract socket's name and files of its own; counts.
const COMMON: &str = "
import os, socket, sys, time
names = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)]
if 'abstract' in sys.argv:
    names[0].bind('\\0floe-copy'); names[0].listen()
if 'port' in sys.argv:
    names[1].bind(('127.0.0.1', 7432)); names[1].listen()
fd = os.memfd_create('numbers')
os.system('ipcmk -Q -p 600 > /dev/null; ipcmk -S 2 > /dev/null; ipcmk -M 4096 > /dev/null')
n = 0
while True:
    n += 1
    os.pwrite(fd, n.to_bytes(8, 'little'), 0)
    open('/dev/shm/count', 'w').write(str(n))
    time.sleep(0.01)
";

fn count(host: &Host, name: &str) -> u64 {
    let text = host.floe(&["exec", name, "--", "cat", "/dev/shm/count"]).out;
    text.trim().parse().unwrap_or(0)
}

fn counts_on(host: &Host, name: &str) {
    let before = count(host, name);
    until(&format!("{name} counts on"), || count(host, name) > before);
}

fn objects(host: &Host, name: &str) -> String {
    host.done(&["exec", name, "--", "ipcs"])
}

/// With a network, IPC and a /dev/shm of each one's own there is nothing to clash.
#[test]
fn two_copies_run_beside_the_first() {
    let host = Host::new();
    let (first, image) = (host.name("first"), host.path("copy.floe"));
    let image = image.to_str().expect("a plain path");
    let options = ["--net", "none", "--tmpfs", "/dev/shm"];
    let line = [
        &["run", "-d", "--name", &first],
        &options[..],
        &["--", "python3", "-c", COMMON, "abstract", "port"],
    ];
    host.done(&line.concat());
    until("it counts", || count(&host, &first) > 0);
    let before = objects(&host, &first);
    host.done(&["checkpoint", &first, "--leave-running", "-o", image]);
    let copies = PID_METHODS.map(|method| {
        let name = host.name(method);
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, image]);
        name
    });
    for name in copies.iter().chain([&first]) {
        counts_on(&host, name);
        assert_eq!(objects(&host, name), before, "{name}");
    }
    // Each is a tree of its own, which ends alone and is saved alone.
    host.done(&["checkpoint", &copies[0], "-o", image]);
    host.done(&["rm", "-f", &copies[1]]);
    counts_on(&host, &first);
    host.done(&["restore", "-d", image]);
    counts_on(&host, &copies[0]);
    // Its own name is the one thing that it can't have twice.
    let error = host.floe(&["restore", "-d", "--name", &first, image]).expect_failed();
    assert!(error.contains(&first), "{error}");
}

/// What the first one has of the host's network.
#[test]
fn addresses_of_the_hosts_network_are_in_the_way() {
    enter_own_network();
    let host = Host::new();
    let (first, image) = (host.name("first"), host.path("copy.floe"));
    let image = image.to_str().expect("a plain path");
    let line = [
        "run", "-d", "--name", &first, "--tmpfs", "/dev/shm", "--", "python3", "-c", COMMON, "abstract", "port",
    ];
    host.done(&line);
    until("it counts", || count(&host, &first) > 0);
    host.done(&["checkpoint", &first, "--leave-running", "-o", image]);
    for line in [
        &["restore", "-d", "--name", "copy", image][..],
        &["restore", "--dry-run", image],
        &["check", "restore", "--image", image],
    ] {
        let error = host.floe(line).expect_failed();
        let both = ["TCP address 127.0.0.1:7432 is somebody else's", "floe-copy"];
        assert!(both.iter().all(|text| error.contains(text)), "{line:?}: {error}");
        assert_eq!(host.sandboxes(), std::slice::from_ref(&first), "nothing of it is left");
    }
    counts_on(&host, &first);
    TcpStream::connect("127.0.0.1:7432").expect("the first one has it still");
    host.done(&["rm", "-f", &first]);
    host.done(&["restore", "-d", "--name", "copy", image]);
    counts_on(&host, "copy");
}

/// An address and a published port of a network that is joined to the host's.
#[test]
fn addresses_and_published_ports_are_in_the_way() {
    if !has("ip") || !has("nft") {
        return;
    }
    enter_own_network();
    let host = Host::new();
    let (first, image) = (host.name("first"), host.path("copy.floe"));
    let image = image.to_str().expect("a plain path");
    let server = "import socket\ns = socket.create_server(('', 80))\nwhile True:\n e, _ = s.accept(); e.sendall(b'hello'); e.close()";
    let options = ["--net", "new", "-p", "7080:80"];
    host.done(
        &[
            &["run", "-d", "--name", &first],
            &options[..],
            &["--", "python3", "-c", server],
        ]
        .concat(),
    );
    let reach = |port: u16| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    until("the server", || reach(7080));
    host.done(&["checkpoint", &first, "--tcp", "close", "--leave-running", "-o", image]);
    let error = host.floe(&["restore", "-d", "--name", "copy", image]).expect_failed();
    assert!(error.contains("2 things stand in the way"), "{error}");
    assert!(
        error.contains("published port 7080:80: another sandbox or program has the host's port"),
        "{error}"
    );
    host.done(&["rm", "-f", &first]);
    // Another program has the port now, and the sandbox is given another one.
    let _taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7080)).expect("bind");
    let error = host.floe(&["restore", "--dry-run", image]).expect_failed();
    assert!(error.contains("--publish gives others"), "{error}");
    host.done(&["restore", "-d", "--name", "copy", "-p", "7081:80", image]);
    until("the server at its new port", || reach(7081));
    let list = json(&host.done(&["ps", "--json"]));
    assert!(list.to_string().contains("7081:80"), "{list}");
    host.done(&["checkpoint", "copy", "--tcp", "close", "-o", image]);
    host.done(&["restore", "-d", image]);
    until("the server once more", || reach(7081));
}
