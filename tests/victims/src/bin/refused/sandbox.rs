//! What else of a sandbox can't be carried.

use super::{Check, Make};
use std::{fs, io, ptr};
use victims::{Findings, Stage, call, descriptor::try_open};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("mount", mount),
    ("foreign-segment", foreign_segment),
    ("network-device", network_device),
    ("discipline", discipline),
    ("transform", transform),
    ("listened", listened),
    ("legacy-filter", legacy_filter),
    ("recent-list", recent_list),
    ("owned-table", owned_table),
];

/// A filter with an action.
fn discipline(_: &Stage) -> io::Result<Check> {
    run("tc", &["qdisc", "add", "dev", "lo", "clsact"])?;
    let never = ["match", "ip", "src", "192.0.2.1"];
    let action = ["action", "mirred", "egress", "mirror", "dev", "lo"];
    let filter = [
        "filter", "add", "dev", "lo", "ingress", "protocol", "ip", "prio", "7", "u32",
    ];
    run("tc", &[&filter[..], &never, &action].concat())?;
    Ok(Box::new(|findings: &mut Findings| {
        let there = run(
            "tc",
            &[
                "filter", "del", "dev", "lo", "ingress", "protocol", "ip", "prio", "7", "u32",
            ],
        );
        findings.take("the filter", there);
    }))
}

fn transform(_: &Stage) -> io::Result<Check> {
    run(
        "ip",
        &[
            "xfrm",
            "policy",
            "add",
            "dst",
            "10.99.0.0/16",
            "dir",
            "out",
            "action",
            "allow",
        ],
    )?;
    Ok(Box::new(|findings: &mut Findings| {
        let there = run("ip", &["xfrm", "policy", "get", "dst", "10.99.0.0/16", "dir", "out"]);
        findings.take("the policy", there);
    }))
}

fn listened(_: &Stage) -> io::Result<Check> {
    run("ip", &["maddr", "add", "33:33:01:02:03:04", "dev", "lo"])?;
    Ok(Box::new(|findings: &mut Findings| {
        let listened = fs::read_to_string("/proc/net/dev_mcast").unwrap_or_default();
        findings.same("whether it listens", &true, &listened.contains("333301020304"));
    }))
}

/// The kernel does not tell how much of it is left.
fn legacy_filter(_: &Stage) -> io::Result<Check> {
    const RULE: [&str; 8] = ["INPUT", "-s", "192.0.2.1", "-m", "quota", "--quota", "5000", "-j"];
    let iptables = |what| run("iptables-legacy", &[&[what], &RULE[..], &["ACCEPT"]].concat());
    iptables("-A")?;
    Ok(Box::new(move |findings: &mut Findings| {
        findings.that(iptables("-C").is_ok(), "the rule is gone");
    }))
}

/// Nor can it be told when an address was seen.
fn recent_list(_: &Stage) -> io::Result<Check> {
    const LIST: &str = "/proc/net/xt_recent/victims";
    let rule = [
        "-A",
        "INPUT",
        "-s",
        "192.0.2.1",
        "-m",
        "recent",
        "--name",
        "victims",
        "--set",
    ];
    run("iptables-legacy", &[&["-t", "mangle"], &rule[..]].concat())?;
    fs::write(LIST, "+192.0.2.7\n")?;
    Ok(Box::new(|findings: &mut Findings| {
        let listed = fs::read_to_string(LIST).unwrap_or_default();
        findings.that(listed.contains("192.0.2.7"), "the address is gone");
    }))
}

/// Which goes with the process that made it.
fn owned_table(_: &Stage) -> io::Result<Check> {
    let mut child = std::process::Command::new("nft")
        .args(["-i"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().ok_or(io::Error::other("no pipe"))?;
    io::Write::write_all(&mut input, b"add table ip owned { flags owner; }\n")?;
    let is_there = || {
        let listed = std::process::Command::new("nft").args(["list", "tables"]).output();
        listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains("owned"))
    };
    if !victims::wait_until(is_there) {
        return Err(io::Error::other("nft makes no table with an owner"));
    }
    Ok(Box::new(move |findings: &mut Findings| {
        let _open = (&child, &input);
        findings.that(is_there(), "the table is gone");
    }))
}

fn run(program: &str, line: &[&str]) -> io::Result<()> {
    let output = std::process::Command::new(program).args(line).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn mount(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("mount");
    fs::create_dir(&path)?;
    let none: Option<&str> = None;
    nix::mount::mount(Some("victim"), &path, Some("ramfs"), nix::mount::MsFlags::empty(), none)?;
    fs::write(path.join("file"), b"content")?;
    Ok(Box::new(move |findings: &mut Findings| {
        let now = fs::read(path.join("file")).unwrap_or_default();
        findings.that(now == b"content", "the mount lost its file");
    }))
}

/// Attached in one namespace, from which its process goes on into another one.
fn foreign_segment(_: &Stage) -> io::Result<Check> {
    // SAFETY: plain numbers.
    let id = call::checked(unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) }.into())?;
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(id as i32, ptr::null(), 0) } as usize;
    // SAFETY: IPC_RMID takes no structure.
    call::checked(unsafe { libc::shmctl(id as i32, libc::IPC_RMID, ptr::null_mut()) }.into())?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC)?;
    let mapping = victims::memory::Mapping { address, len: 4096 };
    mapping.mark(0, 7);
    Ok(Box::new(move |findings: &mut Findings| {
        mapping.compare(findings, "the segment", 0, 7);
    }))
}

fn network_device(_: &Stage) -> io::Result<Check> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let devices = fs::read_to_string("/proc/net/dev")?;
    if devices
        .lines()
        .skip(2)
        .any(|line| !line.trim_start().starts_with("lo:"))
    {
        return Err(io::Error::other("the network namespace is not the sandbox's own"));
    }
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    let fd = try_open("/dev/net/tun".as_ref(), libc::O_RDWR)?;
    // struct ifreq: name, then IFF_TUN | IFF_NO_PI.
    let mut request = [0u8; 40];
    request[..6].copy_from_slice(b"victim");
    request[16..18].copy_from_slice(&0x1001u16.to_ne_bytes());
    // SAFETY: `struct ifreq` is 40 bytes.
    call::checked(unsafe { libc::ioctl(fd, TUNSETIFF, request.as_mut_ptr()) }.into())?;
    // SAFETY: a plain number.
    call::checked(unsafe { libc::ioctl(fd, TUNSETPERSIST, 1) }.into())?;
    call::close(fd);
    Ok(Box::new(|findings: &mut Findings| {
        let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
        findings.that(devices.contains("victim:"), "the device is gone");
    }))
}
