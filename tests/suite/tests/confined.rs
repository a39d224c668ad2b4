//! A floe that has seccomp filters itself, as in a container: what it runs has them too, it may not lift them, and it
//! says so before anything is changed.

use floe_suite::{Host, PID_METHODS, Victim, program};

#[test]
fn a_confined_floe_refuses_confined_tasks_and_carries_them_nowhere() {
    let prefix = program("confined");
    let host = Host::behind(&[prefix.to_str().expect("a plain path")]);
    let mut victim = Victim::start(&host, "heap", &[], &[]);
    let image = host.path("image.floe");
    let text = host
        .floe(&["checkpoint", "heap", "-o", image.to_str().expect("a plain path")])
        .expect_failed();
    assert!(
        text.contains("seccomp mode 2 of thread 1: only root, itself without filters, may read and suspend it"),
        "{text}"
    );
    assert!(!image.exists(), "an image of a refused tree");
    victim.check("after it was refused");
}

#[test]
fn a_confined_floe_can_not_rebuild_filters() {
    let free = Host::new();
    let mut victim = Victim::start(&free, "seccomp-filters", &[], &[]);
    victim.round_trip("again", PID_METHODS[0]);
    let image = free.path("image.floe");
    let prefix = program("confined");
    let host = Host::behind(&[prefix.to_str().expect("a plain path")]);
    let line = ["restore", "--dry-run", image.to_str().expect("a plain path")];
    let text = host.floe(&line).expect_failed();
    assert!(
        text.contains("process 1: its calls are confined (seccomp), which floe can't rebuild where it has filters itself"),
        "{text}"
    );
}
