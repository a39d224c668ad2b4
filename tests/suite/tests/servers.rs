//! Servers and run-times as people use them, under load, each through five round trips in a row. What they are is in
//! `tests/programs`; each says in the end by itself whether anything was lost.

use floe_suite::{Host, Program, has, program, skip, source, until};
use std::{fs, os::unix::fs::chown, path::PathBuf, process::Command};

const ROUNDS: usize = 5;

/// A copy in the program's folder, since a sandbox may see it under another path.
fn copy(host: &Host, base: &str, file: &str) -> PathBuf {
    let folder = host.path(base);
    fs::create_dir_all(&folder).expect("a folder");
    let copy = folder.join(file);
    fs::copy(source(file), &copy).expect("copy");
    copy
}

fn under_load(program: &Program<'_>) -> String {
    program.await_file("ready");
    program.round_trips(ROUNDS);
    program.finish();
    program.result()
}

#[test]
fn the_java_virtual_machine() {
    let host = Host::new();
    if !has("javac") {
        return;
    }
    let source = copy(&host, "java", "Load.java");
    let built = Command::new("javac").arg(&source).status().expect("javac");
    assert!(built.success());
    let program = Program::start(&host, "java", &["java", "-Xmx256m", "Load"]);
    assert_eq!(under_load(&program), "connected true\nwhole true\n");
}

#[test]
fn node_with_workers_and_a_child() {
    let host = Host::new();
    if !has("node") {
        return;
    }
    copy(&host, "node", "load.js");
    let program = Program::start(&host, "node", &["node", "load.js"]);
    assert_eq!(under_load(&program), "whole true\n");
}

#[test]
fn go_with_goroutines() {
    let host = Host::new();
    if !has("go") {
        return;
    }
    let source = copy(&host, "go", "load.go");
    let mut build = Command::new("go");
    build.env("GOFLAGS", "-mod=mod").env("GOCACHE", host.path("go-cache"));
    let built = build
        .args(["build", "-o"])
        .arg(source.with_file_name("load"))
        .arg(&source);
    assert!(built.status().expect("go").success());
    let program = Program::start(&host, "go", &["./load"]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    host.done(&["kill", "-s", "USR1", &program.name]);
    program.finish();
    assert_eq!(program.result(), "whole true true true\n");
}

#[test]
fn tokio_with_signals() {
    let host = Host::new();
    let binary = program("tokio-load").display().to_string();
    let program = Program::start(&host, "tokio", &[&binary]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    host.done(&["kill", "-s", "USR1", &program.name]);
    program.finish();
    assert_eq!(program.result(), "whole true, timers and signals true, port true\n");
}

#[test]
fn fio_with_asynchronous_requests() {
    let host = Host::new();
    if !has("fio") {
        return;
    }
    copy(&host, "fio", "fio.sh");
    let program = Program::start(&host, "fio", &["bash", "fio.sh"]);
    until("files", || program.file("job.1.0").exists());
    assert_eq!(under_load(&program), "faults 0\n");
}

/// What a server to which clients connect and connect is in at times.
const BETWEEN_CONNECTIONS: [&str; 5] = [
    "accepted",
    "only being made",
    "has ended",
    "outside of the tree",
    "descriptors that wait",
];

#[test]
fn nginx_with_workers() {
    let host = Host::new();
    if !has("nginx") || !has("curl") {
        return;
    }
    copy(&host, "nginx", "nginx.sh");
    let program = Program::start_with(&host, "nginx", &["--net", "none"], &["bash", "nginx.sh"]);
    program.await_file("ready");
    program.round_trips_between(ROUNDS, &BETWEEN_CONNECTIONS);
    program.finish();
    let log = fs::read_to_string(program.file("error.log")).unwrap_or_default();
    assert_eq!(program.result(), "faults 0, ended 0\n", "{log}");
}

#[test]
fn redis_with_clients() {
    let host = Host::new();
    if !has("redis-server") {
        return;
    }
    copy(&host, "redis", "redis.sh");
    let mut options = vec!["--net", "none"];
    // Where limits can be had they are far above what it takes, and hold all the time.
    let limits = ["--memory", "1g", "--cpus", "1.5", "--pids", "200"];
    if host.floe(&[&["run"], &limits[..], &["--", "true"]].concat()).status == 0 {
        options.extend(limits);
    }
    let program = Program::start_with(&host, "redis", &options, &["bash", "redis.sh"]);
    program.await_file("ready");
    program.round_trips_between(ROUNDS, &BETWEEN_CONNECTIONS);
    program.finish();
    let log = fs::read_to_string(program.file("server.log")).unwrap_or_default();
    assert_eq!(program.result(), "counted\ncounted\nended 0\n", "{log}");
}

/// The folder of the newest version that is installed.
fn postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let found = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("pgbench").exists());
    found.max()
}

#[test]
fn postgres_with_clients() {
    let host = Host::new();
    let Some(bin) = postgres() else {
        return skip("postgres is not installed");
    };
    copy(&host, "postgres", "postgres.sh");
    // It does not run as root.
    let nobody = 65534;
    chown(host.path("postgres"), Some(nobody), Some(nobody)).expect("chown");
    let bin = bin.display().to_string();
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let command = [&user[..], &["bash", "postgres.sh", &bin]].concat();
    let program = Program::start_with(&host, "postgres", &["--net", "none"], &command);
    program.await_file("ready");
    until("clients", || program.file("clients.log").exists());
    program.round_trips(ROUNDS);
    program.finish();
    let log = fs::read_to_string(program.file("server.log")).unwrap_or_default();
    assert_eq!(program.result(), "t\nt\nt\n0\n", "{log}");
}
