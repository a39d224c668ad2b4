//! Trees in several network namespaces: servers in containers at a bridge, what can't be carried, and that nothing is left where a
//! restore fails.

use floe_suite::{Host, Traces, Victim, has, json, run, skip, until};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Two containers at a bridge of the root's, with a server in each network namespace at the same port: one is reached through a
/// translated port of the root's, the other is of a user namespace's, and is reached by way of the root alone.
const CONTAINERS: &str = "
serve() { exec python3 -m http.server --bind 0.0.0.0 --directory $1 8080; }
contain() {
    unshare $1 -n sh -c '
        ip link set lo up && touch $1/$2 && until ip link set eth0 up; do sleep 0.01; done 2> /dev/null &&
        ip addr add $3 dev eth0 && ip route add default via 10.9.0.1 &&
        exec python3 -m http.server --bind 0.0.0.0 --directory $1/$2.d 8080' sh $PLACE $2 $3 &
    until [ -e $PLACE/$2 ]; do sleep 0.01; done
    ip link add v-$2 type veth peer name eth0 netns $! && ip link set v-$2 master br0 up && echo $! > $PLACE/$2.pid
}
for name in root one two; do mkdir $PLACE/$name.d && echo $name > $PLACE/$name.d/name; done
ip link set lo up && ip link add br0 type bridge && ip addr add 10.9.0.1/24 dev br0 && ip link set br0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
contain '' one 10.9.0.2/24
contain -Ur two 10.9.0.3/24
nft 'table ip ports {
    chain in { type nat hook prerouting priority -100; tcp dport 81 dnat to 10.9.0.2:8080; }
    chain out { type nat hook output priority -100; ip daddr 10.9.0.1 tcp dport 81 dnat to 10.9.0.2:8080; }
}'
serve $PLACE/root.d";

/// Whom a server at an address says that it is.
const ASK: &str = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1] + '/name', timeout=10).read().decode().strip())";

#[test]
fn containers_at_a_bridge_go_on() {
    if ["ip", "python3", "nft", "unshare", "nsenter"]
        .iter()
        .any(|program| !has(program))
    {
        return skip("there is no ip, python3, nft, unshare or nsenter");
    }
    let host = Host::new();
    let place = host.path("place");
    fs::create_dir(&place).expect("a folder");
    let setting = format!("PLACE={}", place.display());
    host.done(&[
        "run", "-d", "--name", "box", "--net", "none", "--", "env", &setting, "sh", "-c", CONTAINERS,
    ]);
    let exec = |line: &[&str]| host.floe(&[&["exec", "box", "--"], line].concat());
    let ask = |address: &str| exec(&["python3", "-c", ASK, &format!("http://{address}")]);
    for address in ["10.9.0.1:8080", "10.9.0.2:8080", "10.9.0.3:8080"] {
        until("a server", || ask(address).status == 0);
    }
    let pid = |name: &str| {
        fs::read_to_string(place.join(format!("{name}.pid")))
            .expect("a PID")
            .trim()
            .to_owned()
    };
    let from_two = |address: &str| {
        let url = format!("http://{address}");
        let enter = ["nsenter", "-t", &pid("two"), "-n", "python3", "-c", ASK, &url];
        exec(&enter).expect_done().trim().to_owned()
    };
    let answers = || {
        let from_root =
            ["127.0.0.1:8080", "10.9.0.2:8080", "10.9.0.3:8080", "10.9.0.1:81"].map(|at| ask(at).expect_done());
        let from_root = from_root.iter().map(|answer| answer.trim().to_owned());
        let others = ["127.0.0.1:8080", "10.9.0.1:8080", "10.9.0.2:8080", "10.9.0.1:81"].map(from_two);
        from_root.chain(others).collect::<Vec<_>>()
    };
    let wanted = ["root", "one", "two", "one", "two", "root", "one", "one"];
    assert_eq!(answers(), wanted);
    for _ in 0..2 {
        let image = host.path("box.floe").display().to_string();
        host.done(&["checkpoint", "box", "-o", &image]);
        let told = host.done(&["inspect", &image, "networks"]);
        assert!(told.contains("10.9.0.3/24") && told.contains("v-one of 0"), "{told}");
        let networks = json(&host.done(&["inspect", "--json", &image, "networks"]));
        assert_eq!(networks.as_array().expect("a list").len(), 3, "{networks}");
        host.done(&["restore", "-d", &image]);
        fs::remove_file(&image).expect("remove");
        assert_eq!(answers(), wanted);
    }
}

/// A process outside of the sandbox in a network namespace of its own.
struct Beyond(Child);

impl Beyond {
    fn start() -> Self {
        let mut command = Command::new("unshare");
        let child = command.args(["-n", "sleep", "600"]).stdin(Stdio::null()).spawn();
        Self(child.expect("start it"))
    }

    fn is_there(&self) -> bool {
        let link = |who: &str| fs::read_link(Path::new("/proc").join(who).join("ns/net")).ok();
        let own = link(&self.0.id().to_string());
        own.is_some() && own != link("self")
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        self.0.kill().expect("end it");
        self.0.wait().expect("reap it");
    }
}

/// Has a device lead out of the tree, and a connection be over one that is gone.
const STRANGE: &str = "import ctypes, os, socket, subprocess, sys, time
run = lambda line: subprocess.run(line.split(), check=True)
parent = socket.socketpair()
run('ip link set lo up')
child = os.fork()
if child == 0:
    if ctypes.CDLL(None).unshare(0x40000000): sys.exit('unshare')
    run('ip link set lo up')
    parent[1].send(b'r')
    parent[1].recv(1)
    run('ip addr add 10.3.0.2/24 dev far')
    run('ip link set far up')
    server = socket.create_server(('10.3.0.2', 70))
    parent[1].send(b'r')
    accepted = server.accept()
    parent[1].send(b'r')
    while True: time.sleep(9)
parent[0].recv(1)
run(f'ip link add near type veth peer name far netns {child}')
run('ip addr add 10.3.0.1/24 dev near')
run('ip link set near up')
parent[0].send(b'g')
parent[0].recv(1)
client = socket.create_connection(('10.3.0.2', 70))
parent[0].recv(1)
run('ip addr del 10.3.0.1/24 dev near')
open(sys.argv[1], 'w').write(str(child))
while True: time.sleep(9)";

#[test]
fn what_leads_nowhere_is_refused() {
    if ["ip", "python3", "unshare", "nsenter"]
        .iter()
        .any(|program| !has(program))
    {
        return skip("there is no ip, python3, unshare or nsenter");
    }
    let host = Host::new();
    let mark = host.path("mark");
    let place = mark.display().to_string();
    host.done(&[
        "run", "-d", "--name", "box", "--net", "none", "--", "python3", "-c", STRANGE, &place,
    ]);
    until("the connection", || {
        fs::read_to_string(&mark).is_ok_and(|text| !text.is_empty())
    });
    let beyond = Beyond::start();
    until("a network beyond", || beyond.is_there());
    let first = host.pid1("box");
    let lead = format!(
        "ip link add lead type veth peer name out && ip link set out netns {}",
        beyond.0.id()
    );
    let _ = run(Command::new("nsenter").args(["-t", &first.to_string(), "-n", "sh", "-c", &lead])).expect_done();
    let error = host.floe(&["checkpoint", "--dry-run", "box"]).expect_failed();
    for wanted in [
        "network device lead (veth): its other end is in a network namespace that no task of the tree is in",
        "there is no way to its other end any more",
    ] {
        assert!(error.contains(wanted), "{error}");
    }
}

/// It shows the devices of the network that it was mounted in, as `ip netns exec` does.
#[test]
fn a_sysfs_of_another_network_is_refused() {
    if !has("unshare") {
        return skip("there is no unshare");
    }
    let host = Host::new();
    let place = host.path("place");
    fs::create_dir_all(place.join("sys")).expect("a folder");
    let mount = "unshare -n sh -c 'mount -t sysfs sysfs $0/sys && touch $0/ready && exec sleep 1000' $0 & wait";
    let folder = place.display().to_string();
    host.done(&[
        "run", "-d", "--name", "box", "--net", "none", "--", "sh", "-c", mount, &folder,
    ]);
    until("the mount", || place.join("ready").exists());
    let error = host.floe(&["checkpoint", "--dry-run", "box"]).expect_failed();
    let wanted = "it shows the devices of another network namespace than the tree root's";
    assert!(error.contains(wanted), "{error}");
    let unmount = format!("umount {folder}/sys && mount -t sysfs sysfs {folder}/sys");
    host.done(&["exec", "box", "--", "sh", "-c", &unmount]);
    host.done(&["checkpoint", "--dry-run", "box"]);
}

#[test]
fn restores_that_fail_leave_nothing() {
    let host = Host::new();
    let traces = Traces::look(&host, &["networks-several"], &[]);
    let mut victim = Victim::start(&host, "networks-several", &["--net", "none"], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "networks-several", "-o", &image]);
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").map(|text| text.lines().count());
    let before = devices().expect("devices");
    for stage in ["network", "tree", "files", "state", "verify"] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["networks-several"], &[], stage);
        assert_eq!(devices().expect("devices"), before, "{stage}");
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}
