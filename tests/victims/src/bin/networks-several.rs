//! Several network namespaces in one tree, as hosts of containers have them: a bridge in one, pairs of devices from there to the
//! others, devices that are on one in another, rules in one, one that a user namespace owns. Each has sockets of all kinds with the
//! same addresses and names, and connections lead from one to the other; some sockets are held by who is somewhere else.

use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use victims::{
    Findings, call, play, socket,
    stage::fork,
    tun::{NO_INFORMATION, TUN, Tun},
    users::become_root,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// The same everywhere.
const SERVER: &str = "127.0.0.1:7000";
const CLIENT: &str = "127.0.0.1:40000";
const LETTERS: [&str; 2] = ["127.0.0.1:7001", "127.0.0.1:7002"];
/// Of `two`, by the bridge.
const THERE: &str = "10.9.0.3:7010";
const LETTERS_THERE: &str = "10.9.0.3:7011";
/// Of `one`, held by who is not there.
const HELD: &str = "127.0.0.1:7005";

/// A container: its name, what is done in it, the address in the network where it was made that it holds.
const PARTS: [(&str, &str, &str); 3] = [
    (
        "one",
        "ip addr add 10.9.0.2/24 dev eth0\nip link set eth0 up",
        "127.0.0.1:7101",
    ),
    (
        "two",
        "ip addr add 10.9.0.3/24 dev eth0\nip link set eth0 up",
        "127.0.0.1:7102",
    ),
    (
        "three",
        "ip addr add 10.8.0.3/24 dev mv0\nip link set mv0 up\nip route add 10.7.0.0/16 via 10.8.0.9",
        "127.0.0.1:7103",
    ),
];

const RULES: &str = "
table inet filt {
    set places { type ipv4_addr; elements = { 10.9.0.3 }; }
    chain in {
        type filter hook input priority 0; policy accept;
        tcp dport 9999 reject with tcp reset
        ct state established ip saddr @places accept
    }
}
";

fn main() {
    play(|stage| {
        socket::raise_loopback();
        for line in [
            "ip link add br0 type bridge",
            "ip link add d0 type veth peer name d1",
            "ip link set d0 up",
            "ip link set d1 up",
            "ip link set br0 up",
            "ip addr add 10.9.0.1/24 dev br0",
        ] {
            run(line);
        }
        // A path leads from everywhere to the same.
        let named = UnixListener::bind(stage.path("socket")).expect("bind");
        let (ready, go) = (call::pipe(0), call::pipe(0));
        let mut pids = Vec::new();
        for (name, lines, before) in PARTS {
            stage.expect(name);
            pids.push(fork(|| {
                stage.act(name, |stage| {
                    let before = Door::open(before);
                    if name == "two" {
                        unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
                        become_root();
                    }
                    unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
                    call::write(ready[1], b"r").expect("say it");
                    call::read(go[0], 1).expect("wait");
                    let mut check = contained(name, lines, &stage.path("socket"));
                    move |findings: &mut Findings| {
                        check(findings);
                        before.answer(findings);
                    }
                })
            }));
            call::read(ready[0], 1).expect("wait");
        }
        for (name, pid) in ["one", "two"].into_iter().zip(&pids) {
            run(&format!("ip link add v-{name} type veth peer name eth0 netns {pid}"));
            run(&format!("ip link set v-{name} master br0 up"));
        }
        let three = pids[2];
        run(&format!(
            "ip link add link d0 name mv0 netns {three} type macvlan mode bridge"
        ));
        let held = made_in(pids[0]);
        for _ in PARTS {
            call::write(go[1], b"g").expect("say it");
        }
        for (name, ..) in PARTS {
            stage.wait_for_part(name);
        }
        let mut accepted: Vec<UnixStream> = PARTS.iter().map(|_| named.accept().expect("accept").0).collect();
        let mut check = member("root");
        move |findings: &mut Findings| {
            check(findings);
            held.answer(findings);
            for (_, _, before) in PARTS {
                findings.take(before, TcpStream::connect(before));
            }
            for end in &mut accepted {
                findings.take("write to another network", end.write_all(b"n"));
            }
        }
    })
}

/// A socket that listens where its holder is not.
struct Door(TcpListener);

impl Door {
    fn open(at: &str) -> Self {
        let listener = TcpListener::bind(at).expect(at);
        listener.set_nonblocking(true).expect("a flag");
        Self(listener)
    }

    /// Takes those who have come by now.
    fn answer(&self, findings: &mut Findings) {
        loop {
            match self.0.accept() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return findings.add(format!("accept: {error}")),
            }
        }
    }
}

/// One that is made in the network namespace of a process.
fn made_in(pid: i32) -> Door {
    let [own, other] = ["self".to_owned(), pid.to_string()].map(|who| File::open(format!("/proc/{who}/ns/net")));
    setns(other.expect("a namespace"), CloneFlags::CLONE_NEWNET).expect("enter");
    socket::raise_loopback();
    let held = Door::open(HELD);
    setns(own.expect("a namespace"), CloneFlags::CLONE_NEWNET).expect("go back");
    held
}

/// What a container has besides what each network namespace has.
fn contained(name: &'static str, lines: &str, socket: &Path) -> Box<dyn FnMut(&mut Findings)> {
    socket::raise_loopback();
    lines.lines().for_each(|line| drop(run(line)));
    let mut root = UnixStream::connect(socket).expect("connect");
    root.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut check: Box<dyn FnMut(&mut Findings)> = match name {
        "one" => Box::new(one()),
        "two" => Box::new(two()),
        _ => Box::new(three()),
    };
    let mut own = member(name);
    Box::new(move |findings| {
        own(findings);
        check(findings);
        findings.take("read from the root's network", root.read_exact(&mut [0]));
    })
}

/// A message on its way in each direction of a connection.
struct Talk(TcpStream);

impl Talk {
    fn begin(end: TcpStream) -> Self {
        end.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut talk = Self(end);
        talk.0.write_all(b"message").expect("write");
        talk
    }

    fn go_on(&mut self, findings: &mut Findings) {
        let mut message = [0; 7];
        findings.take("read", self.0.read_exact(&mut message));
        findings.same("a message", b"message", &message);
        findings.take("write", self.0.write_all(b"message"));
    }
}

/// Who connects with `two`, and has rules.
fn one() -> impl FnMut(&mut Findings) {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000\t30000").expect("a setting");
    // A rule stands on a line of its own.
    let load = Command::new("nft").arg(RULES).status().expect("nft");
    assert!(load.success(), "nft");
    let mut talk = Talk::begin(reached());
    let letters = UdpSocket::bind("10.9.0.2:7011").expect("bind");
    letters.send_to(b"letter", LETTERS_THERE).expect("send");
    let waits = || {
        let mut waits = reached();
        waits.write_all(b"waits").expect("write");
        waits
    };
    // Who is not accepted yet.
    let mut waiting = [waits()];
    let rules = run("nft list ruleset");
    move |findings: &mut Findings| {
        talk.go_on(findings);
        waiting[0] = waits();
        findings.take("send", letters.send_to(b"letter", LETTERS_THERE));
        findings.take("the port of who is elsewhere", TcpStream::connect(HELD));
        let refused = TcpStream::connect("127.0.0.1:9999").map_err(|error| error.kind());
        findings.same(
            "a port with a rule",
            &Some(io::ErrorKind::ConnectionRefused),
            &refused.err(),
        );
        findings.same("rules", &rules, &run("nft list ruleset"));
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        findings.same("a setting", "20000\t30000", range.trim());
    }
}

/// A connection with `two`, who may not listen yet.
fn reached() -> TcpStream {
    let end = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&THERE.parse().expect("an address"), PATIENCE) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Who is connected with; one more waits to be accepted.
fn two() -> impl FnMut(&mut Findings) {
    let letters = UdpSocket::bind("0.0.0.0:7011").expect("bind");
    letters.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let listener = TcpListener::bind("0.0.0.0:7010").expect("bind");
    let mut talk = Talk::begin(listener.accept().expect("accept").0);
    move |findings: &mut Findings| {
        talk.go_on(findings);
        let mut text = [0; 5];
        if let Some((mut waited, from)) = findings.take("accept", listener.accept()) {
            findings.take("a timeout", waited.set_read_timeout(Some(PATIENCE)));
            findings.take("read what waited", waited.read_exact(&mut text));
            findings.same("who waited", "10.9.0.2", &from.ip().to_string());
        }
        findings.same("what waited", b"waits", &text);
        let mut letter = [0; 9];
        let got = findings.take("receive", letters.recv_from(&mut letter));
        let from = got.map(|(length, from)| (length, from.to_string()));
        findings.same("a letter", &Some((6, "10.9.0.2:7011".to_owned())), &from);
    }
}

/// Who has devices on one of the root's, and one behind a file.
fn three() -> impl FnMut(&mut Findings) {
    let tun = Tun::new(libc::O_NONBLOCK, "tun0", TUN | NO_INFORMATION);
    tun.set_size(1000);
    tun.set_address([10, 6, 0, 1], [255, 255, 255, 0]);
    tun.raise();
    move |findings: &mut Findings| {
        let socket = findings.take("bind", UdpSocket::bind("10.6.0.1:0"));
        let sent = socket.map(|socket| socket.send_to(b"behind it", "10.6.0.7:9"));
        findings.take("send by tun0", sent.unwrap_or(Ok(0)));
        let packet = findings
            .take("read from tun0", call::read(tun.file, 2000))
            .unwrap_or_default();
        findings.same("a packet", &true, &packet.ends_with(b"behind it"));
    }
}

/// What there is in each network namespace, with the same addresses and names.
fn member(name: &'static str) -> impl FnMut(&mut Findings) {
    let listener = TcpListener::bind(SERVER).expect("bind");
    let client = socket::new(libc::AF_INET, libc::SOCK_STREAM, 0);
    socket::bind(
        client.as_raw_fd(),
        &socket::address(CLIENT.parse().expect("an address")),
    )
    .expect("bind");
    socket::connect(
        client.as_raw_fd(),
        &socket::address(SERVER.parse().expect("an address")),
    )
    .expect("connect");
    let mut ends = [
        Talk::begin(TcpStream::from(client)),
        Talk::begin(listener.accept().expect("accept").0),
    ];
    let [to, from] = LETTERS.map(|at| UdpSocket::bind(at).expect(at));
    from.send_to(name.as_bytes(), LETTERS[0]).expect("send");
    to.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let [stream, place] = ["stream", "letters"].map(|name| SocketAddr::from_abstract_name(name).expect("a name"));
    let server = UnixListener::bind_addr(&stream).expect("bind");
    let mut pair = [
        UnixStream::connect_addr(&stream).expect("connect"),
        server.accept().expect("accept").0,
    ];
    let mut pending = [UnixStream::connect_addr(&stream).expect("connect")];
    let receiver = UnixDatagram::bind_addr(&place).expect("bind");
    let sender = UnixDatagram::unbound().expect("a socket");
    sender.connect_addr(&place).expect("connect");
    sender.send(name.as_bytes()).expect("send");
    receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // struct sockaddr_nl: family, port, groups.
    let port = [
        (libc::AF_NETLINK as u16).to_ne_bytes().to_vec(),
        vec![0; 2],
        77_u32.to_ne_bytes().to_vec(),
        vec![0; 4],
    ];
    let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    socket::bind(netlink.as_raw_fd(), &port.concat()).expect("bind");
    let echo = socket::new(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let frames = socket::new(libc::AF_PACKET, libc::SOCK_RAW, 0);
    let numbers = [&netlink, &echo, &frames].map(|one| socket::name(one.as_raw_fd()).expect("a name"));
    let before = look();
    move |findings: &mut Findings| {
        if findings.sabotage() {
            run("ip link set lo mtu 2000");
        }
        ends.iter_mut().for_each(|end| end.go_on(findings));
        findings.take("connect", TcpStream::connect(SERVER));
        findings.take("accept", listener.accept());
        let mut text = [0; 9];
        let length = findings.take("receive", to.recv(&mut text)).unwrap_or(0);
        findings.same("a letter", name.as_bytes(), &text[..length]);
        findings.take("send", from.send_to(name.as_bytes(), LETTERS[0]));
        for (from, to) in [(0, 1), (1, 0)] {
            findings.take("write", pair[from].write_all(b"p"));
            findings.take("read", pair[to].read_exact(&mut [0]));
        }
        findings.take("accept", server.accept());
        if let Some(one) = findings.take("connect", UnixStream::connect_addr(&stream)) {
            pending[0] = one;
        }
        let length = findings.take("receive", receiver.recv(&mut text)).unwrap_or(0);
        findings.same("a unix letter", name.as_bytes(), &text[..length]);
        findings.take("send", sender.send(name.as_bytes()));
        let now = [&netlink, &echo, &frames].map(|one| socket::name(one.as_raw_fd()).unwrap_or_default());
        findings.same("names of other sockets", &numbers, &now);
        findings.same("the network", &before, &look());
    }
}

/// Lines about devices, addresses and routes, but the numbers that network namespaces give each other, and what time changes.
fn look() -> Vec<String> {
    let looks = [
        "ip link",
        "ip -4 addr",
        "ip -4 route show table all",
        "ip -d link show type macvlan",
    ];
    let mut all = Vec::new();
    for one in looks {
        let text = run(one);
        let lines = text.lines().filter(|line| !line.contains("tentative"));
        all.extend(lines.map(|line| line.split(" link-netnsid").next().unwrap_or_default().to_owned()));
    }
    all
}

fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("start");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).expect("text")
}
