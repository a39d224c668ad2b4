//! Descriptors that can't be carried.

use super::{Check, Make, memory, unchanged};
use nix::sys::stat::Mode;
use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    path::Path,
};
use victims::{
    Findings, Stage, call,
    descriptor::{borrowed, open, try_open},
    memory::Mapping,
    pty::{self, Pty},
    stage::{first, fork},
    tun::{self, Tun},
};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("epoll-of-nobody", epoll_of_nobody),
    ("inotify", inotify),
    ("fanotify-event", fanotify_event),
    ("fanotify-question", fanotify_question),
    ("pidfd-of-a-parent", pidfd_of_a_parent),
    ("userfaultfd-descriptor", |_| memory::fault_descriptor().map(unchanged)),
    ("io-uring-descriptor", io_uring),
    ("bpf-map-of-programs", bpf_map_of_programs),
    ("bpf-map-of-a-program", bpf_map_of_a_program),
    ("bpf-program", bpf_program),
    ("types", types),
    ("ruleset", ruleset),
    ("tun-elsewhere", tun_elsewhere),
    ("tun-waiting", tun_waiting),
    ("fuse", |_| opened("/dev/fuse", libc::O_RDWR)),
    ("kvm", |_| opened("/dev/kvm", libc::O_RDWR)),
    ("perf", |_| memory::perf_event().map(unchanged)),
    ("memfd-secret-descriptor", |_| made(447, &[0])),
    ("large-buffers", large_buffers),
    ("fifo", fifo),
    ("deleted-fifo", deleted_fifo),
    ("terminal-discipline", terminal_discipline),
    ("terminal-echo", terminal_echo),
    ("kernel-log", |_| opened("/dev/kmsg", libc::O_RDONLY)),
    ("block-device", |_| opened_kind("/dev", libc::S_IFBLK)),
    ("pressure-trigger", |_| opened("/proc/pressure/cpu", libc::O_RDWR)),
    ("proc-device", |_| opened("/proc/bus", libc::O_RDONLY)),
    ("namespace", left_namespace),
    ("cgroup-file", cgroup_file),
    ("debugfs", debugfs),
    ("message-queue", message_queue),
    ("path-of-a-pipe", path_of_a_pipe),
    ("ending-lease", ending_lease),
    ("mapped-lease", mapped_lease),
];

/// The descriptor that a system call makes.
fn made(number: i64, arguments: &[usize]) -> io::Result<Check> {
    raw(number, arguments).map(|fd| unchanged(fd as RawFd))
}

/// With an event that nobody reads.
fn inotify(stage: &Stage) -> io::Result<Check> {
    let instance = raw(libc::SYS_inotify_init1, &[0])? as RawFd;
    let path = std::ffi::CString::new(stage.dir().as_os_str().as_encoded_bytes())?;
    let arguments = [instance as usize, path.as_ptr() as usize, libc::IN_CREATE as usize];
    raw(libc::SYS_inotify_add_watch, &arguments)?;
    fs::write(stage.path("made"), "")?;
    Ok(unchanged(instance))
}

fn fanotify(stage: &Stage, name: &str, class: u32, mask: u64) -> io::Result<RawFd> {
    let folder = stage.path(name);
    fs::create_dir(&folder)?;
    // SAFETY: numbers.
    let group = call::checked(i64::from(unsafe { libc::fanotify_init(class, 0) }))? as RawFd;
    let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes())?;
    let mask = mask | libc::FAN_EVENT_ON_CHILD;
    // SAFETY: the path ends with a NUL.
    let marked = unsafe { libc::fanotify_mark(group, libc::FAN_MARK_ADD, mask, libc::AT_FDCWD, path.as_ptr()) };
    call::checked(marked.into())?;
    Ok(group)
}

/// With an event that nobody reads.
fn fanotify_event(stage: &Stage) -> io::Result<Check> {
    let group = fanotify(stage, "told", libc::FAN_CLASS_NOTIF, libc::FAN_CLOSE_WRITE)?;
    fs::write(stage.path("told/file"), "")?;
    Ok(unchanged(group))
}

/// Files there can be opened when it says so.
fn fanotify_question(stage: &Stage) -> io::Result<Check> {
    fanotify(stage, "asked", libc::FAN_CLASS_CONTENT, libc::FAN_OPEN_PERM).map(unchanged)
}

/// Of a process that is not in the tree: who started it.
fn pidfd_of_a_parent(_: &Stage) -> io::Result<Check> {
    made(libc::SYS_pidfd_open, &[std::os::unix::process::parent_id() as usize, 0])
}

fn raw(number: i64, arguments: &[usize]) -> io::Result<i64> {
    // SAFETY: the callers pass numbers, or pointers to what outlives the call.
    unsafe { call::raw(number, arguments) }
}

fn opened(path: impl AsRef<Path>, flags: i32) -> io::Result<Check> {
    try_open(path.as_ref(), flags).map(unchanged)
}

/// The first file of a type in a folder that can be opened.
fn opened_kind(folder: &str, kind: u32) -> io::Result<Check> {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(folder)?.flatten() {
        if entry
            .metadata()
            .is_ok_and(|metadata| metadata.mode() & libc::S_IFMT == kind)
            && let Ok(fd) = try_open(&entry.path(), libc::O_RDONLY)
        {
            return Ok(unchanged(fd));
        }
    }
    Err(io::Error::other(format!("{folder} has none")))
}

/// What it watches is mapped, and no number stands for it.
fn epoll_of_nobody(_: &Stage) -> io::Result<Check> {
    let watched = memory::perf_event()?;
    memory::map(
        2 * victims::memory::PAGE,
        memory::READ_WRITE,
        libc::MAP_SHARED,
        watched,
        0,
    )?;
    let instance = raw(libc::SYS_epoll_create1, &[0])?;
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 1,
    };
    let add = libc::EPOLL_CTL_ADD as usize;
    raw(
        libc::SYS_epoll_ctl,
        &[instance as usize, add, watched as usize, &raw mut event as usize],
    )?;
    raw(libc::SYS_close, &[watched as usize])?;
    Ok(unchanged(instance as i32))
}

fn io_uring(_: &Stage) -> io::Result<Check> {
    let mut parameters = [0u32; 30];
    made(libc::SYS_io_uring_setup, &[4, parameters.as_mut_ptr() as usize])
}

fn bpf_map_of_programs(_: &Stage) -> io::Result<Check> {
    Ok(unchanged(bpf_map(3)?.into_raw_fd()))
}

/// Of one entry.
pub fn bpf_map(kind: u32) -> io::Result<OwnedFd> {
    // BPF_MAP_CREATE: type, bytes of a key, of a value, entries.
    let attributes = [kind, 4, 4, 1, 0, 0, 0, 0];
    let made = raw(libc::SYS_bpf, &[0, attributes.as_ptr() as usize, 32])?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(made as RawFd) })
}

fn bpf_program(_: &Stage) -> io::Result<Check> {
    socket_program().map(|program| unchanged(program.into_raw_fd()))
}

/// It leaves at once: r0 = 0; exit.
pub fn socket_program() -> io::Result<OwnedFd> {
    load(&[0xb7, 0x95])
}

/// An array that a program on its way through a socket uses.
fn bpf_map_of_a_program(_: &Stage) -> io::Result<Check> {
    let map = bpf_map(2)?.into_raw_fd();
    // r1 = the map (BPF_PSEUDO_MAP_FD), in two halves; r0 = 0; exit.
    let code = [0x1118_u64 | (map as u64) << 32, 0, 0xb7, 0x95];
    let program = load(&code)?;
    let number = program.as_raw_fd();
    let socket = std::os::unix::net::UnixStream::pair()?.0;
    // SAFETY: a number, and a length that is that of the number.
    let attached = unsafe {
        let (place, length) = ((&raw const number).cast(), size_of::<i32>() as u32);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_BPF, place, length)
    };
    call::checked(attached.into())?;
    drop(program);
    std::mem::forget(socket);
    Ok(unchanged(map))
}

fn load(code: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: usize = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u64 = 1;
    let license = c"GPL".as_ptr() as u64;
    let attributes = [
        BPF_PROG_TYPE_SOCKET_FILTER | (code.len() as u64) << 32,
        code.as_ptr() as u64,
        license,
    ];
    let program = raw(libc::SYS_bpf, &[BPF_PROG_LOAD, attributes.as_ptr() as usize, 24])?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(program as RawFd) })
}

/// A type of four bytes without a name.
fn types(_: &Stage) -> io::Result<Check> {
    const BPF_BTF_LOAD: usize = 18;
    // Magic number and version; header; where types and strings are. An integer of 32 bits. One string, which is empty.
    let words = [0x0001_eb9f_u32, 24, 0, 16, 16, 3, 1, 0x0100_0000, 4, 32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(b"\0i\0");
    let attributes = [bytes.as_ptr() as u64, 0, bytes.len() as u64, 0];
    made(libc::SYS_bpf, &[BPF_BTF_LOAD, attributes.as_ptr() as usize, 32])
}

/// Of what may be done with files.
fn ruleset(_: &Stage) -> io::Result<Check> {
    let handled = [1_u64];
    made(libc::SYS_landlock_create_ruleset, &[handled.as_ptr() as usize, 8, 0])
}

/// Buffers of more than a page, from a socket.
fn large_buffers(_: &Stage) -> io::Result<Check> {
    let [read, write] = call::pipe(libc::O_NONBLOCK);
    let (from, into) = std::os::unix::net::UnixStream::pair()?;
    into.set_nonblocking(true)?;
    let all = vec![7; 1 << 20];
    let sent = io::Write::write(&mut &into, &all)?;
    let none = std::ptr::null_mut();
    let mut all_moved = 0;
    loop {
        // SAFETY: numbers, and no offsets.
        let moved = unsafe { libc::splice(from.as_raw_fd(), none, write, none, sent, libc::SPLICE_F_NONBLOCK) };
        match moved {
            1.. => all_moved += moved,
            _ => break,
        }
    }
    if all_moved <= 65_536 {
        [read, write].into_iter().for_each(call::close);
        return Err(io::Error::other("buffers from sockets are not larger than pages"));
    }
    Ok(unchanged(read))
}

fn make_fifo(stage: &Stage, name: &str) -> RawFd {
    let path = stage.path(name);
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("mkfifo");
    open(&path, libc::O_RDONLY | libc::O_NONBLOCK)
}

/// For somebody outside to open.
fn fifo(stage: &Stage) -> io::Result<Check> {
    Ok(unchanged(make_fifo(stage, "fifo")))
}

fn deleted_fifo(stage: &Stage) -> io::Result<Check> {
    let fd = make_fifo(stage, "deleted fifo");
    fs::remove_file(stage.path("deleted fifo"))?;
    Ok(unchanged(fd))
}

/// Bytes go nowhere (N_NULL).
fn terminal_discipline(_: &Stage) -> io::Result<Check> {
    const N_NULL: i32 = 27;
    let pty = Pty::new();
    pty::ioctl(pty.slave, libc::TIOCSETD, N_NULL)?;
    Ok(unchanged(pty.slave))
}

/// What is typed while output is stopped is echoed later.
fn terminal_echo(_: &Stage) -> io::Result<Check> {
    const TCXONC: libc::c_ulong = 0x540A;
    let pty = Pty::new();
    pty::command(pty.slave, TCXONC, 0)?;
    pty::put(pty.master, b"typed");
    Ok(unchanged(pty.slave))
}

/// Of a network namespace that nobody is in any more.
fn tun_elsewhere(_: &Stage) -> io::Result<Check> {
    let own = fs::File::open("/proc/self/ns/net")?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let check = opened("/dev/net/tun", libc::O_RDWR);
    nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWNET)?;
    check
}

/// With a packet that nobody reads.
fn tun_waiting(_: &Stage) -> io::Result<Check> {
    let device = Tun::new(0, "waits", tun::TUN | tun::NO_INFORMATION);
    device.set_size(1200);
    device.set_address([10, 66, 0, 1], [255, 255, 255, 0]);
    device.raise();
    let socket = std::net::UdpSocket::bind("10.66.0.1:0")?;
    socket.send_to(b"packet", "10.66.0.2:9")?;
    Ok(unchanged(device.file))
}

/// To be told what to watch.
fn cgroup_file(_: &Stage) -> io::Result<Check> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let folder = line.and_then(|line| line.split(' ').nth(4));
    let folder = folder.ok_or_else(|| io::Error::other("no cgroup file system of version 2 is mounted"))?;
    opened(Path::new(folder).join("cpu.pressure"), libc::O_RDWR)
}

/// The root directory of a file system that is mounted nowhere.
fn debugfs(_: &Stage) -> io::Result<Check> {
    const CREATE: usize = 6;
    let context = raw(libc::SYS_fsopen, &[c"debugfs".as_ptr() as usize, 0])? as usize;
    raw(libc::SYS_fsconfig, &[context, CREATE, 0, 0, 0])?;
    let root = raw(libc::SYS_fsmount, &[context, 0, 0])? as usize;
    call::close(context as RawFd);
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY) as usize;
    let check = made(libc::SYS_openat, &[root, c".".as_ptr() as usize, flags]);
    call::close(root as RawFd);
    check
}

/// Of another IPC namespace, from a child that was there.
fn message_queue(_: &Stage) -> io::Result<Check> {
    let [told, tell] = call::pipe(0);
    let child = fork(move || {
        // SAFETY: a number.
        let apart = call::checked(unsafe { libc::unshare(libc::CLONE_NEWIPC) }.into());
        let flags = (libc::O_RDWR | libc::O_CREAT) as usize;
        // mq_open's own name, without its slash.
        let arguments = [c"floe-victim".as_ptr() as usize, flags, 0o600, 0];
        let queue = apart.and_then(|_| raw(libc::SYS_mq_open, &arguments)).unwrap_or(-1);
        call::write(tell, &(queue as i32).to_ne_bytes()).expect("tell it");
        loop {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        }
    });
    let queue = call::read(told, 4)?.try_into().map_or(-1, i32::from_ne_bytes);
    let process = raw(libc::SYS_pidfd_open, &[child as usize, 0])? as RawFd;
    let check = made(libc::SYS_pidfd_getfd, &[process as usize, queue as usize, 0]);
    call::kill(child, libc::SIGKILL)?;
    call::wait(child, 0)?;
    [told, tell, process].into_iter().for_each(call::close);
    check
}

fn plain(stage: &Stage, name: &str) -> RawFd {
    open(&stage.path(name), libc::O_RDWR | libc::O_CREAT)
}

fn path_of_a_pipe(_: &Stage) -> io::Result<Check> {
    let [read, write] = call::pipe(0);
    let check = opened(format!("/proc/self/fd/{read}"), libc::O_PATH);
    call::close(read);
    call::close(write);
    check
}

const F_SETLEASE: i32 = 1024;
const F_GETLEASE: i32 = 1025;

fn keeps_lease(fd: RawFd, kind: i32) -> Check {
    Box::new(move |findings: &mut Findings| {
        findings.same("the lease", &Some(kind), &call::fcntl(fd, F_GETLEASE, 0).ok());
    })
}

/// Somebody wants to open the file, so its holder is to release it.
fn ending_lease(stage: &Stage) -> io::Result<Check> {
    // SAFETY: the notice is a signal that is ignored.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let fd = plain(stage, "ending lease");
    call::fcntl(fd, F_SETLEASE, libc::F_WRLCK)?;
    let opened = try_open(&stage.path("ending lease"), libc::O_WRONLY | libc::O_NONBLOCK);
    assert!(opened.is_err(), "the lease is not noticed");
    Ok(keeps_lease(fd, libc::F_UNLCK))
}

fn mapped_lease(stage: &Stage) -> io::Result<Check> {
    let fd = plain(stage, "mapped lease");
    borrowed(fd).set_len(4096)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let memory = Mapping::new(4096, protection, libc::MAP_SHARED, fd, 0);
    memory.mark(0, 9);
    call::fcntl(fd, F_SETLEASE, libc::F_WRLCK)?;
    let mut keeps = keeps_lease(fd, libc::F_WRLCK);
    Ok(Box::new(move |findings: &mut Findings| {
        keeps(findings);
        memory.compare(findings, "the mapped file", 0, 9);
    }))
}

/// One that nobody is in any more.
fn left_namespace(_: &Stage) -> io::Result<Check> {
    let [ready, end] = call::pipe(0);
    let outer = first(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).expect("unshare");
        call::wait(fork(|| ()), 0).expect("reap");
        call::write(end, b"1").expect("tell");
        loop {
            nix::unistd::pause();
        }
    });
    call::read(ready, 1)?;
    let check = opened(format!("/proc/{outer}/ns/pid_for_children"), libc::O_RDONLY)?;
    call::kill(outer, libc::SIGKILL)?;
    call::wait(outer, 0)?;
    call::close(ready);
    call::close(end);
    Ok(check)
}
