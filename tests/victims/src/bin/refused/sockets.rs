//! Sockets that can't be carried.

use super::{
    Check, Make,
    descriptors::{self, bpf_map},
    unchanged,
};
use nix::sys::socket::{setsockopt, sockopt::PassCred};
use std::{
    fs::{self, File},
    io::{self, Write},
    mem::forget,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, IntoRawFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};
use victims::{Stage, call, filter, letter, socket, urgent, wait_until};

/// All kinds.
pub const KINDS: &[(&str, Make)] = &[
    ("socket-raw-waiting", raw_waiting),
    ("socket-netlink-waiting", netlink_waiting),
    ("socket-netlink-netfilter", |_| {
        of(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
    }),
    ("socket-packet-waiting", packet_waiting),
    ("socket-packet-ring", packet_ring),
    ("socket-mptcp", |_| {
        of(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
    ("socket-vsock", |_| of(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("socket-xdp", |_| of(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("socket-alg", |_| of(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("socket-tcp-urgent", tcp_urgent),
    ("socket-tcp-urgent-read", |_| tcp_urgent_told(true)),
    ("socket-tcp-urgent-waiting", |_| tcp_urgent_told(false)),
    ("socket-udp-waiting", udp_waiting),
    ("socket-error-queue", error_queue),
    ("socket-error-shared", error_shared),
    ("socket-gathering", gathering),
    ("socket-raw-gathering", raw_gathering),
    ("socket-bpf-filter", |_| bpf_filter(BPF)),
    ("socket-bpf-choice", |_| bpf_filter(REUSEPORT_EBPF)),
    ("socket-unix-bpf-filter", unix_filter),
    ("socket-tcp-bpf-filter", tcp_filter),
    ("socket-tcp-filter-waiting", tcp_filter_waiting),
    ("socket-tcp-signature", tcp_signature),
    ("socket-unix-waiting", unix_waiting),
    ("socket-unix-sender", unix_sender),
    ("socket-unix-flight", unix_flight),
    ("socket-unix-urgent", unix_urgent),
    ("socket-unix-nameless", unix_nameless),
];

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn of(family: i32, kind: i32, protocol: i32) -> io::Result<Check> {
    // SAFETY: plain numbers.
    let made = unsafe { call::raw(libc::SYS_socket, &[family as usize, kind as usize, protocol as usize]) };
    made.map(|fd| unchanged(fd as i32))
}

/// A descriptor that stays open and must look as it did.
fn kept(socket: impl IntoRawFd) -> Check {
    unchanged(socket.into_raw_fd())
}

fn raw_waiting(_: &Stage) -> io::Result<Check> {
    let raw = socket::new(libc::AF_INET, libc::SOCK_RAW, 99);
    socket::send(raw.as_raw_fd(), b"unread", &socket::address(([127, 0, 0, 1], 0).into()))?;
    Ok(kept(raw))
}

/// With an answer about a device.
fn netlink_waiting(_: &Stage) -> io::Result<Check> {
    let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    // struct nlmsghdr: RTM_GETLINK; struct ifinfomsg: of device 1.
    let mut request = vec![32, 0, 0, 0, 18, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    request.resize(32, 0);
    let kernel = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    socket::send(netlink.as_raw_fd(), &request, &kernel)?;
    Ok(kept(netlink))
}

/// struct sockaddr_ll of lo.
fn of_lo(protocol: u16) -> Vec<u8> {
    let mut place = vec![libc::AF_PACKET as u8, 0];
    place.extend(protocol.to_be_bytes());
    place.extend([1, 0, 0, 0, 0, 0, 0, 6]);
    place.resize(20, 0);
    place
}

fn packet_waiting(_: &Stage) -> io::Result<Check> {
    let [receiver, sender] = [0, 1].map(|_| socket::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0));
    socket::bind(receiver.as_raw_fd(), &of_lo(0x88b5))?;
    socket::send(sender.as_raw_fd(), b"unread", &of_lo(0x88b5))?;
    Ok(kept(receiver))
}

fn packet_ring(_: &Stage) -> io::Result<Check> {
    const SOL_PACKET: i32 = 263;
    const PACKET_RX_RING: i32 = 5;
    let packets = socket::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0);
    // struct tpacket_req: bytes of a block, blocks, bytes of a frame, frames.
    let request = [4096_u32, 1, 2048, 2].map(u32::to_ne_bytes).concat();
    socket::try_set(packets.as_raw_fd(), SOL_PACKET, PACKET_RX_RING, &request)?;
    Ok(kept(packets))
}

/// One that has no room, further away than the other end can be told, which is to be sent SIGURG.
fn tcp_urgent(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    // SAFETY: plain numbers.
    unsafe { libc::fcntl(server.as_raw_fd(), libc::F_SETOWN, std::process::id()) };
    client.set_nonblocking(true)?;
    while client.write(&[7; 65_536]).is_ok() {}
    let room = (1_i32 << 24).to_ne_bytes();
    socket::try_set(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room)?;
    while client.write(&[7; 65_536])? < 65_536 {}
    urgent::try_send(&client, b'!')?;
    forget(client);
    Ok(kept(server))
}

/// Bytes wait before and behind one, which waits or was read.
fn tcp_urgent_told(is_read: bool) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.write_all(b"before")?;
    urgent::try_send(&client, b'!')?;
    client.write_all(b"behind")?;
    if is_read {
        wait_until(|| urgent::receive(&server) == Ok(Some(b'!')));
    }
    forget(client);
    Ok(kept(server))
}

/// What came to a group from an address that only one network device has.
fn udp_waiting(_: &Stage) -> io::Result<Check> {
    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0xf10e, 0x77);
    let server = UdpSocket::bind("[::]:0")?;
    let own = fs::read_to_string("/proc/net/if_inet6")?;
    let own = own
        .lines()
        .find(|line| line.starts_with("fe80"))
        .ok_or_else(|| io::Error::other("no device has one"))?;
    let device = own.split_whitespace().nth(1).unwrap_or_default();
    let device = u32::from_str_radix(device, 16).map_err(io::Error::other)?;
    server.join_multicast_v6(&GROUP, device)?;
    let to = SocketAddrV6::new(GROUP, server.local_addr()?.port(), 0, device);
    UdpSocket::bind("[::]:0")?.send_to(b"unread", to)?;
    Ok(kept(server))
}

/// Something was sent, and when.
fn error_queue(_: &Stage) -> io::Result<Check> {
    const TX_SOFTWARE: i32 = 2;
    let sender = UdpSocket::bind(ANY)?;
    socket::set(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPING, TX_SOFTWARE);
    sender.send_to(b"now", sender.local_addr()?)?;
    sender.recv(&mut [0; 3])?;
    Ok(kept(sender))
}

/// Two have one address, and one is told that what it sent did not get there.
fn error_shared(_: &Stage) -> io::Result<Check> {
    let make = |port: u16| {
        let made = socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0);
        socket::set(made.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        socket::set(made.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        socket::bind(made.as_raw_fd(), &socket::address((Ipv4Addr::LOCALHOST, port).into()))?;
        io::Result::Ok(UdpSocket::from(made))
    };
    let one = make(0)?;
    let other = make(one.local_addr()?.port())?;
    let gone = UdpSocket::bind(ANY)?.local_addr()?;
    one.send_to(b"to nobody", gone)?;
    forget(other);
    Ok(kept(one))
}

/// It is to be told when the whole is sent.
fn gathering(_: &Stage) -> io::Result<Check> {
    const TX_SOFTWARE: i32 = 2;
    let server = UdpSocket::bind(ANY)?;
    socket::set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPING, TX_SOFTWARE);
    let to = socket::address(server.local_addr()?);
    socket::send_beside(server.as_raw_fd(), b"half", &to, &[], libc::MSG_MORE)?;
    Ok(kept(server))
}

fn raw_gathering(_: &Stage) -> io::Result<Check> {
    let raw = socket::new(libc::AF_INET, libc::SOCK_RAW, 99);
    let to = socket::address(([127, 0, 0, 1], 0).into());
    socket::send_beside(raw.as_raw_fd(), b"half", &to, &[], libc::MSG_MORE)?;
    Ok(kept(raw))
}

/// SO_ATTACH_BPF, or SO_ATTACH_REUSEPORT_EBPF.
fn bpf_filter(name: i32) -> io::Result<Check> {
    let server = UdpSocket::bind(ANY)?;
    let program = descriptors::socket_program()?;
    let set = |name, value: i32| socket::try_set(server.as_raw_fd(), libc::SOL_SOCKET, name, &value.to_ne_bytes());
    if name == REUSEPORT_EBPF {
        drop(set(libc::SO_REUSEPORT, 1));
        let shared = socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let value = 1_i32.to_ne_bytes();
        socket::try_set(shared.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &value)?;
        let value = program.as_raw_fd().to_ne_bytes();
        socket::try_set(shared.as_raw_fd(), libc::SOL_SOCKET, name, &value)?;
        return Ok(kept(shared));
    }
    set(name, program.as_raw_fd())?;
    Ok(kept(server))
}

const BPF: i32 = 50;
const REUSEPORT_EBPF: i32 = 52;

fn attach_bpf(socket: &impl AsRawFd) -> io::Result<()> {
    let program = descriptors::socket_program()?;
    let value = program.as_raw_fd().to_ne_bytes();
    socket::try_set(socket.as_raw_fd(), libc::SOL_SOCKET, BPF, &value)
}

fn unix_filter(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    attach_bpf(&far)?;
    forget(near);
    Ok(kept(far))
}

fn tcp_filter(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    forget(TcpStream::connect(listener.local_addr()?)?);
    let (server, _) = listener.accept()?;
    attach_bpf(&server)?;
    Ok(kept(server))
}

/// It lets all pass. What waits to be accepted has got it.
fn tcp_filter_waiting(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    filter::attach(&listener, &filter::without(12, 0xff));
    forget(TcpStream::connect(listener.local_addr()?)?);
    Ok(kept(listener))
}

fn tcp_signature(_: &Stage) -> io::Result<Check> {
    let listener = TcpListener::bind(ANY)?;
    // struct tcp_md5sig: address, flags, prefix, length of the key, device, key.
    let mut request = socket::address(([127, 0, 0, 1], 0).into());
    request.resize(128, 0);
    request.extend([0, 0, 3, 0, 0, 0, 0, 0]);
    request.extend(b"key");
    request.resize(216, 0);
    socket::try_set(listener.as_raw_fd(), libc::IPPROTO_TCP, TCP_MD5SIG, &request)?;
    Ok(kept(listener))
}

const TCP_MD5SIG: i32 = 14;

/// A file comes with what was sent, and nobody has it.
fn unix_waiting(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("waiting");
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path)?;
    let file = File::open("/dev/null")?;
    letter::send(client.as_raw_fd(), b"with it", &[file.as_fd()])?;
    forget(client);
    Ok(kept(listener))
}

/// What is on its way is refused as it would be in a table.
fn unix_flight(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    let map = bpf_map(3)?;
    letter::send(near.as_raw_fd(), b"map", &[map.as_fd()])?;
    forget(near);
    Ok(kept(far))
}

fn unix_urgent(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixStream::pair()?;
    letter::send(near.as_raw_fd(), b"beside", &[far.as_fd()])?;
    urgent::try_send(&near, b'!')?;
    forget(near);
    Ok(kept(far))
}

/// It sends to one end of a pair whose other end has gone to somebody else.
fn unix_nameless(stage: &Stage) -> io::Result<Check> {
    let path = stage.path("somebody else");
    forget(UnixDatagram::bind(&path)?);
    let (one, two) = UnixDatagram::pair()?;
    two.connect(&path)?;
    // It is told of that.
    drop(one.take_error()?);
    forget(two);
    Ok(kept(one))
}

/// A message that tells who sent it.
fn unix_sender(_: &Stage) -> io::Result<Check> {
    let (near, far) = UnixDatagram::pair()?;
    setsockopt(&far, PassCred, &true)?;
    near.send(b"mine")?;
    Ok(Box::new(move |findings| {
        let mut bytes = [0; 8];
        // SAFETY: the buffer has that size.
        let seen = unsafe { libc::recv(far.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_PEEK) };
        findings.same("what waits", &4, &seen);
        findings.same("that it is", &b"mine"[..], &bytes[..4]);
        let _near = &near;
    }))
}
