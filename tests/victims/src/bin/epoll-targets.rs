//! An epoll instance that watches a file of each kind, with each kind of flags; what is ready is told of, what is not is
//! not, and what was told of once or by change is not told of again. A child has the instance, and some of the files, too.

use std::{
    ffi::CString,
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd, IntoRawFd, RawFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};
use victims::{Findings, Stage, call, notice, play};

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const HUNG_UP: u32 = libc::EPOLLRDHUP as u32;

/// A file that becomes readable, and is not any more.
struct Target {
    file: RawFd,
    events: u32,
    make_ready: Box<dyn Fn()>,
    calm: Box<dyn Fn()>,
}

fn main() {
    play(|stage| {
        // SAFETY: a number.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let targets = targets(stage);
        for (number, target) in (0..).zip(&targets) {
            control(epoll, libc::EPOLL_CTL_ADD, target, number);
        }
        let edges = told_once(epoll);
        let before = listed(epoll);
        stage.child("with an instance", move |_| {
            move |findings: &mut Findings| findings.same("watches of the child", &before.len(), &listed(epoll).len())
        });
        let before = listed(epoll);
        let busy = set_busy(epoll);
        move |findings: &mut Findings| {
            findings.same("how it asks network cards", &busy, &busy_of(epoll));
            if findings.sabotage() {
                let last = targets.len() - 1;
                control(epoll, libc::EPOLL_CTL_DEL, &targets[last], last as u64);
            }
            findings.same("watches", &before, &listed(epoll));
            edges(findings);
            for (number, target) in (0..).zip(&targets) {
                findings.same(format!("before target {number}"), &Vec::new(), &wait(epoll));
                (target.make_ready)();
                let told = wait(epoll);
                let own: Vec<u64> = told.iter().map(|(data, _)| *data).collect();
                findings.same(format!("target {number}"), &vec![number], &own);
                if target.events & ONCE != 0 {
                    findings.same(format!("target {number} again"), &Vec::new(), &wait(epoll));
                }
                (target.calm)();
                if target.events & ONCE != 0 {
                    control(epoll, libc::EPOLL_CTL_MOD, target, number);
                }
            }
        }
    })
}

fn control(epoll: RawFd, operation: i32, target: &Target, data: u64) {
    let mut event = libc::epoll_event {
        events: target.events,
        u64: data,
    };
    // SAFETY: the structure outlives the call.
    let done = call::checked(unsafe { libc::epoll_ctl(epoll, operation, target.file, &raw mut event) }.into());
    done.unwrap_or_else(|error| panic!("epoll_ctl {operation} of target {data}: {error}"));
}

fn wait(epoll: RawFd) -> Vec<(u64, u32)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    // SAFETY: room for so many.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 64, 0) };
    let told = events.iter().take(count.max(0) as usize);
    told.map(|event| (event.u64, event.events)).collect()
}

/// EPIOCSPARAMS: microseconds, packets, and whether interrupts are put off; nothing where the kernel knows none.
fn set_busy(epoll: RawFd) -> Option<[u8; 8]> {
    const SET: libc::Ioctl = nix::request_code_write!(0x8a, 1, 8);
    let settings = [50_u8, 0, 0, 0, 8, 0, 1, 0];
    // SAFETY: eight bytes are read.
    let status = unsafe { libc::ioctl(epoll, SET, settings.as_ptr()) };
    (status == 0).then_some(settings)
}

fn busy_of(epoll: RawFd) -> Option<[u8; 8]> {
    const GET: libc::Ioctl = nix::request_code_read!(0x8a, 2, 8);
    let mut settings = [0; 8];
    // SAFETY: room for eight bytes.
    let status = unsafe { libc::ioctl(epoll, GET, settings.as_mut_ptr()) };
    (status == 0).then_some(settings)
}

/// Number, events and data of each watch.
fn listed(epoll: RawFd) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).expect("fdinfo");
    let lines = text.lines().filter(|line| line.starts_with("tfd:"));
    // One that was told of once is still told of as broken where it was added anew.
    let mut all: Vec<String> = lines
        .map(|line| {
            line.split(" pos:")
                .next()
                .unwrap_or_default()
                .replace("40000018", "40000000")
        })
        .collect();
    all.sort();
    all
}

/// What is ready and was told of: by change, and once.
fn told_once(epoll: RawFd) -> impl Fn(&mut Findings) {
    let [_reads, writes] = call::pipe(0);
    let target = Target {
        file: writes,
        events: OUT | ONCE,
        make_ready: Box::new(|| {}),
        calm: Box::new(|| {}),
    };
    control(epoll, libc::EPOLL_CTL_ADD, &target, 99);
    assert_eq!(wait(epoll), [(99, OUT)], "it is told of once");
    move |findings| {
        findings.same("what was told of once", &Vec::new(), &wait(epoll));
        control(epoll, libc::EPOLL_CTL_MOD, &target, 99);
        findings.same("told of again when that is asked for", &vec![(99, OUT)], &wait(epoll));
    }
}

fn reader(file: RawFd) -> Box<dyn Fn()> {
    Box::new(move || drop(call::read(file, 4096).expect("read")))
}

fn writer(file: RawFd) -> Box<dyn Fn()> {
    Box::new(move || {
        call::write(file, b"x").expect("write");
    })
}

fn pair(file: RawFd, other: RawFd, events: u32) -> Target {
    Target {
        file,
        events,
        make_ready: writer(other),
        calm: reader(file),
    }
}

fn targets(stage: &Stage) -> Vec<Target> {
    let mut all = pipes(stage);
    all.extend(sockets(stage));
    all.extend(counters());
    all.extend(others(stage));
    all
}

fn pipes(stage: &Stage) -> Vec<Target> {
    let flags = [
        IN,
        IN | EDGE,
        IN | ONCE,
        IN | EXCLUSIVE,
        IN | EDGE | EXCLUSIVE,
        IN | EDGE | ONCE,
    ];
    let mut all: Vec<Target> = flags
        .into_iter()
        .map(|events| {
            let [reads, writes] = call::pipe(0);
            pair(reads, writes, events)
        })
        .collect();
    let path = stage.path("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let fifo = victims::descriptor::open(&path, libc::O_RDWR);
    all.push(pair(fifo, fifo, IN));
    all
}

fn sockets(stage: &Stage) -> Vec<Target> {
    let (one, other) = UnixStream::pair().expect("a pair");
    let stream = pair(one.into_raw_fd(), other.into_raw_fd(), IN | HUNG_UP);
    let (one, other) = UnixDatagram::pair().expect("a pair");
    let datagram = pair(one.into_raw_fd(), other.into_raw_fd(), IN);
    let listener = UnixListener::bind(stage.path("listens")).expect("bind");
    let path = stage.path("listens");
    let listening = Target {
        file: listener.as_raw_fd(),
        events: IN,
        make_ready: Box::new(move || {
            // The connection waits in the queue, though this end is closed.
            UnixStream::connect(&path).expect("connect");
        }),
        calm: Box::new(move || drop(listener.accept().expect("accept"))),
    };
    let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = tcp.local_addr().expect("an address");
    let tcp = Target {
        file: tcp.as_raw_fd(),
        events: IN | EXCLUSIVE,
        make_ready: Box::new(move || {
            std::net::TcpStream::connect(address).expect("connect");
        }),
        calm: Box::new(move || drop(tcp.accept().expect("accept"))),
    };
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = udp.local_addr().expect("an address");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let file = udp.into_raw_fd();
    let udp = Target {
        file,
        events: IN,
        make_ready: Box::new(move || {
            sender.send_to(b"x", address).expect("send");
        }),
        calm: reader(file),
    };
    vec![stream, datagram, listening, tcp, udp]
}

/// eventfd, timerfd and signalfd.
fn counters() -> Vec<Target> {
    // SAFETY: plain numbers.
    let counter = unsafe { libc::eventfd(0, 0) };
    let count = Target {
        file: counter,
        events: IN,
        make_ready: Box::new(move || {
            call::write(counter, &1_u64.to_ne_bytes()).expect("write");
        }),
        calm: reader(counter),
    };
    // SAFETY: plain numbers.
    let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
    let expire = move || {
        let time = |tv_nsec| libc::timespec { tv_sec: 0, tv_nsec };
        let new = libc::itimerspec {
            it_interval: time(0),
            it_value: time(1),
        };
        // SAFETY: a structure that is read.
        unsafe { libc::timerfd_settime(timer, 0, &raw const new, std::ptr::null_mut()) };
        let mut ask = libc::pollfd {
            fd: timer,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure.
        unsafe { libc::poll(&raw mut ask, 1, 20_000) };
    };
    let timer = Target {
        file: timer,
        events: IN,
        make_ready: Box::new(expire),
        calm: reader(timer),
    };
    const SIGNAL: i32 = 44;
    let mask: u64 = 1 << (SIGNAL - 1);
    let how = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &how) }.expect("rt_sigprocmask");
    // SAFETY: as above.
    let file = unsafe { call::raw(libc::SYS_signalfd4, &[usize::MAX, &raw const mask as usize, 8, 0]) };
    let file = file.expect("signalfd4") as RawFd;
    let signals = Target {
        file,
        events: IN,
        make_ready: Box::new(|| call::kill(std::process::id() as i32, SIGNAL).expect("kill")),
        calm: reader(file),
    };
    vec![count, timer, signals]
}

/// inotify, a message queue, another instance.
fn others(stage: &Stage) -> Vec<Target> {
    let path = stage.path("noticed");
    std::fs::write(&path, "x").expect("write");
    let instance = notice::instance(0);
    notice::watch(instance, &path, libc::IN_OPEN);
    let inotify = Target {
        file: instance,
        events: IN | ONCE,
        make_ready: Box::new(move || drop(std::fs::File::open(&path).expect("open"))),
        calm: Box::new(move || drop(notice::events(instance))),
    };
    let name = CString::new(format!("/epoll-{}", std::process::id())).expect("no NUL");
    // SAFETY: a name that ends with a NUL; no attributes.
    let queue = unsafe { libc::mq_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600, 0) };
    assert!(queue >= 0, "mq_open: {}", std::io::Error::last_os_error());
    let queue = Target {
        file: queue,
        events: IN,
        make_ready: Box::new(move || {
            // SAFETY: one byte.
            unsafe { libc::mq_send(queue, c"x".as_ptr(), 1, 0) };
        }),
        calm: Box::new(move || {
            let mut room = [0_u8; 8192];
            // SAFETY: room for the longest message.
            unsafe { libc::mq_receive(queue, room.as_mut_ptr().cast(), room.len(), std::ptr::null_mut()) };
        }),
    };
    // SAFETY: a number.
    let inner = unsafe { libc::epoll_create1(0) };
    let [reads, writes] = call::pipe(0);
    control(inner, libc::EPOLL_CTL_ADD, &pair(reads, writes, IN), 1);
    let nested = Target {
        file: inner,
        events: IN | EDGE,
        make_ready: writer(writes),
        calm: reader(reads),
    };
    vec![inotify, queue, nested]
}
