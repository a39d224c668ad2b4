//! Descriptors of the victim's namespaces: by /proc, by a pidfd, by O_PATH; shared with another process. Each is the one that
//! the victim is in, and can be entered; but one, which nobody is in.

use std::{
    fs,
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::Path,
};
use victims::{
    Findings, Peer, call,
    descriptor::{borrowed, open, place},
    play,
};

/// PIDFD_GET_NET_NAMESPACE and PIDFD_GET_UTS_NAMESPACE, linux/pidfd.h.
const BY_PIDFD: [(&str, u64); 2] = [("net", 0xff04), ("uts", 0xff0a)];

/// A descriptor, and the namespace that it stands for.
struct Held {
    name: &'static str,
    fd: RawFd,
    flags: i32,
}

fn main() {
    play(|_stage| {
        let names = [
            "cgroup",
            "ipc",
            "mnt",
            "net",
            "pid",
            "time",
            "user",
            "uts",
            "pid_for_children",
        ];
        let path = |name: &str| format!("/proc/self/ns/{name}");
        let mut held: Vec<Held> = names
            .map(|name| Held::of(name, open(Path::new(&path(name)), libc::O_RDONLY)))
            .into();
        held.push(Held::of("ipc", open(Path::new(&path("ipc")), libc::O_PATH)));
        held.extend(by_pidfd());
        let peer = Peer::start(|fd| {
            // SAFETY: plain numbers.
            let entered = unsafe { libc::setns(fd as RawFd, libc::CLONE_NEWUTS) };
            if entered == 0 {
                i64::from(is_the_one("uts", fd as RawFd))
            } else {
                -1
            }
        });
        let uts = held[7].fd;
        let left = Left::new();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                place(held[0].fd, held[1].fd, 0);
            }
            for held in &held {
                held.check(findings);
            }
            left.check(findings);
            let told = findings.take("ask the other process", peer.ask(uts.into()));
            findings.same("whether it can enter", &Some(1), &told);
        }
    })
}

fn by_pidfd() -> Vec<Held> {
    // SAFETY: plain numbers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) } as RawFd;
    let open = |(name, request): (&'static str, u64)| {
        // SAFETY: these take no argument.
        let fd = unsafe { libc::ioctl(pidfd, request, 0) };
        // An older kernel knows them not.
        (fd >= 0).then(|| Held::of(name, fd))
    };
    let held = BY_PIDFD.into_iter().filter_map(open).collect();
    call::close(pidfd);
    held
}

fn is_the_one(name: &str, fd: RawFd) -> bool {
    let identity = |found: std::io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
    let own = identity(fs::metadata(format!("/proc/self/ns/{name}")));
    own.is_some() && own == identity(borrowed(fd).metadata())
}

impl Held {
    fn of(name: &'static str, fd: RawFd) -> Self {
        let flags = call::fcntl(fd, libc::F_GETFL, 0).expect("flags");
        Self { name, fd, flags }
    }

    fn check(&self, findings: &mut Findings) {
        findings.that(
            is_the_one(self.name, self.fd),
            format!("{} is another namespace", self.name),
        );
        findings.same(
            format!("flags of {}", self.name),
            &Some(self.flags),
            &call::fcntl(self.fd, libc::F_GETFL, 0).ok(),
        );
    }
}

/// Two descriptors of a UTS namespace that nobody is in.
struct Left([RawFd; 2]);

impl Left {
    /// Entered by the thread that makes it, which ends.
    fn new() -> Self {
        let make = || {
            // SAFETY: a number.
            call::checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) }.into()).expect("unshare");
            nix::unistd::sethostname("left").expect("a name");
            [0; 2].map(|flags| open(Path::new("/proc/thread-self/ns/uts"), libc::O_RDONLY | flags))
        };
        Self(std::thread::scope(|scope| scope.spawn(make).join()).expect("a namespace"))
    }

    fn check(&self, findings: &mut Findings) {
        let [one, other] = self.0.map(|fd| borrowed(fd).metadata().map(|found| found.ino()).ok());
        findings.that(one.is_some() && one == other, "they are two namespaces");
        findings.that(!is_the_one("uts", self.0[0]), "it is the victim's own");
        let entered = self.0[0];
        let look = move || {
            // SAFETY: numbers.
            call::checked(unsafe { libc::setns(entered, libc::CLONE_NEWUTS) }.into())?;
            Ok::<_, std::io::Error>(nix::unistd::gethostname()?)
        };
        let name = std::thread::scope(|scope| scope.spawn(look).join()).expect("it ends");
        findings.same("its name", &Some("left".into()), &name.ok());
    }
}
