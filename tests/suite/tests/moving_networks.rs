//! Sandboxes that move between hosts of one network with their addresses: who talks with them from outside notes nothing but
//! the delay, wherever the migration breaks, and neighbours learn where they are now.

use floe_suite::{
    Host, Network, enter_own_network, has, json,
    migration::{Point, Receiver, Way, expect_one, settle},
    run, skip, until,
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Serves at whatever addresses eth0 gets; holds some memory.
const ECHO: &str = "
import os, socket, subprocess, threading, time
def ip(*line):
    return subprocess.run(('ip',) + line, stderr=subprocess.DEVNULL).returncode == 0
while not ip('link', 'set', 'eth0', 'up'):
    time.sleep(0.01)
ip('link', 'set', 'lo', 'up')
ip('addr', 'add', '10.9.0.2/24', 'dev', 'eth0')
memory = os.urandom(16 << 20)
def serve(end):
    while data := end.recv(65536):
        end.sendall(data)
server = socket.create_server(('', 8000))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
";

/// The test's own network has a switch, at which the bridges of both hosts are.
struct Place {
    networks: [Network; 2],
}

fn ip(line: &str) {
    let outcome = run(Command::new("ip").args(line.split(' ')));
    assert_eq!(outcome.status, 0, "{line}: {}", outcome.err);
}

impl Place {
    /// `None` where its tools are missing.
    fn make() -> Option<Self> {
        if ["ip", "python3", "unshare", "nsenter"]
            .iter()
            .any(|program| !has(program))
        {
            skip("there is no ip, python3, unshare or nsenter");
            return None;
        }
        enter_own_network();
        ip("link add switch type bridge");
        ip("addr add 10.9.0.1/24 dev switch");
        ip("link set switch up");
        let networks = [(); 2].map(|()| Network::new());
        for (number, network) in networks.iter().enumerate() {
            let pid = network.pid();
            ip(&format!(
                "link add port{number} up master switch type veth peer name uplink netns {pid}"
            ));
            network.shell(
                "ip link add br0 type bridge; ip link set br0 up; ip link set lo up; ip link set uplink master br0 up",
            );
        }
        Some(Self { networks })
    }

    fn hosts(&self) -> [Host; 2] {
        self.networks.each_ref().map(Network::host)
    }

    /// Starts the server on the first host.
    fn start(&self, host: &Host) -> String {
        self.start_program(host, &["python3", "-c", ECHO])
    }

    /// Starts a program there that is to have a device eth0.
    fn start_program(&self, host: &Host, program: &[&str]) -> String {
        let name = host.name("server");
        host.done(&[&["run", "-d", "--name", &name, "--net", "none", "--"], program].concat());
        let pid = host.pid1(&name);
        self.networks[0].shell(&format!(
            "ip link add veth0 type veth peer name eth0 netns {pid}; ip link set veth0 master br0 up"
        ));
        name
    }
}

fn connect() -> TcpStream {
    let mut end = None;
    until("a server", || {
        end = TcpStream::connect_timeout(&([10, 9, 0, 2], 8000).into(), Duration::from_secs(1)).ok();
        end.is_some()
    });
    let end = end.expect("an end");
    end.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    end.set_nodelay(true).expect("an option");
    end
}

fn exchange(end: &mut TcpStream, when: &str) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
    end.write_all(&bytes).unwrap_or_else(|error| panic!("{when}: {error}"));
    let mut got = vec![0; bytes.len()];
    end.read_exact(&mut got)
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(got == bytes, "{when}: other bytes came");
}

/// Sends numbers all the time, and finds each in what comes back.
struct Talk {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Talk {
    fn begin() -> Self {
        let mut end = connect();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut count = 0_u64;
            while !is_over.load(Ordering::SeqCst) {
                end.write_all(&count.to_le_bytes()).expect("send a number");
                let mut got = [0; 8];
                end.read_exact(&mut got).expect("receive a number");
                assert_eq!(u64::from_le_bytes(got), count, "another number");
                count += 1;
            }
            count
        });
        let thread = Some(thread);
        Self { over, thread }
    }

    fn expect_well(mut self) {
        self.over.store(true, Ordering::SeqCst);
        let count = self.thread.take().expect("it").join().expect("all came back");
        assert!(count > 100, "only {count}");
    }
}

/// Connects anew all the time; each connection comes about, and is answered.
fn come_and_go(over: &AtomicBool) -> u32 {
    let mut count = 0;
    while !over.load(Ordering::SeqCst) {
        let mut end = TcpStream::connect(("10.9.0.2", 8000)).expect("a connection");
        end.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        end.write_all(b"who is it").expect("send");
        let mut answer = [0; 9];
        end.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"who is it");
        count += 1;
    }
    count
}

const NET: [&str; 2] = ["--net", "eth0=port@br0"];

#[test]
fn connections_go_on_at_the_other_host() {
    let Some(place) = Place::make() else { return };
    let hosts = place.hosts();
    let name = place.start(&hosts[0]);
    let talk = Talk::begin();
    let mut idle = connect();
    exchange(&mut idle, "at first");
    let over = Arc::new(AtomicBool::new(false));
    let visitors = {
        let over = Arc::clone(&over);
        thread::spawn(move || come_and_go(&over))
    };
    let ways: [&[&str]; 4] = [&[], &["--rounds", "2"], &["--rounds", "0"], &["--lazy"]];
    for (turn, options) in ways.into_iter().enumerate() {
        let (from, to) = (&hosts[turn % 2], &hosts[1 - turn % 2]);
        let socket = format!("unix:{}", to.path("receive.sock").display());
        let receiver = Receiver::start_with(to, &socket, &NET, |_| {});
        let line = ["migrate", &name, receiver.address(), "--json", "--patience", "20"];
        let refused = from.floe(&line).expect_failed();
        assert!(refused.contains("carry it by --tcp established"), "{refused}");
        let line = [&line[..], &["--tcp", "established"], options].concat();
        let summary = json(&from.done(&line));
        assert_eq!(summary["runs_there"], true, "{summary}");
        expect_one([from, to], &name, "moved");
        // Whoever asks at the switch finds it at the other port: the frame that announces it came by that.
        exchange(&mut idle, &format!("{options:?}"));
        exchange(&mut connect(), &format!("{options:?}, a new one"));
        let gone = if turn == 0 { "veth0" } else { "port" };
        until("the end of its device", || {
            place.networks[turn % 2].try_shell(&format!("! ip link show {gone}"))
        });
    }
    over.store(true, Ordering::SeqCst);
    let count = visitors.join().expect("each was answered");
    assert!(count > 20, "only {count}");
    talk.expect_well();
    hosts[0].done(&["rm", "-f", &name]);
}

const REDIS: &str = "
until ip link set eth0 up; do sleep 0.01; done 2> /dev/null
ip link set lo up && ip addr add 10.9.0.2/24 dev eth0 &&
exec redis-server --save '' --protected-mode no";

/// No command of many clients fails while it goes there and back, and none is done twice.
#[test]
fn redis_moves_under_load() {
    let Some(place) = Place::make() else { return };
    if !has("redis-server") {
        return skip("there is no redis-server");
    }
    let hosts = place.hosts();
    let name = place.start_program(&hosts[0], &["sh", "-c", REDIS]);
    let redis = |line: &str| run(Command::new("redis-cli").args(["-h", "10.9.0.2"]).args(line.split(' ')));
    until("redis", || redis("ping").out.trim() == "PONG");
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            let mut counted = 0;
            while !over.load(Ordering::SeqCst) {
                let line = "-h 10.9.0.2 -n 20000 -c 20 -q incr counted";
                let done = run(Command::new("redis-benchmark").args(line.split(' ')));
                assert_eq!(done.status, 0, "{}", done.err);
                assert!(
                    !done.out.contains("rror") && !done.err.contains("rror"),
                    "{} {}",
                    done.out,
                    done.err
                );
                counted += 20_000;
            }
            counted
        })
    };
    for (turn, options) in [&["--rounds", "2"][..], &["--lazy"], &[]].into_iter().enumerate() {
        let (from, to) = (&hosts[turn % 2], &hosts[1 - turn % 2]);
        let socket = format!("unix:{}", to.path("receive.sock").display());
        let receiver = Receiver::start_with(to, &socket, &NET, |_| {});
        // Clients come and go meanwhile.
        let line = [
            "migrate",
            &name,
            receiver.address(),
            "--tcp",
            "established",
            "--patience",
            "20",
        ];
        from.done(&[&line[..], options].concat());
        expect_one([from, to], &name, "moved");
    }
    over.store(true, Ordering::SeqCst);
    let counted: u64 = load.join().expect("no command fails");
    assert_eq!(redis("get counted").out.trim(), counted.to_string());
    hosts[1].done(&["rm", "-f", &name]);
}

#[test]
fn what_breaks_leaves_connections_where_the_sandbox_is() {
    let Some(place) = Place::make() else { return };
    let hosts = place.hosts();
    let [here, there] = &hosts;
    let name = place.start(here);
    let talk = Talk::begin();
    let mut idle = connect();
    exchange(&mut idle, "at first");
    let socket = there.path("receive.sock");
    // Without a given end it is refused before anything happens.
    {
        let receiver = Receiver::start(there);
        let line = ["migrate", &name, receiver.address(), "--tcp", "established"];
        let error = here.floe(&line).expect_failed();
        assert!(error.contains("its other end was veth0 of the host"), "{error}");
        exchange(&mut idle, "refused");
    }
    for stage in ["files", "verify", "thaw"] {
        let address = format!("unix:{}", socket.display());
        let receiver = Receiver::start_with(there, &address, &NET, |command| {
            command.env("FLOE_FAIL_AT", stage);
        });
        let line = ["migrate", &name, receiver.address(), "--tcp", "established"];
        let error = here.floe(&line).expect_failed();
        assert!(error.contains(stage), "{stage}: {error}");
        expect_one([here, there], &name, stage);
        exchange(&mut idle, stage);
    }
    let address = format!("unix:{}", socket.display());
    let receiver = Receiver::start_with(there, &address, &NET, |_| {});
    let mut at = 0;
    for (number, frame) in ["prepared", "decided", "done"].into_iter().enumerate() {
        let point = Point {
            frame,
            number: 1,
            passes: false,
        };
        let way = Way::make(
            here.path(&format!("way-{number}.sock")),
            Path::new(&socket),
            point,
            Box::new(|| {}),
        );
        let line = [
            "migrate",
            &name,
            &way.address(),
            "--tcp",
            "established",
            "--timeout",
            "5",
        ];
        let moved = here.floe(&line);
        assert_eq!(settle(here).status, 0, "{frame}: {}", moved.err);
        at = expect_one([here, there], &name, frame);
        exchange(&mut idle, &format!("the connection broke at {frame}: {}", moved.err));
        if at == 1 {
            break;
        }
        // What was held there has gone with its devices.
        until("the end of its devices", || {
            place.networks[1].try_shell("! ip link show port")
        });
    }
    assert_eq!(at, 1, "it had been decided");
    drop(receiver);
    talk.expect_well();
    there.done(&["rm", "-f", &name]);
}
