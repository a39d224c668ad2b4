//! Another machine: an emulated one with a kernel of its own, whose programs are this host's.
//!
//! It has a file system of what it is given alone, in memory, cgroup version 2, and a network card by which it reaches this host's
//! loopback as 10.0.2.2. A shell there reads lines from a serial port, and says after each how it ended.

use crate::{Outcome, cpio::Archive, until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What tools/test --full unpacks: qemu, busybox, a kernel with its modules.
const PLACE: &str = "FLOE_MACHINE";
/// Milliseconds that it may say nothing: what takes a second here may take it a minute.
const SILENCE: i32 = 300_000;
/// Modules by which it has a network card, and floe learns of sockets.
const MODULES: [&str; 13] = [
    "failover",
    "net_failover",
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_net",
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "netlink_diag",
];
const INIT: &str = r##"#!/bin/busybox sh
/bin/busybox --install -s /usr/bin
export PATH=/usr/bin:/opt HOME=/root
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for pass in 1 2 3; do for module in /modules/*; do insmod $module 2>/dev/null; done; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo '#READY'
while IFS= read -r line; do
    ( eval "$line" ) </dev/null >/answer 2>&1
    status=$?
    cat /answer; echo; echo "#END $status"
done
"##;

/// A machine that runs. Dropped, it is switched off.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Machine {
    /// Where the packages are that it is made of; `None` where they were not unpacked.
    #[must_use]
    pub fn packages() -> Option<PathBuf> {
        std::env::var_os(PLACE).map(PathBuf::from)
    }

    /// Switches one on, with a processor by qemu's name and these programs, each where it is here; `floe` is in its path. Port 7070
    /// of it is `port` of this host's loopback. Its files are made in `folder`.
    ///
    /// # Panics
    /// Where it does not come up.
    #[must_use]
    pub fn start(packages: &Path, processor: &str, port: u16, folder: &Path, programs: &[PathBuf]) -> Self {
        let (image, log) = (folder.join("machine.img"), folder.join("machine.log"));
        fs::write(&image, file_system(packages, folder, programs)).expect("write the file system");
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| packages.join(path));
        let libraries = std::env::join_paths(libraries).expect("plain paths");
        let mut command = Command::new(packages.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", libraries);
        command.args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "2",
            "-m",
            "1024",
            "-cpu",
            processor,
        ]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        for data in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(packages.join(data));
        }
        command.arg("-kernel").arg(kernel(packages)).arg("-initrd").arg(image);
        command.args(["-append", "console=ttyS0 panic=-1 loglevel=4"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-serial", "stdio"]);
        command
            .arg("-netdev")
            .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:7070"));
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("start qemu");
        let asks = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut machine = Self {
            child,
            asks,
            answers,
            log,
        };
        machine.read_to("#READY");
        machine
    }

    /// Lets the shell there run a line; what it prints counts as its output, and as its errors.
    ///
    /// # Panics
    /// Where the machine goes off meanwhile, or says nothing for five minutes.
    pub fn run(&mut self, line: &str) -> Outcome {
        writeln!(self.asks, "{line}").expect("ask the machine");
        let (printed, end) = self.read_to("#END ");
        Outcome {
            status: end.parse().expect("an exit status"),
            out: printed.clone(),
            err: printed,
        }
    }

    /// The same of a line that must succeed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn done(&mut self, line: &str) -> String {
        let outcome = self.run(line);
        assert_eq!(outcome.status, 0, "there: {line}: {}", outcome.out);
        outcome.out.trim().to_owned()
    }

    /// Reads lines up to one that begins in this way; those before, and its rest.
    fn read_to(&mut self, mark: &str) -> (String, String) {
        let mut printed = String::new();
        loop {
            let mut line = Vec::new();
            let speaks = !self.answers.buffer().is_empty() || has_input(self.answers.get_ref());
            let got = match speaks {
                true => self
                    .answers
                    .read_until(b'\n', &mut line)
                    .expect("read from the machine"),
                false => 0,
            };
            if got == 0 {
                let log = fs::read(&self.log).unwrap_or_default();
                let what = if speaks { "went off" } else { "hung" };
                panic!("the machine {what}: {printed}\n{}", String::from_utf8_lossy(&log));
            }
            let line = String::from_utf8_lossy(&line);
            if let Some(rest) = line.trim_end().strip_prefix(mark) {
                return (printed, rest.to_owned());
            }
            printed.push_str(&line);
        }
    }

    /// Lets a victim there check itself for the `round`th time.
    ///
    /// # Panics
    /// Where it says nothing.
    pub fn verdict(&mut self, folder: &Path, round: u32) -> String {
        let folder = folder.display();
        self.done(&format!("touch {folder}/check.{round}"));
        let answer = format!("cat {folder}/result.{round}");
        let mut told = String::new();
        until("the victim's answer", || {
            let outcome = self.run(&answer);
            told = outcome.out;
            outcome.status == 0
        });
        told.trim().to_owned()
    }
}

/// Waits until a pipe has something to read, or its end; not without end.
fn has_input(pipe: &ChildStdout) -> bool {
    let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::try_from(SILENCE).expect("a time")).is_ok_and(|ready| ready == 1)
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// The one file in a folder whose name begins so.
fn only(folder: &Path, begin: &str) -> PathBuf {
    let entries = fs::read_dir(folder).expect("a folder of the packages");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    let is_it = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(begin))
    };
    paths
        .find(is_it)
        .unwrap_or_else(|| panic!("no {begin} in {}", folder.display()))
}

fn kernel(packages: &Path) -> PathBuf {
    only(&packages.join("boot"), "vmlinuz-")
}

fn file_system(packages: &Path, folder: &Path, programs: &[PathBuf]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "modules", "usr/sbin"] {
        archive.folder(Path::new(name));
    }
    // As here, so that programs and libraries are where they are.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let place = Path::new("usr").join(name);
        archive.folder(&place);
        archive.link(Path::new(name), &place);
    }
    archive.bytes(Path::new("init"), 0o755, INIT.as_bytes());
    archive.console();
    archive.file(Path::new("usr/bin/busybox"), &packages.join("bin/busybox"));
    let modules = only(&packages.join("lib/modules"), "").join("kernel");
    for name in MODULES {
        let found = Command::new("find")
            .arg(&modules)
            .args(["-name", &format!("{name}.ko")])
            .output();
        let found = String::from_utf8(found.expect("find").stdout).expect("text");
        let path = found.lines().next().unwrap_or_else(|| panic!("no module {name}"));
        archive.file(&Path::new("modules").join(name), Path::new(path));
    }
    // Without what is there for those who look into it, of which floe has much.
    let floe = folder.join("floe");
    let strip = Command::new("strip")
        .arg("-o")
        .args([&floe, &crate::command::binary()])
        .status();
    assert!(strip.expect("strip").success(), "strip floe");
    archive.file(Path::new("opt/floe"), &floe);
    let mut libraries = libraries(&floe);
    for program in programs {
        archive.file(inside(program), program);
        libraries.extend(self::libraries(program));
    }
    for (found, is) in &libraries {
        if found != is {
            archive.link(inside(found), is);
        }
    }
    let files: BTreeSet<&PathBuf> = libraries.iter().map(|(_, is)| is).collect();
    for library in files {
        archive.file(inside(library), library);
    }
    archive.finish()
}

fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").expect("an absolute path")
}

/// What a program needs to be started: where it is found, and where it is.
fn libraries(program: &Path) -> BTreeSet<(PathBuf, PathBuf)> {
    let told = Command::new("ldd").arg(program).output().expect("ldd");
    let told = String::from_utf8(told.stdout).expect("text");
    let paths = told.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    let place = |path: &str| {
        let (folder, name) = path.rsplit_once('/').expect("an absolute path");
        let folder = fs::canonicalize(folder).expect("a folder of libraries");
        (folder.join(name), fs::canonicalize(path).expect("a library"))
    };
    paths.map(place).collect()
}
