//! Namespaces that no process is in, as ip(8), unshare(1) and mount(8) keep them; and what of them is refused.

use floe_suite::{Host, PID_METHODS, Traces, Victim, enter_own_mounts, has, run, skip, until};
use std::process::Command;

/// A sandbox whose command makes namespaces in a tmpfs of its own, at /run, and says so.
struct Keeper<'a> {
    host: &'a Host,
    name: String,
    image: String,
}

impl<'a> Keeper<'a> {
    fn start(host: &'a Host, script: &str) -> Self {
        Self::start_with_hosts(host, &format!("mount -t tmpfs none /run; {script}"))
    }

    /// The same where /run is the host's.
    fn start_with_hosts(host: &'a Host, script: &str) -> Self {
        let (name, folder) = (host.name("keeper"), host.folder("folder"));
        let ready = folder.join("ready");
        let script = format!("set -e; {script}; touch {}; exec sleep 1000", ready.display());
        host.done(&["run", "-d", "--name", &name, "--", "bash", "-c", &script]);
        until("it is ready", || ready.exists());
        let image = host.path("image.floe").display().to_string();
        Self { host, name, image }
    }

    fn says(&self, command: &str) -> String {
        self.host.done(&["exec", &self.name, "--", "sh", "-c", command])
    }

    /// Each time what a command says is the same.
    fn keeps(&self, command: &str) -> String {
        let before = self.says(command);
        for method in PID_METHODS {
            self.host.done(&["checkpoint", &self.name, "-o", &self.image]);
            self.host.done(&["restore", "-d", "--pid-method", method, &self.image]);
            assert_eq!(self.says(command), before, "{method}");
        }
        before
    }
}

#[test]
fn networks_of_ip_netns_are_kept() {
    if !has("ip") {
        return skip("there is no ip");
    }
    let host = Host::new();
    let keeper = Keeper::start(&host, "ip netns add blue; ip netns add red; ip -n red link set lo up");
    let told = keeper.keeps("for n in blue red; do ip netns exec $n ip -o link; done; ip netns list");
    assert_eq!(told.matches("LOOPBACK").count(), 2, "{told}");
    assert_eq!(told.matches("LOWER_UP").count(), 1, "{told}");
    // It is one like any other.
    keeper.says("ip netns exec red ping -c1 127.0.0.1 >/dev/null || ip -n red addr show lo | grep -q 127.0.0.1");
    keeper.says("ip netns del red; ip netns add green; ip netns exec green true");
    assert!(!keeper.keeps("ip netns list").contains("red"));
}

/// /run/netns is a mount on itself, with the host's networks, each once more below it, where no path leads to.
#[test]
fn networks_beside_the_hosts_are_kept() {
    if !has("ip") {
        return skip("there is no ip");
    }
    enter_own_mounts();
    let shell = |script: &str| run(Command::new("sh").args(["-ec", script])).expect_done();
    shell("mount --make-rprivate /; mount --make-rshared /; mount -t tmpfs -o mode=755 none /run");
    shell("ip netns add host; ip -n host link add mark type veth peer name mark2");
    let host = Host::new();
    let keeper = Keeper::start_with_hosts(
        &host,
        "ip netns add inner; ip -n inner link add dot type veth peer name dot2",
    );
    let told = keeper.keeps(
        "ip netns list | sort; for n in host inner; do ip -n $n -br link; done; grep -c netns /proc/self/mountinfo",
    );
    assert!(told.starts_with("host\ninner\n"), "{told}");
    assert!(told.contains("mark") && told.contains("dot"), "{told}");
    let below = shell("grep -c netns/host /proc/self/mountinfo");
    assert_eq!(below.trim(), "2", "one is below the other");
    // What is made there later does not come to the host either.
    keeper.says("ip netns add later");
    assert!(keeper.keeps("ip netns list").contains("later"));
    assert!(!shell("cat /proc/self/mountinfo").contains("later"));
    // One that is the host's, and is there no more, is missed by name.
    host.done(&["checkpoint", &keeper.name, "-o", &keeper.image]);
    shell("ip netns del host");
    let missed = host.floe(&["restore", "-d", &keeper.image]).expect_failed();
    assert!(missed.contains("mount /run/netns/host"), "{missed}");
    assert!(host.sandboxes().is_empty());
    shell("ip netns add host");
    host.done(&["restore", "-d", &keeper.image]);
    keeper.says("ip netns exec inner ip link show dot");
}

#[test]
fn namespaces_of_unshare_are_kept_and_entered() {
    let host = Host::new();
    let script = "mkdir /run/k; cd /run/k; touch uts ipc net; \
        unshare --uts=uts --ipc=ipc --net=net sh -c 'hostname held; ipcmk -M 8192 -S 3 >/dev/null'; cd /";
    let keeper = Keeper::start(&host, script);
    let told = keeper.keeps(
        "cd /run/k; nsenter --uts=uts hostname; nsenter --ipc=ipc ipcs; nsenter --net=net ip -o link; \
         nsenter --uts=uts --ipc=ipc --net=net hostname",
    );
    assert!(told.starts_with("held\n") && told.ends_with("held\n"), "{told}");
    assert!(told.contains("8192"), "{told}");
}

#[test]
fn those_that_others_are_in_are_refused() {
    let host = Host::new();
    let other = Command::new("unshare")
        .args(["--uts", "sleep", "1000"])
        .spawn()
        .expect("unshare");
    let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/uts")).expect("a link");
    let theirs = other.id().to_string();
    until("it is there", || link(&theirs) != link("self"));
    // Without a PID namespace of its own, it may look at all processes of the host.
    let mut tree = Command::new("bash");
    tree.args(["-c", &format!("exec 7< /proc/{theirs}/ns/uts; exec sleep 1000")]);
    let tree = tree.spawn().expect("bash");
    let pid = tree.id().to_string();
    until("it has it", || {
        std::path::Path::new(&format!("/proc/{pid}/fd/7")).exists()
    });
    let image = host.path("image.floe").display().to_string();
    let refused = run(&mut host.command(&["checkpoint", "--pid", &pid, "-o", &image])).expect_failed();
    for mut child in [tree, other] {
        child.kill().expect("kill");
        child.wait().expect("reap");
    }
    assert!(
        refused.contains("descriptor 7 (uts:[")
            && refused.contains("processes outside of the tree are in that namespace"),
        "{refused}"
    );
}

/// A descriptor on its way through a socket: nobody can look into such a one, and the tree goes on with it.
#[test]
fn those_that_a_message_alone_keeps_are_refused() {
    let host = Host::new();
    let sends = "import array, os, socket, subprocess, sys, time
ends = socket.socketpair()
for kind, option in (('net', '-n'), ('uts', '-u'), ('ipc', '-i'), ('mnt', '-m'), ('user', '-U'), ('cgroup', '-C')):
    child = subprocess.Popen(['unshare', option, 'sh', '-c', 'echo; read line'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    space = os.open(f'/proc/{child.pid}/ns/{kind}', os.O_RDONLY)
    ends[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [space]))])
    os.close(space)
    child.communicate()
open('folder/ready', 'w').close()
while not os.path.exists('folder/go'):
    time.sleep(0.01)
got = []
for _ in range(6):
    _, beside, _, _ = ends[1].recvmsg(1, 100)
    got += array.array('i', beside[0][2])
with open('folder/new', 'w') as file:
    print(*(os.readlink(f'/proc/self/fd/{space}').split(':')[0] for space in got), file=file)
os.rename('folder/new', 'folder/got')
time.sleep(1000)";
    let (name, folder) = (host.name("sender"), host.folder("folder"));
    let place = folder.parent().expect("a place").display().to_string();
    host.done(&["run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", sends]);
    until("it is ready", || folder.join("ready").exists());
    let image = host.path("image.floe");
    let refused = host
        .floe(&["checkpoint", &name, "-o", &image.display().to_string()])
        .expect_failed();
    for kind in ["net", "uts", "ipc", "mnt", "user", "cgroup"] {
        let of_kind = refused.lines().find(|line| line.contains(&format!("({kind}:[")));
        let told = of_kind.unwrap_or_else(|| panic!("{kind}: {refused}"));
        assert!(
            told.contains("file on its way through descriptor") && told.contains("a message alone"),
            "{told}"
        );
    }
    assert!(!image.exists());
    std::fs::write(folder.join("go"), "").expect("write");
    until("it has got them", || folder.join("got").exists());
    let got = std::fs::read_to_string(folder.join("got")).expect("read");
    assert_eq!(got.trim(), "net uts ipc mnt user cgroup");
}

#[test]
fn cgroup_namespaces_are_kept_where_they_begin_at_the_trees_own() {
    let host = Host::new();
    let script = "touch /run/c; unshare --cgroup=/run/c true";
    let keeper = Keeper::start(&host, script);
    let told = keeper.keeps("nsenter --cgroup=/run/c cat /proc/1/cgroup");
    assert!(told.lines().all(|line| line.ends_with(":/")), "{told}");
}

#[test]
fn a_restore_that_fails_leaves_none() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "namespaces-held", &[], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "namespaces-held", "-o", &image]);
    let traces = Traces::look(&host, &["namespaces-held"], &[]);
    for stage in [
        "mounts", "contents", "tree", "files", "clocks", "state", "verify", "thaw",
    ] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = floe_suite::run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["namespaces-held"], &[], stage);
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}
