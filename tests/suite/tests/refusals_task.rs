//! State of tasks that floe does not carry: it is found before anything is changed, all of it in one list that says whose
//! it is, what, why and what to do; and the tasks run on.

use floe_suite::{Host, Victim};

const VICTIM: &str = "refused-tasks";

/// A kind of child, and what the finding about it says: the object, a part of the reason, a part of the advice.
type Finding = (&'static str, &'static str, &'static str, &'static str);

const FINDINGS: [Finding; 15] = [
    (
        "timer-tells-ended",
        "POSIX timer 0 (timer_create)",
        "the thread that it signals has ended",
        "delete it",
    ),
    (
        "supervised",
        "that asks a supervisor (SECCOMP_RET_USER_NOTIF)",
        "can't be made again",
        "without a supervisor",
    ),
    (
        "landlock",
        "Landlock domain of thread",
        "tells nobody what a domain forbids",
        "without it",
    ),
    (
        "landlock-user",
        "Landlock domain of thread",
        "tells nobody what a domain forbids",
        "without it",
    ),
    (
        "login",
        "login 4711 of audit (loginuid)",
        "for a tree as a whole",
        "by themselves",
    ),
    (
        "dispatch",
        "syscall user dispatch without a selector",
        "nothing lets floe's own calls through",
        "give it a selector",
    ),
    (
        "pid-namespace",
        "whose children are born in another PID namespace",
        "that a thread has chosen alone",
        "before it makes threads",
    ),
    (
        "pid-namespace-adopted",
        "PID 1 whose parent is in another PID namespace than the one above",
        "CLONE_PARENT",
        "start it without",
    ),
    (
        "files",
        "descriptors (CLONE_FILES) shared with task",
        "can't be shared again",
        "let the parent of both share it too",
    ),
    (
        "fs",
        "working directory and umask (CLONE_FS) shared with task",
        "can't be shared again",
        "let the parent of both share it too",
    ),
    (
        "vm",
        "memory (CLONE_VM) shared with task",
        "can't be shared again",
        "let the parent of both share it too",
    ),
    (
        "sighand",
        "signal actions (CLONE_SIGHAND) shared with task",
        "can't be shared again",
        "let the parent of both share it too",
    ),
    (
        "thread-directory",
        "with its own working directory and umask",
        "not carried yet",
        "don't call unshare",
    ),
    (
        "timer-of-ended-thread",
        "POSIX timer 1 (timer_create)",
        "the thread whose processor time it measures has ended",
        "delete it",
    ),
    (
        "timer-of-ended-process",
        "POSIX timer 2 (timer_create)",
        "has ended or is outside of the tree",
        "delete it",
    ),
];

/// Relations that no restore could bring about; told where nothing else is in the way.
const RELATIONS: [Finding; 2] = [
    (
        "left-subreaper",
        "session ",
        "no longer adopts whom others leave behind",
        "let it be a subreaper again",
    ),
    (
        "adopted-sharer",
        "state shared with process ",
        "can't fork it there",
        "use threads",
    ),
];

/// Tasks that floe must not even stop.
const UNSTOPPABLE: [Finding; 2] = [
    ("traced", "traced by", "one tracer", "end the tracer"),
    ("vfork", "vfork in flight", "can't be stopped", "try again"),
];

/// Checkpoints a tree of these children, wet and dry; the findings must be exactly these, and all must live on.
fn refused(findings: &[Finding]) {
    let host = Host::new();
    let kinds: Vec<&str> = findings.iter().map(|finding| finding.0).collect();
    let mut victim = Victim::start(&host, VICTIM, &[], &kinds);
    let image = host.path("image.floe");
    let path = image.to_str().expect("a plain path");
    for arguments in [&["-o", path][..], &["--dry-run"], &["--leave-running", "-o", path]] {
        let line = [&["checkpoint", VICTIM], arguments].concat();
        let text = host.floe(&line).expect_failed();
        for finding in findings {
            let (kind, object, reason, advice) = *finding;
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(object)).collect();
            let names_all = |line: &&str| {
                let (who, what) = line.split_once("): ").unwrap_or_default();
                let named =
                    who.contains("task ") && who.contains(" (host ") && who.contains(&kind[..kind.len().min(15)]);
                named && what.contains(object) && what.contains(reason) && what.contains(advice)
            };
            assert!(lines.iter().any(names_all), "{kind}: {lines:?} in {text}");
        }
        assert!(!image.exists(), "an image of a refused tree");
        victim.check("after it was refused");
    }
}

#[test]
fn all_findings_come_in_one_list() {
    refused(&FINDINGS);
}

#[test]
fn so_do_those_about_tasks_that_cannot_be_stopped() {
    // What needs a look inside is found at the next try.
    let outside = FINDINGS
        .iter()
        .filter(|finding| ["timer-tells-ended", "pid-namespace-adopted"].contains(&finding.0));
    assert_eq!(outside.clone().count(), 2);
    let all: Vec<Finding> = UNSTOPPABLE.iter().chain(outside).copied().collect();
    refused(&all);
}

#[test]
fn each_is_found_alone() {
    for finding in FINDINGS.iter().chain(&RELATIONS).chain(&UNSTOPPABLE) {
        refused(std::slice::from_ref(finding));
    }
}

#[test]
fn the_tracer_is_named() {
    let host = Host::new();
    let mut victim = Victim::start(&host, VICTIM, &[], &["traced"]);
    let text = host.floe(&["checkpoint", VICTIM, "--dry-run"]).expect_failed();
    assert!(text.contains("traced by") && text.contains("(traced)"), "{text}");
    victim.check("afterwards");
}

#[test]
fn the_victim_notices() {
    let host = Host::new();
    let verdict = Victim::start(&host, VICTIM, &[], &["--sabotage", "pid-namespace"]).verdict();
    assert!(verdict.starts_with("FAIL"), "{verdict}");
}
