//! Mounts that are locked in a user namespace and lie on one that is not, as `mount --rbind` leaves them: before and after round
//! trips it is tried, in a copy of each namespace, which of them can be unmounted.

use floe_suite::{Host, Mounting, PID_METHODS, WAIT, json};
use std::fs;

/// Says of each mount below a folder whether it can be unmounted, what came last first.
const TRY: &str = "for place in $(cut -d ' ' -f 5 /proc/self/mountinfo | grep \"^$0/\" | tac); do \
    told=$(LC_ALL=C umount -n -l $place 2>&1) && echo ${place#$0/} is free || \
    case $told in *' not mounted.') echo ${place#$0/} is locked;; *) echo $told;; esac; done";

/// What the sandbox's own root mounts: something of the host's, a filesystem with contents and another one on it, terminals.
const TREE: &str = "cd $0; mkdir tree copy further; mount -t tmpfs none tree; cd tree; mkdir path memory pts; \
    mount --bind /usr path; mount -t tmpfs none memory; echo kept > memory/file; mkdir memory/deep memory/again; \
    mount -t tmpfs none memory/deep; mount -t devpts -o newinstance,ptmxmode=666 none pts; cd /;";

/// In a user namespace of its own with a mount namespace of its own.
const INSIDE: &str = "unshare --user --map-root-user --mount --propagation private";

/// A sandbox, and the namespaces in it by the files in which processes of theirs have noted their PIDs.
struct Tried<'a> {
    host: &'a Host,
    mounting: Mounting<'a>,
    spaces: &'a [&'a str],
}

impl<'a> Tried<'a> {
    fn start(host: &'a Host, spaces: &'a [&'a str], script: &str) -> Self {
        let mounting = Mounting::start(host, script);
        Self { host, mounting, spaces }
    }

    /// Runs a command in one of the namespaces.
    fn run(&self, space: &str, command: &[&str]) -> String {
        let noted = fs::read_to_string(self.mounting.folder.join(space)).expect("its PID");
        let pid: i64 = noted.trim().parse().expect("a number");
        let tasks = json(&self.host.done(&["ps", &self.mounting.name, "--json"]));
        let mut all = tasks.as_array().expect("a list").iter();
        let task = all.find(|task| task["pid"] == pid).expect("it runs");
        let outside = task["nspid"][0].to_string();
        self.host.done(&[&["exec", "--pid", &outside, "--"], command].concat())
    }

    /// Which mounts are locked and which are free, in each namespace.
    fn tell(&self) -> Vec<String> {
        let folder = self.mounting.folder.to_str().expect("a plain path");
        let copy = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            TRY,
            folder,
        ];
        let mut all = Vec::new();
        for space in self.spaces {
            let told = self.run(space, &copy);
            all.extend(told.lines().map(|line| format!("{space}: {line}")));
        }
        all.sort();
        all
    }

    fn expect_again(&self, before: &[String]) {
        for method in PID_METHODS.iter().cycle().take(4) {
            let image = self.mounting.save();
            self.host.done(&["restore", "-d", "--pid-method", method, &image]);
            assert_eq!(self.tell(), before, "{method}");
        }
    }
}

fn of(space: &str, kind: &str, all: &str) -> Vec<String> {
    all.split_ascii_whitespace()
        .map(|place| format!("{space}: {place} is {kind}"))
        .collect()
}

fn sorted(all: &[Vec<String>]) -> Vec<String> {
    let mut all = all.concat();
    all.sort();
    all
}

/// What is bound with all below it, some of that once more on a locked one, and mounted there anew; and once more in a user
/// namespace below.
fn bound_with_all_below(host: &Host) {
    let lower = "mount --rbind $0/copy $0/further; mkdir $0/further/own; mount -t tmpfs none $0/further/own; \
        echo $$ > $0/lower; touch $0/ready; sleep 1000";
    let upper = format!(
        "mount --rbind $0/tree $0/copy; mkdir $0/copy/loose; mount -t tmpfs none $0/copy/loose; \
         mount --rbind $0/tree/memory $0/copy/memory/again; echo loose > $0/copy/loose/file; echo $$ > $0/upper; \
         {INSIDE} bash -ec '{lower}' $0 & sleep 1001"
    );
    let quoted = upper.replace('\'', "'\\''");
    let script = format!("{TREE} {INSIDE} bash -ec '{quoted}' $0 & sleep 1001");
    let tried = Tried::start(host, &["upper", "lower"], &script);
    let before = tried.tell();
    let tree = "tree tree/path tree/memory tree/memory/deep tree/pts";
    let on_copy = "copy/path copy/memory copy/memory/deep copy/memory/again/deep copy/pts";
    let expected = [
        of("upper", "locked", tree),
        of("upper", "locked", on_copy),
        of("upper", "free", "copy copy/loose copy/memory/again"),
        of("lower", "locked", tree),
        of("lower", "locked", on_copy),
        of("lower", "locked", "copy copy/loose copy/memory/again"),
        of("lower", "locked", &on_copy.replace("copy", "further")),
        of("lower", "locked", "further/loose further/memory/again"),
        of("lower", "free", "further further/own"),
    ];
    assert_eq!(before, sorted(&expected));
    tried.expect_again(&before);
    let name = &tried.mounting.name;
    let kept = tried.mounting.folder.join("tree/memory/file").display().to_string();
    assert_eq!(host.done(&["exec", name, "--", "cat", &kept]), "kept\n");
    let copy = tried
        .mounting
        .folder
        .join("further/memory/again/file")
        .display()
        .to_string();
    assert_eq!(tried.run("lower", &["cat", &copy]), "kept\n");
}

#[test]
fn what_is_bound_with_all_below_stays_locked() {
    bound_with_all_below(&Host::new());
}

#[test]
fn what_an_ordinary_user_binds_with_all_below_stays_locked() {
    bound_with_all_below(&Host::of_ordinary_user());
}

/// The first one shows what the host has, and no mount of the sandbox's own does.
#[test]
fn directories_of_the_host_are_bound_with_what_is_locked_on_them() {
    let host = Host::new();
    let inside = "mount --rbind $0/tree $0/copy; mount --rbind /dev $0/dev; mount --rbind /sys $0/sys; \
        mount --rbind /sys $0/system; echo $$ > $0/inside; \
        touch $0/ready; sleep 1000";
    let script = format!(
        "cd $0; mkdir tree copy dev sys system; mount --bind /usr tree; mount -t tmpfs none tree/share; cd /; \
         {INSIDE} bash -ec '{inside}' $0 & sleep 1001"
    );
    let tried = Tried::start(&host, &["inside"], &script);
    let before = tried.tell();
    for expected in [
        "copy is free",
        "copy/share is locked",
        "dev is free",
        "dev/shm is locked",
    ] {
        assert!(before.contains(&format!("inside: {expected}")), "{before:?}");
    }
    tried.expect_again(&before);
}

/// One on which something is locked can't be joined by others, wherever they show that.
#[test]
fn mounts_on_which_some_are_locked_share_others() {
    let host = Host::new();
    let lower = "mount --rbind $0/tree $0/further; echo $$ > $0/lower; touch $0/ready; sleep 1000";
    let upper = format!(
        "mount --make-rshared $0/tree; mount --rbind $0/tree $0/copy; echo $$ > $0/upper; \
         unshare --user --map-root-user --mount --propagation slave bash -ec '{lower}' $0 & sleep 1001"
    );
    let quoted = upper.replace('\'', "'\\''");
    let script = format!("{TREE} {INSIDE} bash -ec '{quoted}' $0 & sleep 1001");
    let tried = Tried::start(&host, &["upper", "lower"], &script);
    let before = tried.tell();
    let below = "path memory memory/deep pts";
    let on = |place: &str| -> String { below.split(' ').map(|name| format!("{place}/{name} ")).collect() };
    let expected = [
        of("upper", "locked", &on("tree")),
        of("upper", "locked", &on("copy")),
        of("upper", "locked", "tree"),
        of("upper", "free", "copy"),
        of("lower", "locked", &on("tree")),
        of("lower", "locked", &on("copy")),
        of("lower", "locked", &on("further")),
        of("lower", "locked", "tree copy"),
        of("lower", "free", "further"),
    ];
    assert_eq!(before, sorted(&expected));
    tried.expect_again(&before);
    // What one of them gets goes to the others.
    let folder = tried.mounting.folder.display().to_string();
    let mounts = "mount -t tmpfs none $0/copy/pts; cut -d ' ' -f 5 /proc/self/mountinfo | grep -c \"^$0/.*/pts$\"";
    let told = tried.run("upper", &["bash", "-c", mounts, &folder]);
    assert_eq!(told, "4\n");
    let counts = "cut -d ' ' -f 5 /proc/self/mountinfo | grep -c \"^$0/.*/pts$\"";
    let told = tried.run("lower", &["bash", "-c", counts, &folder]);
    assert_eq!(told, "6\n");
}

/// It lies where no path leads to any more.
#[test]
fn what_is_hidden_comes_back_with_what_hides_it() {
    let host = Host::new();
    let inside = "mount --rbind $0/tree $0/copy; echo $$ > $0/inside; touch $0/ready; sleep 1000";
    let script = format!(
        "cd $0; mkdir tree copy; mount -t tmpfs none tree; mkdir -p tree/over/deep; mount -t tmpfs -o ro none tree/over/deep; \
         mount -t tmpfs none tree/over; cd /; {INSIDE} bash -ec '{inside}' $0 & sleep 1001"
    );
    let tried = Tried::start(&host, &["inside"], &script);
    let before = tried.tell();
    for expected in ["copy is free", "copy/over is locked", "tree/over is locked"] {
        assert!(before.contains(&format!("inside: {expected}")), "{before:?}");
    }
    tried.expect_again(&before);
    // It alone is read-only.
    let folder = tried.mounting.folder.to_str().expect("a plain path");
    let written = "for place in $0 $0/tree $0/tree/over $0/copy $0/copy/over; do touch $place/file; done";
    tried.run("inside", &["bash", "-ec", written, folder]);
}

/// Files that what is locked hides can't be read, where that lies on all mounts that show them.
#[test]
fn what_is_hidden_for_good_is_refused() {
    let host = Host::new();
    let script = format!(
        "cd /; {INSIDE} bash -ec 'mount -t tmpfs none /mnt; mkdir /mnt/over; echo hidden > /mnt/over/file; \
         mount -t tmpfs none /mnt/over; exec {INSIDE} bash -c \"{WAIT}\" $0' $0 & sleep 1001"
    );
    refused(&host, &script);
    // Or which lie on the whole of it.
    let host = Host::new();
    let script = format!(
        "cd /; {INSIDE} bash -ec 'mount -t tmpfs none /mnt; echo hidden > /mnt/file; mount -t tmpfs none /mnt; {WAIT}' \
         $0 & sleep 1001"
    );
    refused(&host, &script);
}

fn refused(host: &Host, script: &str) {
    let mounting = Mounting::start(host, script);
    let found = mounting.findings();
    assert!(
        found.contains("mount /mnt (tmpfs)") && found.contains("what hides files of it in a user namespace"),
        "{found}"
    );
}

/// The host's /proc lies below the sandbox's own.
#[test]
fn what_shares_mounts_below_a_locked_one_is_refused() {
    let host = Host::new();
    let script = format!("cd /; {INSIDE} bash -ec 'mount --make-rshared /; {WAIT}' $0 & sleep 1001");
    let mounting = Mounting::start(&host, &script);
    let found = mounting.findings();
    assert!(
        found.contains("mount /proc (proc)") && found.contains("lies below another one that is locked there"),
        "{found}"
    );
    let other = Host::new();
    let mounting = Mounting::start(&other, &script.replace("make-rshared", "make-rprivate"));
    other.done(&["checkpoint", "--dry-run", &mounting.name]);
}
