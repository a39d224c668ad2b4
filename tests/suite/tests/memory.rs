//! A tree takes as much memory after a restore as before: what was shared is, what was huge is, and what was never touched is
//! not there.

use floe_suite::{Host, PID_METHODS, Victim, json, program, skip};
use std::fs;

/// Lines of smaps_rollup, summed over a tree: proportional shares of anonymous and shared memory, all that is mapped, and
/// transparent huge pages; KiB.
const LINES: [&str; 4] = ["Pss_Anon", "Pss_Shmem", "Anonymous", "AnonHugePages"];

fn totals(host: &Host, sandbox: &str) -> [u64; 4] {
    let tasks = json(&host.done(&["ps", "--json", sandbox]));
    let mut sums = [0; 4];
    for task in tasks.as_array().expect("a list") {
        let pid = task["nspid"][0].as_i64().expect("an id");
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
        for (sum, name) in sums.iter_mut().zip(LINES) {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            *sum += number.expect("a number of KiB");
        }
    }
    sums
}

/// How often the kernel has made a huge page of small ones since it started: it does when it likes.
fn collapsed() -> Option<String> {
    let text = fs::read_to_string("/proc/vmstat").expect("/proc/vmstat");
    let line = text.lines().find(|line| line.starts_with("thp_collapse_alloc "));
    line.map(str::to_owned)
}

fn takes_as_much(victim: &str) {
    let host = Host::new();
    let mut tree = Victim::start(&host, victim, &[], &[]);
    let made = collapsed();
    let before = totals(&host, victim);
    for method in PID_METHODS {
        tree.round_trip(victim, method);
        let now = totals(&host, victim);
        for ((name, before), now) in LINES.iter().zip(before).zip(now) {
            // A process writes a few pages whenever it runs.
            let room = before / 20 + 256;
            if collapsed() != made {
                return skip("the kernel made huge pages of small ones meanwhile");
            }
            assert!(
                now <= before + room && before <= now + room,
                "{victim}, {method}: {name} was {before} KiB, is {now} KiB"
            );
        }
    }
    tree.check("at the end");
}

/// Where floe may not have new memory looked after, it writes there as anywhere. What keeps it from it here is a filter, which
/// the tree has from it then: that alone is found to differ.
#[test]
fn without_a_userfaultfd_memory_is_filled_as_any_other() {
    let free = Host::new();
    let _tree = Victim::start(&free, "memory-comes", &[], &[]);
    let image = free.path("image.floe");
    let image = image.to_str().expect("a plain path");
    free.done(&["checkpoint", "memory-comes", "-o", image]);
    let confined = program("confined");
    let userfaultfd = libc::SYS_userfaultfd.to_string();
    let host = Host::behind(&[confined.to_str().expect("a plain path"), "--but", &userfaultfd]);
    let error = host.floe(&["-vv", "restore", "-d", image]).expect_failed();
    assert!(error.contains("new memory is filled as any other"), "{error}");
    let differences: Vec<&str> = error.lines().filter(|line| line.starts_with("  - ")).collect();
    let is_alone = !differences.is_empty() && differences.iter().all(|line| line.contains("seccomp"));
    assert!(is_alone, "{error}");
}

#[test]
fn relatives_take_as_much() {
    takes_as_much("memory-relatives");
}

#[test]
fn siblings_take_as_much() {
    takes_as_much("memory-siblings");
}

#[test]
fn huge_pages_take_as_much() {
    takes_as_much("memory-huge");
}

#[test]
fn untouched_memory_takes_none() {
    takes_as_much("memory-untouched");
}

#[test]
fn shared_memory_takes_as_much() {
    takes_as_much("memory-shared-anonymous");
}
