//! Sandboxes that are started for lesser processors than this host's (`floe run --cpu`): what they find, and that it stays so.

use floe_suite::{Host, json};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _};

const LEVEL: &str = "x86-64-v2";
/// Prints what glibc may use, as the dynamic linker finds it.
const FOUND: &str =
    "/lib64/ld-linux-x86-64.so.2 --list-diagnostics | grep -E '^dl_hwcaps_subdirs_active|xsave_state_size'";

fn has(flag: &str) -> bool {
    let told = fs::read_to_string("/proc/cpuinfo").expect("what the kernel tells");
    told.split_ascii_whitespace().any(|word| word == flag)
}

/// The level that floe tells of a sandbox.
fn level(host: &Host, name: &str) -> Value {
    let all = json(&host.done(&["ps", "--json"]));
    let all = all.as_array().expect("a list");
    let own = all.iter().find(|sandbox| sandbox["name"] == name).expect("the sandbox");
    own["cpu"].clone()
}

#[test]
fn a_level_holds_for_all_that_is_started_there() {
    let host = Host::new();
    let (name, other) = (host.name("level"), host.name("other"));
    let found = |name: &str| host.done(&["exec", name, "--", "sh", "-c", FOUND]);
    let tunables = |name: &str| {
        host.done(&[
            "exec",
            name,
            "-e",
            "GLIBC_TUNABLES=glibc.rtld.nns=3",
            "--",
            "sh",
            "-c",
            "echo $GLIBC_TUNABLES",
        ])
    };
    host.done(&["run", "-d", "--name", &name, "--cpu", LEVEL, "--", "sleep", "1000"]);
    assert_eq!(level(&host, &name), LEVEL);
    let before = (found(&name), tunables(&name));
    // Registers that the dynamic linker would save are those that every processor has, and no build of a library for more is taken.
    assert!(before.0.contains("dl_hwcaps_subdirs_active=0x4"), "{}", before.0);
    assert!(before.0.contains("xsave_state_size=0x0"), "{}", before.0);
    let (own, hidden) = before.1.split_once(":glibc.cpu.hwcaps=").expect("both");
    assert!(own == "glibc.rtld.nns=3" && hidden.contains("-AVX2,") && !hidden.contains("SSE4_2"));
    let image = host.path("level.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &name, "-o", image]);
    let header = &json(&host.done(&["inspect", image, "--json"]))["header"];
    assert_eq!(header["cpu"], LEVEL);
    host.done(&["restore", "-d", "--name", &other, image]);
    assert_eq!(level(&host, &other), LEVEL);
    assert_eq!((found(&other), tunables(&other)), before);
}

#[test]
fn without_a_level_the_image_tells_what_was_there() {
    let host = Host::new();
    let name = host.sleeper("plain");
    assert!(level(&host, &name).is_null());
    let image = host.path("plain.floe");
    let image = image.to_str().expect("a plain path");
    host.done(&["checkpoint", &name, "-o", image]);
    let header = &json(&host.done(&["inspect", image, "--json"]))["header"];
    let told = header["instructions"].as_array().expect("a list");
    for (flag, feature) in [
        ("ssse3", "SSSE3"),
        ("avx2", "AVX2"),
        ("avx512f", "AVX512F"),
        ("aes", "AES"),
    ] {
        assert_eq!(told.iter().any(|name| name == feature), has(flag), "{feature}");
    }
    host.done(&["check", "restore", "--image", image]);
}

#[test]
fn users_are_held_to_it_too() {
    let host = Host::of_ordinary_user();
    let found = host.done(&["run", "--cpu", LEVEL, "--", "sh", "-c", FOUND]);
    assert!(found.contains("dl_hwcaps_subdirs_active=0x4"), "{found}");
    let script = host.path("found.sh");
    fs::write(&script, format!("#!/bin/sh\n{FOUND}\n")).expect("write a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("let all execute it");
    let root = Host::new();
    let script = script.to_str().expect("a plain path");
    let found = root.done(&["run", "--cpu", LEVEL, "--user", "65534:65534", "-w", "/", "--", script]);
    assert!(found.contains("dl_hwcaps_subdirs_active=0x4"), "{found}");
}

#[test]
fn a_host_below_the_level_says_so() {
    let host = Host::new();
    if has("avx512f") {
        return floe_suite::skip("this host has every level");
    }
    let outcome = host.floe(&["run", "--cpu", "x86-64-v4", "--", "true"]);
    assert!(
        outcome.status == 125 && outcome.err.contains("AVX512F"),
        "{}",
        outcome.err
    );
}
