//! Pairs of network devices of which one end is in a tree and the other is the host's, made by hand, the host being a network
//! namespace of each test's own: servers that are reached by them, what is in the way, and that nothing is left.

use floe_suite::{Host, PID_METHODS, Traces, enter_own_network, has, json, leave, run, skip, until};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Waits for its device eth0, and serves its folder.
const SERVER: &str = "
until ip link set eth0 up; do sleep 0.01; done 2> /dev/null
ip link set lo up && ip addr add $2 dev eth0 && ip route add default via $3 &&
exec python3 -m http.server --bind 0.0.0.0 --directory $1 8080";

/// One in the sandbox's network, and one in a network namespace of its own, which tells its PID.
const TWO: &str = "
unshare -n sh -c 'echo $$ > $2/pid.new; mv $2/pid.new $2/pid; exec sh -c \"$1\" sh $2 10.7.0.2/24 10.7.0.1' sh \"$0\" $1 &
exec sh -c \"$0\" sh $1 10.8.0.2/24 10.8.0.1";

const ASK: &str =
    "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1] + '/name', timeout=10).read().decode())";

/// A host of the test's own with a bridge; `None` where its tools are missing.
fn host() -> Option<Host> {
    if ["ip", "python3", "unshare"].iter().any(|program| !has(program)) {
        skip("there is no ip, python3 or unshare");
        return None;
    }
    enter_own_network();
    ip("link add br0 type bridge");
    ip("addr add 10.9.0.1/24 dev br0");
    ip("link set br0 up");
    Some(Host::new())
}

fn ip(line: &str) -> String {
    run(Command::new("ip").args(line.split(' '))).expect_done()
}

fn devices() -> Vec<String> {
    let all = json(&ip("-j link"));
    let names = all
        .as_array()
        .expect("a list")
        .iter()
        .map(|device| device["ifname"].as_str());
    names.map(|name| name.expect("a name").to_owned()).collect()
}

/// A device without anything beside it is there no more.
fn goes(device: &str) {
    until(&format!("the end of {device}"), || {
        !devices().iter().any(|name| name == device)
    });
}

fn asks(address: &str) -> bool {
    let url = format!("http://{address}:8080");
    let answer = run(Command::new("python3").args(["-c", ASK, &url]));
    answer.status == 0 && answer.out.trim() == "container"
}

/// A container that was made by hand, at the bridge.
struct Container(Child);

fn folder(host: &Host) -> PathBuf {
    let folder = host.folder("served");
    fs::write(folder.join("name"), "container").expect("write");
    folder
}

impl Container {
    fn start(host: &Host) -> Self {
        let place = folder(host).display().to_string();
        let container = Self::begin(&["sh", "-c", SERVER, "sh", &place, "10.9.0.2/24", "10.9.0.1"]);
        until("the server", || asks("10.9.0.2"));
        container
    }

    fn begin(program: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command
            .arg("-n")
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: what it calls is safe between fork and exec.
        unsafe { command.pre_exec(leave) };
        let container = Self(command.spawn().expect("start it"));
        let link = |who: &str| fs::read_link(Path::new("/proc").join(who).join("ns/net")).ok();
        let pid = container.pid();
        until("a network namespace", || link(&pid) != link("thread-self"));
        ip(&format!("link add veth0 type veth peer name eth0 netns {pid}"));
        ip("link set veth0 master br0 up");
        container
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Saves it, which ends it.
    fn save(&mut self, host: &Host) -> String {
        let image = host.path("container.floe").display().to_string();
        host.done(&["checkpoint", "--pid", &self.pid(), "-o", &image]);
        self.0.wait().expect("reap it");
        image
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_container_at_a_bridge_goes_on() {
    let Some(host) = host() else { return };
    let name = host.name("box");
    let mut image = Container::start(&host).save(&host);
    // The second time it is a sandbox's, and has the name that the first one had.
    for (before, end) in [("veth0", "port"), ("port", "veth0")] {
        let networks = json(&host.done(&["inspect", "--json", &image, "networks"]));
        let all = networks[0]["devices"].as_array().expect("a list");
        let eth0 = all.iter().find(|device| device["name"] == "eth0").expect("it");
        assert_eq!((&eth0["outer"], &eth0["outer_bridge"]), (&before.into(), &"br0".into()));
        let told = host.done(&["inspect", &image, "networks"]);
        assert!(told.contains(&format!("{before} of the host, in br0")), "{told}");
        let given = format!("eth0={end}@br0,10.6.0.1/24,10.6.1.1/32");
        host.done(&["restore", "-d", "--name", &name, "--net", &given, &image]);
        assert!(asks("10.9.0.2"), "as {end}");
        goes(before);
        let ports = ip("-br link show master br0");
        assert!(ports.starts_with(end) && ports.contains("LOWER_UP"), "{ports}");
        let addresses = ip(&format!("-br addr show dev {end}"));
        assert!(addresses.contains("10.6.0.1/24 10.6.1.1/32"), "{addresses}");
        image = host.path(&format!("{end}.floe")).display().to_string();
        host.done(&["checkpoint", &name, "-o", &image]);
    }
    goes("veth0");
    // Right after its end its device may be there still.
    host.done(&["restore", "-d", "--name", &name, "--net", "eth0=veth0@br0", &image]);
    fs::remove_file(&image).expect("remove");
    host.done(&["checkpoint", &name, "-o", &image]);
    host.done(&["restore", "-d", "--name", &name, "--net", "eth0=veth0@br0", &image]);
    assert!(asks("10.9.0.2"));
    host.done(&["rm", "-f", &name]);
    goes("veth0");
}

#[test]
fn devices_of_several_network_namespaces_lead_to_the_host() {
    let Some(host) = host() else { return };
    let name = host.name("box");
    let place = folder(&host).display().to_string();
    host.done(&[
        "run", "-d", "--name", &name, "--net", "none", "--", "sh", "-c", TWO, SERVER, &place,
    ]);
    let first = host.pid1(&name);
    ip(&format!("link add one type veth peer name eth0 netns {first}"));
    let pid = Path::new(&place).join("pid");
    until("the other one", || pid.exists());
    let inside = fs::read_to_string(pid).expect("read");
    // It tells its PID in the sandbox.
    let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).expect("read");
    let numbers = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).expect("read");
    let of_host = children.split_ascii_whitespace().find(|pid| {
        let status = numbers(pid);
        let line = status.lines().find(|line| line.starts_with("NSpid:"));
        line.is_some_and(|line| line.ends_with(&format!("\t{}", inside.trim())))
    });
    ip(&format!(
        "link add two type veth peer name eth0 netns {}",
        of_host.expect("it")
    ));
    for (end, address) in [("one", "10.8.0"), ("two", "10.7.0")] {
        ip(&format!("addr add {address}.1/24 dev {end}"));
        ip(&format!("link set {end} up"));
        until("a server", || asks(&format!("{address}.2")));
    }
    // What is up without a line gets one.
    ip("link set two down");
    let image = host.path("box.floe").display().to_string();
    host.done(&["checkpoint", &name, "-o", &image]);
    let networks = json(&host.done(&["inspect", "--json", &image, "networks"]));
    let number = networks[1]["namespace"].as_u64().expect("a number");
    let other = format!("{number}:eth0=two,10.7.0.1/24");
    for given in ["eth0=x", &other] {
        let error = host.floe(&["restore", "-d", "--net", given, &image]).expect_failed();
        let wanted = match given {
            "eth0=x" => "--net eth0: several network namespaces of the image have such a device".to_owned(),
            _ => "network device eth0 (veth): its other end was one of the host: give it one here (--net eth0=one"
                .to_owned(),
        };
        assert!(error.contains(&wanted), "{error}");
    }
    host.done(&[
        "restore",
        "-d",
        "--net",
        "0:eth0=one,10.8.0.1/24",
        "--net",
        &other,
        &image,
    ]);
    for address in ["10.8.0.2", "10.7.0.2"] {
        assert!(asks(address), "{address}");
    }
    host.done(&["rm", "-f", &name]);
    goes("one");
    goes("two");
}

#[test]
fn what_is_in_the_way_is_told() {
    let Some(host) = host() else { return };
    let image = Container::start(&host).save(&host);
    let lacking = "network device eth0 (veth): its other end was veth0 of the host, a part of the bridge br0: \
                   give it one here (--net eth0=veth0@br0)";
    for line in [
        &["restore", "-d", &image][..],
        &["restore", "--dry-run", &image],
        &["check", "--image", &image],
    ] {
        let error = host.floe(line).expect_failed();
        assert!(error.contains(lacking), "{line:?}: {error}");
    }
    ip("link add other type veth peer name another");
    let before = devices();
    for (given, wanted) in [
        (&["eth0=other"][..], "eth0 (veth): this host has a device other already"),
        (&["eth0=veth0@br7"], "eth0 (veth): this host has no bridge br7"),
        (&["eth0=veth0@other"], "eth0 (veth): other of this host is no bridge"),
        (
            &["eth0=veth0", "eth5=veth5"],
            "--net eth5: the image has no such device whose other end was the host's",
        ),
        (&["eth0=veth0", "lo=veth5"], "--net lo: the image has no such device"),
        (&["7:eth0=veth0"], lacking),
    ] {
        let options = given.iter().flat_map(|given| ["--net", given]);
        let line: Vec<&str> = ["restore", "-d"]
            .into_iter()
            .chain(options)
            .chain([&image[..]])
            .collect();
        let error = host.floe(&line).expect_failed();
        assert!(error.contains(wanted), "{error}");
    }
    for given in ["eth0", "eth0=a b", "eth0=veth0,10.0.0.1"] {
        let outcome = host.floe(&["restore", "-d", "--net", given, &image]);
        assert_eq!(outcome.status, 2, "{}", outcome.err);
    }
    let ordinary = Host::of_ordinary_user();
    let copy = ordinary.path("container.floe");
    fs::copy(&image, &copy).expect("copy");
    std::os::unix::fs::chown(&copy, Some(floe_suite::ORDINARY), None).expect("give it away");
    let copy = copy.display().to_string();
    let error = ordinary
        .floe(&["restore", "-d", "--net", "eth0=veth0@br0", &copy])
        .expect_failed();
    let wanted = "--net: only who may administer the host's network may make ends of devices there";
    assert!(error.contains(wanted), "{error}");
    assert_eq!(devices(), before);
}

#[test]
fn restores_that_fail_leave_no_device() {
    let Some(host) = host() else { return };
    let name = host.name("box");
    let traces = Traces::look(&host, &[&name], &[]);
    let image = Container::start(&host).save(&host);
    goes("veth0");
    let before = devices();
    let stages = host.done(&["restore", "--stages"]);
    let options = ["restore", "-d", "--name", &name, "--net", "eth0=veth0@br0", &image];
    for stage in stages.lines() {
        let error = run(host.command(&options).env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        until("the end of its devices", || devices() == before);
        traces.expect_again(&host, &[&name], &[], stage);
    }
    host.done(&options);
    assert!(asks("10.9.0.2"));
    host.done(&["rm", "-f", &name]);
}

/// Serves in its own network namespace, at the host's bridge, whoever connects: all that comes goes back. Makes a connection, too.
const ECHO: &str = "
import socket, subprocess, sys, threading, time
def ip(*line):
    return subprocess.run(('ip',) + line, stderr=subprocess.DEVNULL).returncode == 0
while not ip('link', 'set', 'eth0', 'up'):
    time.sleep(0.01)
ip('link', 'set', 'lo', 'up')
ip('addr', 'add', '10.9.0.2/24', 'dev', 'eth0')
ip('addr', 'add', 'fd00:9::2/64', 'dev', 'eth0', 'nodad')
def serve(end):
    while data := end.recv(65536):
        end.sendall(data)
def connect():
    while True:
        try:
            return socket.create_connection(('10.9.0.1', 9000), 20)
        except OSError:
            time.sleep(0.01)
server = socket.create_server(('::', 8000), family=socket.AF_INET6, dualstack_ipv6=True)
threading.Thread(target=lambda: serve(connect())).start()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

/// Tells what neighbours are told on a device: addresses that somebody says to have.
const LISTENER: &str = "
import socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
heard.bind((sys.argv[1], 0))
print('ready', flush=True)
while True:
    frame = heard.recv(2048)
    kind, rest = frame[12:14], frame[14:]
    if kind == b'\\x08\\x06' and rest[6:8] == b'\\0\\1' and rest[14:18] == rest[24:28]:
        print(socket.inet_ntop(socket.AF_INET, rest[14:18]), frame[:6].hex(), flush=True)
    if kind == b'\\x86\\xdd' and rest[6:8] == b'\\x3a\\xff' and rest[40] == 136 and rest[44] & 0x60 == 0x20:
        words = rest[8:40] + len(rest[40:]).to_bytes(4, 'big') + b'\\0\\0\\0\\x3a' + rest[40:]
        total = sum(int.from_bytes(words[at:at + 2], 'big') for at in range(0, len(words), 2))
        assert total % 65535 == 0, 'a wrong checksum'
        print(socket.inet_ntop(socket.AF_INET6, rest[48:64]), frame[:6].hex(), flush=True)
";

/// Bytes there and back; what was sent before comes first.
fn exchange(end: &mut TcpStream, before: &[u8], when: &str) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    end.write_all(&bytes).unwrap_or_else(|error| panic!("{when}: {error}"));
    let mut got = vec![0; before.len() + bytes.len()];
    end.read_exact(&mut got)
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(got == [before, &bytes].concat(), "{when}: other bytes came");
}

/// The host's ends of connections see no reset, and neighbours are told where the addresses are now.
#[test]
fn connections_through_a_bridge_go_on() {
    let Some(host) = host() else { return };
    ip("addr add fd00:9::1/64 dev br0 nodad");
    let listener = TcpListener::bind("10.9.0.1:9000").expect("bind");
    let mut container = Container::begin(&["python3", "-c", ECHO]);
    let (from_inside, _) = listener.accept().expect("accept");
    let connect = |place: &str| {
        let mut end = None;
        until("a server", || {
            end = TcpStream::connect(place).ok();
            end.is_some()
        });
        end.expect("an end")
    };
    let mut ends = [
        ("by IPv4", connect("10.9.0.2:8000")),
        ("by IPv6", connect("[fd00:9::2]:8000")),
        ("from inside", from_inside),
    ];
    for (what, end) in &mut ends {
        let patience = Some(Duration::from_secs(40));
        end.set_read_timeout(patience).expect("a timeout");
        exchange(end, &[], what);
    }
    let name = host.name("box");
    let pid = container.pid();
    let image = host.path("box.floe").display().to_string();
    // Of a checkpoint that fails nobody hears, of one that lets it run on neither.
    let save = ["checkpoint", "--pid", &pid, "-o", &image, "--tcp", "established"];
    let failed = run(host.command(&save).env("FLOE_FAIL_AT", "end"));
    assert_eq!(failed.status, 1, "{}", failed.err);
    host.done(&[&save[..], &["--leave-running"]].concat());
    for (what, end) in &mut ends {
        exchange(end, &[], &format!("{what}, it runs on"));
    }
    let refused = host.floe(&save[..5]).expect_failed();
    assert!(refused.contains("--tcp established"), "{refused}");
    let told = Command::new("python3")
        .args(["-c", LISTENER, "br0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("listen");
    let mut told = Ended(told);
    let mut lines = BufReader::new(told.0.stdout.take().expect("its output")).lines();
    // Of the addresses that the kernel gives by itself it is told, too.
    let mut lines = lines
        .by_ref()
        .filter(|line| !line.as_ref().is_ok_and(|line| line.starts_with("fe80:")));
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(next(), "ready");
    for trip in 0..4 {
        if trip == 0 {
            host.done(&save);
            container.0.wait().expect("reap it");
        } else {
            host.done(&["checkpoint", &name, "-o", &image, "--tcp", "established"]);
        }
        let gone = if trip % 2 == 0 { "veth0" } else { "port" };
        goes(gone);
        for (what, end) in &mut ends {
            end.write_all(b"while it is away")
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        let end = if trip % 2 == 0 { "port" } else { "veth0" };
        let given = format!("eth0={end}@br0");
        let mut line = vec!["restore", "-d", "--name", &name, "--net", &given, &image];
        let refused = host.floe(&[&line[..], &["--tcp", "refuse"]].concat()).expect_failed();
        assert!(refused.contains("TCP connection from 10.9.0.2:8000"), "{refused}");
        line.extend(["--pid-method", PID_METHODS[trip % 2]]);
        host.done(&line);
        // In any order.
        let mut heard: Vec<String> = (0..2).map(|_| next()).collect();
        heard.sort();
        assert_eq!(
            heard,
            ["10.9.0.2 ffffffffffff", "fd00:9::2 333300000001"],
            "trip {trip}"
        );
        for (what, end) in &mut ends {
            exchange(end, b"while it is away", &format!("{what}, trip {trip}"));
        }
    }
    host.done(&["rm", "-f", &name]);
    goes("veth0");
    goes("port");
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
