//! Of the images with fixed contents: open files of every kind, what they share, and who has them.

use super::terminal;
use floe_image::{codec, record::*};
use serde::Serialize;

/// User, group and permissions of a pipe.
const PIPE_OWNER: (u32, u32, u32) = (1000, 100, 0o600);

/// One of each kind. The bodies have the shapes that docs/image-format.md gives for their kinds.
pub fn open_files() -> Vec<OpenFileRecord> {
    let path = |path: &str| path.as_bytes().to_vec();
    let regular =
        |path: &[u8], ghost: Option<u32>, size: u64, mtime: i64| body(&(path, ghost, size, mtime, [0xfe01_u64, 78]));
    [
        (
            "regular",
            0o102_001,
            4321,
            regular(b"/var/log/job", None, 4321, 1_600_000_000_000_000_000),
        ),
        ("regular", 0o2, 5, regular(b"/tmp/\xff gone", Some(0), 5000, -1)),
        ("directory", 0o200_000, 24, body(&(path("/srv"), None::<u32>))),
        ("device", 0o2, 0, body(&(path("/dev/null"), 1_u64, 3_u64))),
        ("pipe", 0o0, 0, body(&(0_u32, PIPE_OWNER))),
        ("pipe", 0o4_001, 0, body(&(0_u32, PIPE_OWNER))),
        ("fifo", 0o2, 0, body(&(1_u32, path("/tmp/fifo"), false))),
        ("console-terminal", 0o2, 0, body(&path("/dev/pts/0"))),
        ("controlling-terminal", 0o2, 0, body(&(path("/dev/tty"), Some(0_u32)))),
        ("console-pipe", 0o1, 0, body(&(1_u8, 65_536_u32, PIPE_OWNER))),
        ("eventfd", 0o2, 0, body(&(5_u64, true))),
        ("signalfd", 0o4_002, 0, body(&0x200_u64)),
        (
            "timerfd",
            0o2,
            0,
            body(&(1_i32, 1_i32, 2_u64, 60_000_000_000_u64, 1_000_000_000_u64)),
        ),
        (
            "inotify",
            0o4_000,
            0,
            body(&(
                vec![(3_i32, 0x100_u32, path("/srv"))],
                9_i32,
                vec![(3_i32, 2_u32, path("log")), (4, 0x8000, path(""))],
            )),
        ),
        ("pidfd", 0o4_002, 0, body(&(Some(1_i32), 0_i32))),
        (
            "epoll",
            0o2,
            0,
            body(&(vec![(3_i32, 4_u32, 1_u32, 99_u64)], 50_u32, 8_u16, true)),
        ),
        ("unix-socket", 0o2, 0, listening_socket()),
        ("unix-socket", 0o4_002, 0, connected_socket()),
        (
            "inet-socket",
            0o2,
            0,
            inet_socket(
                (2, 1, 6),
                (Some((0_u32, [127_u8, 0, 0, 1], 80_u16)), NOWHERE),
                Some(128),
            ),
        ),
        (
            "inet-socket",
            0o2,
            0,
            inet_socket(
                (10, 2, 17),
                (Some((1_u32, [0_u8; 16], 53_u16)), Some((1_u32, [9_u8; 16], 5353_u16))),
                None,
            ),
        ),
        ("tcp-connection", 0o2, 0, tcp_connection()),
        ("message-queue", 0o4_002, 0, body(&(4_u32, 0_u32))),
        (
            "path-only",
            0o10_400_000,
            0,
            body(&(path("/srv/link"), 0o120_000_u32, 0_u64)),
        ),
        ("proc", 0o100_000, 12, body(&(path("/proc/1/limits"), None::<i32>))),
        ("proc", 0o100_000, 3, body(&(path("/proc/12/task/13/comm"), Some(13)))),
        ("namespace", 0o100_000, 0, body(&("net", 6_u32, path("")))),
        ("namespace", 0o100_000, 0, body(&("uts", 3_u32, path("/run/held")))),
        (
            "cgroup",
            0o100_000,
            7,
            body(&(
                path("/sys/fs/cgroup/floe/job/cgroup.procs"),
                Some((path(""), path("cgroup.procs"))),
                true,
            )),
        ),
        ("terminal-master", 0o2, 0, body(&0_u32)),
        ("terminal-slave", 0o4_001, 0, body(&0_u32)),
        ("external", 0o1, 0, external_pipe()),
        ("raw-socket", 0o2, 0, echo_socket()),
        ("fanotify", 0o4_002, 0, body(&(2_u32, 0o100_000_u32, fanotify_marks()))),
        ("bpf-map", 0o2, 0, body(&0_u32)),
        ("tun", 0o4_002, 0, body(&(path("/dev/net/tun"), Some((0_u32, true))))),
    ]
    .into_iter()
    .enumerate()
    .map(|(id, (kind, flags, position, body))| OpenFileRecord {
        id: id as u32,
        kind: kind.to_owned(),
        version: 1,
        flags,
        position,
        mount_namespace: 0,
        network: if kind == "inet-socket" { 6 } else { 0 },
        signals: (kind == "unix-socket").then_some(FileSignals {
            owner: Some(SignalOwner {
                target: SignalTarget::Group,
                id: NsPid(1),
                users: [0, 1000],
            }),
            signal: 10,
        }),
        body,
    })
    .collect()
}

type Maker = (i32, u32, u32);
type Name = (Vec<u8>, i32, Option<(u32, u32, u32)>);

const NOWHERE: Option<(u32, [u8; 4], u16)> = None;

/// Listens at a path: state 1 of its kinds of state.
fn listening_socket() -> Vec<u8> {
    let maker: Maker = (1, 0, 0);
    let name = (path_of("/run/job"), 1_i32, Some((0o660_u32, 0_u32, 4_u32)));
    let hello: Message = (path_of("hello"), None, path_of(""), Vec::new(), false);
    let waits = (None::<u32>, path_of("/run/client"), maker, vec![4_u32], vec![hello]);
    let state = (1_u32, 5_u32, maker, vec![waits]);
    let own = (0o777_u32, 0_u32, 0_u32);
    let groups = vec![4_u32, 27];
    body(&(
        71_u32,
        1_i32,
        Some(name),
        own,
        state,
        groups,
        0_u8,
        NO_MESSAGES,
        NO_OPTIONS,
    ))
}

/// One of two, with something to read: state 2.
fn connected_socket() -> Vec<u8> {
    let maker: Maker = (7, 1000, 1000);
    let queue: [Message; 2] = [
        (path_of("hello"), None, path_of(""), vec![21], false),
        (path_of("from 7"), Some(maker), path_of(""), Vec::new(), false),
    ];
    let options = [(1_i32, 16_i32, vec![1_u8, 0, 0, 0])];
    let state = (2_u32, 73_u32, maker);
    let no_name: Option<Name> = None;
    let own = (0o777_u32, 1000_u32, 1000_u32);
    let groups: Vec<u32> = Vec::new();
    body(&(
        72_u32,
        5_i32,
        no_name,
        own,
        state,
        groups,
        2_u8,
        queue.to_vec(),
        options.to_vec(),
    ))
}

/// Bytes, sender, name it came from, files, whether it is urgent.
type Message = (Vec<u8>, Option<Maker>, Vec<u8>, Vec<u32>, bool);

const NO_MESSAGES: Vec<Message> = Vec::new();
const NO_MARKS: Vec<(u32, u32)> = Vec::new();
const NO_OPTIONS: Vec<(i32, i32, Vec<u8>)> = Vec::new();

fn path_of(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn inet_socket(
    (family, kind, protocol): (i32, i32, i32),
    addresses: (impl Serialize, impl Serialize),
    listens: Option<u32>,
) -> Vec<u8> {
    let options = [(1_i32, 9_i32, vec![1_u8, 0, 0, 0])];
    let [here, there] = [80_u16, 40_000].map(|port| (0_u32, [127_u8, 0, 0, 1], port));
    let waiting: Vec<_> = listens
        .map(|_| (here, there, None::<u32>, 0_u8, (path_of("hello"), NO_MARKS)))
        .into_iter()
        .collect();
    let ended = None::<(Vec<u8>, Vec<(u32, u32)>)>;
    let mut header = vec![0x60_u8, 0, 0, 0, 0, 0, 17, 64];
    header.extend([9; 32]);
    let datagram = (header, [5353_u16, 53], path_of("query"), 3_u32, 0_u64, 0_u32);
    let is_udp = protocol == 17;
    let datagrams: Vec<_> = is_udp.then_some(datagram).into_iter().collect();
    let (to, from) = ((1_u32, [9_u8; 16], 5353_u16), (1_u32, [0_u8; 16]));
    let headers = vec![(59_i32, vec![0_u8, 0, 1, 4, 0, 0, 0, 0])];
    let gathered = (
        to,
        0_u32,
        from,
        path_of("ques"),
        Some(64_u8),
        Some(0_u8),
        true,
        (4_u32, 5_u32, 6_u16),
        headers,
    );
    body(&(
        (
            family,
            kind,
            protocol,
            addresses.0,
            addresses.1,
            listens,
            waiting,
            ended,
        ),
        (datagrams, is_udp.then_some(gathered)),
        (
            u8::from(is_udp),
            is_udp.then(queued_error).into_iter().collect::<Vec<_>>(),
        ),
        if is_udp { 111_i32 } else { 0 },
        options.to_vec(),
        [(1_u32, "lo")].to_vec(),
    ))
}

/// That nobody has the port to which it was sent, as ICMPv6 tells it.
fn queued_error() -> impl Serialize {
    let told = [
        &[0x60_u8, 0, 0, 0, 0, 60, 58, 64][..],
        &[9; 32],
        &[1, 4, 0, 0, 0, 0, 0, 0],
        &[0x60, 0, 0, 0, 0, 12, 17, 64],
        &[9; 32],
        &[0, 53, 20, 233, 0, 12, 0, 0],
    ]
    .concat();
    let packet = (told, [0_u16; 2], path_of("ques"), 0_u32, 0_u64, 0_u32);
    let to = (1_u32, [9_u8; 16]);
    (111_u32, 3_u8, [1_u8, 4], [0_u32; 2], to, 5353_u16, packet)
}

/// With an answer that waits.
fn echo_socket() -> Vec<u8> {
    let own = vec![2_u8, 0, 0, 7, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut header = vec![0x45_u8, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    header.extend([127, 0, 0, 1, 127, 0, 0, 1]);
    let answer = vec![0_u8, 0, 0xff, 0xf7, 0, 7, 0, 1];
    let packets = [(header, [0_u16; 2], answer, 0_u32, 0_u64, 0_u32)];
    let options = [(1_i32, 9_i32, vec![1_u8, 0, 0, 0])];
    let devices: Vec<(u32, String)> = Vec::new();
    body(&(
        (2_i32, 2_i32, 1_i32),
        Some(own),
        None::<Vec<u8>>,
        packets.to_vec(),
        options.to_vec(),
        devices,
    ))
}

/// Named by the user: a pipe.
fn external_pipe() -> Vec<u8> {
    let shape = (0o010_000_u32, None::<(i32, i32, i32)>, false, 0_u64);
    body(&("log", shape, (14_u64, 4711_u64), false))
}

fn tcp_connection() -> Vec<u8> {
    let [here, there] = [80_u16, 45_678].map(|port| (0_u32, [127_u8, 0, 0, 1], port));
    let options = [(6_i32, 1_i32, vec![1_u8, 0, 0, 0])];
    let (shut_write, shut_read) = (true, false);
    let (window, scale) = ([1_u32, 65_536, 65_536, 32_768, 1], Some([7_u8, 7]));
    let sent = (1_000_u32, path_of("HTTP/1.1 200 OK"), path_of("bye"), Some(17_u32));
    let negotiated = (1_460_u32, scale, true, Some(12_345_u32));
    // The third of four: outside.
    let other = (2_u32, sent, 2_000_u32, window, negotiated, 131_072_u32);
    body(&(
        2_i32,
        here,
        there,
        other,
        shut_write,
        shut_read,
        // Urgent: the second byte, which was read.
        (path_of("GET /"), vec![(1_u32, 2_u32)]),
        // How many of these are on their way, and whether the other end has ended.
        (0_u32, true),
        options.to_vec(),
    ))
}

/// Of a file and of a filesystem.
fn fanotify_marks() -> Vec<(u32, Vec<u8>, [u32; 3])> {
    vec![
        (0, path_of("/srv"), [0x4800_0020, 2, 0x40]),
        (2, path_of("/home"), [0x38, 0, 0]),
    ]
}

/// A hash with one entry.
pub fn bpf_map_object() -> ObjectRecord {
    let shape = (1_u32, 2_u32, 3_u32, 10_u32, 1_u32, 0_u32);
    let mut name = path_of("counts");
    name.resize(16, 0);
    ObjectRecord {
        kind: "bpf-map".to_owned(),
        id: 0,
        version: 1,
        body: body(&(shape, name, true, path_of("ke"), path_of("val"))),
    }
}

/// A tap with an address.
pub fn tun_object() -> ObjectRecord {
    let who = (Some(1000_u32), None::<u32>);
    let settings = (100_000_u32, 12_u32, [true, false], 3_u32);
    let link = (0x1043_u32, 1500_u32, 1000_u32, vec![2_u8, 0, 0, 0, 0, 1], true);
    let address = vec![2_u8, 24, 128, 0, 5, 0, 0, 0, 8, 0, 2, 0, 10, 9, 8, 7];
    ObjectRecord {
        kind: "tun".to_owned(),
        id: 0,
        version: 1,
        body: body(&(
            (path_of("tap7"), 0x1102_u16, false),
            who,
            settings,
            link,
            vec![address],
            Vec::<Vec<u8>>::new(),
        )),
    }
}

fn body(value: &impl Serialize) -> Vec<u8> {
    codec::encode(value).expect("a short body")
}

/// A terminal and its master: in packet mode, with something to tell.
pub fn terminal_object() -> ObjectRecord {
    let read = TerminalInput {
        bytes: b"said".to_vec(),
        ..TerminalInput::default()
    };
    let master = (0_u8, false, false, false, true, Some(8_u8), read);
    ObjectRecord {
        kind: "terminal".to_owned(),
        id: 0,
        version: 1,
        body: body(&(terminal(), Some(master))),
    }
}

pub fn pipe(id: u32, capacity: u32, bytes: &[u8], buffers: &[(u32, bool)]) -> ObjectRecord {
    ObjectRecord {
        kind: "pipe".to_owned(),
        id,
        version: 1,
        body: body(&(capacity, bytes, buffers)),
    }
}

pub fn table(pid: i32, descriptors: &[(i32, u32, bool)]) -> DescriptorTableRecord {
    let descriptors = descriptors
        .iter()
        .map(|&(number, file, close_on_exec)| DescriptorRecord {
            number,
            file,
            close_on_exec,
        });
    let descriptors: Vec<_> = descriptors.collect();
    let lock = descriptors.first().map(|descriptor| FileLock {
        number: descriptor.number,
        kind: LockKind::Process,
        write: pid == 1,
        start: 10,
        length: 5,
    });
    let own = descriptors.last().filter(|_| pid != IN_FLIGHT.0);
    let notice = own.map(|descriptor| DirectoryNotice {
        number: descriptor.number,
        events: 1 << 31 | 5,
    });
    DescriptorTableRecord {
        pid: NsPid(pid),
        descriptors,
        locks: lock.into_iter().collect(),
        notices: notice.into_iter().collect(),
    }
}
