//! Another kernel (Linux 6.1) on another processor, in an emulated machine: floe works there, and sandboxes go there and back, if
//! they were started for such a processor. `tools/test --full` alone.

use floe_suite::{
    Host, Machine, Victim, enter_own_network,
    migration::{Receiver, keys},
    program, skip,
};
use std::path::{Path, PathBuf};

/// One with AVX, but without AVX2, BMI, XSAVEC and what came later.
const PROCESSOR: &str = "SandyBridge";
/// One without XSAVE.
const FIRST_OF_LEVEL: &str = "Nehalem";
const LEVEL: [&str; 4] = ["-w", "/", "--cpu", "x86-64-v2"];
/// Where the machine is reached by this host, and this host by the machine.
const THERE: &str = "127.0.0.1:7070";
const HERE: &str = "10.0.2.2:7071";
const KEYS: &str = "--keys /root/keys";

fn packages() -> Option<PathBuf> {
    let found = Machine::packages();
    if found.is_none() {
        skip("no other machine: tools/test --full has the packages for one");
    }
    found
}

fn switched_on(packages: &Path, host: &Host, processor: &str, victims: &[&str]) -> Machine {
    let programs: Vec<PathBuf> = victims.iter().map(|name| program(name)).collect();
    let mut machine = Machine::start(packages, processor, 7070, &host.path(""), &programs);
    // Where victims are asked.
    for name in victims {
        machine.done(&format!("mkdir -p {}", stage(host, name).display()));
    }
    machine
}

fn stage(host: &Host, victim: &str) -> PathBuf {
    host.path(&format!("stage-{victim}"))
}

/// Has both trust each other, and the machine receive; the folder of this host's keys.
fn acquaint(host: &Host, machine: &mut Machine) -> String {
    let (folder, own) = keys(host);
    let told = machine.done(&format!("floe keys {KEYS}"));
    let theirs = told.lines().last().expect("a fingerprint");
    machine.done(&format!("floe keys {KEYS} pin 10.0.2.2 {own}"));
    host.done(&["keys", "--keys", &folder, "pin", "127.0.0.1", theirs]);
    machine.done(&format!("floe receive --listen 0.0.0.0:7070 {KEYS} >/tmp/receive.log 2>&1 & until grep -q receiving /tmp/receive.log; do sleep 0.1; done"));
    folder
}

#[test]
fn sandboxes_go_there_and_back() {
    let Some(packages) = packages() else { return };
    enter_own_network();
    let host = Host::new();
    let names = ["cpu-level", "vdso"];
    let mut machine = switched_on(&packages, &host, PROCESSOR, &names);
    let folder = acquaint(&host, &mut machine);
    let receiver = Receiver::start_with(&host, "127.0.0.1:7071", &["--keys", &folder], |_| {});
    // One that was started for this host's processor stays, and is told why.
    let mut plain = Victim::start_as("plain", &host, "cpu-level", &["-w", "/"], &[]);
    let line = ["migrate", "plain", THERE, "--keys", &folder];
    let refused = host.floe(&line).expect_failed();
    assert!(
        refused.contains("processor: it lacks") && refused.contains("run --cpu"),
        "{refused}"
    );
    assert!(!refused.contains("vDSO"), "{refused}");
    plain.check("after it was refused");
    host.done(&["rm", "-f", "plain"]);
    std::fs::remove_dir_all(stage(&host, "cpu-level")).expect("its folder");
    for name in names {
        let mut victim = Victim::start(&host, name, &LEVEL, &["anywhere"]);
        victim.check("before it went anywhere");
        // It counts its checks, wherever they are.
        for round in [2, 4] {
            host.done(&["migrate", name, THERE, "--keys", &folder]);
            assert_eq!(machine.verdict(&stage(&host, name), round), "ok", "{name} there");
            machine.done(&format!("floe migrate {name} {HERE} {KEYS}"));
            let _ = victim.ask_later();
            victim.check("back again");
        }
        host.done(&["rm", "-f", name]);
    }
    drop(receiver);
}

#[test]
fn floe_works_there() {
    let Some(packages) = packages() else { return };
    enter_own_network();
    let host = Host::new();
    let names = ["cpu-level", "vdso"];
    let mut machine = switched_on(&packages, &host, FIRST_OF_LEVEL, &names);
    let told = machine.done("floe check run; floe check checkpoint; floe check restore");
    assert!(told.contains("Linux 6.1"), "{told}");
    for name in names {
        let (program, stage) = (program(name), stage(&host, name));
        let (program, folder) = (program.display(), stage.display());
        machine.done(&format!(
            "floe run -d --name {name} -- {program} {folder}; until [ -e {folder}/ready ]; do sleep 0.1; done"
        ));
        for round in [1, 2] {
            machine.done(&format!("floe checkpoint {name} -o /tmp/{name}.{round}.floe"));
            machine.done(&format!("floe restore -d /tmp/{name}.{round}.floe"));
            assert_eq!(machine.verdict(&stage, round), "ok", "{name}");
        }
        machine.done(&format!("floe rm -f {name}"));
    }
}
