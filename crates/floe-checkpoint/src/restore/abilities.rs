//! What an image's tasks are set to that this host, or floe here, may not be able to set: found before anything is made.

use super::{RestoreError, users::KnownUsers};
use floe_image::{
    Image,
    record::{MemoryPolicy, NamespaceContents, ProcessRecord, ThreadRecord},
};
use floe_resources::task::login_of;
use floe_sys::procfs::{self, Status};

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_AUDIT_CONTROL: u64 = 1 << 30;
/// No login.
const UNSET: u32 = u32::MAX;
/// The nodes are counted among those that a task may use, whichever these are.
const MPOL_F_RELATIVE_NODES: u32 = 1 << 14;

/// Tells `add` of each object that stands in the way, and why.
pub(super) fn obstacles(image: &Image, own: &Status, add: &mut dyn FnMut(String, String)) -> Result<(), RestoreError> {
    login(image.sandbox().login, own, add)?;
    let nodes = online_nodes();
    let users = KnownUsers::here(own)?;
    for (number, record) in (1..).zip(&image.sandbox().namespaces) {
        if let (0, NamespaceContents::User(user)) = (record.owner, &record.contents)
            && let Some(reason) = users.lacks(user)
        {
            add(format!("user namespace {number}"), reason);
        }
    }
    for process in image.processes() {
        let object = format!("process {}", process.pid);
        if process.switches.autogroup_nice.unwrap_or(0) != 0 && !has_autogroups() {
            let reason = "its session has a nice value, and sessions have none here (sched_autogroup_enabled)";
            add(object.clone(), reason.to_owned());
        }
        if let Some(reason) = seccomp(process, own) {
            add(object.clone(), reason.to_owned());
        }
        // What is wrong with one thread is so with the others, as a rule.
        if let Some(reason) = process
            .threads
            .iter()
            .find_map(|thread| users.obstacle(&thread.credentials))
        {
            add(object.clone(), reason);
        }
        for thread in &process.threads {
            if thread.switches.cpuid_forbidden && !can_forbid_cpuid() {
                let reason = "cpuid is forbidden to it, which this processor can't do (cpuid_fault)";
                add(object.clone(), reason.to_owned());
            }
            if let Some(node) = missing_node(thread, &nodes) {
                let reason = format!("its memory policy (set_mempolicy) names node {node}, which is not there");
                add(object.clone(), reason);
            }
        }
    }
    Ok(())
}

fn login(wanted: u32, own: &Status, add: &mut dyn FnMut(String, String)) -> Result<(), RestoreError> {
    let [_, _, effective, ..] = own.capabilities;
    let now = login_of("/proc/self")?;
    if wanted != now && now != UNSET && effective & CAP_AUDIT_CONTROL == 0 {
        let reason = format!("floe's own is {now}, and to change it takes CAP_AUDIT_CONTROL");
        add(format!("login {wanted} (audit)"), reason);
    }
    Ok(())
}

fn seccomp(process: &ProcessRecord, own: &Status) -> Option<&'static str> {
    let confined = |thread: &ThreadRecord| thread.seccomp.strict || !thread.seccomp.filters.is_empty();
    if !process.threads.iter().any(confined) {
        return None;
    }
    let [_, _, effective, ..] = own.capabilities;
    if own.seccomp != 0 {
        Some("its calls are confined (seccomp), which floe can't rebuild where it has filters itself")
    } else if effective & CAP_SYS_ADMIN == 0 {
        Some("its calls are confined (seccomp), which takes CAP_SYS_ADMIN to rebuild")
    } else {
        None
    }
}

fn has_autogroups() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").is_ok_and(|text| text.trim() == "1")
}

fn can_forbid_cpuid() -> bool {
    procfs::read_text("/proc/cpuinfo").is_ok_and(|text| text.split_ascii_whitespace().any(|flag| flag == "cpuid_fault"))
}

/// The nodes with memory; node 0 where the kernel does not tell.
fn online_nodes() -> Vec<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    list(&text).unwrap_or_else(|| vec![0])
}

/// Numbers like "0-2,5".
fn list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

fn missing_node(thread: &ThreadRecord, online: &[u32]) -> Option<u32> {
    let policy = thread.switches.memory_policy.as_ref()?;
    if policy.mode & MPOL_F_RELATIVE_NODES != 0 {
        return None;
    }
    nodes(policy).find(|node| !online.contains(node))
}

fn nodes(policy: &MemoryPolicy) -> impl Iterator<Item = u32> {
    let words = (0_u32..).zip(&policy.nodes);
    words.flat_map(|(word, bits)| {
        (0..64)
            .filter(move |bit| bits & (1 << bit) != 0)
            .map(move |bit| word * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::{list, nodes};
    use floe_image::record::MemoryPolicy;

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(list("0\n"), Some(vec![0]));
        assert_eq!(list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(list(""), None);
        let policy = MemoryPolicy {
            mode: 2,
            nodes: vec![0b101, 1],
        };
        assert_eq!(nodes(&policy).collect::<Vec<_>>(), [0, 2, 64]);
    }
}
