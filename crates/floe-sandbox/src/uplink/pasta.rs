//! pasta(1): all that it is to do stands in its command line.

use crate::published::Published;
use std::{convert::Infallible, io, os::unix::process::CommandExt, process::Command};

/// Address of the namespace between, where only pasta is next to it.
const ADDRESS: &str = "10.242.0.2";
/// What counts as the host's address there.
const GATEWAY: &str = "10.242.0.1";
/// Bits of their network.
const BITS: &str = "30";

/// Becomes pasta, whose descriptor 0 is the network namespace that it joins to its own. When the way is open it writes its PID, a
/// line, to 1 and closes it.
///
/// # Errors
/// Those of execve(2).
pub(super) fn become_it(published: &[Published]) -> io::Result<Infallible> {
    let ports = |udp| {
        let of_kind = published.iter().filter(move |port| port.udp == udp);
        let all: Vec<String> = of_kind.map(|port| format!("{0}:{0}", port.host)).collect();
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join(",")
        }
    };
    let (tcp, udp) = (ports(false), ports(true));
    let mut command = Command::new(super::Carrier::Pasta.name());
    command.args(["--foreground", "--quiet", "--stderr", "--ipv4-only", "--config-net"]);
    command.args([
        "--ns-ifname",
        super::DEVICE,
        "--address",
        ADDRESS,
        "--netmask",
        BITS,
        "--gateway",
        GATEWAY,
    ]);
    command.args(["--ns-mac-addr", super::HARDWARE]);
    // Services of the host's loopback are not the sandbox's; nobody there asks for addresses.
    command.args(["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]);
    command.args([
        "--tcp-ports",
        &tcp,
        "--udp-ports",
        &udp,
        "--tcp-ns",
        "none",
        "--udp-ns",
        "none",
    ]);
    command.args([
        "--pid",
        "/proc/self/fd/1",
        "--no-netns-quit",
        "--netns",
        "/proc/self/fd/0",
    ]);
    Err(command.exec())
}
