//! Networks of a test's own.

use crate::{Host, run, spawn, until};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs,
    process::{Child, Command},
};

/// A network namespace, as another host has one. It is that of a process, and ends with it.
#[derive(Debug)]
pub struct Network(Child);

impl Network {
    /// A new one, in which nothing is up.
    ///
    /// # Panics
    /// Without the right to do so.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a process is started")]
    pub fn new() -> Self {
        let made = Self(spawn(Command::new("unshare").args([
            "--net",
            "--kill-child",
            "sleep",
            "infinity",
        ])));
        let own = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        until("the network namespace", || {
            fs::read_link(made.path()).is_ok_and(|theirs| theirs != own)
        });
        made
    }

    /// Who is in it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// A host with this network.
    #[must_use]
    pub fn host(&self) -> Host {
        Host::behind(&["nsenter", &format!("--net={}", self.path())])
    }

    /// Runs commands of a shell in it, which must succeed.
    ///
    /// # Panics
    /// Where they don't.
    pub fn shell(&self, line: &str) {
        let outcome = run(&mut self.enter(line));
        assert_eq!(outcome.status, 0, "{line}: {}", outcome.err);
    }

    /// The same; whether they succeed.
    #[must_use]
    pub fn try_shell(&self, line: &str) -> bool {
        run(&mut self.enter(line)).status == 0
    }

    fn enter(&self, line: &str) -> Command {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net={}", self.path())).args(["bash", "-ec", line]);
        enter
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// Moves the calling thread into a new network namespace with loopback only: what it starts from now on is in there, and
/// no port of it is anybody else's.
///
/// # Panics
/// Without the right to do so.
pub fn enter_own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: an all-zero ifreq is valid: a name of no characters and a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one that outlives the call.
    let raised = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request) };
    // SAFETY: the socket is this function's own.
    unsafe { libc::close(socket) };
    assert_eq!(raised, 0, "loopback does not come up");
}
