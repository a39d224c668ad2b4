//! Why files that no kind claims can't be carried, and what to do about it.

use super::{FoundFile, socket};

const CLOSE: &str = "close it, or run the program without it";
const GIVE: &str = "close it, or give it anew when the tree is restored (--external LINK=NAME)";

/// Anonymous inodes: how their names begin; what they are, and why not; what to do.
const ANONYMOUS: &[(&str, &str, &str)] = &[
    (
        "[userfaultfd]",
        "a userfaultfd: threads may wait for it, and which memory it serves is told nowhere",
        CLOSE,
    ),
    (
        "[io_uring]",
        "an instance of io_uring: which requests are under way, and what was registered, can't be read back",
        "programs can be told to do without (UV_USE_IO_URING=0), and the kernel to have none (kernel.io_uring_disabled=2)",
    ),
    (
        "[perf_event]",
        "an event of perf_event_open(2): how far it has counted can't be set",
        "end profiling first",
    ),
    (
        "bpf-prog",
        "a program of bpf(2): the kernel has changed its instructions since they were loaded",
        "close it, and have a process outside of the tree load it",
    ),
    (
        "bpf_link",
        "a link of bpf(2): it attaches a program to something of the host's",
        "close it, and have a process outside of the tree attach it",
    ),
    (
        "bpf",
        "an object of bpf(2): it belongs to programs in the kernel",
        CLOSE,
    ),
    ("btf", "types for bpf(2): they belong to programs in the kernel", CLOSE),
    (
        "seccomp notify",
        "the supervisor's end of a seccomp filter, which can't be made again",
        "run without a supervisor",
    ),
    (
        "kvm-",
        "a part of a virtual machine (KVM): its state is the processor's",
        "save the machine by what runs it",
    ),
    (
        "[landlock-ruleset]",
        "a ruleset of Landlock: what was added to it is told nowhere",
        CLOSE,
    ),
];

/// Devices with something behind them: path; what; what to do.
const DEVICES: &[(&str, &str, &str)] = &[
    (
        "/dev/fuse",
        "a file system that its process serves (FUSE)",
        "unmount it, or serve it outside of the tree",
    ),
    ("/dev/kvm", "virtual machines (KVM)", "save the machine by what runs it"),
];

/// Why a file can't be carried, and what to do.
pub(super) fn reason(found: &FoundFile) -> (String, &'static str) {
    let link = String::from_utf8_lossy(&found.link).into_owned();
    if let Some(name) = found.pseudo_filesystem() {
        return (format!("a file of {name} can't be carried yet"), "close it");
    }
    match found.file_type() {
        _ if found.is_path_only() => (
            format!("an O_PATH descriptor of what has no path ({link}) can't be carried yet"),
            "close it",
        ),
        libc::S_IFSOCK => socket::of_family(found),
        libc::S_IFCHR => device(&link),
        libc::S_IFBLK => (
            format!("the block device {link} can't be carried: its state is its driver's"),
            GIVE,
        ),
        _ => match link.strip_prefix("anon_inode:") {
            Some(kind) => anonymous(kind),
            None => (
                format!("a descriptor of an unknown kind ({link}) can't be carried yet"),
                "close it",
            ),
        },
    }
}

fn device(link: &str) -> (String, &'static str) {
    match DEVICES.iter().find(|(path, ..)| *path == link) {
        Some((path, behind, advice)) => (format!("the device {path} has {behind} behind it"), advice),
        None => (
            format!("the device {link} can't be carried: its state is its driver's"),
            GIVE,
        ),
    }
}

fn anonymous(kind: &str) -> (String, &'static str) {
    match ANONYMOUS.iter().find(|(name, ..)| kind.starts_with(name)) {
        Some((_, reason, advice)) => ((*reason).to_owned(), advice),
        None => (format!("a descriptor of kind {kind} can't be carried yet"), "close it"),
    }
}
