//! Files on disk that changed while a tree was away: what stands in the way by each `--files`, all of it in one list.

use floe_suite::{Host, run};
use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
};

/// A tree that is away, and the files that it had open.
struct Away {
    host: Host,
    image: String,
}

const NAMES: [&str; 5] = ["read", "written", "appended", "both", "mapped"];

impl Away {
    fn new(name: &str) -> Self {
        let host = Host::new();
        for name in NAMES {
            fs::write(host.path(name), vec![b'x'; 10_000]).expect("a file");
        }
        fs::copy("/bin/sleep", host.path("program")).expect("a program");
        let script = "cd $0; exec 3<read 4>written 5>>appended 6<>both; echo begun >&4; \
            ./program 1000 & echo $! >started; wait";
        let folder = host.path("").display().to_string();
        host.done(&["run", "-d", "--name", name, "--", "bash", "-c", script, &folder]);
        let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm"));
        floe_suite::until("the program", || {
            let tasks = host.done(&["ps", name]);
            host.path("started").exists() && tasks.contains("program") && comm("self").is_ok()
        });
        let image = host.path("image.floe").display().to_string();
        host.done(&["checkpoint", name, "-o", &image]);
        Self { host, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    /// What stands in the way.
    fn obstacles(&self, mode: &str) -> Vec<String> {
        let outcome = self.host.floe(&["restore", "--dry-run", "--files", mode, &self.image]);
        if outcome.status == 0 {
            return Vec::new();
        }
        let error = outcome.expect_failed();
        let lines = error.lines().filter_map(|line| line.strip_prefix("  - "));
        lines.map(str::to_owned).collect()
    }

    /// The obstacles are about exactly these files, each with this in its reason.
    fn expect(&self, mode: &str, wanted: &[(&str, &str)]) {
        let found = self.obstacles(mode);
        let folder = self.path("").display().to_string();
        for (name, reason) in wanted {
            let is_it = |line: &&String| line.contains(&format!("{folder}{name}: ")) && line.contains(reason);
            assert!(found.iter().any(|line| is_it(&line)), "{mode}, {name}: {found:#?}");
        }
        assert_eq!(found.len(), wanted.len(), "{mode}: {found:#?}");
    }

    fn restore(&self, mode: &str) {
        self.host.done(&["restore", "-d", "--files", mode, &self.image]);
        self.host
            .done(&["kill", "-s", "KILL", self.host.sandboxes().first().expect("it")]);
    }

    /// Sets the time of a file's last change back.
    fn keep_time(&self, name: &str, change: impl FnOnce(&PathBuf)) {
        let path = self.path(name);
        let before = fs::metadata(&path)
            .and_then(|found| found.modified())
            .expect("its time");
        change(&path);
        let file = File::options().write(true).open(&path).expect("open it");
        file.set_times(FileTimes::new().set_modified(before))
            .expect("set its time");
    }
}

fn append(path: &PathBuf) {
    let file = File::options().write(true).open(path).expect("open it");
    let end = file.metadata().expect("its size").len();
    file.write_all_at(b"more", end).expect("write");
}

#[test]
fn nothing_stands_in_the_way_of_files_that_are_as_they_were() {
    let away = Away::new("unchanged");
    for mode in ["ignore", "check", "strict"] {
        away.expect(mode, &[]);
    }
    away.restore("strict");
}

#[test]
fn other_sizes_are_found_in_one_list() {
    let away = Away::new("sizes");
    for name in ["read", "written", "appended", "both"] {
        append(&away.path(name));
    }
    let sizes = "it has 10004 bytes here and had 10000";
    away.expect("check", &[("read", sizes), ("both", sizes)]);
    away.expect(
        "strict",
        &[
            ("read", sizes),
            ("both", sizes),
            ("appended", sizes),
            ("written", "it has 10 bytes here and had 6"),
        ],
    );
    away.expect("ignore", &[]);
    let error = away.host.floe(&["restore", "-d", &away.image]).expect_failed();
    assert!(error.contains("2 things stand in the way of this restore"), "{error}");
    away.restore("ignore");
}

#[test]
fn what_was_written_must_be_there() {
    let away = Away::new("written");
    File::create(away.path("written")).expect("empty it");
    away.expect("check", &[("written", "it has 0 bytes here, and 6 were written")]);
    away.expect("ignore", &[]);
}

#[test]
fn times_and_identities_count_only_if_asked_to() {
    let away = Away::new("identities");
    let file = File::options().write(true).open(away.path("read")).expect("open it");
    file.set_times(FileTimes::new().set_modified(std::time::SystemTime::now()))
        .expect("touch");
    away.keep_time("both", |path| {
        let other = path.with_extension("other");
        fs::copy(path, &other).expect("copy");
        fs::rename(&other, path).expect("replace it");
    });
    away.expect("check", &[]);
    away.expect(
        "strict",
        &[("read", "was changed since"), ("both", "another file has its path")],
    );
    away.restore("check");
}

#[test]
fn another_build_of_a_program_is_found() {
    let away = Away::new("build");
    let program = away.path("program");
    let bytes = fs::read(&program).expect("read it");
    let mark = b"GNU\0";
    let places = bytes.windows(4).enumerate().filter(|(_, four)| four == mark);
    let Some(note) = places.map(|(at, _)| at).find(|at| bytes[at - 4..*at] == [3, 0, 0, 0]) else {
        return floe_suite::skip("/bin/sleep has no build-id");
    };
    // Another page than the first may be another one too; what tells builds apart is the note.
    let changed = |at: usize| {
        let mut other = bytes.clone();
        other[at] ^= 1;
        fs::remove_file(&program).expect("remove it");
        fs::write(&program, other).expect("write it anew");
        let _ = run(Command::new("chmod").arg("755").arg(&program)).expect_done();
    };
    changed(bytes.len() - 1);
    away.expect("check", &[]);
    changed(note + 4);
    away.expect("check", &[("program", "its build-id differs")]);
    away.expect("ignore", &[]);
    fs::write(&program, b"short").expect("write it anew");
    away.expect("check", &[("program", "it has 5 bytes here")]);
}
