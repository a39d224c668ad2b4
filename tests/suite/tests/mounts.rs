//! Mounts made inside of a sandbox: what they show that is the host's, what the user gives in its place, and what can't be
//! made again.

use floe_suite::{Host, Mounting, PID_METHODS, Traces, Victim, WAIT, until};
use std::{
    fs,
    process::{Child, Command, Stdio},
};

#[test]
fn what_is_not_here_any_more_can_be_given() {
    let host = Host::new();
    let outside = host.path("outside");
    fs::create_dir(&outside).expect("a folder");
    let script = format!(
        "mkdir $0/shown; mount --bind {} $0/shown; cd $0/shown; {WAIT}",
        outside.display()
    );
    let mounting = Mounting::start(&host, &script);
    let image = mounting.save();
    fs::rename(&outside, host.path("moved")).expect("move it");
    let shown = mounting.folder.join("shown").display().to_string();
    for arguments in [&["restore", "-d", &image][..], &["restore", "--dry-run", &image]] {
        let error = host.floe(arguments).expect_failed();
        let told = format!("mount {shown}: it shows {}, which is not here", outside.display());
        assert!(
            error.contains(&told) && error.contains(&format!("--mount {shown}=PATH")),
            "{error}"
        );
    }
    assert!(host.sandboxes().is_empty());
    let moved = host.path("moved");
    fs::write(moved.join("file"), "here").expect("write");
    let given = format!("{shown}={}", moved.display());
    let in_vain = format!("{shown}/elsewhere={}", moved.display());
    let error = host
        .floe(&["restore", "-d", "--mount", &given, "--mount", &in_vain, &image])
        .expect_failed();
    assert!(
        error.contains("the image has no such mount") && error.contains("elsewhere"),
        "{error}"
    );
    let file = format!("{shown}={}", moved.join("file").display());
    let error = host.floe(&["restore", "-d", "--mount", &file, &image]).expect_failed();
    assert!(error.contains("another kind of file"), "{error}");
    host.done(&["restore", "-d", "--mount", &given, &image]);
    let text = host.done(&["exec", &mounting.name, "--", "cat", &format!("{shown}/file")]);
    assert_eq!(text, "here");
}

#[test]
fn what_is_no_mount_or_is_given_twice_is_wrong_usage() {
    let host = Host::new();
    let error = host.floe(&["restore", "--mount", "data=/srv", "x"]);
    assert_eq!(error.status, 2);
    assert!(error.err.contains("is not NAME=PATH"), "{}", error.err);
    let error = host
        .floe(&["restore", "--mount", "/a=/b", "--mount", "/a=/c", "x"])
        .expect_failed();
    assert!(error.contains("\"/a\" is given twice"), "{error}");
}

#[test]
fn a_mount_point_that_is_not_here_stands_in_the_way() {
    let host = Host::new();
    let mounting = Mounting::start(&host, &format!("mkdir $0/here; mount -t tmpfs none $0/here; {WAIT}"));
    let image = mounting.save();
    fs::remove_dir(mounting.folder.join("here")).expect("remove it");
    let error = host.floe(&["restore", "-d", &image]).expect_failed();
    assert!(
        error.contains("/here: this host can't open the place that it is mounted on"),
        "{error}"
    );
    assert!(host.sandboxes().is_empty());
}

#[test]
fn a_restore_that_fails_leaves_no_mount() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "mounts-tmpfs", &[], &[]);
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "mounts-tmpfs", "-o", &image]);
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let (before, traces) = (mounts(), Traces::look(&host, &["mounts-tmpfs"], &[]));
    for stage in ["seed", "mounts", "contents", "files", "verify", "thaw"] {
        let mut command = host.command(&["restore", "-d", &image]);
        let error = floe_suite::run(command.env("FLOE_FAIL_AT", stage)).expect_failed();
        assert!(error.contains(stage), "{error}");
        traces.expect_again(&host, &["mounts-tmpfs"], &[], stage);
        assert_eq!(mounts(), before, "{stage}");
    }
    host.done(&["restore", "-d", &image]);
    victim.check("restored at last");
}

#[test]
fn each_kind_that_is_not_carried_is_told() {
    let host = Host::new();
    let script = "cd $0; mkdir memory huge cgroup copy deleted from; mount -t ramfs none memory; mount --bind from deleted; \
        rmdir from; mount -t hugetlbfs none huge || mount -t ramfs none huge; touch ready; sleep 1000";
    let mounting = Mounting::start(&host, script);
    let findings = mounting.findings();
    let told = [
        ("/memory (ramfs)", "ramfs has no limit"),
        ("/huge (", "; unmount it"),
        ("/deleted (", "was deleted"),
    ];
    for (object, reason) in told {
        let found = findings
            .lines()
            .any(|line| line.contains(object) && line.contains(reason));
        assert!(found, "{object}: {findings}");
    }
}

/// What the overlay would be made of is hidden, or gone.
#[test]
fn an_overlay_without_its_layers_is_refused() {
    let host = Host::new();
    let script = "cd $0; mkdir over memory; mount -t tmpfs none memory; mkdir memory/upper memory/work; \
        mount -t overlay -o lowerdir=/usr/share,upperdir=$0/memory/upper,workdir=$0/memory/work none over; \
        umount -l memory; touch ready; sleep 1000";
    let findings = Mounting::start(&host, script).findings();
    assert!(
        findings.contains("/over (overlay): a layer of it is not at ") && findings.contains("/memory/upper any more"),
        "{findings}"
    );
}

/// All that the host has mounted shares mounts then, also what lies below other mounts at one place, as the host's /proc does.
#[test]
fn all_mounts_may_share() {
    let host = Host::new();
    let script = "mount --make-rshared /; mkdir $0/t; mount -t tmpfs none $0/t; mount --make-rslave /proc; \
        touch $0/ready; sleep 1000";
    let mounting = Mounting::start(&host, script);
    let told = || {
        let text = host.done(&["exec", &mounting.name, "--", "cat", "/proc/self/mountinfo"]);
        let lines = text.lines().map(|line| {
            let words = line.split(' ').skip(3).take(4);
            words
                .map(|word| word.split(':').next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    };
    let before = told();
    assert!(
        before.iter().filter(|words| words[3] == "shared").count() > 3,
        "{before:?}"
    );
    let image = mounting.save();
    host.done(&["restore", "-d", &image]);
    assert_eq!(told(), before);
}

/// And what the program has open from before is in mounts that are gone.
#[test]
fn another_root_is_carried() {
    let host = Host::new();
    let script = "cd $0; mkdir root; mount -t tmpfs none root; cd root; mkdir -p usr old ./$0 proc dev; mkfifo fifo; \
        ln -s usr/bin usr/lib usr/lib64 .; mount --rbind /usr usr; mount --bind $0 ./$0; mount -t proc proc proc; \
        touch dev/null; mount --bind /dev/null dev/null; pivot_root . old; umount -l /old; \
        touch $0/ready; echo $$ > /file; exec sleep 1000";
    let mounting = Mounting::start(&host, script);
    for method in PID_METHODS {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
    }
    assert_eq!(host.done(&["exec", &mounting.name, "--", "cat", "/file"]), "1\n");
    let input = host.done(&["exec", &mounting.name, "--", "readlink", "/proc/1/fd/0"]);
    assert_eq!(input, "/dev/null\n");
}

/// A process that the test ends.
struct Started(Child);

impl Started {
    fn new(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("start it"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Waits until it executes a program of this name.
    fn await_program(&self, name: &str) {
        let path = format!("/proc/{}/comm", self.0.id());
        until("the program", || {
            fs::read_to_string(&path).is_ok_and(|comm| comm.trim() == name)
        });
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The tree has what is mounted in the namespace that floe is in.
#[test]
fn mounts_that_come_from_outside_are_refused() {
    let script = "mount --make-rshared /; exec sleep 1000";
    let outer = Started::new("unshare", &["--mount", "sh", "-c", script]);
    outer.await_program("sleep");
    let outer_pid = outer.pid();
    let enter = ["nsenter", "--mount", "-t", &outer_pid];
    let host = Host::behind(&enter);
    let slave = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "setsid",
        "sleep",
        "1000",
    ];
    let tree = Started::new(enter[0], &[&enter[1..], &slave].concat());
    tree.await_program("sleep");
    let error = host
        .floe(&["checkpoint", "--dry-run", "--pid", &tree.pid()])
        .expect_failed();
    assert!(
        error.contains("mounts come to it from outside of the tree") && error.contains("--make-rprivate"),
        "{error}"
    );
}

/// And the program that runs lies in it.
#[test]
fn a_tmpfs_goes_from_image_to_image() {
    let host = Host::new();
    let script = "cd $0; mkdir t; mount -t tmpfs -o size=8m none t; cd t; echo kept > file; cp /bin/sleep program; \
        touch $0/ready; exec ./program 1000";
    let mounting = Mounting::start(&host, script);
    for method in PID_METHODS {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, "--files", "strict", &image]);
    }
    let file = mounting.folder.join("t/file").display().to_string();
    assert_eq!(host.done(&["exec", &mounting.name, "--", "cat", &file]), "kept\n");
    assert!(!mounting.folder.join("t/file").exists(), "it is on the host");
}

/// In a user namespace of their own they may mount, too.
#[test]
fn mounts_of_ordinary_users_are_carried() {
    let host = Host::of_ordinary_user();
    let script = "cd $0; mkdir t shown p; mount -t tmpfs -o size=4m none t; echo kept > t/file; mkdir t/inner; \
        mount -t tmpfs -o ro none t/inner; mount --bind t shown; mount -t proc -o subset=pid none p; cd t; \
        touch $0/ready; sleep 1000";
    let mounting = Mounting::start(&host, script);
    for method in PID_METHODS {
        let image = mounting.save();
        host.done(&["restore", "-d", "--pid-method", method, &image]);
    }
    let file = mounting.folder.join("shown/file").display().to_string();
    assert_eq!(host.done(&["exec", &mounting.name, "--", "cat", &file]), "kept\n");
    let listed = host.done(&[
        "exec",
        &mounting.name,
        "--",
        "ls",
        &mounting.folder.join("p").display().to_string(),
    ]);
    assert!(
        listed.lines().any(|line| line == "1") && !listed.contains("version"),
        "{listed}"
    );
}
