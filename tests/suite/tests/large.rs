//! A gibibyte of memory comes through whole, and floe itself stays small meanwhile. Alone in its program, because the kernel
//! counts the memory of all children together.

use floe_suite::{Host, PID_METHODS, until};
use nix::sys::resource::{UsageWho, getrusage};
use std::fs;

/// What floe may take at most, KiB.
const LIMIT: i64 = 64 << 10;

const SCRIPT: &str = r#"
import hashlib, os, time
block = os.urandom(1 << 20)
memory = bytearray(1 << 30)
for i in range(0, 1 << 30, 1 << 20):
    memory[i:i + (1 << 20)] = block
    memory[i], memory[i + 1] = (i >> 20) & 255, i >> 28
def digest(): return hashlib.blake2b(memory).hexdigest()
before = digest()
open("ready", "w").close()
while not os.path.exists("stop"): time.sleep(0.005)
print("same" if digest() == before else "differs")
"#;

#[test]
fn a_gibibyte_of_memory() {
    let host = Host::new();
    let (name, folder) = (host.name("large"), host.path("large"));
    fs::create_dir(&folder).expect("a folder");
    let (place, image) = (
        folder.display().to_string(),
        host.path("large.floe").display().to_string(),
    );
    host.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", SCRIPT,
    ]);
    until("the memory", || folder.join("ready").exists());
    for method in PID_METHODS.iter().chain(&PID_METHODS[..1]) {
        host.done(&["checkpoint", &name, "-o", &image]);
        host.done(&["restore", "-d", "--pid-method", method, &image]);
    }
    // All children that ended are floe's commands.
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage").max_rss();
    assert!(peak > 1024, "nothing was measured: {peak} KiB");
    assert!(peak < LIMIT, "floe took {peak} KiB");
    fs::write(folder.join("stop"), "").expect("tell it to end");
    assert_eq!(host.done(&["wait", &name]), "0\n");
    assert_eq!(host.done(&["logs", &name]), "same\n");
}
