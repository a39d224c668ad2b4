//! Whatever is given as an image, every verb that reads one says in one clear line what is wrong with it, ends with exit
//! status 1, and leaves nothing.

use floe_suite::{Counting, Host, Traces, run, times, until};
use std::{
    fs::File,
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    process::Stdio,
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/v1.floe");
const NAME: &str = "golden";
const ENVELOPE_BYTES: usize = 24;

/// Every way to read an image.
const VERBS: [&[&str]; 6] = [
    &["inspect"],
    &["inspect", "--json"],
    &["verify"],
    &["restore", "--dry-run"],
    &["restore", "-d"],
    &["restore"],
];

fn golden() -> Vec<u8> {
    std::fs::read(GOLDEN).expect("read the golden")
}

/// Gives the file to every verb, by its path and as a stream; each must say `text`.
fn refused(host: &Host, path: &Path, text: &str) {
    let before = Traces::look(host, &[NAME], &[]);
    let place = path.display().to_string();
    for verb in VERBS {
        for stream in [false, true] {
            let argument = if stream { "-" } else { &place };
            let mut command = host.command(&[verb, &[argument]].concat());
            if stream {
                command.stdin(File::open(path).expect("open the image"));
            }
            let err = run(&mut command).expect_failed();
            let when = format!("{verb:?} {argument}");
            assert!(err.starts_with("floe: ") && err.contains(text), "{when}: {err}");
            assert_eq!(err.lines().count(), 1, "{when}: {err}");
            before.expect_again(host, &[NAME], &[], &when);
        }
    }
}

fn refused_bytes(host: &Host, bytes: &[u8], text: &str) {
    let path = host.path("bad.floe");
    std::fs::write(&path, bytes).expect("write");
    refused(host, &path, text);
}

#[test]
fn files_that_are_no_images_are_refused() {
    let host = Host::new();
    refused_bytes(&host, b"", "not a floe image: 0 bytes are too few for one");
    refused_bytes(&host, b"FLOEIMG", "not a floe image: 7 bytes are too few for one");
    let foreign = "not a floe image: its first bytes are not those of one";
    refused_bytes(&host, "a letter to a friend\n".repeat(40).as_bytes(), foreign);
    refused(&host, &std::env::current_exe().expect("a path"), foreign);
}

#[test]
fn what_can_not_be_read_is_refused() {
    let host = Host::new();
    let missing = host.path("missing.floe").display().to_string();
    let folder = host.path("folder");
    std::fs::create_dir(&folder).expect("a folder");
    let folder = folder.display().to_string();
    for verb in VERBS {
        let err = host.floe(&[verb, &[missing.as_str()]].concat()).expect_failed();
        assert_eq!(
            err,
            format!("floe: open {missing}: No such file or directory (os error 2)\n")
        );
        let err = host.floe(&[verb, &[folder.as_str()]].concat()).expect_failed();
        assert_eq!(err, format!("floe: {folder} is a directory, not an image\n"));
        let err = host.floe(&[verb, &["/dev/zero"]].concat()).expect_failed();
        let wanted = "floe: read the image from /dev/zero: not a floe image: its first bytes are not those of one\n";
        assert_eq!(err, wanted);
    }
}

#[test]
fn damaged_images_are_refused() {
    let host = Host::new();
    let image = golden();
    let cut = "the image is cut short, was never completed, or its last 32 bytes are damaged";
    for length in [48, 1000, image.len() / 2, image.len() - 1] {
        refused_bytes(&host, &image[..length], cut);
    }
    let added = [&image[..], b"more"].concat();
    refused_bytes(&host, &added, cut);
    let shorter = [&image[..5000], &image[image.len() - 32..]].concat();
    refused_bytes(
        &host,
        &shorter,
        &format!(
            "the image is cut short or has bytes added: 5032 of {} bytes",
            image.len()
        ),
    );
    let flipped = |at: usize| {
        let mut image = image.clone();
        image[at] ^= 0x10;
        image
    };
    refused_bytes(
        &host,
        &flipped(50),
        "record 1 (header) at byte 16 is damaged: checksum differs",
    );
    refused_bytes(&host, &flipped(image.len() - 40), "the index at byte ");
    let mut newer = image.clone();
    newer[8] = 2;
    refused_bytes(&host, &newer, "image format 2 is newer than this floe reads (1)");
}

#[test]
fn damaged_pages_are_found_before_anything_is_restored() {
    let host = Host::new();
    let mut image = golden();
    let chunk = parts(&image).into_iter().find(|part| part.kind == 11).expect("a chunk");
    image[chunk.at + ENVELOPE_BYTES + 20] ^= 1;
    let path = host.path("bad.floe");
    std::fs::write(&path, image).expect("write");
    let err = host.floe(&["verify", &path.display().to_string()]).expect_failed();
    let wanted = format!(
        "floe: the chunk of pages 0 to 4 at byte {} is damaged: checksum differs\n",
        chunk.at
    );
    assert_eq!(err, wanted);
}

#[test]
fn enormous_lengths_are_refused() {
    let host = Host::new();
    let image = golden();
    let second = &parts(&image)[1];
    for length in [1_u64 << 32, 1 << 62, u64::MAX] {
        let mut image = image.clone();
        image[second.at + 8..second.at + 16].copy_from_slice(&length.to_le_bytes());
        let own = crc32c::crc32c(&image[second.at..second.at + 20]);
        image[second.at + 20..second.at + 24].copy_from_slice(&own.to_le_bytes());
        refused_bytes(&host, &image, "is damaged: it lies outside of the file");
    }
}

/// Nobody's terminal obeys an image.
#[test]
fn names_in_images_are_shown_without_control_characters() {
    let host = Host::new();
    let mut image = golden();
    // The name of the sandbox: the first text of the second record.
    let second = parts(&image).swap_remove(1);
    let name = second.at + ENVELOPE_BYTES + 8;
    image[name..name + 6].copy_from_slice(b"a\x1b[2J\r");
    seal(&mut image, &second);
    let path = host.path("bad.floe");
    std::fs::write(&path, image).expect("write");
    let out = host.done(&["inspect", &path.display().to_string()]);
    assert!(out.starts_with("a\\u{1b}[2J\\r: "), "{out}");
}

#[test]
fn a_restore_that_meets_damaged_pages_leaves_nothing() {
    let host = Host::new();
    let path = host.path("job.floe");
    let place = path.display().to_string();
    let tree = Counting::start(&host, "bad-pages", &[]);
    host.done(&["checkpoint", "bad-pages", "-o", &place]);
    drop(tree);
    let image = std::fs::read(&path).expect("read the image");
    let chunks: Vec<Part> = parts(&image).into_iter().filter(|part| part.kind == 11).collect();
    let before = Traces::look(&host, &["bad-pages"], &[]);
    for chunk in [&chunks[0], &chunks[chunks.len() / 2], &chunks[chunks.len() - 1]] {
        let mut image = image.clone();
        image[(chunk.at + chunk.end) / 2] ^= 1;
        std::fs::write(&path, image).expect("write");
        for method in floe_suite::PID_METHODS {
            let err = host
                .floe(&["restore", "-d", "--pid-method", method, &place])
                .expect_failed();
            assert!(
                err.starts_with("floe: ") && err.ends_with("is damaged: checksum differs\n"),
                "{err}"
            );
            assert!(err.contains(&format!("at byte {} ", chunk.at)), "{err}");
            assert_eq!(err.lines().count(), 1, "{err}");
            before.expect_again(&host, &["bad-pages"], &[], "after damaged pages");
        }
    }
    std::fs::write(&path, image).expect("write");
    host.done(&["restore", "-d", &place]);
}

/// An envelope and its body.
struct Part {
    at: usize,
    kind: u16,
    end: usize,
}

fn number(image: &[u8], at: usize) -> usize {
    u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes")) as usize
}

fn parts(image: &[u8]) -> Vec<Part> {
    let index = number(image, image.len() - 32);
    let mut parts = Vec::new();
    let mut at = 16;
    while at < index {
        let kind = u16::from_le_bytes([image[at + 4], image[at + 5]]);
        let end = at + ENVELOPE_BYTES + number(image, at + 8);
        parts.push(Part { at, kind, end });
        at = end;
    }
    parts
}

/// Makes the checksums of a part right.
fn seal(image: &mut [u8], part: &Part) {
    let at = part.at;
    let body = crc32c::crc32c(&image[at + ENVELOPE_BYTES..part.end]);
    image[at + 16..at + 20].copy_from_slice(&body.to_le_bytes());
    let own = crc32c::crc32c(&image[at..at + 20]);
    image[at + 20..at + 24].copy_from_slice(&own.to_le_bytes());
}

/// Images that are damaged under right checksums are refused, or are images all the same; none makes a verb panic, hang
/// or leave something. (The golden itself can't be restored: what it maps does not exist.)
#[test]
fn forged_images_end_in_one_line_or_in_a_list_of_obstacles() {
    let host = Host::new();
    let image = golden();
    let path: PathBuf = host.path("forged.floe");
    let place = path.display().to_string();
    let before = Traces::look(&host, &[NAME], &[]);
    let mut state = 7_u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let records: Vec<Part> = parts(&image).into_iter().filter(|part| part.kind != 11).collect();
    let mut refused = 0;
    for round in 0..times(300) {
        let mut image = image.clone();
        for _ in 0..1 + round % 3 {
            let part = &records[next(records.len())];
            let at = part.at + ENVELOPE_BYTES + next(part.end - part.at - ENVELOPE_BYTES);
            image[at] = [0, 1, 0xff, image[at] ^ 1 << next(8)][next(4)];
            seal(&mut image, part);
        }
        std::fs::write(&path, image).expect("write");
        let verb = VERBS[round % VERBS.len()];
        // The golden's tree was an ordinary user's; as a tree of root's more of it is looked at.
        let as_roots = verb[0] == "restore" && round / VERBS.len() % 2 == 1;
        let options: &[&str] = if as_roots { &["--owner", "none"] } else { &[] };
        let outcome = run(host.command(&[verb, options, &[&place]].concat()).stdin(Stdio::null()));
        let when = format!("round {round} of {verb:?} {options:?}: {}", outcome.err);
        match outcome.status {
            0 => assert!(!verb.contains(&"restore"), "{when}"),
            1 => {
                refused += 1;
                let mut lines = outcome.err.lines();
                let obstacles = verb.contains(&"--dry-run") && outcome.err.starts_with("  - ");
                assert!(
                    obstacles || lines.next().is_some_and(|line| line.starts_with("floe: ")),
                    "{when}"
                );
                assert!(lines.all(|line| line.starts_with("  - ")), "{when}");
            }
            _ => panic!("{when}"),
        }
    }
    assert!(refused > times(300) / 4, "only {refused}");
    before.expect_again(&host, &[NAME], &[], "after forged images");
    assert_eq!(host.sandboxes(), Vec::<String>::new());
}

#[test]
fn an_image_without_its_programs_here_is_refused_with_all_obstacles() {
    let host = Host::new();
    let before = Traces::look(&host, &[NAME], &[]);
    let err = host.floe(&["restore", "-d", "--owner", "none", GOLDEN]).expect_failed();
    let mut lines = err.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("floe: ")), "{err}");
    for obstacle in ["vDSO: ", "mapped file /usr/bin/sh: ", "open file 0: /var/log/job "] {
        assert!(err.contains(&format!("  - {obstacle}")), "{obstacle} in {err}");
    }
    assert!(lines.all(|line| line.starts_with("  - ")), "{err}");
    before.expect_again(&host, &[NAME], &[], "after a restore that was refused");
}

/// Where a socket sends is a name of another one of the image.
#[test]
fn a_forged_socket_connects_with_nothing_of_the_hosts() {
    let host = Host::new();
    let (path, place) = (host.path("job.floe"), host.path("job.floe").display().to_string());
    let [own, others] = ["own", "not"].map(|name| host.path(name).display().to_string());
    let job = host.name("job");
    let script = "import os, socket, sys, time\na, b = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in 'ab']\n\
                  a.bind(sys.argv[1])\nb.connect(sys.argv[1])\nopen(sys.argv[1] + '.ready', 'w')\ntime.sleep(1000)";
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", script, &own]);
    until("the sockets", || Path::new(&format!("{own}.ready")).exists());
    host.done(&["checkpoint", &job, "-o", &place]);
    let _listener = UnixDatagram::bind(&others).expect("bind");
    let image = std::fs::read(&path).expect("read the image");
    let find = |part: &Part| {
        let mut bytes = image[part.at..part.end].windows(own.len());
        bytes.position(|bytes| bytes == own.as_bytes())
    };
    let sockets: Vec<Part> = parts(&image).into_iter().filter(|part| part.kind == 8).collect();
    let mut forged = 0;
    for (part, at) in sockets.iter().filter_map(|part| Some((part, find(part)?))) {
        let mut image = image.clone();
        image[part.at + at..part.at + at + own.len()].copy_from_slice(others.as_bytes());
        seal(&mut image, part);
        std::fs::write(&path, image).expect("write");
        let error = host.floe(&["restore", "-d", &place]).expect_failed();
        let is_found = error.contains("the image has no socket") || error.contains("has a socket at");
        assert!(is_found, "{error}");
        forged += 1;
    }
    assert_eq!(forged, 2);
    std::fs::write(&path, image).expect("write");
    host.done(&["restore", "-d", &place]);
}

/// Two sockets that listen have one number: the second would not be bound, and its clients connect by its name.
#[test]
fn a_forged_listener_has_nobody_connect_with_the_hosts() {
    let host = Host::new();
    let (path, place) = (host.path("job.floe"), host.path("job.floe").display().to_string());
    let folder = host.path("names");
    std::fs::create_dir(&folder).expect("a folder");
    let at = folder.display().to_string();
    let job = host.name("job");
    let script = "import os, socket, sys, time\nkept = []\nfor name in ['one', 'two']:\n    \
                  one, client = [socket.socket(socket.AF_UNIX) for _ in 'ab']\n    one.bind(f'{sys.argv[1]}/{name}')\n    \
                  one.listen(5)\n    client.connect(f'{sys.argv[1]}/{name}')\n    client.send(b'sent to ' + name.encode())\n    \
                  kept += [one, client]\nos.unlink(f'{sys.argv[1]}/two')\n\
                  open(f'{sys.argv[1]}/new', 'w').write(' '.join(str(os.fstat(one.fileno()).st_ino) for one in kept[::2]))\n\
                  os.rename(f'{sys.argv[1]}/new', f'{sys.argv[1]}/ready')\ntime.sleep(1000)";
    host.done(&["run", "-d", "--name", &job, "--", "python3", "-c", script, &at]);
    until("the sockets", || folder.join("ready").exists());
    let text = std::fs::read_to_string(folder.join("ready")).expect("read");
    let numbers: Vec<[u8; 4]> = text
        .split(' ')
        .map(|number| number.parse::<u32>().expect("a number").to_le_bytes())
        .collect();
    host.done(&["checkpoint", &job, "-o", &place]);
    let services = UnixListener::bind(folder.join("two")).expect("bind");
    services.set_nonblocking(true).expect("O_NONBLOCK");
    let image = std::fs::read(&path).expect("read the image");
    let find = |part: &Part, bytes: &[u8]| {
        image[part.at..part.end]
            .windows(bytes.len())
            .position(|found| found == bytes)
    };
    let second = parts(&image)
        .into_iter()
        .find(|part| part.kind == 8 && find(part, b"sent to two").is_some())
        .expect("the second socket");
    let number = second.at + find(&second, &numbers[1]).expect("its number");
    let mut forged = image.clone();
    forged[number..number + 4].copy_from_slice(&numbers[0]);
    seal(&mut forged, &second);
    std::fs::write(&path, forged).expect("write");
    for verb in [&["restore", "--dry-run"][..], &["restore", "-d"]] {
        let error = host.floe(&[verb, &[&place]].concat()).expect_failed();
        assert!(
            error.contains("it is unix socket") && error.contains("is already"),
            "{error}"
        );
    }
    let nobody = services.accept().expect_err("nobody connects");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    std::fs::write(&path, image).expect("write");
    host.done(&["restore", "-d", &place]);
    let nobody = services.accept().expect_err("nobody connects");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}
