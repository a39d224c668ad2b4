//! Every victim goes through the same: checkpoint and restore under its own name, again into another sandbox, with both
//! ways of choosing PIDs, and a checkpoint that lets it run on. Afterwards it must find itself as it was; and it must be
//! one that would notice.

use floe_suite::{Host, PID_METHODS, Portrait, Victim, enter_own_network, run};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn survives(name: &str) {
    survives_on(&Host::new(), name);
}

/// No two looks are alike: timers make threads (SIGEV_THREAD), with their stacks, whenever they go off; mappings come and go.
const RESTLESS: [&str; 4] = ["memory-comes", "memory-in-motion", "memory-meanwhile", "posix-timers"];

fn round_trip(victim: &mut Victim<'_>, name: &str, into: &str, method: &str) {
    if RESTLESS.contains(&name) {
        victim.round_trip_unseen(into, method);
    } else {
        victim.round_trip(into, method);
    }
}

fn survives_on(host: &Host, name: &str) {
    survives_with(host, name, &[]);
}

/// They have ports that the kernel chose, which it may give to others of the host while they are away, or devices.
const WITH_PORTS: [&str; 25] = [
    "epoll-targets",
    "files-kinds",
    "networks",
    "networks-several",
    "packet-filter",
    "packet-filter-legacy",
    "queueing",
    "sockets-connecting",
    "sockets-ended",
    "sockets-error-queue",
    "sockets-errors",
    "sockets-filters",
    "sockets-flight",
    "sockets-inet",
    "sockets-multicast",
    "sockets-netlink",
    "sockets-options",
    "sockets-packet",
    "sockets-raw",
    "sockets-tcp",
    "sockets-udp",
    "sockets-udp-cork",
    "sockets-unaccepted",
    "sockets-urgent",
    "tun",
];

/// The options by which a victim gets the network, or the cgroups, that it needs.
fn options(name: &str) -> &'static [&'static str] {
    if WITH_PORTS.contains(&name) {
        &["--net", "none"]
    } else if name == "cgroups-limits" {
        &["--pids", "50", "--memory", "200m", "--cpus", "2"]
    } else if name == "cpu-level" {
        &["--cpu", "x86-64-v2"]
    } else {
        &[]
    }
}

fn survives_with(host: &Host, name: &str, arguments: &[&str]) {
    survives_as(host, name, (options(name), arguments));
}

fn survives_as(host: &Host, name: &str, (options, arguments): (&[&str], &[&str])) {
    let mut victim = Victim::start(host, name, options, arguments);
    round_trip(&mut victim, name, name, PID_METHODS[0]);
    round_trip(&mut victim, name, "another", PID_METHODS[1]);
    victim.check("after two round trips without a check between");
    let image = host.path("running.floe");
    host.done(&[
        "checkpoint",
        "another",
        "--leave-running",
        "-o",
        image.to_str().expect("a plain path"),
    ]);
    victim.check("after a checkpoint that let it run on");
    round_trip(&mut victim, name, name, PID_METHODS[1]);
    victim.check("after a round trip between two checks");
}

/// A victim that is PID 1 of a PID namespace below the sandbox's, and calls everybody by other numbers than the image.
fn survives_below(name: &str) {
    let below = ["--", "unshare", "--fork", "--pid", "setsid"];
    survives_as(&Host::new(), name, (&[options(name), &below].concat(), &[]));
}

fn notices(name: &str) {
    let host = Host::new();
    let verdict = Victim::start(&host, name, options(name), &["--sabotage"]).verdict();
    assert!(
        verdict.starts_with("FAIL"),
        "{name} does not notice that its state is damaged: {verdict}"
    );
}

macro_rules! victims {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(mod $test {
            #[test]
            fn survives() {
                super::survives($name);
            }

            #[test]
            fn notices() {
                super::notices($name);
            }
        })+
    };
}

macro_rules! victims_below {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            survives_below($name);
        })+
    };
}

victims_below! {
    files_signals_in_a_pid_namespace_below "files-signals",
    mqueues_in_a_pid_namespace_below "mqueues",
    signals_pending_in_a_pid_namespace_below "signals-pending",
}

victims! {
    call_dispatch "call-dispatch",
    bpf_maps "bpf-maps",
    clocks_go_on "clocks-go-on",
    clone_sharing "clone-sharing",
    cpu_level "cpu-level",
    credentials "credentials",
    descriptors_many "descriptors-many",
    epoll_targets "epoll-targets",
    fifos "fifos",
    files_chroot "files-chroot",
    files_deleted "files-deleted",
    files_deleted_program "files-deleted-program",
    files_deleted_directories "files-deleted-directories",
    files_devices "files-devices",
    files_directories "files-directories",
    files_events "files-events",
    files_inherited "files-inherited",
    cgroups_limits "cgroups-limits",
    cgroups_namespaces "cgroups-namespaces",
    cgroups_tree "cgroups-tree",
    files_cgroups "files-cgroups",
    files_fanotify "files-fanotify",
    files_inotify "files-inotify",
    files_inotify_unread "files-inotify-unread",
    files_kinds "files-kinds",
    files_leases "files-leases",
    files_linked "files-linked",
    files_locks "files-locks",
    files_namespaces "files-namespaces",
    files_notices "files-notices",
    files_paths "files-paths",
    files_proc "files-proc",
    files_regular "files-regular",
    files_shared "files-shared",
    files_signals "files-signals",
    heap "heap",
    interrupted_by_signal "interrupted-by-signal",
    interrupted_calls "interrupted-calls",
    interval_timers "interval-timers",
    many_mappings "many-mappings",
    many_tasks "many-tasks",
    memory_advice "memory-advice",
    memory_comes "memory-comes",
    memory_meanwhile "memory-meanwhile",
    memory_file_private "memory-file-private",
    memory_file_shared "memory-file-shared",
    memory_huge "memory-huge",
    memory_changes "memory-changes",
    memory_in_motion "memory-in-motion",
    memory_guards "memory-guards",
    memory_locked "memory-locked",
    memory_locked_future "memory-locked-future",
    memory_memfd "memory-memfd",
    memory_memfd_program "memory-memfd-program",
    memory_memfd_shared "memory-memfd-shared",
    memory_outlives "memory-outlives",
    memory_policy "memory-policy",
    memory_private "memory-private",
    ipc_several "ipc-several",
    leader_ended "leader-ended",
    memory_relatives "memory-relatives",
    memory_siblings "memory-siblings",
    memory_sealed "memory-sealed",
    memory_shared_anonymous "memory-shared-anonymous",
    memory_sysv "memory-sysv",
    memory_untouched "memory-untouched",
    mqueues "mqueues",
    networks "networks",
    networks_several "networks-several",
    packet_filter "packet-filter",
    packet_filter_legacy "packet-filter-legacy",
    queueing "queueing",
    pidfds "pidfds",
    namespaces_container "namespaces-container",
    namespaces_held "namespaces-held",
    namespaces_names "namespaces-names",
    namespaces_user "namespaces-user",
    pids_nested "pids-nested",
    pipes_blocked "pipes-blocked",
    pipes_contents "pipes-contents",
    mounts_bind "mounts-bind",
    mounts_kinds "mounts-kinds",
    mounts_locked "mounts-locked",
    mounts_tmpfs "mounts-tmpfs",
    namespaces_mount "namespaces-mount",
    pipes_packets "pipes-packets",
    posix_timers "posix-timers",
    registers "registers",
    robust_futexes "robust-futexes",
    rseq_sequence "rseq-sequence",
    seccomp_filters "seccomp-filters",
    seccomp_strict "seccomp-strict",
    signals_actions "signals-actions",
    signals_all_caught "signals-all-caught",
    signals_masks "signals-masks",
    signals_pending "signals-pending",
    signals_stacks "signals-stacks",
    sockets_filters "sockets-filters",
    sockets_flight "sockets-flight",
    sockets_inet "sockets-inet",
    sockets_multicast "sockets-multicast",
    sockets_chroot "sockets-chroot",
    sockets_names "sockets-names",
    sockets_netlink "sockets-netlink",
    sockets_options "sockets-options",
    sockets_packet "sockets-packet",
    sockets_raw "sockets-raw",
    sockets_connecting "sockets-connecting",
    sockets_ended "sockets-ended",
    sockets_error_queue "sockets-error-queue",
    sockets_errors "sockets-errors",
    sockets_tcp "sockets-tcp",
    sockets_udp "sockets-udp",
    sockets_udp_cork "sockets-udp-cork",
    sockets_unaccepted "sockets-unaccepted",
    sockets_unix_unaccepted "sockets-unix-unaccepted",
    aio_rings "aio-rings",
    sockets_unix "sockets-unix",
    sockets_urgent "sockets-urgent",
    stack_grows "stack-grows",
    stopped "stopped",
    switches "switches",
    sysv_queues "sysv-queues",
    sysv_semaphores "sysv-semaphores",
    sysctls "sysctls",
    sysv_undo "sysv-undo",
    task_settings "task-settings",
    terminal_pairs "terminal-pairs",
    terminal_sessions "terminal-sessions",
    threads "threads",
    tree_relations "tree-relations",
    tun "tun",
    vdso "vdso",
    zombies "zombies",
}

#[test]
fn other_roots_survive() {
    for root in ["memory", "folder"] {
        survives_with(&Host::new(), "mounts-pivot", &[root]);
        let verdict = Victim::start(&Host::new(), "mounts-pivot", &[], &["--sabotage", root]).verdict();
        assert!(verdict.starts_with("FAIL"), "{root}: it does not notice: {verdict}");
    }
}

/// A victim whose paths are those of another root, in which its folder, its program and /usr are shown.
fn survives_in_a_root(name: &str) {
    let host = Host::new();
    let root = host.folder("root");
    for link in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).expect("a link");
    }
    let program = host.program(name);
    let shown = [
        program.parent().expect("its folder").to_owned(),
        host.path(&format!("stage-{name}")),
    ];
    let [programs, stage] = shown.map(|path| format!("{0}:{0}", path.display()));
    let place = root.to_str().expect("a path");
    let options = [
        "--rootfs",
        place,
        "-v",
        "/usr:/usr:ro",
        "-v",
        &programs,
        "-v",
        &stage,
        "--tmpfs",
        "/run",
    ];
    survives_as(&host, name, (&options, &[]));
}

macro_rules! victims_in_a_root {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            survives_in_a_root($name);
        })+
    };
}

victims_in_a_root! {
    fifos_in_a_root "fifos",
    files_deleted_in_a_root "files-deleted",
    files_directories_in_a_root "files-directories",
    files_inotify_in_a_root "files-inotify",
    memory_file_shared_in_a_root "memory-file-shared",
    mqueues_in_a_root "mqueues",
    sockets_names_in_a_root "sockets-names",
    terminal_pairs_in_a_root "terminal-pairs",
}

/// Whether a victim can have as many huge pages of 2 MiB as it takes; where not, says that it is skipped. They are for the
/// machine's owner to set aside, or to allow: `/proc/sys/vm/nr_hugepages` and `nr_overcommit_hugepages`.
fn has_huge_pages(name: &str, wanted: u64) -> bool {
    let value = |name: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let spare = value("nr_overcommit_hugepages") - value("surplus_hugepages");
    let free = value("free_hugepages") - value("resv_hugepages") + spare;
    if free < wanted {
        floe_suite::skip(&format!(
            "{free} huge pages of 2 MiB are free, and {name} takes {wanted}"
        ));
    }
    free >= wanted
}

#[test]
fn huge_pages_survive() {
    let name = "memory-hugetlb";
    if has_huge_pages(name, 10) {
        survives(name);
        notices(name);
    }
}

#[test]
fn huge_pages_with_names_survive() {
    let name = "memory-hugetlbfs";
    if !has_huge_pages(name, 12) {
        return;
    }
    for sabotage in [false, true] {
        let mounted = Mounted::new("hugetlbfs", |_| "pagesize=2M".to_owned()).expect("mount hugetlbfs");
        let host = Host::new();
        let folder = mounted.path().display().to_string();
        if sabotage {
            let verdict = Victim::start(&host, name, &[], &["--sabotage", &folder]).verdict();
            assert!(verdict.starts_with("FAIL"), "{name} does not notice: {verdict}");
        } else {
            survives_with(&host, name, &[&folder]);
        }
    }
}

/// Files behave otherwise on a filesystem that is all memory.
#[test]
fn files_on_tmpfs_survive() {
    for name in [
        "fifos",
        "files-deleted",
        "files-deleted-directories",
        "files-deleted-program",
        "files-directories",
        "files-leases",
        "files-linked",
        "files-paths",
        "files-regular",
        "memory-file-private",
        "memory-file-shared",
    ] {
        survives_on(&Host::in_folder("/dev/shm"), name);
    }
}

/// A filesystem of a test's own; gone when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Mounts one. `options` are told a folder, in which there may be others.
    fn new(kind: &str, options: impl FnOnce(&Path) -> String) -> Result<Self, nix::errno::Errno> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path());
        let mounted = Self(folder);
        std::fs::create_dir(mounted.path()).expect("a folder");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(kind), &mounted.path(), Some(kind), flags, Some(options.as_str()))?;
        Ok(mounted)
    }

    /// Two folders, one over the other.
    fn overlay() -> Result<Self, nix::errno::Errno> {
        Self::new("overlay", |folder| {
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| {
                let path = folder.join(name);
                std::fs::create_dir(&path).expect("a folder");
                path.display().to_string()
            });
            format!("lowerdir={lower},upperdir={upper},workdir={work}")
        })
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let gone = nix::mount::umount(&self.path());
        assert!(gone.is_ok() || std::thread::panicking(), "unmount: {gone:?}");
    }
}

/// As in a container: what is mapped lies on another filesystem than its path says.
#[test]
fn files_on_an_overlay_survive() {
    let overlay = match Mounted::overlay() {
        Ok(overlay) => overlay,
        Err(error) => return floe_suite::skip(&format!("no overlay can be mounted: {error}")),
    };
    for name in [
        "files-deleted",
        "files-deleted-directories",
        "files-deleted-program",
        "files-directories",
        "files-paths",
        "files-regular",
        "memory-file-private",
        "memory-file-shared",
    ] {
        survives_on(&Host::in_folder(overlay.path()), name);
    }
    // Its files have no handles, so other names of one are found near by only.
    let host = Host::in_folder(overlay.path());
    let mut linked = Victim::start(&host, "files-linked", &[], &[]);
    let error = host.floe(&["checkpoint", "--dry-run", "files-linked"]).expect_failed();
    assert!(
        error.starts_with("floe: 2 things stand in the way") && error.contains("/here/file (deleted)): its path leads"),
        "{error}"
    );
    linked.check("after a checkpoint that was refused");
}

/// One of the devices stays there while the tree is away, the others are made anew.
#[test]
fn network_devices_survive_in_a_network_that_is_not_the_trees_own() {
    enter_own_network();
    survives_as(&Host::new(), "tun", (&["--net", "host"], &[]));
}

/// floe's own limit on open files is that of every program, and need not be as high as a workload's.
#[test]
fn many_descriptors_survive_where_floe_may_open_few() {
    let host = Host::behind(&["prlimit", "--nofile=256:"]);
    survives_on(&host, "descriptors-many");
}

/// A program inherits which signals are ignored from whoever started it; what floe restores is as it was all the same.
#[test]
fn signals_that_the_caller_ignores_are_not_ignored() {
    // By the bare call: the C library keeps two signals for itself.
    const IGNORE_ALL: &str = "import ctypes, os, sys\n\
        action = (ctypes.c_uint64 * 4)(1, 0, 0, 0)\n\
        for number in range(1, 65): ctypes.CDLL(None).syscall(13, number, action, None, 8)\n\
        os.execvp(sys.argv[1], sys.argv[1:])";
    let host = Host::new();
    let mut victim = Victim::start(&host, "signals-actions", &[], &[]);
    let before = Portrait::take(&host, "signals-actions");
    let image = host.path("image.floe").display().to_string();
    host.done(&["checkpoint", "signals-actions", "-o", &image]);
    let restore = host.command(&["restore", "-d", &image]);
    let mut command = Command::new("python3");
    command
        .args(["-c", IGNORE_ALL])
        .arg(restore.get_program())
        .args(restore.get_args());
    let _ = run(&mut command).expect_done();
    before.expect_same(
        &Portrait::take(&host, "signals-actions"),
        "restored by one who ignores all signals",
    );
    victim.check("restored by one who ignores all signals");
}
