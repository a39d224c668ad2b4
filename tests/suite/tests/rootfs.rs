//! Sandboxes with a root directory of their own, and what is mounted in them by options of `run`.

use floe_suite::{Host, ORDINARY, PID_METHODS, make_rootfs, run, skip, times, until};
use std::{fs, os::unix::fs::chown, path::PathBuf, process::Command};

/// A sandbox in a root directory, in which a script runs: one that counts, and a web server.
struct Rooted<'a> {
    host: &'a Host,
    root: PathBuf,
    name: String,
}

const SERVE: &str = "cd /srv; echo 0 > /srv/ticks; python3 -m http.server 8000 --bind 127.0.0.1 >/tmp/log 2>&1 & \
    n=0; while :; do n=$((n+1)); echo $n > /srv/ticks.new; mv /srv/ticks.new /srv/ticks; sleep 0.1; done";

const ASK: &str = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/ticks').read().decode())";

impl<'a> Rooted<'a> {
    fn start(host: &'a Host, options: &[&str]) -> Self {
        let root = host.path("root");
        make_rootfs(&root);
        Self::start_in(host, root, options)
    }

    fn start_in(host: &'a Host, root: PathBuf, options: &[&str]) -> Self {
        let name = host.name("rooted");
        let mut line = vec![
            "run",
            "-d",
            "--name",
            &name,
            "--net",
            "none",
            "--rootfs",
            root.to_str().expect("a path"),
        ];
        line.extend(options);
        line.extend(["--", "bash", "-c", SERVE]);
        host.done(&line);
        let rooted = Self { host, root, name };
        until("the server", || rooted.try_ask(&rooted.name).is_some());
        rooted
    }

    fn try_ask(&self, name: &str) -> Option<u64> {
        let answer = self.host.floe(&["exec", name, "--", "python3", "-c", ASK]);
        answer.out.trim().parse().ok()
    }

    /// What the server says of the script's count.
    fn ask(&self) -> u64 {
        self.try_ask(&self.name).expect("an answer")
    }

    fn inside(&self, command: &[&str]) -> String {
        self.host.done(&[&["exec", &self.name, "--"], command].concat())
    }

    fn save(&self) -> String {
        let image = self.host.path("image.floe").display().to_string();
        self.host.done(&["checkpoint", &self.name, "-o", &image]);
        image
    }
}

#[test]
fn a_server_in_a_root_of_its_own_goes_on() {
    let host = Host::new();
    let data = host.folder("data");
    fs::write(data.join("file"), "shown").expect("write");
    let volume = format!("{}:/data:ro", data.display());
    let rooted = Rooted::start(&host, &["-v", &volume, "--tmpfs", "/scratch:size=1m,mode=700"]);
    rooted.inside(&["bash", "-c", "echo kept > /scratch/file; echo on > /dev/shm/file"]);
    let about = "stat -c '%n %f %t %T' /dev/* /scratch /proc /sys; while read _ _ _ root point flags _; do \
        echo $root $point $flags; done < /proc/self/mountinfo";
    let before = rooted.inside(&["bash", "-c", about]);
    let mut last = rooted.ask();
    for round in 0..times(5) {
        let image = rooted.save();
        host.done(&["restore", "-d", "--pid-method", PID_METHODS[round % 2], &image]);
        let now = rooted.ask();
        assert!(now >= last, "it has forgotten: {last}, then {now}");
        last = now;
    }
    until("the script", || rooted.ask() > last);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&before), sorted(&rooted.inside(&["bash", "-c", about])));
    let kept = rooted.inside(&["cat", "/scratch/file", "/dev/shm/file", "/data/file"]);
    assert_eq!(kept, "kept\non\nshown");
    let written = host.floe(&[
        "exec",
        &rooted.name,
        "--",
        "bash",
        "-c",
        "echo x > /data/file || echo x > /sys/x",
    ]);
    assert!(written.err.contains("Read-only file system"), "{}", written.err);
    assert_eq!(host.done(&["exec", "-w", "/data", &rooted.name, "--", "ls"]), "file\n");
}

/// A root directory that debootstrap made, where there is one: bash, a loop that forks, and a web server.
#[test]
fn a_debian_goes_on() {
    let Some(root) = std::env::var_os("FLOE_DEBIAN") else {
        return skip("FLOE_DEBIAN names no root directory that debootstrap made; tools/test --full makes one");
    };
    let host = Host::new();
    let rooted = Rooted::start_in(&host, root.into(), &["--tmpfs", "/tmp"]);
    let version = rooted.inside(&["cat", "/etc/debian_version"]);
    let mut last = rooted.ask();
    for round in 0..times(5) {
        let image = rooted.save();
        host.done(&["restore", "-d", "--pid-method", PID_METHODS[round % 2], &image]);
        until("the script", || rooted.ask() > last);
        last = rooted.ask();
        assert_eq!(rooted.inside(&["cat", "/etc/debian_version"]), version);
    }
}

#[test]
fn a_root_that_is_elsewhere_can_be_given() {
    let host = Host::new();
    let data = host.folder("data");
    let volume = format!("{}:/data", data.display());
    let rooted = Rooted::start(
        &host,
        &["--read-only", "-v", &volume, "--tmpfs", "/srv", "--tmpfs", "/tmp"],
    );
    let image = rooted.save();
    let moved = host.path("moved");
    fs::rename(&rooted.root, &moved).expect("move the root");
    fs::remove_dir(&data).expect("remove the volume");
    for arguments in [&["restore", "-d", &image][..], &["restore", "--dry-run", &image]] {
        let error = host.floe(arguments).expect_failed();
        assert!(error.contains("2 things stand in the way"), "{error}");
        let lacking = [("/", &rooted.root), ("/data", &data)];
        for (point, path) in lacking {
            let told = format!("mount {point}: it shows {}, which is not here", path.display());
            assert!(
                error.contains(&told) && error.contains(&format!("--mount {point}=PATH")),
                "{error}"
            );
        }
    }
    assert!(host.sandboxes().is_empty());
    let given = [
        format!("/={}", moved.display()),
        format!("/data={}", host.folder("others").display()),
    ];
    host.done(&["restore", "-d", "--mount", &given[0], "--mount", &given[1], &image]);
    rooted.ask();
    let written = host.floe(&["exec", &rooted.name, "--", "touch", "/new"]);
    assert!(written.err.contains("Read-only file system"), "{}", written.err);
}

/// Side by side, each with what is its own.
#[test]
fn a_copy_runs_next_to_the_first() {
    let host = Host::new();
    let rooted = Rooted::start(&host, &["--tmpfs", "/srv"]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "--leave-running", &rooted.name, "-o", &image]);
    host.done(&["restore", "-d", "--name", "copy", &image]);
    rooted.inside(&["touch", "/srv/first", "/dev/shm/first"]);
    let both = [rooted.ask(), rooted.try_ask("copy").expect("an answer")];
    until("both", || {
        rooted.ask() > both[0] && rooted.try_ask("copy").is_some_and(|now| now > both[1])
    });
    let there = host.floe(&["exec", "copy", "--", "stat", "/srv/first", "/dev/shm/first"]);
    assert_eq!(there.err.matches("No such file").count(), 2, "{}", there.err);
}

#[test]
fn ordinary_users_have_roots_of_their_own() {
    let host = Host::of_ordinary_user();
    // What is read-only from the beginning, or whoever else's, stays so.
    let rooted_in = host.folder("mine");
    let root = rooted_in.join("root");
    make_rootfs(&root);
    let owned = Command::new("chown")
        .args(["-R", &ORDINARY.to_string()])
        .arg(&root)
        .status();
    assert!(owned.expect("start chown").success());
    chown(&rooted_in, Some(ORDINARY), Some(ORDINARY)).expect("chown");
    let name = host.name("rooted");
    let place = root.to_str().expect("a path");
    let script = "echo kept > /scratch/file; exec 9</dev/null; echo > /srv/ready; while :; do sleep 0.1; done";
    for (net, shown) in [("none", "devices"), ("host", "")] {
        let options = [
            "--net",
            net,
            "--rootfs",
            place,
            "--tmpfs",
            "/scratch",
            "-v",
            "/usr:/mine/usr:ro",
        ];
        host.done(
            &[
                &["run", "-d", "--name", &name],
                &options[..],
                &["--", "bash", "-c", script],
            ]
            .concat(),
        );
        until("the script", || root.join("srv/ready").exists());
        for method in PID_METHODS {
            let image = rooted_in.join("image.floe").display().to_string();
            host.done(&["checkpoint", &name, "-o", &image]);
            host.done(&["restore", "-d", "--pid-method", method, &image]);
        }
        let inside = |command: &[&str]| host.done(&[&["exec", &name, "--"], command].concat());
        assert_eq!(inside(&["cat", "/scratch/file"]), "kept\n");
        assert!(inside(&["ls", "/mine/usr"]).contains("bin"));
        assert!(inside(&["ls", "/sys"]).contains(shown));
        host.done(&["rm", "-f", &name]);
        fs::remove_file(root.join("srv/ready")).expect("remove it");
    }
}

#[test]
fn a_terminal_is_one_of_the_new_root() {
    let host = Host::new();
    let root = host.path("root");
    make_rootfs(&root);
    let (name, place) = (host.name("rooted"), root.display().to_string());
    host.done(&[
        "run",
        "-d",
        "-t",
        "--name",
        &name,
        "--rootfs",
        &place,
        "--",
        "bash",
        "-c",
        "while :; do sleep 0.1; done",
    ]);
    let image = host.path("image.floe").display().to_string();
    for method in PID_METHODS {
        host.done(&["checkpoint", &name, "-o", &image]);
        host.done(&["restore", "-d", "--pid-method", method, &image]);
    }
    let inside = |command: &[&str]| host.done(&[&["exec", &name, "--"], command].concat());
    assert_eq!(inside(&["readlink", "/proc/1/fd/0"]), "/dev/pts/0\n");
    assert_eq!(inside(&["stat", "-c", "%g", "/dev/pts/0"]), "5\n");
}

/// Each before anything is made, but for the command that is not there: then what was made goes again.
#[test]
fn what_can_t_be_mounted_is_told_and_leaves_nothing() {
    let host = Host::new();
    let root = host.folder("root");
    fs::create_dir(root.join("usr")).expect("a folder");
    let listed = || {
        let names = fs::read_dir(&root)
            .expect("list")
            .map(|entry| entry.expect("list").file_name());
        names.collect::<Vec<_>>()
    };
    let (before, place) = (listed(), root.display().to_string());
    let data = host.folder("data").display().to_string();
    let gone = format!("{data}/gone");
    let file = host.path("file");
    fs::write(&file, "").expect("write");
    let file = file.display().to_string();
    let volume = |from: &str, to: &str| format!("{from}:{to}");
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--rootfs", &gone], 125, "gone is not there"),
        (&["--rootfs", &file], 125, "file is no directory"),
        (
            &["--rootfs", &place, "-v", &volume(&gone, "/data")],
            125,
            "gone is not there",
        ),
        (
            &["-v", &volume(&data, &gone)],
            125,
            "gone can't be mounted on: it is not there",
        ),
        (
            &["-v", &volume(&data, &file)],
            125,
            "file can't be mounted on: one of it",
        ),
        (
            &["--rootfs", &place, "-v", &volume(&data, "/a/../b")],
            125,
            "without ..",
        ),
        (
            &["--rootfs", &place, "-v", &volume(&data, "/")],
            125,
            "the root directory is given by --rootfs",
        ),
        (
            &["--rootfs", &place, "--tmpfs", "/a", "-v", &volume(&data, "/a")],
            125,
            "it is given twice",
        ),
        (
            &["--rootfs", &place, "--tmpfs", "/a/b", "-v", &volume(&file, "/a/b/c/d")],
            127,
            "execute true",
        ),
    ];
    for (options, status, told) in cases {
        let outcome = host.floe(&[&["run"], options, &["--", "true"]].concat());
        assert_eq!(outcome.status, status, "{options:?}: {}", outcome.err);
        assert!(outcome.err.contains(told), "{options:?}: {}", outcome.err);
        assert_eq!(listed(), before, "{options:?}");
    }
    for wrong in [&["-v", "/data"][..], &["--tmpfs", "/a:size=much"], &["--read-only"]] {
        assert_eq!(
            host.floe(&[&["run"], wrong, &["--", "true"]].concat()).status,
            2,
            "{wrong:?}"
        );
    }
    assert!(host.sandboxes().is_empty());
}

/// Without a root of its own a sandbox has the host's, with what is mounted over that.
#[test]
fn volumes_lie_over_the_hosts_files() {
    let host = Host::new();
    let data = host.folder("data");
    fs::write(data.join("file"), "shown").expect("write");
    let (name, over) = (host.name("over"), host.folder("over"));
    let (volume, scratch) = (
        format!("{}:{}:ro", data.display(), over.display()),
        host.folder("scratch"),
    );
    let options = ["-v", &volume, "--tmpfs", scratch.to_str().expect("a path")];
    let script = "echo kept > $0/file; sleep 1000";
    let line = [
        &["run", "-d", "--name", &name],
        &options[..],
        &["--", "bash", "-c", script],
    ]
    .concat();
    drop(run(host.command(&line).arg(&scratch)).expect_done());
    let inside = |path: &PathBuf| {
        host.floe(&["exec", &name, "--", "cat", &path.display().to_string()])
            .out
    };
    until("the script", || inside(&scratch.join("file")) == "kept\n");
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", &name, "-o", &image]);
    let moved = host.path("moved");
    fs::rename(&data, &moved).expect("move it");
    let given = format!("{}={}", over.display(), moved.display());
    host.done(&["restore", "-d", "--mount", &given, &image]);
    assert_eq!(inside(&scratch.join("file")), "kept\n");
    assert_eq!(inside(&over.join("file")), "shown");
    assert!(!scratch.join("file").exists(), "it is on the host");
}
