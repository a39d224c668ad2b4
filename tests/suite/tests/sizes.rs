//! Large trees keep every PID: wide ones, deep ones, and a process with many threads; and a process with many mappings, or with
//! many descriptors, keeps each of them.

use floe_suite::{Host, PID_METHODS, Victim, skip};
use std::{collections::BTreeMap, fs};

const VICTIM: &str = "many-tasks";

/// What `floe ps --json` tells of each task that does not depend on the host: by PID, parent, group, session, name,
/// number of threads.
fn inside(host: &Host, sandbox: &str) -> BTreeMap<i64, String> {
    let tasks: serde_json::Value = serde_json::from_str(&host.done(&["ps", "--json", sandbox])).expect("JSON");
    let tell = |task: &serde_json::Value| {
        let ids = task["nspid"].as_array().expect("a list");
        let pid = ids.last().and_then(serde_json::Value::as_i64).expect("a PID");
        let rest = ["ppid", "pgid", "sid", "comm", "threads"].map(|key| task[key].to_string());
        (pid, rest.join(" "))
    };
    tasks.as_array().expect("a list").iter().map(tell).collect()
}

fn keeps_its_ids(kind: &str, count: &str, tasks: usize) {
    let host = Host::new();
    let mut victim = Victim::start(&host, VICTIM, &[], &[kind, count]);
    let before = inside(&host, VICTIM);
    assert_eq!(before.len(), tasks, "{before:?}");
    for method in PID_METHODS {
        victim.round_trip(VICTIM, method);
        assert_eq!(inside(&host, VICTIM), before, "{method}");
        victim.check(method);
    }
}

#[test]
fn two_hundred_processes() {
    keeps_its_ids("wide", "200", 201);
}

#[test]
fn a_chain_of_thirty_two() {
    keeps_its_ids("deep", "32", 33);
}

#[test]
fn three_hundred_threads() {
    keeps_its_ids("threads", "300", 1);
}

const MOST_MAPPINGS: &str = "/proc/sys/vm/max_map_count";

/// The host's limit on mappings; dropped, it is what it was.
struct MostMappings(String);

impl MostMappings {
    fn raise(to: u32) -> Option<Self> {
        let before = fs::read_to_string(MOST_MAPPINGS).expect("the limit");
        fs::write(MOST_MAPPINGS, to.to_string()).ok()?;
        Some(Self(before))
    }
}

impl Drop for MostMappings {
    fn drop(&mut self) {
        fs::write(MOST_MAPPINGS, self.0.trim()).expect("it was written before");
    }
}

#[test]
fn a_hundred_thousand_mappings() {
    let Some(_raised) = MostMappings::raise(200_000) else {
        return skip("vm.max_map_count can't be raised here");
    };
    let host = Host::new();
    let mut victim = Victim::start(&host, "many-mappings", &[], &["100000"]);
    for method in PID_METHODS {
        victim.round_trip("many-mappings", method);
        victim.check(method);
    }
}

/// The hard limit of whoever runs this decides how many those are.
#[test]
fn as_many_descriptors_as_may_be_had() {
    let host = Host::new();
    let mut victim = Victim::start(&host, "descriptors-limit", &[], &[]);
    victim.round_trip("descriptors-limit", PID_METHODS[0]);
    victim.check("after a round trip");
}

#[test]
fn one_of_too_few_descriptors_notices() {
    let host = Host::new();
    let verdict = Victim::start(&host, "descriptors-limit", &[], &["--sabotage"]).verdict();
    assert!(verdict.starts_with("FAIL"), "{verdict}");
}
