//! Files of cgroups that set something: whether they differ from those of a new cgroup, how they are written, and what they
//! are called in the other version. Which do is in [`floe_image::cgroup_settings`].
//!
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.

use floe_image::cgroup_settings::{UNLIMITED, usual};
use std::collections::BTreeMap;

/// Files that can be read and written, but tell of tasks, of pressure or of what was so far; and other names of others.
const NO_SETTINGS: [&str; 16] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "tasks",
    "cgroup.type",
    "cgroup.subtree_control",
    "cgroup.freeze",
    "freezer.state",
    "cpu.weight.nice",
    "cpuacct.usage",
    "memory.peak",
    "memory.swap.peak",
    "memory.kmem.limit_in_bytes",
    "memory.use_hierarchy",
    "memory.move_charge_at_immigrate",
    "release_agent",
];
/// How the names of such files end.
const NO_SETTINGS_ENDS: [&str; 4] = [".pressure", ".failcnt", "max_usage_in_bytes", ".events"];

/// No limit, in bytes: the greatest number of whole pages, or of huge ones.
const GREATEST: u64 = i64::MAX as u64 - (1 << 31);

/// Whether a file that can be read and written may set something.
pub fn may_set(name: &str) -> bool {
    let is_other = NO_SETTINGS.contains(&name) || NO_SETTINGS_ENDS.iter().any(|end| name.ends_with(end));
    usual(name).is_some() || !is_other
}

/// Whether a file that may set something is not known, and says other than nothing, `0` or `max`, as most in a new cgroup.
pub fn is_unknown(name: &str, text: &str) -> bool {
    usual(name).is_none() && !matches!(text.trim_end(), "" | "0" | UNLIMITED)
}

/// What a setting says, without what it says in a new cgroup; `None` where that is all, or it is none.
pub fn differing(name: &str, text: &str) -> Option<String> {
    let new = usual(name)?;
    let text = text.trim_end();
    match name {
        "memory.oom_control" => return text.contains("oom_kill_disable 1").then(|| "1".to_owned()),
        "cpuset.cpus.partition" if text.contains(" invalid") => {
            return text.split(' ').next().map(str::to_owned);
        }
        "net_prio.ifpriomap" => return lines(text, |line| !line.ends_with(" 0")),
        "rdma.max" | "misc.max" | "dmem.max" => {
            return lines(text, |line| {
                line.split_whitespace().skip(1).any(|word| !word.ends_with("max"))
            });
        }
        "dmem.low" | "dmem.min" => return lines(text, |line| !line.ends_with(" 0")),
        _ => {}
    }
    // Some say nothing where no device, or no processor, has anything.
    if text.is_empty() {
        return None;
    }
    let is_greatest = || new == UNLIMITED && text.parse().is_ok_and(|number: u64| number >= GREATEST);
    (text != new && !is_greatest()).then(|| text.to_owned())
}

fn lines(text: &str, counts: impl Fn(&&str) -> bool) -> Option<String> {
    let found: Vec<&str> = text.lines().filter(counts).collect();
    (!found.is_empty()).then(|| found.join("\n"))
}

/// What has to be written, one call each, so that a file says `wanted`. The kernel takes one line a call.
pub fn writings<'a>(wanted: &'a str, says: &str) -> Vec<&'a str> {
    let known: Vec<&str> = says.lines().collect();
    wanted.lines().filter(|line| !known.contains(line)).collect()
}

/// Whether a file says what it was to say.
pub fn says(name: &str, wanted: &str, text: &str) -> bool {
    let differing = differing(name, text);
    let text = differing.as_deref().unwrap_or(text);
    wanted.lines().all(|line| text.lines().any(|known| known == line))
}

/// Whether tasks need it where they are to come: processors and memory of a cpuset, and time for those in real time.
pub fn is_early(name: &str) -> bool {
    name.starts_with("cpuset.") || name.starts_with("cpu.rt_")
}

/// By what the settings of a cgroup are ordered: some are checked against others.
pub fn order(name: &str) -> (bool, &str) {
    // A burst must not be more than the quota.
    (name.contains("burst"), name)
}

/// The controller that a file is of; none for those of every cgroup.
pub fn controller(name: &str) -> Option<&str> {
    let controller = name.split('.').next()?;
    (!matches!(controller, "cgroup" | "notify_on_release" | "tasks")).then_some(controller)
}

/// Controllers that have another name in the other version.
pub fn translated_controller(controller: &str) -> &str {
    match controller {
        "io" => "blkio",
        "blkio" => "io",
        other => other,
    }
}

fn value_of<'a>(settings: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    let found = settings.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| value.as_str())
}

/// All settings of a cgroup, by the names of version 2; or the first that means nothing there.
pub fn to_v2(settings: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    let get = |wanted: &str| value_of(settings, wanted);
    let mut found = Vec::new();
    let (quota, period) = (get("cpu.cfs_quota_us"), get("cpu.cfs_period_us"));
    if quota.is_some() || period.is_some() {
        let value = format!("{} {}", quota.unwrap_or("max"), period.unwrap_or("100000"));
        found.push(("cpu.max".to_owned(), value));
    }
    let mut limits: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (name, value) in settings {
        let same = |to: &str| Some((to.to_owned(), value.clone()));
        let lacking = || format!("{name} ({value})");
        let translated = match name.as_str() {
            "cpu.cfs_quota_us" | "cpu.cfs_period_us" => None,
            "cpu.cfs_burst_us" => same("cpu.max.burst"),
            "cpu.shares" => {
                let shares: u64 = value.parse().map_err(|_| lacking())?;
                Some((
                    "cpu.weight".to_owned(),
                    scaled(shares, 100, 1024).clamp(1, 10_000).to_string(),
                ))
            }
            "memory.limit_in_bytes" => same("memory.max"),
            "memory.memsw.limit_in_bytes" => {
                let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
                let both = number(Some(value)).ok_or_else(lacking)?;
                let memory = number(get("memory.limit_in_bytes")).ok_or_else(lacking)?;
                Some(("memory.swap.max".to_owned(), both.saturating_sub(memory).to_string()))
            }
            name if name.starts_with("blkio.throttle.") => {
                let word = throttles()
                    .find(|(file, _)| *file == name)
                    .map(|(_, word)| word)
                    .ok_or_else(lacking)?;
                for line in value.lines() {
                    let (device, number) = line.split_once(' ').ok_or_else(lacking)?;
                    limits.entry(device).or_default().insert(word, number);
                }
                None
            }
            "pids.max" | "cpu.idle" | "cpuset.cpus" | "cpuset.mems" | "misc.max" | "rdma.max" => same(name),
            name if name.starts_with("hugetlb.") => same(&name.replace("limit_in_bytes", "max")),
            _ => return Err(lacking()),
        };
        found.extend(translated);
    }
    if !limits.is_empty() {
        let lines: Vec<String> = limits
            .into_iter()
            .map(|(device, numbers)| {
                let all = throttles().map(|(_, word)| (word, numbers.get(word).unwrap_or(&UNLIMITED)));
                all.fold(device.to_owned(), |line, (word, number)| {
                    format!("{line} {word}={number}")
                })
            })
            .collect();
        found.push(("io.max".to_owned(), lines.join("\n")));
    }
    found.sort_by(|a, b| order(&a.0).cmp(&order(&b.0)));
    Ok(found)
}

/// All settings of a cgroup, by the names of version 1; or the first that means nothing there.
pub fn to_v1(settings: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    let get = |wanted: &str| value_of(settings, wanted);
    let mut found = Vec::new();
    for (name, value) in settings {
        let lacking = || format!("{name} ({value})");
        let mut add = |to: &str, value: &str| found.push((to.to_owned(), value.to_owned()));
        match name.as_str() {
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').ok_or_else(lacking)?;
                add("cpu.cfs_period_us", period);
                if quota != "max" {
                    add("cpu.cfs_quota_us", quota);
                }
            }
            "cpu.max.burst" => add("cpu.cfs_burst_us", value),
            "cpu.weight" => {
                let weight: u64 = value.parse().map_err(|_| lacking())?;
                add("cpu.shares", &scaled(weight, 1024, 100).to_string());
            }
            "memory.max" => add("memory.limit_in_bytes", value),
            "memory.swap.max" => {
                let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
                let memory = number(get("memory.max")).ok_or_else(lacking)?;
                // The host's none, too, is told as a limit.
                let swap = number(Some(value)).ok_or_else(lacking)?;
                add("memory.memsw.limit_in_bytes", &memory.saturating_add(swap).to_string());
            }
            "io.max" => {
                for (file, word) in throttles() {
                    let of = |line: &str| {
                        let mut words = line.split(' ');
                        let device = words.next()?;
                        let number = words.find_map(|known| known.strip_prefix(word)?.strip_prefix('='))?;
                        (number != "max").then(|| format!("{device} {number}"))
                    };
                    let lines: Vec<String> = value.lines().filter_map(of).collect();
                    if !lines.is_empty() {
                        add(file, &lines.join("\n"));
                    }
                }
            }
            "pids.max" | "cpu.idle" | "cpuset.cpus" | "cpuset.mems" | "misc.max" | "rdma.max" => add(name, value),
            name if name.starts_with("hugetlb.") => {
                let stem = name.strip_suffix(".max").ok_or_else(lacking)?;
                add(&format!("{stem}.limit_in_bytes"), value);
            }
            _ => return Err(lacking()),
        }
    }
    found.sort_by(|a, b| order(&a.0).cmp(&order(&b.0)));
    Ok(found)
}

/// As the kernel scales weights (sched_weight_from_cgroup of kernel/sched/sched.h).
fn scaled(value: u64, to: u64, from: u64) -> u64 {
    value.saturating_mul(to).saturating_add(from / 2) / from
}

/// Files of version 1 and words of io.max that are the same, in the order in which that tells all of them.
fn throttles() -> impl Iterator<Item = (&'static str, &'static str)> {
    [
        ("blkio.throttle.read_bps_device", "rbps"),
        ("blkio.throttle.write_bps_device", "wbps"),
        ("blkio.throttle.read_iops_device", "riops"),
        ("blkio.throttle.write_iops_device", "wiops"),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use super::{differing, is_unknown, may_set, says, to_v1, to_v2, writings};

    fn all(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn what_new_cgroups_say_is_no_setting() {
        let new = [
            ("pids.max", "max\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("hugetlb.1GB.max", "9223372036854771712\n"),
            ("cpu.max", "max 100000\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"),
            ("net_prio.ifpriomap", "lo 0\neth0 0\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
            ("misc.max", "sev max\nsev_es max\n"),
            ("blkio.throttle.read_bps_device", ""),
            ("cpuset.cpus", "\n"),
            ("memory.min", "0\n"),
            ("dmem.min", "drm/card0 0\n"),
        ];
        for (name, text) in new {
            assert_eq!(differing(name, text), None, "{name}");
        }
    }

    /// A limit of nothing and a protection of everything are none of a new cgroup.
    #[test]
    fn the_other_end_of_a_limit_is_kept() {
        let set = [
            ("memory.swap.max", "0"),
            ("memory.high", "0"),
            ("memory.limit_in_bytes", "0"),
            ("pids.max", "0"),
            ("hugetlb.2MB.max", "0"),
            ("cgroup.max.depth", "0"),
            ("cgroup.max.descendants", "0"),
            ("cgroup.pressure", "0"),
            ("cpuset.sched_load_balance", "0"),
            ("memory.min", "max"),
            ("memory.low", "max"),
            ("cpu.uclamp.min", "max"),
        ];
        for (name, text) in set {
            assert_eq!(differing(name, &format!("{text}\n")).as_deref(), Some(text), "{name}");
            assert!(says(name, text, text), "{name}");
        }
    }

    #[test]
    fn what_is_not_known_is_told_where_it_says_something() {
        assert!(may_set("tomorrow.knob") && is_unknown("tomorrow.knob", "7\n"));
        assert!(may_set("cgroup.pressure"));
        let others = [
            ("tomorrow.knob", "0\n"),
            ("tomorrow.knob", "max\n"),
            ("pids.max", "7\n"),
            ("cgroup.procs", "7\n"),
            ("cgroup.kill", "7\n"),
            ("cgroup.threads", "7\n"),
            ("cpu.pressure", "some avg10=0.00\n"),
            ("memory.memsw.max_usage_in_bytes", "7\n"),
        ];
        for (name, text) in others {
            assert!(!may_set(name) || !is_unknown(name, text), "{name}");
            assert!(name == "pids.max" || differing(name, text).is_none(), "{name}");
        }
    }

    #[test]
    fn what_differs_is_kept() {
        let set = [
            ("pids.max", "5\n", "5"),
            ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\n", "1"),
            ("net_prio.ifpriomap", "lo 0\neth0 5\n", "eth0 5"),
            (
                "cpuset.cpus.partition",
                "root invalid (Parent is not a partition root)\n",
                "root",
            ),
            ("io.weight", "default 100\n8:0 50\n", "default 100\n8:0 50"),
        ];
        for (name, text, wanted) in set {
            assert_eq!(differing(name, text).as_deref(), Some(wanted), "{name}");
            assert!(says(name, wanted, text), "{name}");
        }
        assert_eq!(writings("default 100\n8:0 50", "default 100\n"), ["8:0 50"]);
    }

    #[test]
    fn the_other_version_has_other_names() {
        let v1 = all(&[
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.shares", "512"),
            ("memory.limit_in_bytes", "1048576"),
            ("memory.memsw.limit_in_bytes", "3145728"),
            ("blkio.throttle.read_bps_device", "8:0 1000"),
            ("blkio.throttle.write_iops_device", "8:0 10"),
            ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ]);
        let v2 = all(&[
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "50"),
            ("hugetlb.2MB.max", "4194304"),
            ("io.max", "8:0 rbps=1000 wbps=max riops=max wiops=10"),
            ("memory.max", "1048576"),
            ("memory.swap.max", "2097152"),
        ]);
        assert_eq!(to_v2(&v1), Ok(v2.clone()));
        let mut back = to_v1(&v2).expect("all are known");
        // The period is told in any case.
        back.retain(|(name, _)| name != "cpu.cfs_period_us");
        let mut sorted = v1;
        sorted.sort();
        assert_eq!(back, sorted);
        let only = all(&[("memory.high", "4096")]);
        assert_eq!(to_v1(&only), Err("memory.high (4096)".to_owned()));
        let only = all(&[("memory.swappiness", "10")]);
        assert_eq!(to_v2(&only), Err("memory.swappiness (10)".to_owned()));
    }
}
