//! Networks of sandboxes' own: a server among devices and rules, what can't be made, and that nothing is left then.

use floe_suite::{Host, Traces, Victim, has, run, skip, until};
use std::fs;

/// A server at one end of a pair of devices, which is reached by a table of its own alone.
const SERVER: &str = "
ip link add near type veth peer name far && ip link set near up && ip link set far up &&
ip addr add 10.5.0.1/24 dev near && ip route del 10.5.0.0/24 dev near &&
ip route add 10.6.0.0/16 via 10.5.0.7 dev near onlink table 77 && ip rule add to 10.6.0.0/16 lookup 77 prio 50 &&
ip route add local 10.7.0.0/16 dev lo table 78 && ip rule add to 10.7.0.0/16 lookup 78 prio 51 &&
echo 1 > /proc/sys/net/ipv4/ip_forward &&
exec python3 -m http.server --directory /proc/sys/net/ipv4 --bind 10.5.0.1 8080";

/// What is said at an address.
const ASK: &str = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())";

#[test]
fn a_server_goes_on_with_its_devices_rules_and_routes() {
    if !has("ip") || !has("python3") {
        return skip("there is no ip, or no python3");
    }
    let host = Host::new();
    host.done(&[
        "run", "-d", "--name", "server", "--net", "none", "--", "sh", "-c", SERVER,
    ]);
    let exec = |line: &[&str]| host.floe(&[&["exec", "server", "--"], line].concat());
    let ask = || exec(&["python3", "-c", ASK, "http://10.5.0.1:8080/"]);
    until("the server", || ask().status == 0);
    let ways = || {
        let told = |address: &str| exec(&["ip", "route", "get", address]).expect_done();
        [told("10.6.1.1"), told("10.7.1.1")]
    };
    let before = ways();
    assert!(before[0].contains("via 10.5.0.7 dev near"), "{before:?}");
    for _ in 0..2 {
        let image = host.path("server.floe").display().to_string();
        host.done(&["checkpoint", "server", "-o", &image]);
        host.done(&["restore", "-d", &image]);
        fs::remove_file(&image).expect("remove");
        assert!(ask().expect_done().contains("ip_forward"));
        let set = exec(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
        assert_eq!(set.expect_done().trim(), "1");
        assert_eq!(ways(), before);
    }
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let host = Host::new();
    let traces = Traces::look(&host, &["networks"], &[]);
    let mut victim = Victim::start(&host, "networks", &["--net", "none"], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "networks", "-o", &image]);
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").map(|text| text.lines().count());
    let before = devices().expect("devices");
    for stage in ["network", "files", "verify"] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["networks"], &[], stage);
        assert_eq!(devices().expect("devices"), before, "{stage}");
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}
