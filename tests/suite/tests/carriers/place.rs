//! A host with a machine beyond it, and a server that sends back what comes.

use floe_suite::{Host, enter_own_mounts, enter_own_network, has, run, skip, spawn, until};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

/// Sends back what comes, by TCP and UDP, at port 8000; connects to all who are named, and to itself, and does so there.
pub const ECHO: &str = "
import os, socket, sys, threading, time
def serve(end):
    while data := end.recv(65536):
        end.sendall(data)
def serve_datagrams():
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind(('', 8000))
    while True:
        data, who = end.recvfrom(65536)
        end.sendto(data, who)
def talk_to_itself():
    file = os.open('turns', os.O_CREAT | os.O_WRONLY)
    end, turns = socket.create_connection(('127.0.0.1', 8000)), 0
    while True:
        end.sendall(b'x')
        assert end.recv(1) == b'x'
        turns += 1
        os.pwrite(file, b'%20d' % turns, 0)
        time.sleep(0.005)
server = socket.create_server(('', 8000))
for place in sys.argv[1:]:
    threading.Thread(target=serve, args=(socket.create_connection((place, 9000), 20),)).start()
threading.Thread(target=serve_datagrams).start()
threading.Thread(target=talk_to_itself).start()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

/// The host's address, and that of a machine beyond it.
pub const HOST: &str = "192.0.2.1";
pub const FAR: &str = "192.0.2.9";

/// A host with a default route, on which everybody may have tap devices; `None` where that can't be had.
pub struct Place {
    pub host: Host,
    carrier: &'static str,
    far: Child,
    /// A server of the host's.
    near: Child,
}

impl Place {
    /// With one of them alone.
    pub fn new(carrier: &'static str) -> Option<Self> {
        Self::with_device(carrier, true)
    }

    pub fn with_device(carrier: &'static str, has_device: bool) -> Option<Self> {
        if !has("ip") || !has(carrier) {
            return None;
        }
        if !Path::new("/dev/net/tun").exists() {
            skip("this kernel has no tap devices");
            return None;
        }
        enter_own_network();
        enter_own_mounts();
        let host = Host::of_ordinary_user();
        let mode = if has_device { "666" } else { "600" };
        shell(&format!(
            "chmod 666 /dev/null /dev/zero /dev/full /dev/urandom /dev/random /dev/tty; mkdir /dev/net; mknod -m {mode} /dev/net/tun c 10 200"
        ));
        // Which program is there to be executed, is asked for as one would.
        shell(&format!(
            "for other in pasta slirp4netns; do test $other = {carrier} || ! path=$(command -v $other) || mount --bind /dev/null \"$path\"; done"
        ));
        let far = spawn(Command::new("unshare").args(["-n", "--", "python3", "-c", &beyond()]));
        let near = spawn(Command::new("python3").args(["-c", &beyond()]));
        let process = far.id();
        let place = Self {
            host,
            carrier,
            far,
            near,
        };
        let own = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        until("a network namespace", || {
            fs::read_link(format!("/proc/{process}/ns/net")).is_ok_and(|theirs| theirs != own)
        });
        shell(&format!(
            "ip link add out type veth peer name far netns {process}; ip addr add {HOST}/24 dev out; ip link set out up; \
             ip route add default via {FAR}; nsenter -t {process} -n sh -ec \
             'ip link set lo up; ip addr add {FAR}/24 dev far; ip link set far up'"
        ));
        for server in [FAR, HOST] {
            drop(connect((server, 9000)));
        }
        Some(place)
    }

    /// Starts the server.
    pub fn start(&self, name: &str, options: &[&str], peers: &[&str]) {
        let line = [
            &["run", "-d", "--name", name, "--net", "new"],
            options,
            &["--", "python3", "-c", ECHO],
            peers,
        ];
        self.host.done(&line.concat());
    }

    /// Their processes in the host's network, which is the test's own.
    pub fn carriers(&self) -> Vec<i32> {
        let own = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let processes = fs::read_dir("/proc").expect("processes").flatten();
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_one = |pid: &i32| {
            // One that has ended is in no namespace.
            let network = fs::read_link(format!("/proc/{pid}/ns/net"));
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            network.is_ok_and(|network| network == own)
                && ["pasta", "passt", "slirp4netns"]
                    .iter()
                    .any(|one| name.starts_with(one))
        };
        numbers.filter(is_one).collect()
    }

    pub fn has_no_carrier(&self, when: &str) {
        until(&format!("the end of {} ({when})", self.carrier), || {
            self.carriers().is_empty()
        });
    }

    pub fn carrier(&self) -> i32 {
        let all = self.carriers();
        assert_eq!(all.len(), 1, "one process of {}", self.carrier);
        all[0]
    }

    pub fn turns(&self) -> u64 {
        let text = fs::read_to_string(self.host.path("turns")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    pub fn goes_on(&self, when: &str) {
        let before = self.turns();
        until(&format!("{when}: the connection within the sandbox"), || {
            self.turns() > before
        });
    }

    /// Everybody reaches the sandbox by the published ports.
    pub fn is_reached(&self, port: u16, when: &str) {
        for address in ["127.0.0.1", HOST] {
            echo(&mut connect((address, port)), &format!("{when}, {address}"));
            // slirp4netns answers none from loopback behind one from elsewhere.
            if self.carrier == "pasta" || address == HOST {
                echo_datagram(address, port, when);
            }
        }
        let asks = format!(
            "import socket; e = socket.create_connection(('{HOST}', {port}), 20); e.sendall(b'far'); print(e.recv(3).decode())"
        );
        let line = format!("-t {} -n python3 -c", self.far.id());
        let said = run(Command::new("nsenter").args(line.split(' ')).arg(asks)).expect_done();
        assert_eq!(said.trim(), "far", "{when}");
    }

    /// The sandbox reaches others, by TCP and UDP.
    pub fn reaches(&self, name: &str, place: &str) {
        let asks = format!(
            "import socket
e = socket.create_connection(('{place}', 9000), 20)
e.sendall(b'tcp')
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
d.settimeout(20)
d.connect(('{place}', 9000))
d.send(b'udp')
print(e.recv(3).decode(), d.recv(3).decode())"
        );
        let said = self.host.done(&["exec", name, "--", "python3", "-c", &asks]);
        assert_eq!(said.trim(), "tcp udp", "{place}");
    }
}

impl Place {
    /// What listens on the host's loopback is not the sandbox's, by whatever address that has where packets go: also who says that
    /// they come from elsewhere does not come there.
    pub fn reaches_no_loopback(&self, name: &str) {
        let heard = UdpSocket::bind("127.0.0.1:9001").expect("bind");
        let server = TcpListener::bind("127.0.0.1:9001").expect("bind");
        heard.set_nonblocking(true).expect("a mode");
        server.set_nonblocking(true).expect("a mode");
        let asks = "import socket, sys
reached = []
for place in ['10.242.0.%d' % last for last in (1, 2, 3, 7)] + ['10.241.255.255', '127.0.0.1']:
    d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for source in ('', '198.51.100.1'):
        try:
            d.setsockopt(socket.IPPROTO_IP, 15, 1)
            d.bind((source, 0)) if source else None
            d.sendto(b'udp', (place, 9001))
        except OSError:
            pass
        d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        socket.create_connection((place, 9001), 0.3).close()
        reached.append(place)
    except OSError:
        pass
print(reached)";
        let said = self.host.done(&["exec", name, "--", "python3", "-c", asks]);
        assert_eq!(said.trim(), "[]");
        assert!(heard.recv(&mut [0; 9]).is_err(), "a datagram");
        assert!(server.accept().is_err(), "a connection");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for server in [&mut self.far, &mut self.near] {
            let ended = server.kill().and_then(|()| server.wait());
            assert!(ended.is_ok() || std::thread::panicking(), "a server ends");
        }
    }
}

/// The server at port 9000, which does not talk to itself.
fn beyond() -> String {
    ECHO.replace("threading.Thread(target=talk_to_itself).start()\n", "")
        .replace("8000", "9000")
}

pub fn shell(script: &str) {
    let _ = run(Command::new("sh").args(["-ec", script])).expect_done();
}

pub fn connect((address, port): (&str, u16)) -> TcpStream {
    let place: SocketAddr = format!("{address}:{port}").parse().expect("an address");
    let mut end = None;
    until("a server", || {
        end = TcpStream::connect_timeout(&place, Duration::from_secs(1)).ok();
        // pasta takes connections before there is a server, and closes them.
        end.as_mut().is_some_and(|end| {
            end.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            end.write_all(b"?").is_ok() && end.read(&mut [0]).is_ok_and(|read| read == 1)
        })
    });
    end.expect("an end")
}

pub fn echo(end: &mut TcpStream, when: &str) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    let mut got = vec![0; bytes.len()];
    end.write_all(&bytes)
        .and_then(|()| end.read_exact(&mut got))
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(got == bytes, "{when}: other bytes came");
}

pub fn echo_datagram(address: &str, port: u16, when: &str) {
    let end = UdpSocket::bind("0.0.0.0:0").expect("bind");
    end.connect((address, port)).expect("an address");
    end.set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    let mut got = [0; 9];
    until(&format!("{when}: a datagram from {address}"), || {
        end.send(b"datagram").is_ok() && end.recv(&mut got).is_ok_and(|length| &got[..length] == b"datagram")
    });
}
