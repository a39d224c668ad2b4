//! slirp4netns(1): it is told of published ports one by one, by a socket at a path.
//!
//! ```text
//! keeper                                   slirp4netns
//!   makes a tmpfs that is nowhere   ─────► binds its socket there
//!                                   ◄───── "1": the device is up
//!   {"execute": "add_hostfwd", …}   ─────►
//!                                   ◄───── {"return": …} or {"error": {"desc": …}}, for each port
//! ```
//! Nobody else sees that tmpfs, and it goes with these two processes. slirp4netns goes into a root directory of its own
//! (`--enable-sandbox`) and confines its system calls (`--enable-seccomp`).
//!
//! With `--disable-host-loopback` nothing could answer who comes by UDP from the host's loopback: such a one has the gateway's
//! address. So rules of the packet filter in the namespace between keep the sandbox from connecting there.

use super::{Carrier, DEVICE, HARDWARE};
use crate::published::Published;
use floe_sys::{fork, mount};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::wait::waitpid,
    unistd::{Pid, dup2_stdout, getegid, geteuid, pipe},
};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
};

/// First bytes of the addresses of the namespace between and slirp4netns.
pub(super) const NETWORK: [u8; 3] = [10, 242, 0];
/// The namespace's last one, which slirp4netns chooses.
const OWN: u8 = 100;
/// Bytes of a packet: the most that it takes.
const LONGEST: &str = "65520";
/// Bytes of an answer that are read.
const ANSWER: u64 = 4096;

/// Starts it as a child, whose descriptor 0 is the network namespace that it joins to the caller's; it takes the published ports.
/// The caller must have one thread and the rights of root in its mount namespace, and have opened no other file.
///
/// # Errors
/// In words, where it has ended, or can't take a port; those of the kernel.
pub(super) fn start(published: &[Published]) -> io::Result<Pid> {
    let folder = mount::file_system(c"tmpfs")?;
    let (ready, readied) = pipe()?;
    let child = fork::child(|| match become_it(&folder, &readied) {
        Ok(never) => match never {},
        Err(error) => super::tell(&error),
    })?;
    drop(readied);
    let mut told = [0];
    if File::from(ready).read(&mut told)? == 0 {
        let ended = waitpid(child, None)?;
        return Err(io::Error::other(format!("slirp4netns has ended ({ended:?})")));
    }
    let socket = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
    for port in published {
        publish(&socket, *port)?;
    }
    Ok(child)
}

fn become_it(folder: &impl AsFd, readied: &impl AsFd) -> io::Result<Infallible> {
    let passed = |descriptor: &dyn AsFd| -> Result<i32, Errno> { fcntl(descriptor, FcntlArg::F_DUPFD(3)) };
    let (folder, readied) = (passed(folder)?, passed(readied)?);
    // It tells there what it does.
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    let [first, second, third] = NETWORK;
    let network = format!("{first}.{second}.{third}.0/24");
    let mut command = Command::new(Carrier::Slirp4netns.name());
    command.args([
        "--configure",
        "--mtu",
        LONGEST,
        "--cidr",
        &network,
        "--macaddress",
        HARDWARE,
    ]);
    // Names are asked for where the sandbox's /etc/resolv.conf says.
    command.args(["--disable-dns", "--enable-seccomp"]);
    // It insists on being user 0 then.
    if geteuid().is_root() && getegid().as_raw() == 0 {
        command.arg("--enable-sandbox");
    }
    command.args(["--ready-fd", &readied.to_string()]);
    command.args(["--api-socket", &format!("/proc/self/fd/{folder}/socket")]);
    command.args(["--netns-type", "path", "/proc/self/fd/0", DEVICE]);
    Err(command.exec())
}

/// Has it take a port of the host's, and hand on to the same one of the namespace between.
fn publish(socket: &str, port: Published) -> io::Result<()> {
    let [first, second, third] = NETWORK;
    let asked = json!({
        "execute": "add_hostfwd",
        "arguments": {
            "proto": if port.udp { "udp" } else { "tcp" },
            "host_addr": Ipv4Addr::UNSPECIFIED,
            "host_port": port.host,
            "guest_addr": Ipv4Addr::new(first, second, third, OWN),
            "guest_port": port.host,
        },
    });
    let mut end = UnixStream::connect(socket)?;
    end.write_all(asked.to_string().as_bytes())?;
    end.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    end.take(ANSWER).read_to_end(&mut answer)?;
    match refusal(&answer) {
        None => Ok(()),
        Some(why) => Err(io::Error::other(format!(
            "slirp4netns can't take port {port} ({why}; does another program have the host's?)"
        ))),
    }
}

/// Why it has not done what it was asked for, where it has not.
fn refusal(answer: &[u8]) -> Option<String> {
    let told: Value = serde_json::from_slice(answer).unwrap_or_default();
    match (told.get("return"), told.get("error")) {
        (Some(_), None) => None,
        (_, Some(error)) => Some(error["desc"].as_str().unwrap_or("it does not say why").to_owned()),
        (None, None) => Some("it does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::refusal;

    #[test]
    fn answers_are_understood() {
        assert_eq!(refusal(br#"{"return": {"id": 42}}"#), None);
        let error = br#"{"error": {"desc": "bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#;
        assert_eq!(
            refusal(error).as_deref(),
            Some("bad request: add_hostfwd: slirp_add_hostfwd failed")
        );
        for other in [&b""[..], b"{", b"{}", b"[]", br#"{"error": 1}"#] {
            assert!(refusal(other).is_some(), "{other:?}");
        }
    }
}
