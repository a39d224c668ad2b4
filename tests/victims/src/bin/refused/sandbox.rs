//! What else of a sandbox can't be carried.

use super::{Check, Make};
use std::{fs, io, ptr};
use victims::{Findings, Stage, call, descriptor::try_open};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("mount", mount),
    ("foreign-segment", foreign_segment),
    ("network-device", network_device),
];

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
