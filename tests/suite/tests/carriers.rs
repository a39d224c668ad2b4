//! Sandboxes of an ordinary user that are joined to the host's network (`--net new`), by pasta or slirp4netns: who reaches whom, before
//! and after round trips, that these end with the sandbox however that ends, and what can't be.

mod place;

use floe_suite::{Host, PID_METHODS, has, json, run, signal, spawn, times, until};
use place::{ECHO, FAR, HOST, Place, connect, echo, echo_datagram, shell};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::Duration,
};

/// Kills of `floe run`.
const KILLS: u32 = 12;

/// Each is run with pasta, and with slirp4netns where that alone is there.
macro_rules! by_each {
    ($($scenario:ident),* $(,)?) => {
        mod pasta {
            $(#[test] fn $scenario() { super::$scenario("pasta"); })*
        }
        mod slirp4netns {
            $(#[test] fn $scenario() { super::$scenario("slirp4netns"); })*
        }
    };
}

by_each! {
    all_reach_each_other,
    round_trips_keep_addresses_and_ports,
    connections_through_it_are_refused_or_given_up,
    it_ends_with_the_sandbox_however_that_ends,
    it_is_started_again,
    frozen_and_thawed_it_is_reached_again,
    it_ends_with_the_monitor_whatever_it_wishes,
    who_is_mapped_otherwise_has_it_too,
    what_is_missing_is_told_by_name,
    what_can_not_be_had_is_told_before_anything_is_made,
}

/// Of the host: its own loopback is not the sandbox's, its other addresses are.
fn all_reach_each_other(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let name = place.host.name("job");
    place.start(&name, &["-p", "8080:8000", "-p", "8080:8000/udp"], &[]);
    echo_datagram("127.0.0.1", 8080, "at first");
    place.is_reached(8080, "at first");
    place.reaches(&name, FAR);
    place.reaches(&name, HOST);
    let table = place.host.done(&["ps"]);
    assert!(table.contains("8080:8000 8080:8000/udp"), "{table}");
    place.reaches_no_loopback(&name);
    let devices = place.host.done(&["exec", &name, "--", "ip", "-br", "addr"]);
    assert!(devices.contains("eth0") && !devices.contains("carrier"), "{devices}");
    // It has no descriptor of the tree's, nor any of floe's but these.
    let pasta = place.carrier();
    let theirs = fs::read_link(format!("/proc/{}/ns/net", place.host.pid1(&name))).expect("a namespace");
    for entry in fs::read_dir(format!("/proc/{pasta}/fd"))
        .expect("its descriptors")
        .flatten()
    {
        let link = fs::read_link(entry.path()).expect("a link");
        assert_ne!(link, theirs, "the sandbox's network");
        let link = link.display().to_string();
        let own = [
            "net:",
            "pipe:",
            "socket:",
            "anon_inode:",
            "/memfd:floe-carrier",
            "/dev/net/tun",
            "/",
        ];
        assert!(own.iter().any(|own| link.starts_with(own)), "{link}");
        assert!(!link.contains("state") && !link.contains(".log"), "{link}");
    }
    place.host.done(&["rm", "-f", &name]);
    until("the end of pasta", || !Path::new(&format!("/proc/{pasta}")).exists());
    assert!(TcpListener::bind("0.0.0.0:8080").is_ok(), "the port is free");
}

fn round_trips_keep_addresses_and_ports(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let host = &place.host;
    let name = host.name("job");
    let image = host.path("job.floe").display().to_string();
    place.start(&name, &["-p", "8080:8000", "-p", "8080:8000/udp"], &[]);
    place.is_reached(8080, "at first");
    let addresses = || {
        host.done(&[
            "exec",
            &name,
            "--",
            "sh",
            "-c",
            "ip -4 addr show dev eth0; ip link show dev eth0; ip route",
        ])
    };
    let before = addresses();
    for trip in 0..5 {
        host.done(&["checkpoint", &name, "-o", &image]);
        assert!(TcpStream::connect("127.0.0.1:8080").is_err(), "nobody is there");
        host.done(&["restore", "-d", &image, "--pid-method", PID_METHODS[trip % 2]]);
        let when = format!("trip {trip}");
        place.goes_on(&when);
        place.is_reached(8080, &when);
        place.reaches(&name, FAR);
        assert_eq!(addresses(), before, "{when}");
    }
    // The tree goes on beside its image.
    host.done(&["checkpoint", &name, "-o", &image, "--leave-running"]);
    place.goes_on("left running");
    place.is_reached(8080, "left running");
    // A second one has the same addresses, in a network of its own, but not the same ports.
    let other = host.name("other");
    let (dry, check) = (
        host.floe(&["restore", "--dry-run", "--name", &other, &image]),
        host.floe(&["check", "--image", &image, "--json"]),
    );
    let real = host.floe(&["restore", "-d", "--name", &other, &image]);
    for outcome in [&dry, &check, &real] {
        let said = format!("{}{}", outcome.out, outcome.err);
        assert_eq!(outcome.status, 1, "{said}");
        assert!(said.contains("published port 8080:8000"), "{said}");
    }
    host.done(&[
        "restore",
        "-d",
        "--name",
        &other,
        "-p",
        "8090:8000",
        "-p",
        "8090:8000/udp",
        &image,
    ]);
    place.is_reached(8090, "the second");
    place.is_reached(8080, "the first");
    place.reaches(&other, FAR);
}

/// What goes through pasta can't be carried; what stays within the sandbox can.
fn connections_through_it_are_refused_or_given_up(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let host = &place.host;
    let name = host.name("job");
    let image = host.path("job.floe").display().to_string();
    place.start(&name, &["-p", "8080:8000"], &[FAR]);
    let mut end = connect(("127.0.0.1", 8080));
    for mode in [&["--tcp", "established"][..], &[]] {
        let line = [&["checkpoint", &name, "-o", &image], mode].concat();
        let error = host.floe(&line).expect_failed();
        assert!(error.contains(&format!("{carrier} has this TCP connection")), "{error}");
        assert!(
            error.contains(&format!("{FAR}:9000")) && error.contains("--tcp close"),
            "{error}"
        );
        assert!(!Path::new(&image).exists());
        echo(&mut end, "behind a refusal");
    }
    host.done(&["checkpoint", &name, "-o", &image, "--tcp", "close", "--leave-running"]);
    echo(&mut end, "left running");
    host.done(&["checkpoint", &name, "-o", &image, "--tcp", "close"]);
    host.done(&["restore", "-d", &image, "--tcp", "close"]);
    place.goes_on("restored");
    echo(&mut connect(("127.0.0.1", 8080)), "a new one");
}

fn it_ends_with_the_sandbox_however_that_ends(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let host = &place.host;
    for kill in 0..times(KILLS) {
        let name = host.name(&format!("job{kill}"));
        let mut floe = spawn(&mut host.command(&["run", "--name", &name, "--net", "new", "--", "sleep", "1000"]));
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 10));
        floe.kill().expect("kill");
        floe.wait().expect("wait");
        until("the end of the sandbox", || {
            let outcome = host.floe(&["rm", "-f", &name]);
            outcome.status == 0 || outcome.err.contains("there is no sandbox")
        });
        place.has_no_carrier(&format!("kill {kill}"));
    }
    let state = |name: &str| -> serde_json::Value {
        let text = fs::read(host.path("state").join(name).join("state.json")).expect("read");
        serde_json::from_slice(&text).expect("JSON")
    };
    for (what, number) in [("monitor", 9), ("pid1", 9), ("monitor", 6)] {
        let name = host.name(&format!("{what}{number}"));
        place.start(&name, &["-p", "8080:8000"], &[]);
        let pasta = place.carrier();
        signal(state(&name)[what].as_i64().expect("a PID") as i32, number);
        until(&format!("the end of pasta behind {what}"), || {
            fs::read_to_string(format!("/proc/{pasta}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
        host.done(&["rm", "-f", &name]);
        assert!(
            TcpListener::bind("0.0.0.0:8080").is_ok(),
            "the port is free behind {what}"
        );
    }
    // A restore that fails, at each of its stages.
    let name = host.name("job");
    let image = host.path("job.floe").display().to_string();
    place.start(&name, &["-p", "8080:8000"], &[]);
    host.done(&["checkpoint", &name, "-o", &image]);
    for stage in ["launch", "seed", "network", "files", "verify", "thaw"] {
        let failed = run(host.command(&["restore", "-d", &image]).env("FLOE_FAIL_AT", stage));
        assert_eq!(failed.status, 1, "{}", failed.err);
        place.has_no_carrier(stage);
        assert!(
            TcpListener::bind("0.0.0.0:8080").is_ok(),
            "the port is free behind {stage}"
        );
    }
    host.done(&["restore", "-d", &image]);
    place.goes_on("restored");
    // One whose pasta is killed goes on, is saved, and has one again.
    signal(place.carrier(), 9);
    place.goes_on("pasta was killed");
    host.done(&["checkpoint", &name, "-o", &image]);
    host.done(&["restore", "-d", &image]);
    echo(&mut connect(("127.0.0.1", 8080)), "with a new one");
}

/// Some times: one that ends at once each time would keep the monitor busy for ever.
fn it_is_started_again(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let name = place.host.name("job");
    place.start(&name, &["-p", "8080:8000", "-p", "8080:8000/udp"], &[]);
    for round in 0..5 {
        let before = place.carrier();
        signal(before, 9);
        until("another pasta", || {
            place.carriers().iter().any(|pasta| *pasta != before)
        });
        until("its way", || TcpStream::connect("127.0.0.1:8080").is_ok());
        place.is_reached(8080, &format!("round {round}"));
    }
    signal(place.carrier(), 9);
    let log = || place.host.done(&["logs", &name]);
    until("a word about it", || {
        log().contains("does not reach the outside any more")
    });
    assert_eq!(log().matches("was started again").count(), 5, "{}", log());
    place.has_no_carrier("the last one");
    place.goes_on("without pasta");
}

fn frozen_and_thawed_it_is_reached_again(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let name = place.host.name("job");
    place.start(&name, &["-p", "8080:8000"], &[]);
    let mut end = connect(("127.0.0.1", 8080));
    let frozen = place.host.floe(&["freeze", &name]);
    let pid1 = place.host.pid1(&name);
    if frozen.status != 0 {
        // No cgroup was delegated: it is stopped by a signal instead, which a client can't tell from that.
        signal(pid1, 19);
        until("all threads stop", || {
            let threads = fs::read_dir(format!("/proc/{pid1}/task")).expect("threads").flatten();
            let mut stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")));
            stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ")))
        });
    }
    end.write_all(b"while it stands still").expect("write");
    end.set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout");
    assert!(end.read(&mut [0]).is_err(), "nobody answers");
    if frozen.status == 0 {
        place.host.done(&["thaw", &name]);
    } else {
        signal(pid1, 18);
    }
    end.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut got = [0; 21];
    end.read_exact(&mut got).expect("an answer");
    assert_eq!(&got, b"while it stands still");
    echo(&mut end, "thawed");
}

/// As where a security module gives it another label: it does not end with its parent by itself.
fn it_ends_with_the_monitor_whatever_it_wishes(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let host = &place.host;
    let programs = host.folder("programs");
    let found = run(Command::new("sh").args(["-c", &format!("command -v {carrier}")])).expect_done();
    let forgets = "import ctypes, os, signal, sys; signal.signal(signal.SIGPIPE, signal.SIG_DFL); ctypes.CDLL(None).prctl(1, 0); os.execv(sys.argv[1], sys.argv[1:])";
    let script = format!("#!/bin/sh\nexec python3 -c '{forgets}' {} \"$@\"\n", found.trim());
    let program = programs.join(carrier);
    fs::write(&program, script).expect("a program");
    shell(&format!("chmod 755 {0} {0}/{carrier}", programs.display()));
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"));
    let name = host.name("job");
    let line = [
        "run",
        "-d",
        "--name",
        &name,
        "--net",
        "new",
        "-p",
        "8080:8000",
        "--",
        "python3",
        "-c",
        ECHO,
    ];
    let _ = run(host.command(&line).env("PATH", path)).expect_done();
    place.goes_on("at first");
    let pasta = place.carrier();
    let parent = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.expect("its parent").trim().to_owned()
    };
    let monitor = parent(&parent(&pasta.to_string()));
    signal(monitor.parse().expect("a number"), 9);
    place.has_no_carrier("the end of the monitor");
    until("the port", || TcpListener::bind("0.0.0.0:8080").is_ok());
}

/// Whoever the user appears as inside.
fn who_is_mapped_otherwise_has_it_too(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let name = place.host.name("job");
    let image = place.host.path("job.floe").display().to_string();
    place.start(&name, &["-p", "8080:8000", "--map-user", "1000"], &[]);
    echo(&mut connect(("127.0.0.1", 8080)), "at first");
    place.host.done(&["checkpoint", &name, "-o", &image]);
    place.host.done(&["restore", "-d", "--map-user", "1000", &image]);
    echo(&mut connect(("127.0.0.1", 8080)), "restored");
}

/// An image of root's is restored by an ordinary user, and the other way round.
#[test]
fn images_go_between_root_and_others() {
    let Some(place) = Place::new("pasta") else { return };
    if !has("nft") {
        return;
    }
    let root = Host::new();
    let name = place.host.name("job");
    let image = place.host.path("job.floe").display().to_string();
    let copy = root.path("copy.floe").display().to_string();
    // Root of some machines has less capabilities than root of a user namespace.
    let line = ["run", "-d", "--name", &name, "--net", "new", "-p", "8080:8000", "--"];
    let server = ["setpriv", "--bounding-set", "-sys_resource", "python3", "-c", ECHO];
    place.host.done(&[&line[..], &server].concat());
    place.goes_on("at first");
    place.host.done(&["checkpoint", &name, "-o", &image]);
    root.done(&["restore", "-d", "--owner", "none", &image]);
    place.goes_on("as root's");
    echo(&mut connect(("127.0.0.1", 8080)), "as root's");
    let mut end = connect(("127.0.0.1", 8080));
    root.done(&[
        "checkpoint",
        &name,
        "-o",
        &copy,
        "--tcp",
        "established",
        "--leave-running",
    ]);
    echo(&mut end, "root's goes on");
    drop(end);
    root.done(&["rm", "-f", &name]);
    shell(&format!("cp {copy} {image}; chmod 644 {image}"));
    let refused = place
        .host
        .floe(&["restore", "-d", &image, "--tcp", "established"])
        .expect_failed();
    assert!(refused.contains("has no way to it"), "{refused}");
    place.has_no_carrier("behind a refusal");
    // Files of root's are not the user's any more, so it is a tree of plain memory.
    let plain = root.name("plain");
    let line = [
        "run",
        "-d",
        "--name",
        &plain,
        "--net",
        "new",
        "-p",
        "8080:8000",
        "-w",
        "/",
        "--",
    ];
    let server = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()";
    // Not one that is in the home of root.
    root.done(&[&line[..], &["/usr/bin/python3", "-c", server]].concat());
    let answers = || {
        let asked = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/', timeout=5).status)";
        run(Command::new("python3").args(["-c", asked])).out.trim() == "200"
    };
    until("an answer", answers);
    root.done(&["checkpoint", &plain, "-o", &copy]);
    shell(&format!("cp {copy} {image}; chmod 644 {image}"));
    place.host.done(&["restore", "-d", &image]);
    until("an answer of the user's", answers);
    assert_eq!(place.carriers().len(), 1);
}

fn what_is_missing_is_told_by_name(carrier: &'static str) {
    let Some(place) = Place::with_device(carrier, false) else {
        return;
    };
    let host = &place.host;
    let probe = |command: &mut Command| {
        let told = json(&run(command).expect_done());
        let features = told["features"].as_array().expect("a list").clone();
        let found = features
            .into_iter()
            .find(|feature| feature["name"] == "pasta, slirp4netns");
        found.expect("the feature")
    };
    let check = ["check", "run", "--json"];
    let run_line = ["run", "--net", "new", "--", "true"];
    // No device.
    let told = probe(&mut host.command(&check));
    assert_eq!(told["here"], "no", "{told}");
    assert!(
        told["found"]
            .as_str()
            .is_some_and(|found| found.contains("/dev/net/tun")),
        "{told}"
    );
    let refused = host.floe(&run_line);
    assert!(
        refused.status == 125 && refused.err.contains("/dev/net/tun"),
        "{}",
        refused.err
    );
    // No program.
    let programs = host.folder("programs");
    let setpriv = run(Command::new("sh").args(["-c", "command -v setpriv"])).expect_done();
    symlink(setpriv.trim(), programs.join("setpriv")).expect("a link");
    let told = probe(host.command(&check).env("PATH", &programs));
    assert!(
        told["found"]
            .as_str()
            .is_some_and(|found| found.contains("package passt")),
        "{told}"
    );
    let refused = run(host.command(&run_line).env("PATH", &programs));
    assert!(
        refused.status == 125 && refused.err.contains("package passt"),
        "{}",
        refused.err
    );
    assert!(host.sandboxes().is_empty());
    // Nothing of it is asked for.
    assert_eq!(
        run(host.command(&["run", "--", "/bin/true"]).env("PATH", &programs)).status,
        0
    );
    let root = json(&Host::new().done(&check));
    let features = root["features"].as_array().expect("a list");
    let found = features
        .iter()
        .find(|feature| feature["name"] == "pasta, slirp4netns")
        .expect("it");
    assert_eq!(found["here"], "yes", "root needs none");
}

fn what_can_not_be_had_is_told_before_anything_is_made(carrier: &'static str) {
    let Some(place) = Place::new(carrier) else { return };
    let host = &place.host;
    let name = host.name("job");
    let image = host.path("job.floe").display().to_string();
    let refused = |options: &[&str], why: &str| {
        let line = [&["run", "--name", &name, "--net", "new"], options, &["--", "true"]].concat();
        let outcome = host.floe(&line);
        assert!(outcome.status == 125 && outcome.err.contains(why), "{}", outcome.err);
        place.has_no_carrier(why);
        assert!(host.sandboxes().is_empty());
    };
    refused(&["-p", "80:80"], "ip_unprivileged_port_start");
    let service = TcpListener::bind("127.0.0.1:8081").expect("bind");
    refused(&["-p", "8081:80"], "publish port 8081:80");
    drop(service);
    // An image is held against what is here, too.
    place.start(&name, &["-p", "8080:8000"], &[]);
    place.goes_on("at first");
    host.done(&["checkpoint", &name, "-o", &image]);
    shell("chmod 600 /dev/net/tun");
    let told = host.floe(&["check", "--image", &image]);
    assert!(told.status == 1 && told.err.contains("/dev/net/tun"), "{}", told.err);
    let told = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(told.contains("/dev/net/tun"), "{told}");
    assert!(host.sandboxes().is_empty());
    shell("chmod 666 /dev/net/tun; ip route del default");
    if carrier == "pasta" {
        // Itself: without a default route it has no way.
        refused(&[], "by pasta:");
    } else {
        host.done(&["restore", "-d", &image]);
        place.goes_on("without a default route");
    }
}
