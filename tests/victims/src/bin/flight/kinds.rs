//! One file of each kind, each with what tells whether it is as it was.

use super::{kernel, views};
use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
};
use victims::{Findings, Stage, call, letter, socket};

/// What finds a file as it was, and leaves it so.
pub type Check = Box<dyn FnMut(&mut Findings, &OwnedFd)>;
/// Its name, the file, and its check.
pub type Made = (&'static str, OwnedFd, Check);

/// One of each kind.
pub fn each(stage: &Stage) -> Vec<Made> {
    let mut made = vec![
        regular(stage),
        appended(stage),
        deleted(stage),
        memfd(),
        directory(stage),
        device(),
        pipe(),
        fifo(stage),
        eventfd(),
        signalfd(),
        timerfd(),
        pidfd(),
        inotify(stage),
        epoll(),
        stream(),
        listener(stage),
        udp(),
        member(),
        raw(),
        packets(),
        netlink(),
        tcp_listener(),
        tcp(),
        locked(stage),
        owned(),
    ];
    made.extend(views::each(stage));
    made.extend(kernel::each(stage));
    made
}

fn plain(file: &OwnedFd) -> File {
    File::from(file.try_clone().expect("dup"))
}

fn regular(stage: &Stage) -> Made {
    let path = stage.path("in flight");
    fs::write(&path, "0123456789").expect("write");
    let mut file = File::options().read(true).write(true).open(path).expect("open");
    file.seek(SeekFrom::Start(4)).expect("seek");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let mut file = plain(file);
        let mut bytes = [0; 2];
        findings.take("read", file.read_exact(&mut bytes));
        findings.same("bytes at its position", b"45", &bytes);
        file.seek(SeekFrom::Current(-2)).expect("seek");
    };
    ("regular", file.into(), Box::new(check))
}

fn appended(stage: &Stage) -> Made {
    let file = File::options()
        .append(true)
        .create(true)
        .open(stage.path("log in flight"));
    let mut file = file.expect("open");
    file.write_all(b"line").expect("write");
    ("a log", file.into(), Box::new(|_, _| {}))
}

fn deleted(stage: &Stage) -> Made {
    let path = stage.path("deleted in flight");
    fs::write(&path, "nobody's").expect("write");
    let file = File::open(&path).expect("open");
    fs::remove_file(path).expect("remove");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let mut text = String::new();
        let mut file = plain(file);
        findings.take("read", file.read_to_string(&mut text));
        file.rewind().expect("seek");
        findings.same("content", "nobody's", text.as_str());
    };
    ("a deleted file", file.into(), Box::new(check))
}

fn memfd() -> Made {
    // SAFETY: the name ends with a NUL.
    let made = call::checked(i64::from(unsafe { libc::memfd_create(c"flight".as_ptr(), 0) })).expect("memfd_create");
    // SAFETY: just made.
    let mut file = unsafe { File::from_raw_fd(made as i32) };
    file.write_all(b"in memory").expect("write");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let mut file = plain(file);
        let mut text = String::new();
        file.rewind().expect("seek");
        findings.take("read", file.read_to_string(&mut text));
        findings.same("content", "in memory", text.as_str());
    };
    ("a memfd", file.into(), Box::new(check))
}

fn directory(stage: &Stage) -> Made {
    let file = File::open(stage.dir()).expect("open");
    ("a directory", file.into(), Box::new(|_, _| {}))
}

fn device() -> Made {
    let file = File::options().write(true).open("/dev/full").expect("open");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        findings.that(plain(file).write(b"?").is_err(), "/dev/full took something");
    };
    ("a device", file.into(), Box::new(check))
}

/// Its write end is in a table.
fn pipe() -> Made {
    let [read, write] = call::pipe(libc::O_NONBLOCK);
    call::write(write, b"in the pipe").expect("write");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let bytes = call::read(file.as_raw_fd(), 100);
        let bytes = findings.take("read", bytes).unwrap_or_default();
        findings.same("content", &b"in the pipe"[..], &bytes[..]);
        call::write(write, b"in the pipe").expect("write");
    };
    // SAFETY: just made.
    ("a pipe", unsafe { OwnedFd::from_raw_fd(read) }, Box::new(check))
}

fn fifo(stage: &Stage) -> Made {
    let path = stage.path("fifo in flight");
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path ends with a NUL.
    call::checked(i64::from(unsafe { libc::mkfifo(name.as_ptr(), 0o600) })).expect("mkfifo");
    let mut file = File::options().read(true).write(true).open(path).expect("open");
    file.write_all(b"fifo").expect("write");
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let mut file = plain(file);
        let mut bytes = [0; 4];
        findings.take("read", file.read_exact(&mut bytes));
        findings.same("content", b"fifo", &bytes);
        file.write_all(&bytes).expect("write");
    };
    ("a fifo", file.into(), Box::new(check))
}

fn made(number: i32) -> OwnedFd {
    call::checked(number.into()).expect("a descriptor");
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn eventfd() -> Made {
    // SAFETY: plain numbers.
    let file = made(unsafe { libc::eventfd(77, libc::EFD_NONBLOCK) });
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let count = call::read(file.as_raw_fd(), 8).unwrap_or_default();
        findings.same("count", &77_u64.to_ne_bytes()[..], &count[..]);
        call::write(file.as_raw_fd(), &77_u64.to_ne_bytes()).expect("write");
    };
    ("an eventfd", file, Box::new(check))
}

fn signalfd() -> Made {
    // SAFETY: a set of the kernel's size is read.
    let number = unsafe {
        let set: u64 = 1 << (libc::SIGUSR2 - 1);
        libc::syscall(libc::SYS_signalfd4, -1, &raw const set, 8, libc::SFD_NONBLOCK)
    };
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default();
        findings.that(text.contains("sigmask:\t0000000000000800"), text);
    };
    ("a signalfd", made(number as i32), Box::new(check))
}

fn timerfd() -> Made {
    // SAFETY: plain numbers.
    let file = made(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) });
    let interval = libc::timespec {
        tv_sec: 5000,
        tv_nsec: 0,
    };
    let set = libc::itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: the time is read.
    unsafe { libc::timerfd_settime(file.as_raw_fd(), 0, &raw const set, std::ptr::null_mut()) };
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let mut now = set;
        // SAFETY: the time is written.
        unsafe { libc::timerfd_gettime(file.as_raw_fd(), &raw mut now) };
        findings.that((4000..=5000).contains(&now.it_value.tv_sec), "the timer is not armed");
    };
    ("a timerfd", file, Box::new(check))
}

fn pidfd() -> Made {
    // SAFETY: plain numbers.
    let file = made(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) } as i32);
    let own = std::process::id();
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default();
        findings.that(text.contains(&format!("Pid:\t{own}\n")), text);
    };
    ("a pidfd", file, Box::new(check))
}

fn inotify(stage: &Stage) -> Made {
    let watched = stage.path("watched in flight");
    fs::create_dir(&watched).expect("a folder");
    // SAFETY: a number.
    let file = made(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) });
    let path = CString::new(watched.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path ends with a NUL.
    unsafe { libc::inotify_add_watch(file.as_raw_fd(), path.as_ptr(), libc::IN_CREATE) };
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let new = watched.join("new");
        fs::write(&new, "").expect("write");
        fs::remove_file(new).expect("remove");
        let events = call::read(file.as_raw_fd(), 4096).unwrap_or_default();
        findings.same("bytes of events", &32, &events.len());
    };
    ("an inotify", file, Box::new(check))
}

/// It watches a file that a table has, and one that is on its way like itself.
fn epoll() -> Made {
    // SAFETY: a number.
    let file = made(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
    // SAFETY: plain numbers.
    let events = [1_u32, 1].map(|count| made(unsafe { libc::eventfd(count, libc::EFD_NONBLOCK) }));
    for (data, watched) in (7..).zip(&events) {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: data,
        };
        let number = watched.as_raw_fd();
        // SAFETY: the event is read.
        let added = unsafe { libc::epoll_ctl(file.as_raw_fd(), libc::EPOLL_CTL_ADD, number, &raw mut event) };
        assert_eq!(added, 0, "epoll_ctl");
    }
    let [kept, flying] = events;
    let (near, far) = UnixDatagram::pair().expect("a pair");
    letter::send(near.as_raw_fd(), b"watched", &[flying.as_fd()]).expect("send");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let _kept = (&kept, &near, &far);
        let mut seen = [libc::epoll_event { events: 0, u64: 0 }; 4];
        // SAFETY: room for four events.
        let got = unsafe { libc::epoll_wait(file.as_raw_fd(), seen.as_mut_ptr(), 4, 1000) };
        let mut data: Vec<u64> = seen.iter().take(got.max(0) as usize).map(|event| event.u64).collect();
        data.sort_unstable();
        findings.same("what is ready", &vec![7, 8], &data);
    };
    ("an epoll", file, Box::new(check))
}

/// Its other end is in a table.
fn stream() -> Made {
    let (mut kept, flying) = UnixStream::pair().expect("a pair");
    kept.write_all(b"to the one in flight").expect("write");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let mut file = plain(file);
        let mut bytes = [0; 20];
        findings.take("read", file.read_exact(&mut bytes));
        findings.same("bytes", b"to the one in flight", &bytes);
        kept.write_all(&bytes).expect("write");
        file.write_all(b"back").expect("write");
        let mut back = [0; 4];
        findings.take("read", kept.read_exact(&mut back));
        findings.same("bytes back", b"back", &back);
    };
    ("a unix stream", flying.into(), Box::new(check))
}

fn listener(stage: &Stage) -> Made {
    let path = stage.path("listens in flight");
    let listener = UnixListener::bind(&path).expect("bind");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let listener = UnixListener::from(file.try_clone().expect("dup"));
        let connected = UnixStream::connect(Path::new(&path));
        if findings.take("connect", connected).is_some() {
            findings.take("accept", listener.accept());
        }
    };
    ("a unix listener", listener.into(), Box::new(check))
}

fn udp() -> Made {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = socket.local_addr().expect("an address");
    socket.send_to(b"waits in flight", address).expect("send");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let socket = UdpSocket::from(file.try_clone().expect("dup"));
        findings.same("address", &Some(address), &socket.local_addr().ok());
        socket.set_nonblocking(true).expect("set");
        let got = socket.recv_from(&mut [0; 100]);
        findings.same("what waits", &Some((15, address)), &got.ok());
        findings.take("send", socket.send_to(b"waits in flight", address));
        socket.set_nonblocking(false).expect("set");
    };
    ("a UDP socket", socket.into(), Box::new(check))
}

/// Of a multicast group, with an option.
fn member() -> Made {
    let made = UdpSocket::bind("127.0.0.1:0").expect("bind");
    made.join_multicast_v4(&[239, 1, 1, 9].into(), &[127, 0, 0, 1].into())
        .expect("join");
    socket::set(made.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, 1);
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let socket = UdpSocket::from(file.try_clone().expect("dup"));
        let group = ([239, 1, 1, 9].into(), [127, 0, 0, 1].into());
        findings.take("leave", socket.leave_multicast_v4(&group.0, &group.1));
        findings.take("join", socket.join_multicast_v4(&group.0, &group.1));
        let told = socket::get(file.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, 4).ok();
        findings.same("IP_RECVTTL", &Some(vec![1, 0, 0, 0]), &told);
    };
    ("a member of a group", made.into(), Box::new(check))
}

fn raw() -> Made {
    let made = socket::new(libc::AF_INET, libc::SOCK_RAW, 99);
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let to = socket::address(([127, 0, 0, 1], 0).into());
        findings.take("send", socket::send(file.as_raw_fd(), b"raw", &to));
        let got = socket::receive(file, 0).expect("receive");
        findings.same("what comes back", &Some(23), &got.map(|one| one.bytes.len()));
    };
    ("a raw socket", made, Box::new(check))
}

/// Of lo.
fn packets() -> Made {
    let made = socket::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
    let mut place = [libc::AF_PACKET as u8, 0, 0x88, 0xbb, 1, 0, 0, 0].to_vec();
    place.resize(20, 0);
    socket::bind(made.as_raw_fd(), &place).expect("bind");
    let name = socket::name(made.as_raw_fd()).ok();
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        findings.same("name", &name, &socket::name(file.as_raw_fd()).ok());
    };
    ("a packet socket", made, Box::new(check))
}

/// In a group.
fn netlink() -> Made {
    let made = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    let place = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    socket::bind(made.as_raw_fd(), &place).expect("bind");
    let name = socket::name(made.as_raw_fd()).ok();
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        findings.same("name", &name, &socket::name(file.as_raw_fd()).ok());
    };
    ("a netlink socket", made, Box::new(check))
}

fn tcp_listener() -> Made {
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = socket.local_addr().expect("an address");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let socket = TcpListener::from(file.try_clone().expect("dup"));
        let client = findings.take("connect", TcpStream::connect(address));
        let server = findings.take("accept", socket.accept());
        drop((client, server));
    };
    ("a TCP listener", socket.into(), Box::new(check))
}

fn tcp() -> Made {
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut client = TcpStream::connect(socket.local_addr().expect("an address")).expect("connect");
    let (server, _) = socket.accept().expect("accept");
    client.write_all(b"tcp").expect("write");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let _listens = &socket;
        let mut server = TcpStream::from(file.try_clone().expect("dup"));
        let mut bytes = [0; 3];
        findings.take("read", server.read_exact(&mut bytes));
        findings.same("bytes", b"tcp", &bytes);
        client.write_all(&bytes).expect("write");
    };
    ("a TCP connection", server.into(), Box::new(check))
}

fn locked(stage: &Stage) -> Made {
    let path = stage.path("locked in flight");
    fs::write(&path, "locked").expect("write");
    let file = File::options().read(true).write(true).open(&path).expect("open");
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    let check = move |findings: &mut Findings, _: &OwnedFd| {
        let other = File::open(&path).expect("open");
        // SAFETY: plain numbers.
        let taken = unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        findings.same("another one's flock", &-1, &taken);
    };
    ("a locked file", file.into(), Box::new(check))
}

/// Somebody gets signals about it.
fn owned() -> Made {
    let [read, write] = call::pipe(0);
    let own = std::process::id() as i32;
    call::fcntl(read, libc::F_SETOWN, own).expect("F_SETOWN");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let owner = call::fcntl(file.as_raw_fd(), libc::F_GETOWN, 0);
        findings.same("owner", &Some(own), &owner.ok());
        findings.that(call::fcntl(write, libc::F_GETFD, 0).is_ok(), "the write end is closed");
    };
    // SAFETY: just made.
    ("an owned pipe", unsafe { OwnedFd::from_raw_fd(read) }, Box::new(check))
}
