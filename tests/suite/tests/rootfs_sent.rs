//! `floe migrate --files rootfs`: the tree of a root directory goes with a sandbox, as it is when that stands still, and takes the
//! place of the one at the target only when the sandbox is to run there.

use crate::rootless::Delegated;
use floe_suite::{
    Elsewhere, Host, ORDINARY, json, make_rootfs,
    migration::{Point, Receiver, Way, children, expect_one, kill_all, settle},
    run, skip, until,
};
use std::{
    fs,
    os::unix::fs::{chown, symlink},
    path::PathBuf,
    process::Command,
};

const ROOTFS: [&str; 2] = ["--files", "rootfs"];

/// A sandbox in a root directory in a folder that is empty elsewhere.
struct Rooted {
    here: Host,
    folder: PathBuf,
    root: PathBuf,
    name: String,
}

impl Rooted {
    fn new() -> Self {
        let here = Host::new();
        let folder = here.folder("roots");
        let root = folder.join("root");
        make_rootfs(&root);
        fs::write(root.join("program.py"), include_str!("rootfs_sent.py")).expect("a program");
        let name = here.name("rooted");
        let rooted = Self {
            here,
            folder,
            root,
            name,
        };
        rooted.start(&rooted.name);
        until("the program", || rooted.root.join("srv/many").exists());
        rooted
    }

    fn start(&self, name: &str) {
        let root = self.root.display().to_string();
        let line = ["run", "-d", "--net", "none", "--name", name, "--rootfs", &root];
        let over = ["--tmpfs", "/tmp", "--", "python3", "/program.py"];
        self.here.done(&[&line[..], &over].concat());
    }

    /// What the program says of its files, from where it runs.
    fn is_right(&self, host: &Host, when: &str) {
        let inside = |script: &str| host.done(&["exec", &self.name, "--", "bash", "-c", script]);
        drop(inside("rm -f /srv/answer; : > /srv/ask"));
        until(when, || !inside("cat /srv/answer 2>/dev/null || :").is_empty());
        assert_eq!(inside("cat /srv/answer"), "right", "{when}");
    }

    fn receive<'a>(&self, host: &'a Host) -> Receiver<'a> {
        self.receive_with(host, "")
    }

    fn receive_with<'a>(&self, host: &'a Host, fail_at: &str) -> Receiver<'a> {
        let roots = self.folder.display().to_string();
        receive(host, &[&ROOTFS[..], &["--roots", &roots]].concat(), fail_at)
    }

    fn migrate(&self, from: &Host, address: &str, options: &[&str]) -> serde_json::Value {
        let line = [&["migrate", &self.name, address, "--json"][..], &ROOTFS, options].concat();
        json(&from.done(&line))
    }

    fn fails(&self, address: &str) -> String {
        let line = [&["migrate", &self.name, address][..], &ROOTFS].concat();
        self.here.floe(&line).expect_failed()
    }
}

fn receive<'a>(host: &'a Host, options: &[&str], fail_at: &str) -> Receiver<'a> {
    let socket = format!("unix:{}", host.path("receive.sock").display());
    Receiver::start_with(host, &socket, options, |command| {
        if !fail_at.is_empty() {
            command.env("FLOE_FAIL_AT", fail_at);
        }
    })
}

/// All there is to know of a tree, but of what is bound anew and where.
const DESCRIBE: &str = r#"
import os, stat, sys
os.chdir(sys.argv[1])
inodes = {}
for folder, folders, files in os.walk(b"."):
    folders.sort()
    for path in [folder] + sorted(folder + b"/" + name for name in files):
        seen = os.lstat(path)
        if path in (b"./srv", b"./srv/socket"):
            continue
        first = inodes.setdefault(seen.st_ino, path)
        content = hash(open(path, "rb").read()) if stat.S_ISREG(seen.st_mode) else None
        target = os.readlink(path) if stat.S_ISLNK(seen.st_mode) else None
        marks = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(os.listxattr(path, follow_symlinks=False))}
        size = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size
        print(path, first, oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_rdev, size, content, target, marks)
"#;

fn describe(rooted: &Rooted, elsewhere: Option<&Elsewhere>) -> String {
    let enter = elsewhere.map(Elsewhere::enter).unwrap_or_default();
    let line = ["env", "PYTHONHASHSEED=1", "python3", "-c", DESCRIBE];
    let mut words = enter.iter().map(String::as_str).chain(line);
    let mut command = Command::new(words.next().expect("a program"));
    run(command.args(words).arg(&rooted.root)).expect_done()
}

fn names(rooted: &Rooted, elsewhere: &Elsewhere) -> String {
    elsewhere.shell(&format!("ls -A {}", rooted.folder.display()))
}

#[test]
fn all_of_it_comes_as_it_is() {
    let rooted = Rooted::new();
    let elsewhere = Elsewhere::new(&rooted.folder);
    let (here, there) = (&rooted.here, &elsewhere.host());
    let receiver = rooted.receive(there);
    let looked = rooted.migrate(here, receiver.address(), &["--dry-run"]);
    assert_eq!(
        (&looked["files"], looked["files_there"].as_u64() > Some(0)),
        (&0.into(), true)
    );
    until("nothing is left by a dry run", || names(&rooted, &elsewhere).is_empty());
    rooted.is_right(here, "looked at");
    let first = rooted.migrate(here, receiver.address(), &[]);
    assert!(first["files"].as_u64() > Some(100), "{first}");
    expect_one([here, there], &rooted.name, "moved");
    rooted.is_right(there, "moved");
    assert_eq!(names(&rooted, &elsewhere), "root\n");
    // Back there is an older one, of which all is taken that is the same.
    fs::write(rooted.root.join("srv/not-there"), "").expect("write");
    let back = rooted.receive(here);
    let second = rooted.migrate(there, back.address(), &["--streams", "2", "--rounds", "2"]);
    assert!(second["files"].as_u64() < Some(40), "{second}");
    assert!(second["files_there"].as_u64() > Some(100), "{second}");
    rooted.is_right(here, "back");
    until("the old one is gone", || {
        fs::read_dir(&rooted.folder).is_ok_and(|all| all.count() == 1)
    });
    until("nothing is left", || !here.path("state/.migrations").exists());
    assert!(!rooted.root.join("srv/not-there").exists(), "it is no more");
    expect_one([here, there], &rooted.name, "back");
}

#[test]
fn what_changes_meanwhile_comes_as_it_is_in_the_end() {
    let rooted = Rooted::new();
    let elsewhere = Elsewhere::new(&rooted.folder);
    let (here, there) = (&rooted.here, &elsewhere.host());
    let data = rooted.root.join("srv/data");
    let _receiver = rooted.receive(there);
    fs::write(rooted.root.join("srv/idle"), "").expect("write");
    fs::create_dir(rooted.root.join("srv/kept")).expect("a folder");
    fs::create_dir(here.path("outside")).expect("a folder");
    let outside = here.path("outside");
    let changing = data.clone();
    let change = move || {
        let at = |name: &str| changing.join(name);
        let shell = |line: &str| {
            let done = run(Command::new("sh").current_dir(&changing).args(["-ec", line]));
            assert_eq!(done.status, 0, "{line}: {}", done.err);
        };
        // The same size and time as before.
        fs::write(at("file"), "CONTENT").expect("write");
        shell("touch -d 2001-02-03T04:05:06.789Z file; rm full/other; ln file another; ln fifo second");
        shell("rm void; mkdir void; echo in > void/in; rm -r empty; echo x > empty; chmod 750 full; chown 7:8 hidden");
        shell("mv sparse moved; mkfifo sparse; mv full/deep deep; rm capable; touch new; rm link; ln -s dangling link");
        // What was a directory leads out now.
        fs::remove_dir(at("../kept")).expect("remove");
        symlink(&outside, at("../kept")).expect("a link");
        fs::write(outside.join("file"), "outside").expect("write");
    };
    let point = Point {
        frame: "image",
        number: 1,
        passes: true,
    };
    let socket = there.path("receive.sock");
    let way = Way::watch(here.path("way.sock"), &socket, point, Box::new(change));
    let summary = rooted.migrate(here, &way.address(), &[]);
    assert!(summary["files"].as_u64() > Some(100), "{summary}");
    expect_one([here, there], &rooted.name, "moved");
    assert_eq!(describe(&rooted, Some(&elsewhere)), describe(&rooted, None));
    let left = fs::read_dir(here.path("outside")).expect("list").count();
    assert_eq!(left, 1, "nothing came through the link");
}

/// Sizes and times of files tell nothing of what is written while they are looked at: it writes all the time.
#[test]
fn it_writes_while_it_goes_over() {
    let rooted = Rooted::new();
    let elsewhere = Elsewhere::new(&rooted.folder);
    let (here, there) = (&rooted.here, &elsewhere.host());
    let (receiver, back) = (rooted.receive(there), rooted.receive(here));
    for round in 0..2 {
        let options = ["--bandwidth", "60m", "--rounds", "1"];
        rooted.migrate(here, receiver.address(), if round == 0 { &options } else { &[] });
        rooted.is_right(there, &format!("there, round {round}"));
        rooted.migrate(there, back.address(), &[]);
        rooted.is_right(here, &format!("back, round {round}"));
    }
}

/// A target that has an older tree, which is as it was whatever fails.
struct Older {
    // What is there is ended before the namespace is gone in which it is.
    there: Host,
    rooted: Rooted,
    elsewhere: Elsewhere,
    before: String,
}

impl Older {
    fn new() -> Self {
        let rooted = Rooted::new();
        let elsewhere = Elsewhere::new(&rooted.folder);
        let there = elsewhere.host();
        elsewhere.shell(&format!(
            "mkdir {0}; cd {0}; echo old > old; ln -s old link",
            rooted.root.display()
        ));
        let before = describe(&rooted, Some(&elsewhere));
        Self {
            rooted,
            elsewhere,
            there,
            before,
        }
    }

    fn is_as_before(&self, when: &str) {
        let Self {
            rooted,
            elsewhere,
            there,
            before,
        } = self;
        until(&format!("{when}: nothing is left"), || {
            names(rooted, elsewhere) == "root\n" && !there.path("state/.migrations").exists()
        });
        assert_eq!(describe(rooted, Some(elsewhere)), *before, "{when}");
        expect_one([&rooted.here, there], &rooted.name, when);
        rooted.is_right(&rooted.here, when);
    }

    /// The connection breaks at a frame, and all of the target's floe is killed, or nobody.
    fn breaks(&self, (frame, number, kills, by_hand): (&'static str, usize, bool, bool)) {
        let (rooted, here, there, elsewhere) = (&self.rooted, &self.rooted.here, &self.there, &self.elsewhere);
        let when = format!("{frame} {number}, killed: {kills}, by hand: {by_hand}");
        let receiver = rooted.receive(there);
        let pid = receiver.pid();
        let act = move || {
            if kills {
                kill_all(&[children(pid), vec![pid]].concat());
            }
        };
        let point = Point {
            frame,
            number,
            passes: false,
        };
        let socket = there.path("receive.sock");
        let way = Way::make(here.path("way.sock"), &socket, point, Box::new(act));
        let options = [&way.address()[..], "--timeout", "5", "--rounds", "0"];
        let line = [&["migrate", &rooted.name][..], &options, &ROOTFS].concat();
        assert_ne!(here.floe(&line).status, 0, "{when}");
        drop(receiver);
        if by_hand {
            until("it is held", || there.state(&rooted.name) == "held");
            assert!(names(rooted, elsewhere).contains(".floe-"), "{when}");
            there.done(&["receive", "--abort", &rooted.name]);
            assert_eq!(names(rooted, elsewhere), "root\n", "{when}");
        }
        // Whoever is started next removes what one that was killed has left.
        drop(fs::remove_file(&socket));
        let _next = rooted.receive(there);
        assert_eq!(settle(here).status, 0, "{when}");
        self.is_as_before(&when);
    }

    fn moves_at_last(&self) {
        let Self {
            rooted,
            elsewhere,
            there,
            ..
        } = self;
        let receiver = rooted.receive(there);
        rooted.migrate(&rooted.here, receiver.address(), &[]);
        rooted.is_right(there, "moved at last");
        until("the old one is gone", || names(rooted, elsewhere) == "root\n");
        let look = format!("cd {}; ls old link 2>&1 || :", rooted.root.display());
        assert_eq!(elsewhere.shell(&look).matches("No such").count(), 2);
    }
}

#[test]
fn nothing_is_changed_where_it_can_t_be_built() {
    let older = Older::new();
    for stage in ["open", "tree", "verify"] {
        let receiver = older.rooted.receive_with(&older.there, stage);
        let error = older.rooted.fails(receiver.address());
        assert!(error.contains("runs on here"), "{stage}: {error}");
        older.is_as_before(stage);
    }
    older.moves_at_last();
}

#[test]
fn nothing_is_changed_by_a_break() {
    let older = Older::new();
    for point in [
        ("lacking", 1),
        ("piece", 1),
        ("image", 1),
        ("lacking", 2),
        ("prepared", 1),
    ] {
        older.breaks((point.0, point.1, false, false));
    }
    older.moves_at_last();
}

#[test]
fn nothing_is_changed_by_a_kill() {
    let older = Older::new();
    for point in [("piece", 100), ("accepted", 1), ("lacking", 2), ("prepared", 1)] {
        older.breaks((point.0, point.1, true, false));
    }
    older.breaks(("prepared", 1, true, true));
    older.moves_at_last();
}

/// The connection is lost, or floe is killed, when the source has decided: it runs there, in its tree, where that belongs.
#[test]
fn what_was_decided_is_done_later() {
    let rooted = Rooted::new();
    let elsewhere = Elsewhere::new(&rooted.folder);
    let (here, there) = (&rooted.here, &elsewhere.host());
    elsewhere.shell(&format!("mkdir {0}; echo old > {0}/old", rooted.root.display()));
    let receiver = rooted.receive(there);
    let pid = receiver.pid();
    let point = Point {
        frame: "decided",
        number: 1,
        passes: false,
    };
    let kill = move || kill_all(&children(pid));
    let way = Way::make(
        here.path("way.sock"),
        &there.path("receive.sock"),
        point,
        Box::new(kill),
    );
    let summary = rooted.migrate(here, &way.address(), &["--timeout", "5"]);
    assert_eq!(summary["runs_there"], true, "{summary}");
    rooted.is_right(there, "moved");
    until("the old one is gone", || names(&rooted, &elsewhere) == "root\n");
    until("nothing is left", || !there.path("state/.migrations").exists());
    expect_one([here, there], &rooted.name, "moved");
}

#[test]
fn what_may_not_be_is_told_before_anything_is_made() {
    let rooted = Rooted::new();
    let elsewhere = Elsewhere::new(&rooted.folder);
    let (here, there) = (&rooted.here, &elsewhere.host());
    let roots = rooted.folder.display().to_string();
    let elsewhere_roots = there.folder("others").display().to_string();
    let refused = |options: &[&str], expected: &str| {
        let receiver = receive(there, options, "");
        let error = rooted.fails(receiver.address());
        assert!(error.contains(expected), "{options:?}: {error}");
        assert_eq!(names(&rooted, &elsewhere), "", "{options:?}");
    };
    refused(&[], "takes no files");
    refused(&["--files", "used"], "not its root tree");
    refused(
        &["--files", "rootfs", "--roots", &elsewhere_roots],
        "below no directory",
    );
    let line = ["receive", "--listen", "unix:/nowhere", "--files", "rootfs"];
    assert_eq!(there.floe(&line).status, 2, "without --roots");
    // It can be elsewhere there.
    let given = format!("/={elsewhere_roots}/deep/root");
    let options = ["--files", "rootfs", "--roots", &elsewhere_roots, "--mount", &given];
    refused(&options, "deep can't be opened");
    fs::create_dir(there.path("others/deep")).expect("a folder");
    chown(there.path("others/deep"), Some(12), None).expect("its owner");
    refused(&options, "others may write");
    fs::remove_dir(there.path("others/deep")).expect("remove");
    symlink("/etc", there.path("others/deep")).expect("a link");
    refused(&options, "deep can't be opened");
    fs::remove_file(there.path("others/deep")).expect("remove");
    // What is there can't always go.
    for (make, undo, expected) in [
        ("echo > root", "rm root", "something else than a directory"),
        ("ln -s /etc root", "rm root", "something else than a directory"),
        (
            "mkdir root; mount -t tmpfs tmpfs root",
            "umount root; rmdir root",
            "something is mounted there",
        ),
        (
            "mount -o remount,size=1m .",
            "mount -o remount,size=1g .",
            "its filesystem has room for",
        ),
        (
            "mkdir -p root/a; mount -t tmpfs tmpfs root/a",
            "umount root/a; rm -r root",
            "is mounted in it",
        ),
    ] {
        elsewhere.shell(&format!("cd {roots}; {make}"));
        let receiver = rooted.receive(there);
        let error = rooted.fails(receiver.address());
        assert!(error.contains(expected), "{make}: {error}");
        elsewhere.shell(&format!("cd {roots}; {undo}"));
    }
    // Nor can an ordinary user make everything.
    let enter = elsewhere.enter();
    let user = Host::ordinary_behind(&enter.iter().map(String::as_str).collect::<Vec<_>>());
    let options = ["--insecure", "--files", "rootfs", "--roots", &roots];
    let receiver = Receiver::start_with(&user, "127.0.0.1:0", &options, |_| {});
    let line = [
        &["migrate", &rooted.name, receiver.address(), "--insecure"][..],
        &ROOTFS,
    ]
    .concat();
    let error = here.floe(&line).expect_failed();
    assert!(
        error.contains("file /: it belongs to 0:0, to whom only root can give it"),
        "{error}"
    );
    assert!(
        error.contains("/srv/data/device: it is a device, which only root"),
        "{error}"
    );
    // Another one runs in it.
    let other = here.name("other");
    rooted.migrate(here, rooted.receive(there).address(), &[]);
    rooted.is_right(there, "moved");
    fs::remove_dir_all(rooted.root.join("srv")).expect("remove");
    fs::create_dir(rooted.root.join("srv")).expect("a folder");
    rooted.start(&other);
    let receiver = rooted.receive(there);
    let line = [&["migrate", &other, receiver.address()][..], &ROOTFS].concat();
    let error = here.floe(&line).expect_failed();
    assert!(error.contains("has it as its root directory"), "{error}");
    rooted.is_right(there, "in use");
    let bare = here.name("bare");
    here.done(&["run", "-d", "--name", &bare, "--", "sleep", "1000"]);
    let line = [&["migrate", &bare, receiver.address()][..], &ROOTFS].concat();
    let error = here.floe(&line).expect_failed();
    assert!(error.contains("--files used sends what it uses"), "{error}");
}

/// An ordinary user's tree, which is theirs there too, at another place.
#[test]
fn of_an_ordinary_user() {
    let Some((_delegated, here, there)) = Delegated::with_hosts() else {
        skip("no cgroup version 2 is mounted");
        return;
    };
    let [root, roots] = [here.path("root"), there.folder("roots")].map(|path| path.display().to_string());
    make_rootfs(&here.path("root"));
    let owner = format!("{ORDINARY}:{ORDINARY}");
    assert_eq!(run(Command::new("chown").args(["-hR", &owner, &root])).status, 0);
    assert_eq!(
        run(Command::new("chmod").args(["555", &format!("{root}/etc")])).status,
        0
    );
    let name = here.name("user");
    let script = "n=0; while :; do n=$((n+1)); echo $n > /srv/count; sleep 0.02; done";
    let line = ["run", "-d", "--net", "none", "--name", &name, "--rootfs", &root];
    here.done(&[&line[..], &["--", "bash", "-c", script]].concat());
    let given = format!("/={roots}/other");
    let options = [&ROOTFS[..], &["--roots", &roots, "--mount", &given]].concat();
    let receiver = receive(&there, &options, "");
    let line = [&["migrate", &name, receiver.address(), "--json"][..], &ROOTFS].concat();
    let summary = json(&here.done(&line));
    assert!(summary["files"].as_u64() > Some(100), "{summary}");
    expect_one([&here, &there], &name, "moved");
    let count = || fs::read_to_string(there.path("roots/other/srv/count")).unwrap_or_default();
    let before = count();
    until("it counts on there", || !count().is_empty() && count() != before);
    let left = fs::read_dir(there.path("roots")).expect("list").count();
    assert_eq!(left, 1, "nothing but its tree");
}
