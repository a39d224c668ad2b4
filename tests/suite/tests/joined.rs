//! Sandboxes that are joined to the host's network (`--net new`), the host being a network namespace of each test's own: who
//! reaches whom, and that nothing is left whatever ends.

use floe_suite::{Host, PID_METHODS, enter_own_network, has, json, run, signal, spawn, times, until};
use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    time::Duration,
};

/// Answers with the other end's address, at port 8000.
const SERVER: &str = "
import socket
server = socket.create_server(('', 8000))
while True:
    end, (address, _) = server.accept()
    end.sendall(address.encode())
    end.close()
";

/// Kills of `floe run`.
const KILLS: u32 = 12;

/// A host of the test's own that forwards, or does not; `None` where its tools are missing.
fn host(forwards: bool) -> Option<Host> {
    if !has("ip") || !has("nft") {
        return None;
    }
    enter_own_network();
    fs::write("/proc/sys/net/ipv4/ip_forward", if forwards { "1" } else { "0" }).expect("set");
    Some(Host::new())
}

fn ip(line: &str) {
    let _ = run(Command::new("ip").args(line.split(' '))).expect_done();
}

fn start(host: &Host, name: &str, options: &[&str]) -> Ipv4Addr {
    let line = [&["run", "-d", "--name", name, "--net", "new"], options].concat();
    host.done(&[&line[..], &["--", "python3", "-c", SERVER]].concat());
    let address = entry(host, name)["address"].as_str().expect("an address").parse();
    address.expect("an address")
}

fn entry(host: &Host, name: &str) -> serde_json::Value {
    let list = json(&host.done(&["ps", "--json"]));
    let entries = list.as_array().expect("a list");
    entries.iter().find(|entry| entry["name"] == name).expect("it").clone()
}

/// What a server says, when it is there.
fn ask(place: (Ipv4Addr, u16)) -> String {
    let mut end = None;
    until("a server", || {
        end = TcpStream::connect_timeout(&place.into(), Duration::from_secs(1)).ok();
        end.is_some()
    });
    let mut said = String::new();
    end.expect("an end").read_to_string(&mut said).expect("read");
    said
}

/// The same from inside.
fn ask_from(host: &Host, name: &str, place: (Ipv4Addr, u16)) -> String {
    let asks = format!(
        "import socket; e = socket.create_connection(('{}', {}), 20); print(e.recv(99).decode())",
        place.0, place.1
    );
    host.done(&["exec", name, "--", "python3", "-c", &asks])
        .trim()
        .to_owned()
}

/// Devices and rules.
fn devices() -> String {
    let devices = run(Command::new("ip").args(["-br", "link"])).expect_done();
    let floes: Vec<&str> = devices.lines().filter(|line| line.starts_with("floe")).collect();
    floes.join("\n")
}

fn left() -> String {
    devices() + &run(Command::new("nft").args(["list", "ruleset"])).expect_done()
}

fn nothing_is_left() {
    until("the end of devices and rules", || left().is_empty());
}

#[test]
fn host_and_sandbox_reach_each_other() {
    let Some(host) = host(true) else { return };
    let name = host.name("job");
    let address = start(&host, &name, &["-p", "8080:8000"]);
    let gateway = Ipv4Addr::from(u32::from(address) - 1);
    assert_eq!(ask((address, 8000)), gateway.to_string());
    assert_eq!(
        ask((Ipv4Addr::LOCALHOST, 8080)),
        gateway.to_string(),
        "the published port"
    );
    let listener = TcpListener::bind((gateway, 0)).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let answer = std::thread::spawn(move || {
        let (mut end, from) = listener.accept().expect("accept");
        std::io::Write::write_all(&mut end, from.ip().to_string().as_bytes()).expect("write");
    });
    assert_eq!(ask_from(&host, &name, (gateway, port)), address.to_string());
    answer.join().expect("an answer");
    assert_eq!(entry(&host, &name)["published"], serde_json::json!(["8080:8000"]));
    assert!(host.done(&["ps"]).contains(&format!("{address} 8080:8000")));
    host.done(&["rm", "-f", &name]);
    nothing_is_left();
}

/// Root inside sends packets to 127.0.0.1 of the host, and from there: by routes and addresses of its own, and as CVE-2020-8558.
const INTRUDER: &str = "
import socket, struct, sys
gateway, port = sys.argv[1], int(sys.argv[2])
raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
# The host's hardware address.
probe = socket.create_connection((gateway, port + 1), 20)
host = bytes([0x02, 0xf1, 0x0e, 0]) + socket.inet_aton(gateway)[2:]
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def send(source, target, text):
    datagram = struct.pack('!4H', 5000, port, 8 + len(text), 0) + text
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
    head = head[:10] + struct.pack('!H', checksum(head)) + head[12:]
    raw.sendto(head + datagram, ('eth0', 0x800, 0, 0, host))
own = probe.getsockname()[0]
send(own, '127.0.0.1', b'to loopback')
send('127.0.0.1', gateway, b'from loopback')
send(own, gateway, b'last')
";

#[test]
fn loopback_of_the_host_is_not_reached_from_inside() {
    let Some(host) = host(true) else { return };
    let name = host.name("job");
    let address = start(&host, &name, &["-p", "8080:8000"]);
    let gateway = Ipv4Addr::from(u32::from(address) - 1);
    let (service, beside) = (UdpSocket::bind("0.0.0.0:7000"), TcpListener::bind((gateway, 7001)));
    let (service, _beside) = (service.expect("bind"), beside.expect("bind"));
    service
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let gateway = gateway.to_string();
    host.done(&["exec", &name, "--", "python3", "-c", INTRUDER, &gateway, "7000"]);
    let mut got = [0; 99];
    let (length, from) = service.recv_from(&mut got).expect("a datagram");
    // The others came before it.
    assert_eq!(
        (&got[..length], from.ip()),
        (&b"last"[..], address.into()),
        "it is the only one"
    );
}

#[test]
fn a_published_port_is_one_sandboxs() {
    let Some(host) = host(true) else { return };
    let names = ["one", "two"].map(|name| host.name(name));
    start(&host, &names[0], &["-p", "8080:8000", "-p", "8080:53/udp"]);
    let try_to = |ports: &[&str]| {
        let line = [&["run", "--name", &names[1], "--net", "new"], ports, &["--", "true"]].concat();
        host.floe(&line)
    };
    for port in ["8080:80", "8080:80/udp"] {
        let second = try_to(&["-p", port]);
        assert_eq!(second.status, 125, "{}", second.err);
        assert!(second.err.contains(&format!("publish port {port}")), "{}", second.err);
    }
    let service = TcpListener::bind("127.0.0.1:8081").expect("bind");
    assert!(try_to(&["-p", "8081:80"]).err.contains("publish port 8081:80"));
    let twice = try_to(&["-p", "8082:80", "-p", "8082:81"]);
    assert!(twice.err.contains("port 8082:81"), "{}", twice.err);
    assert_eq!(try_to(&["-p", "8082:80", "-p", "8082:80/udp"]).status, 0);
    // A port that somebody has by now.
    let image = host.path("job.floe").display().to_string();
    host.done(&["checkpoint", &names[0], "-o", &image]);
    drop(service);
    let service = TcpListener::bind("127.0.0.1:8080").expect("the port is free");
    let error = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(error.contains("published port 8080:8000"), "{error}");
    drop(service);
    host.done(&["restore", "-d", &image]);
    host.done(&["rm", "-f", &names[0]]);
    nothing_is_left();
}

/// A machine beyond the host.
struct Far(Child);

impl Far {
    fn new() -> Self {
        let child = spawn(Command::new("unshare").args(["-n", "--", "python3", "-c", SERVER]));
        let far = Self(child);
        let process = far.0.id();
        let namespace = || fs::read_link(format!("/proc/{process}/ns/net")).expect("a namespace");
        let own = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        until("a network namespace", || namespace() != own);
        ip(&format!("link add out type veth peer name far netns {process}"));
        ip("addr add 192.0.2.1/24 dev out");
        ip("link set out up");
        for line in ["addr add 192.0.2.9/24 dev far", "link set far up"] {
            let line = format!("-t {process} -n ip {line}");
            let _ = run(Command::new("nsenter").args(line.split(' '))).expect_done();
        }
        far
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

#[test]
fn others_are_reached_where_the_host_forwards() {
    let Some(host) = host(true) else { return };
    let far = Far::new();
    let name = host.name("job");
    start(&host, &name, &["-p", "8080:8000"]);
    assert_eq!(
        ask_from(&host, &name, ([192, 0, 2, 9].into(), 8000)),
        "192.0.2.1",
        "it has the host's address"
    );
    let asks = "import socket; print(socket.create_connection(('192.0.2.1', 8080), 20).recv(99).decode())";
    let line = format!("-t {} -n python3 -c", far.0.id());
    let mut command = Command::new("nsenter");
    let said = run(command.args(line.split(' ')).arg(asks)).expect_done();
    assert_eq!(said.trim(), "192.0.2.9", "who comes keeps the address");
}

#[test]
fn a_host_that_does_not_forward_is_said() {
    let Some(host) = host(false) else { return };
    let outcome = host.floe(&["run", "--net", "new", "--", "true"]);
    assert_eq!(outcome.status, 0, "{}", outcome.err);
    assert!(outcome.err.contains("net.ipv4.ip_forward is 0"), "{}", outcome.err);
    let setting = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("read");
    assert_eq!(setting.trim(), "0", "it is the host's affair");
    nothing_is_left();
}

#[test]
fn each_sandbox_has_addresses_that_nobody_has() {
    let Some(host) = host(true) else { return };
    let names = ["one", "two"].map(|name| host.name(name));
    let [one, two] = [0, 1].map(|index| start(&host, &names[index], &[]));
    assert_ne!(one, two);
    host.done(&["rm", "-f", &names[0]]);
    nothing_of(one);
    assert_eq!(start(&host, &names[0], &[]), one, "a name has the same address again");
    host.done(&["rm", "-f", &names[0]]);
    nothing_of(one);
    // Somebody else has it.
    ip(&format!("addr add {one}/32 dev lo"));
    assert_ne!(start(&host, &names[0], &[]), one);
}

fn nothing_of(address: Ipv4Addr) {
    let gateway = Ipv4Addr::from(u32::from(address) - 1).to_string();
    until("the end of a device", || {
        !run(Command::new("ip").args(["-br", "addr"]))
            .expect_done()
            .contains(&gateway)
    });
}

#[test]
fn nothing_is_left_whenever_floe_or_its_monitor_is_killed() {
    let Some(host) = host(true) else { return };
    for kill in 0..times(KILLS) {
        let name = host.name(&format!("job{kill}"));
        let mut command = host.command(&["run", "--name", &name, "--net", "new", "--", "sleep", "1000"]);
        let mut floe = spawn(&mut command);
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 5));
        floe.kill().expect("kill");
        floe.wait().expect("wait");
        // Its monitor may be about to make it, or to remove it.
        until("the end of the sandbox", || {
            let outcome = host.floe(&["rm", "-f", &name]);
            outcome.status == 0 || outcome.err.contains("there is no sandbox")
        });
        nothing_is_left();
    }
    let name = host.name("job");
    start(&host, &name, &[]);
    let state = fs::read(host.path("state").join(&name).join("state.json")).expect("read");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    signal(state["monitor"].as_i64().expect("a PID") as i32, 9);
    until("the end of the rules", || !left().contains("table"));
    host.done(&["rm", "-f", &name]);
    nothing_is_left();
}

#[test]
fn what_can_not_be_is_said() {
    let Some(host) = host(true) else { return };
    let usage = host.floe(&["run", "-p", "80:80", "--", "true"]);
    assert!(
        usage.status != 0 && usage.err.contains("--net new alone"),
        "{}",
        usage.err
    );
    for text in ["80", "0:80", "80:x", "1:2/sctp"] {
        let wrong = host.floe(&["run", "--net", "new", "-p", text, "--", "true"]);
        assert_eq!(wrong.status, 2, "{text}: {}", wrong.err);
    }
    ip("addr add 10.241.0.1/16 dev lo");
    let full = host.floe(&["run", "--net", "new", "--", "true"]);
    assert_eq!(full.status, 125, "{}", full.err);
    assert!(full.err.contains("10.241.0.0/16"), "{}", full.err);
    nothing_is_left();
}

/// Sends back what comes, to all who connect; and connects to whom it is told to.
const ECHO: &str = "
import socket, sys, threading
def serve(end):
    while data := end.recv(65536):
        end.sendall(data)
for place in sys.argv[1:]:
    threading.Thread(target=serve, args=(socket.create_connection((place, 9000), 20),)).start()
server = socket.create_server(('', 8000))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

/// Bytes there and back; what was sent before comes first.
fn exchange(end: &mut TcpStream, before: &[u8], when: &str) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    std::io::Write::write_all(end, &bytes).unwrap_or_else(|error| panic!("{when}: {error}"));
    let mut got = vec![0; before.len() + bytes.len()];
    end.read_exact(&mut got)
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(got == [before, &bytes].concat(), "{when}: other bytes came");
}

fn connect(place: (Ipv4Addr, u16)) -> TcpStream {
    let mut end = None;
    until("a server", || {
        end = TcpStream::connect_timeout(&place.into(), Duration::from_secs(1)).ok();
        end.is_some()
    });
    let end = end.expect("an end");
    end.set_read_timeout(Some(Duration::from_secs(40))).expect("a timeout");
    end
}

/// Connections of the host, by the sandbox's address and by a published port, and one that the sandbox made.
#[test]
fn connections_go_on_through_five_trips() {
    let Some(host) = host(true) else { return };
    ip("addr add 192.0.2.1/32 dev lo");
    let listener = TcpListener::bind("192.0.2.1:9000").expect("bind");
    let name = host.name("job");
    let mut line = vec!["run", "-d", "--name", &name, "--net", "new", "-p", "8080:8000", "--"];
    line.extend(["python3", "-c", ECHO, "192.0.2.1"]);
    host.done(&line);
    let address: Ipv4Addr = entry(&host, &name)["address"]
        .as_str()
        .expect("one")
        .parse()
        .expect("an address");
    let (from_inside, who) = listener.accept().expect("accept");
    assert_eq!(who.ip(), address);
    from_inside
        .set_read_timeout(Some(Duration::from_secs(40)))
        .expect("a timeout");
    let mut ends = [
        ("by its address", connect((address, 8000))),
        ("by a port of loopback", connect((Ipv4Addr::LOCALHOST, 8080))),
        ("by a port of another address", connect(([192, 0, 2, 1].into(), 8080))),
        ("from inside", from_inside),
    ];
    for (what, end) in &mut ends {
        exchange(end, &[], what);
    }
    let image = host.path("job.floe").display().to_string();
    for trip in 0..5 {
        host.done(&["checkpoint", &name, "-o", &image, "--tcp", "established"]);
        for (what, end) in &mut ends {
            std::io::Write::write_all(end, b"while it is away").unwrap_or_else(|error| panic!("{what}: {error}"));
            end.set_nonblocking(true).expect("set");
            let nothing = end.read(&mut [0]).expect_err("nobody is there");
            assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "{what}, trip {trip}");
            end.set_nonblocking(false).expect("set");
        }
        host.done(&["restore", "-d", &image, "--pid-method", PID_METHODS[trip % 2]]);
        for (what, end) in &mut ends {
            exchange(end, b"while it is away", &format!("{what}, trip {trip}"));
        }
    }
    // Beside the first, which has the address.
    host.done(&[
        "checkpoint",
        &name,
        "-o",
        &image,
        "--tcp",
        "established",
        "--leave-running",
    ]);
    let error = host
        .floe(&["restore", "-d", "--name", &host.name("other"), &image])
        .expect_failed();
    assert!(
        error.contains(&format!("address {address} of the sandbox: this host has it")),
        "{error}"
    );
    for (what, end) in &mut ends {
        exchange(end, &[], what);
    }
    host.done(&["rm", "-f", &name]);
    nothing_is_left();
}

/// One that fails, or is killed, leaves the connections to the tree that runs on, or to the image.
#[test]
fn connections_outlive_restores_that_fail() {
    let Some(host) = host(true) else { return };
    let name = host.name("job");
    host.done(&[
        "run", "-d", "--name", &name, "--net", "new", "--", "python3", "-c", ECHO,
    ]);
    let address = entry(&host, &name)["address"]
        .as_str()
        .expect("one")
        .parse()
        .expect("an address");
    let mut end = connect((address, 8000));
    exchange(&mut end, &[], "at first");
    let image = host.path("job.floe").display().to_string();
    let save = ["checkpoint", &name, "-o", &image, "--tcp", "established"];
    let failed = run(host.command(&save).env("FLOE_FAIL_AT", "end"));
    assert_eq!(failed.status, 1, "{}", failed.err);
    exchange(&mut end, &[], "behind a checkpoint that failed");
    host.done(&save);
    for stage in ["launch", "seed", "files", "verify", "thaw"] {
        let failed = run(host.command(&["restore", "-d", &image]).env("FLOE_FAIL_AT", stage));
        assert_eq!(failed.status, 1, "{}", failed.err);
        // Rules that hold packets back name it while the tree is away.
        until("the end of a device", || devices().is_empty());
    }
    host.done(&["restore", "-d", &image]);
    exchange(&mut end, &[], "behind restores that failed");
}
