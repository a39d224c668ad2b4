//! docs/image-format.md against the code: `tests/golden/read.py`, written from that page alone, must read the same from
//! an image as floe does.

use crate::{
    golden,
    sample::{self, Sample},
    shared::{Shelf, all_pages, open},
};
use floe_image::{Image, chunk::PAGE_BYTES, record::SandboxRecord};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/read.py");

/// What the independent reader says; `None` where there is no Python.
fn read_elsewhere(image: &Path) -> Option<Value> {
    match Command::new("python3").arg(READER).arg(image).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(serde_json::from_slice(&output.stdout).expect("JSON"))
        }
        Err(error) => {
            eprintln_skip(&format!("python3 can't be run: {error}"));
            None
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test that can't run says why")]
fn eprintln_skip(reason: &str) {
    eprintln!("skip: {reason}");
}

/// The same as this crate reads it.
fn read_here(image: &Image) -> Value {
    let pages = all_pages(image);
    let pages: Vec<u32> = pages.chunks(PAGE_BYTES).map(crc32c::crc32c).collect();
    json!({
        "header": image.header(),
        "identity": image.identity(),
        "sandbox": image.sandbox(),
        "processes": image.processes(),
        "address_spaces": image.address_spaces(),
        "mapped_files": image.mapped_files(),
        "shmems": image.shmems(),
        "ghosts": image.ghosts(),
        "mount_namespaces": image.mount_namespaces(),
        "filesystems": image.filesystems(),
        "networks": image.networks(),
        "owner": image.owner().into_iter().collect::<Vec<_>>(),
        "machine": image.machine().into_iter().collect::<Vec<_>>(),
        "open_files": image.open_files(),
        "objects": image.objects(),
        "descriptor_tables": image.descriptor_tables(),
        "page_maps": image.page_maps(),
        "chunks": image.chunks(),
        "pages": pages,
    })
}

/// Both agree, but for pages that the other reader can't unpack; what it says about bodies is returned.
fn agree(image: &Image, mut there: Value) -> (Value, Value) {
    let (files, objects) = (there["bodies_of_open_files"].take(), there["bodies_of_objects"].take());
    let here = read_here(image);
    for (name, here) in here
        .as_object()
        .expect("an object")
        .iter()
        .filter(|(name, _)| *name != "pages")
    {
        assert_eq!(&there[name], here, "{name}");
    }
    let pages = |value: &Value| value["pages"].as_array().expect("pages").clone();
    let (here, there) = (pages(&here), pages(&there));
    assert_eq!(here.len(), there.len());
    let mut compared = 0;
    for (here, there) in here.iter().zip(&there).filter(|(_, there)| !there.is_null()) {
        assert_eq!(here, there);
        compared += 1;
    }
    let raw: u32 = image
        .chunks()
        .iter()
        .filter(|chunk| !chunk.compressed)
        .map(|chunk| chunk.pages)
        .sum();
    assert!(compared >= raw, "{compared} pages");
    (files, objects)
}

fn terminal_in_json() -> Value {
    let bytes = |text: &str| Value::from(text.as_bytes());
    json!({"index": 3, "settings": (0..44).collect::<Vec<u8>>(), "locked": vec![0; 36], "window": [24, 80, 640, 480],
           "owner": [1000, 5], "mode": 0o620, "exclusive": false, "stopped": "Key",
           "input": {"bytes": bytes("line\nunfin"), "ends": [4], "pushed": false, "quoting": true, "beyond": bytes("ished")}})
}

#[test]
fn a_reader_written_from_the_document_reads_the_golden() {
    let Some(there) = read_elsewhere(Path::new(golden::PATH)) else {
        return;
    };
    let image = open(&std::fs::read(golden::PATH).expect("read the golden")).expect("open the golden");
    let (files, objects) = agree(&image, there);
    let bytes = |text: &str| Value::from(text.as_bytes());
    let gone = b"/tmp/\xff gone".as_slice();
    let (zeros, nines) = ([0_u8; 16], [9_u8; 16]);
    let lo = json!([{"number": 1, "name": "lo"}]);
    let echoed = [
        &[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0][..],
        &[127, 0, 0, 1, 127, 0, 0, 1],
    ]
    .concat();
    let told = [
        &[0x60, 0, 0, 0, 0, 60, 58, 64][..],
        &[9; 32],
        &[1, 4, 0, 0, 0, 0, 0, 0],
        &[0x60, 0, 0, 0, 0, 12, 17, 64],
        &[9; 32],
        &[0, 53, 20, 233, 0, 12, 0, 0],
    ]
    .concat();
    let header = [&[0x60, 0, 0, 0, 0, 0, 17, 64][..], &[9; 32]].concat();
    assert_eq!(
        files,
        json!([
            {"path": bytes("/var/log/job"), "ghost": null, "size": 4321, "mtime": 1_600_000_000_000_000_000_i64,
             "identity": [0xfe01, 78]},
            {"path": gone, "ghost": 0, "size": 5000, "mtime": -1, "identity": [0xfe01, 78]},
            {"path": bytes("/srv"), "ghost": null},
            {"path": bytes("/dev/null"), "major": 1, "minor": 3},
            {"pipe": 0, "owner": {"user": 1000, "group": 100, "permissions": 0o600}},
            {"pipe": 0, "owner": {"user": 1000, "group": 100, "permissions": 0o600}},
            {"pipe": 1, "path": bytes("/tmp/fifo"), "hung_up": false},
            {"path": bytes("/dev/pts/0")},
            {"path": bytes("/dev/tty"), "terminal": 0},
            {"stream": 1, "capacity": 65_536, "owner": {"user": 1000, "group": 100, "permissions": 0o600}},
            {"count": 5, "semaphore": true},
            {"mask": 0x200},
            {"clock": 1, "flags": 1, "ticks": 2, "value": 60_000_000_000_u64, "interval": 1_000_000_000},
            {"watches": [{"number": 3, "mask": 256, "path": bytes("/srv")}], "next": 9,
             "events": [{"watch": 3, "mask": 2, "name": bytes("log")}, {"watch": 4, "mask": 0x8000, "name": []}]},
            {"task": 1, "status": 0},
            {"watches": [{"number": 3, "file": 4, "events": 1, "data": 99}],
             "busy": {"microseconds": 50, "budget": 8, "prefer": true}},
            {"socket": 71, "kind": 1, "own": {"mode": 0o777, "uid": 0, "gid": 0}, "groups": [4, 27], "name": {"bytes": bytes("/run/job"), "holder": 1, "file": {"mode": 0o660, "uid": 0, "gid": 4}},
             "state": listening_in_json(), "shutdown": 0, "queue": [], "options": []},
            {"socket": 72, "kind": 5, "name": null,
             "state": {"Pair": {"other": 73, "maker": {"pid": 7, "uid": 1000, "gid": 1000}}}, "shutdown": 2,
             "own": {"mode": 0o777, "uid": 1000, "gid": 1000}, "groups": [],
             "queue": [
                {"bytes": bytes("hello"), "sender": null, "from": [], "files": [21], "urgent": false},
                {"bytes": bytes("from 7"), "sender": {"pid": 7, "uid": 1000, "gid": 1000}, "from": [], "files": [], "urgent": false}
             ],
             "options": [{"level": 1, "name": 16, "value": [1, 0, 0, 0]}]},
            {"family": 2, "kind": 1, "protocol": 6, "local": {"V4": {"ip": [127, 0, 0, 1], "port": 80}}, "remote": null,
             "listens": 128, "waiting": [{
                "local": {"V4": {"ip": [127, 0, 0, 1], "port": 80}}, "remote": {"V4": {"ip": [127, 0, 0, 1], "port": 40_000}},
                "client": null, "shut": 0, "queue": {"bytes": bytes("hello"), "marks": []},
             }], "ended": null, "datagrams": [], "gathered": null, "shut": 0, "errors": [], "error": 0, "options": [{"level": 1, "name": 9, "value": [1, 0, 0, 0]}], "devices": lo},
            {"family": 10, "kind": 2, "protocol": 17, "local": {"V6": {"ip": zeros, "port": 53}},
             "remote": {"V6": {"ip": nines, "port": 5353}}, "listens": null, "waiting": [], "ended": null, "datagrams": [{"header": header, "source": 5353, "destination": 53, "content": bytes("query"), "mark": 3, "time": 0, "device": 0}],
             "gathered": {"to": {"V6": {"ip": nines, "port": 5353}}, "device": 0, "from": {"V6": zeros}, "content": bytes("ques"), "hops": 64, "class": 0, "undivided": true,
                          "mark": 4, "priority": 5, "segment": 6, "headers": [{"kind": 59, "bytes": [0, 0, 1, 4, 0, 0, 0, 0]}]},
             "shut": 1, "errors": [{"error": 111, "origin": 3, "kind": [1, 4], "more": [0, 0], "to": {"V6": nines}, "port": 5353,
                                    "packet": {"header": told, "source": 0, "destination": 0, "content": bytes("ques"), "mark": 0, "time": 0, "device": 0}}],
             "error": 111, "options": [{"level": 1, "name": 9, "value": [1, 0, 0, 0]}], "devices": lo},
            {"family": 2, "local": {"V4": {"ip": [127, 0, 0, 1], "port": 80}},
             "remote": {"V4": {"ip": [127, 0, 0, 1], "port": 45_678}},
             "other": {"Outside": {
                "send_from": 1000, "sent": bytes("HTTP/1.1 200 OK"), "unsent": bytes("bye"), "urgent": 17, "receive_next": 2000,
                "window": [1, 65_536, 65_536, 32_768, 1], "largest": 1460, "scale": [7, 7], "selective": true,
                "timestamp": 12_345, "room": 131_072,
             }},
             "shut_write": true, "shut_read": false,
             "queue": {"bytes": bytes("GET /"), "marks": [{"at": 1, "byte": "Read"}]}, "coming": 0, "got_end": true, "options": [{"level": 6, "name": 1, "value": [1, 0, 0, 0]}]},
            {"namespace": 4, "queue": 0},
            {"path": bytes("/srv/link"), "file_type": 0o120_000, "device": 0},
            {"path": bytes("/proc/1/limits"), "ended": null},
            {"path": bytes("/proc/12/task/13/comm"), "ended": 13},
            {"name": "net", "number": 6, "mount": bytes("")},
            {"name": "uts", "number": 3, "mount": bytes("/run/held")},
            {"path": bytes("/sys/fs/cgroup/floe/job/cgroup.procs"), "own": {"hierarchy": [], "name": bytes("cgroup.procs")}, "shown": true},
            {"pair": 0},
            {"pair": 0},
            {"name": "log", "shape": {"file_type": 0o010_000, "socket": null, "terminal": false, "device": 0},
             "identity": [14, 4711], "waits": false},
            {"family": 2, "kind": 2, "protocol": 1, "local": [2, 0, 0, 7, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], "remote": null,
             "packets": [{"header": echoed, "source": 0, "destination": 0, "content": [0, 0, 255, 247, 0, 7, 0, 1], "mark": 0, "time": 0, "device": 0}],
             "options": [{"level": 1, "name": 9, "value": [1, 0, 0, 0]}], "devices": []},
            {"flags": 2, "event_flags": 0o100_000, "marks": [
                {"of": "File", "path": bytes("/srv"), "masks": {"told": 0x4800_0020, "ignored": 2, "flags": 0x40}},
                {"of": "Filesystem", "path": bytes("/home"), "masks": {"told": 0x38, "ignored": 0, "flags": 0}},
            ]},
            {"map": 0},
            {"path": bytes("/dev/net/tun"), "device": {"number": 0, "detached": true}},
        ])
    );
    assert_eq!(
        objects,
        json!([
            {"capacity": 65_536, "bytes": bytes("not read yet"),
             "buffers": [{"length": 8, "packet": true}, {"length": 4, "packet": false}]},
            {"capacity": 4096, "bytes": [], "buffers": []},
            {"terminal": terminal_in_json(),
             "master": {"multiplexer": 0, "exclusive": false, "stopped": false, "locked": false, "opened": true, "packet": 8,
                        "input": {"bytes": bytes("said"), "ends": [], "pushed": false, "quoting": false, "beyond": []}}},
            {"kind": 1, "key_bytes": 2, "value_bytes": 3, "most": 10, "flags": 1, "node": 0, "frozen": true,
             "name": bytes("counts\0\0\0\0\0\0\0\0\0\0"), "keys": bytes("ke"), "values": bytes("val")},
            {"name": bytes("tap7"), "kind": 0x1102, "persist": false, "owner": 1000, "group": null, "send_buffer": 100_000,
             "header_bytes": 12, "endian": [true, false], "offload": 3, "flags": 0x1043, "mtu": 1500, "queue": 1000,
             "address": [2, 0, 0, 0, 0, 1], "carrier": true, "routes": [],
             "addresses": [[2, 24, 128, 0, 5, 0, 0, 0, 8, 0, 2, 0, 10, 9, 8, 7]]},
        ])
    );
}

fn listening_in_json() -> Value {
    let bytes = |text: &str| Value::from(text.as_bytes());
    let maker = json!({"pid": 1, "uid": 0, "gid": 0});
    let message = json!({"bytes": bytes("hello"), "sender": null, "from": [], "files": [], "urgent": false});
    let waits =
        json!({"client": null, "name": bytes("/run/client"), "maker": maker, "groups": [4], "queue": [message]});
    json!({"Listening": {"most": 5, "maker": maker, "waiting": [waits]}})
}

/// The variants that the golden does not have.
#[test]
fn a_reader_written_from_the_document_reads_the_other_consoles() {
    use floe_image::record::{ConsoleRecord, InputRecord};
    let input = InputRecord {
        waiting: b"not read yet".to_vec(),
        ended: true,
    };
    let consoles = [
        ConsoleRecord::None,
        ConsoleRecord::Pipes { stdin: None },
        ConsoleRecord::Pipes { stdin: Some(input) },
    ];
    for console in consoles {
        let tiny = sample::tiny();
        let sample = Sample {
            sandbox: SandboxRecord {
                console,
                ..tiny.sandbox.clone()
            },
            ..tiny
        };
        let shelf = Shelf::default();
        sample.write(Box::new(shelf.clone())).expect("write");
        let bytes = shelf.take();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &bytes).expect("write");
        let Some(there) = read_elsewhere(file.path()) else {
            return;
        };
        agree(&open(&bytes).expect("open"), there);
    }
}
