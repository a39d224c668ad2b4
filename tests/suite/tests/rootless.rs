//! As an ordinary user, with no right of root's: all that a sandbox does, in a user namespace that floe makes by itself.

use floe_suite::{Host, PID_METHODS, Victim};

/// Victims that are root of their network, too.
const WITH_NETWORK: &str = "sockets-";

fn survives(name: &str) {
    let host = Host::of_ordinary_user();
    let sandbox = host.name(name);
    let options: &[&str] = if name.starts_with(WITH_NETWORK) {
        &["--net", "none"]
    } else {
        &[]
    };
    let mut victim = Victim::start_as(&sandbox, &host, name, options, &[]);
    for (into, method) in [("first", PID_METHODS[0]), ("second", PID_METHODS[1])] {
        victim.round_trip_unseen(&host.name(into), method);
    }
    victim.check("after two round trips of an ordinary user");
}

macro_rules! victims {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            survives($name);
        })+
    };
}

victims! {
    aio_rings "aio-rings",
    bpf_maps "bpf-maps",
    call_dispatch "call-dispatch",
    clocks_go_on "clocks-go-on",
    clone_sharing "clone-sharing",
    credentials "credentials",
    descriptors_many "descriptors-many",
    epoll_targets "epoll-targets",
    fifos "fifos",
    files_cgroups "files-cgroups",
    files_chroot "files-chroot",
    files_deleted_directories "files-deleted-directories",
    files_deleted_program "files-deleted-program",
    files_deleted "files-deleted",
    files_devices "files-devices",
    files_directories "files-directories",
    files_events "files-events",
    files_fanotify "files-fanotify",
    files_inherited "files-inherited",
    files_inotify_unread "files-inotify-unread",
    files_inotify "files-inotify",
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
    leader_ended "leader-ended",
    many_mappings "many-mappings",
    many_tasks "many-tasks",
    memory_advice "memory-advice",
    memory_file_private "memory-file-private",
    memory_file_shared "memory-file-shared",
    memory_guards "memory-guards",
    memory_huge "memory-huge",
    memory_hugetlb "memory-hugetlb",
    memory_hugetlbfs "memory-hugetlbfs",
    memory_locked_future "memory-locked-future",
    memory_locked "memory-locked",
    memory_memfd_program "memory-memfd-program",
    memory_memfd_shared "memory-memfd-shared",
    memory_memfd "memory-memfd",
    memory_policy "memory-policy",
    memory_private "memory-private",
    memory_relatives "memory-relatives",
    memory_sealed "memory-sealed",
    memory_shared_anonymous "memory-shared-anonymous",
    memory_siblings "memory-siblings",
    memory_sysv "memory-sysv",
    memory_untouched "memory-untouched",
    mqueues "mqueues",
    pidfds "pidfds",
    pids_nested "pids-nested",
    pipes_blocked "pipes-blocked",
    pipes_contents "pipes-contents",
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
    sockets_chroot "sockets-chroot",
    sockets_connecting "sockets-connecting",
    sockets_ended "sockets-ended",
    sockets_errors "sockets-errors",
    sockets_flight "sockets-flight",
    sockets_inet "sockets-inet",
    sockets_multicast "sockets-multicast",
    sockets_names "sockets-names",
    sockets_netlink "sockets-netlink",
    sockets_options "sockets-options",
    sockets_packet "sockets-packet",
    sockets_raw "sockets-raw",
    sockets_tcp "sockets-tcp",
    sockets_udp "sockets-udp",
    sockets_unaccepted "sockets-unaccepted",
    sockets_unix_unaccepted "sockets-unix-unaccepted",
    sockets_unix "sockets-unix",
    stack_grows "stack-grows",
    stopped "stopped",
    switches "switches",
    sysv_queues "sysv-queues",
    sysv_semaphores "sysv-semaphores",
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
