//! What is in a network namespace: devices of several kinds on and in each other, addresses, routes, rules, neighbours and
//! settings; frames that pass a bridge, sockets that are bound to devices and addresses, and one that is connected.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    time::Duration,
};
use victims::{Findings, play, socket};

/// Lines for `ip`, or for another program. v0 and v2 meet at a bridge by their other ends.
const MADE: &str = "
ip link add br0 type bridge forward_delay 700 ageing_time 5000
ip link add v0 type veth peer name v1
ip link add v2 type veth peer name v3
ip link add i0 numtxqueues 2 type ifb
ip link set v1 master br0
ip link set v3 master br0
bridge link set dev v1 hairpin on cost 55
ip link add link v0 name mv0 type macvlan mode bridge
ip link add vx0 type vxlan id 5 dstport 4789 local 10.1.0.1 dev br0
ip link set i0 alias a-device group 7 mtu 1400 txqueuelen 77
ip link property add dev i0 altname another-name-of-i0
ip link set v2 address 02:00:00:00:00:22 promisc on arp off
ip link set br0 up
ip link set v0 up
ip link set v1 up
ip link set v2 up
ip link set v3 up
ip link set i0 up
ip link set mv0 up
ip link set vx0 up
ip addr add 10.1.0.1/24 dev br0
ip addr add 10.2.0.1/24 dev v0 label v0:one
ip addr add 10.2.0.2/24 dev v0
ip addr add 10.2.0.9/32 peer 10.9.9.9/32 dev v0 scope link noprefixroute
ip addr add 2001:db8::1/64 dev v0 nodad
ip addr add 2001:db8::2/64 dev v0 nodad
ip addr add 2001:db8:1::1/64 dev br0 nodad valid_lft 50000 preferred_lft 30000
ip addr add fe80::77/64 dev v0 nodad
ip addr del 127.0.0.1/8 dev lo
ip addr add 127.0.0.1/16 dev lo
ip route add default via 10.1.0.254
ip route add 172.16.0.0/16 nexthop via 10.1.0.7 weight 2 nexthop via 10.2.0.7
ip route add blackhole 172.17.0.0/16
ip route add unreachable 172.18.0.0/16 table 77
ip route add prohibit 172.19.0.0/16 metric 9
ip route add throw 172.20.0.0/16 table 77
ip route add 172.21.0.0/16 via 10.1.0.3 mtu 1300 advmss 1200 src 10.1.0.1 proto static
ip route del 10.2.0.0/24 dev v0
ip route add local 10.66.0.0/16 dev lo
ip -6 route add default via 2001:db8::ff
ip -6 route add 2001:db8:5::/48 via 2001:db8::fe metric 5 expires 90000
ip -6 route add unreachable 2001:db8:6::/48
ip -6 route add 2001:db8:7::/48 nexthop via 2001:db8::a nexthop via 2001:db8::b
ip nexthop add id 5 via 10.1.0.4 dev br0
ip nexthop add id 6 via 10.2.0.4 dev v0 onlink
ip nexthop add id 9 group 5/6,3
ip nexthop add id 11 blackhole
ip route add 172.30.0.0/16 nhid 9
ip rule add from 10.2.0.0/24 table 77 prio 100
ip rule add not to 1.2.3.4 iif v0 fwmark 3/7 lookup 79
ip rule add ipproto tcp dport 80-90 uidrange 5-9 lookup 81
ip rule add prio 200 goto 32766
ip -6 rule add from 2001:db8::/64 lookup 77
ip neigh add 10.1.0.7 lladdr 02:00:00:00:00:07 dev br0 nud permanent
ip neigh add 2001:db8::ff lladdr 02:00:00:00:00:08 dev v0 router nud permanent
ip neigh add proxy 10.1.0.77 dev br0
bridge fdb add 02:00:00:00:01:07 dev v1 master static
bridge fdb add 02:00:00:00:01:08 dev vx0 dst 10.1.0.99
bridge fdb add 02:00:00:00:01:0b dev v3 master sticky static
ip addrlabel add prefix 2001:db8::/32 label 88
";

/// Settings, below /proc/sys/net.
const SET: [(&str, &str); 8] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/v0/rp_filter", "2"),
    ("ipv4/conf/default/arp_ignore", "1"),
    ("ipv4/ip_local_port_range", "20000\t30000"),
    ("ipv4/neigh/br0/gc_stale_time", "77"),
    ("ipv4/tcp_fastopen_key", "00000001-00000002-00000003-00000004"),
    ("unix/max_dgram_qlen", "33"),
];

/// What is looked at; of devices without timers and what the kernel counts.
const LOOKS: [&str; 13] = [
    "ip link",
    "ip -d link show type macvlan",
    "bridge -d link",
    "ip addr",
    "ip route show table all",
    "ip -6 route show table all",
    "ip rule",
    "ip -6 rule",
    "ip nexthop",
    "ip neigh show nud permanent",
    "ip neigh show proxy",
    "bridge fdb",
    "ip addrlabel",
];

/// ETH_P_802_EX1, for local experiments.
const EXPERIMENT: u16 = 0x88b5;

fn main() {
    play(|_| {
        for (path, value) in &SET[..2] {
            set(path, value);
        }
        for line in MADE.lines().filter(|line| !line.is_empty()) {
            run(line);
        }
        for (path, value) in &SET[2..] {
            set(path, value);
        }
        // Until all addresses are there with their routes, and nobody else is asked whether they are theirs.
        while !run("ip -6 route show table local").contains("fe80::77") || run("ip addr").contains("tentative") {
            std::thread::sleep(Duration::from_millis(5));
        }
        let listener = TcpListener::bind("10.2.0.1:7000").expect("bind");
        let mut one = TcpStream::connect("10.2.0.1:7000").expect("connect");
        let (mut other, _) = listener.accept().expect("accept");
        for end in [&one, &other] {
            end.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        }
        let number = index("v0");
        let near = SocketAddrV6::new("fe80::77".parse::<Ipv6Addr>().expect("an address"), 7001, 0, number);
        let local = UdpSocket::bind(near).expect("bind to an address of a device");
        local
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let bound = UdpSocket::bind("0.0.0.0:7002").expect("bind");
        socket::try_set(bound.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"v2").expect("bind to a device");
        let before = look();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                run("ip link set i0 group 8");
            }
            findings.same("the network", &before, &look());
            for (path, value) in SET {
                findings.same(path, &value.to_owned(), &get(path));
            }
            findings.same("the number of v0", &number, &index("v0"));
            let mut exchange = |from: &mut TcpStream, to: &mut TcpStream| {
                findings.take("write", from.write_all(b"x"));
                findings.take("read", to.read_exact(&mut [0]));
            };
            exchange(&mut one, &mut other);
            exchange(&mut other, &mut one);
            findings.take("connect", TcpStream::connect("10.2.0.1:7000"));
            findings.take("accept", listener.accept());
            findings.take("send to the own address", local.send_to(b"y", near));
            findings.take("receive", local.recv(&mut [0]));
            let device = socket::get(bound.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16);
            let device = findings.take("the device of a socket", device);
            findings.same("the device of a socket", &Some(b"v2\0".to_vec()), &device);
            findings.same("a frame that passed the bridge", &b"frame".to_vec(), &passed());
        }
    })
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

fn set(path: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{path}"), value).expect(path);
}

fn get(path: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}"));
    text.map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect(name)
}

/// Lines in their order among themselves, without what time and traffic change: times that are left, hosts that a bridge has
/// seen, groups that are listened to.
fn look() -> Vec<String> {
    let lasting = |line: &str| {
        let left = ["valid_lft", "preferred_lft", "expires"];
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut kept = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            kept.push(word);
            if left.contains(&word) {
                kept.push(if words.next() == Some("forever") {
                    "forever"
                } else {
                    "some"
                });
            }
        }
        kept.join(" ")
    };
    let mut all = Vec::new();
    for one in LOOKS {
        let text = run(one);
        let lines = text.lines().filter(|line| {
            let is_entry = one != "bridge fdb" || line.contains("static") || line.contains("permanent");
            is_entry && !line.starts_with("33:33:") && !line.starts_with("01:00:5e:")
        });
        let mut lines: Vec<String> = lines.map(|line| format!("{one}: {}", lasting(line))).collect();
        lines.sort();
        all.extend(lines);
    }
    all
}

/// What comes out at v2 of a frame that is sent by v0.
fn passed() -> Vec<u8> {
    // struct sockaddr_ll: family, protocol, device; the rest is for received ones.
    let place = |name: &str| {
        let mut place = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
        place.extend(EXPERIMENT.to_be_bytes());
        place.extend(index(name).to_ne_bytes());
        place.resize(20, 0);
        place
    };
    let new = || socket::new(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
    let (from, to) = (new(), new());
    socket::bind(to.as_raw_fd(), &place("v2")).expect("bind");
    // struct timeval.
    let patience = [20_i64, 0].map(i64::to_ne_bytes).concat();
    socket::try_set(to.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience).expect("a timeout");
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0x33]);
    frame.extend(EXPERIMENT.to_be_bytes());
    frame.extend(b"frame");
    socket::send(from.as_raw_fd(), &frame, &place("v0")).expect("send");
    let got = socket::receive(&to, 0).ok().flatten();
    got.and_then(|got| got.bytes.get(14..19).map(<[u8]>::to_vec))
        .unwrap_or_default()
}
