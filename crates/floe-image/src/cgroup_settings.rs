//! Files of cgroups that set something, and what they say in a new cgroup. No other is carried: writing to `cgroup.procs`,
//! `tasks` or `cgroup.kill` moves or ends tasks, also those of others.
//!
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.

/// What a limit says that is none. Some say the greatest number instead.
pub const UNLIMITED: &str = "max";

/// Names and what is said in a new cgroup; nothing where all lines are of what was set.
const SETTINGS: [(&str, &str); 73] = [
    ("blkio.bfq.weight", "100"),
    ("blkio.bfq.weight_device", "default 100"),
    ("blkio.leaf_weight", "500"),
    ("blkio.leaf_weight_device", ""),
    ("blkio.prio.class", "no-change"),
    ("blkio.throttle.read_bps_device", ""),
    ("blkio.throttle.read_iops_device", ""),
    ("blkio.throttle.write_bps_device", ""),
    ("blkio.throttle.write_iops_device", ""),
    ("blkio.weight", "500"),
    ("blkio.weight_device", ""),
    ("cgroup.clone_children", "0"),
    ("cgroup.max.depth", UNLIMITED),
    ("cgroup.max.descendants", UNLIMITED),
    ("cgroup.pressure", "1"),
    ("cpu.cfs_burst_us", "0"),
    ("cpu.cfs_period_us", "100000"),
    ("cpu.cfs_quota_us", "-1"),
    ("cpu.idle", "0"),
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpu.rt_period_us", "1000000"),
    ("cpu.rt_runtime_us", "0"),
    ("cpu.shares", "1024"),
    ("cpu.uclamp.max", UNLIMITED),
    ("cpu.uclamp.min", "0.00"),
    ("cpu.weight", "100"),
    ("cpuset.cpu_exclusive", "0"),
    ("cpuset.cpus", ""),
    ("cpuset.cpus.exclusive", ""),
    ("cpuset.cpus.partition", "member"),
    ("cpuset.mem_exclusive", "0"),
    ("cpuset.mem_hardwall", "0"),
    ("cpuset.memory_migrate", "0"),
    ("cpuset.memory_spread_page", "0"),
    ("cpuset.memory_spread_slab", "0"),
    ("cpuset.mems", ""),
    ("cpuset.sched_load_balance", "1"),
    ("cpuset.sched_relax_domain_level", "-1"),
    ("devices.list", "a *:* rwm"),
    ("dmem.low", ""),
    ("dmem.max", ""),
    ("dmem.min", ""),
    ("io.bfq.weight", "default 100"),
    ("io.latency", ""),
    ("io.max", ""),
    ("io.prio.class", "no-change"),
    ("io.weight", "default 100"),
    ("memory.high", UNLIMITED),
    ("memory.kmem.tcp.limit_in_bytes", UNLIMITED),
    ("memory.limit_in_bytes", UNLIMITED),
    ("memory.low", "0"),
    ("memory.max", UNLIMITED),
    ("memory.memsw.limit_in_bytes", UNLIMITED),
    ("memory.min", "0"),
    ("memory.oom.group", "0"),
    ("memory.oom_control", "0"),
    ("memory.soft_limit_in_bytes", UNLIMITED),
    ("memory.swap.high", UNLIMITED),
    ("memory.swap.max", UNLIMITED),
    ("memory.swappiness", "60"),
    ("memory.zswap.max", UNLIMITED),
    ("memory.zswap.writeback", "1"),
    ("misc.max", ""),
    ("net_cls.classid", "0"),
    ("net_prio.ifpriomap", ""),
    ("notify_on_release", "0"),
    ("pids.max", UNLIMITED),
    ("rdma.max", ""),
    // Of hugetlb with the size of a page in between.
    ("hugetlb.*.limit_in_bytes", UNLIMITED),
    ("hugetlb.*.max", UNLIMITED),
    ("hugetlb.*.rsvd.limit_in_bytes", UNLIMITED),
    ("hugetlb.*.rsvd.max", UNLIMITED),
];

/// What a file says in a new cgroup; `None` of one that is no setting, or not known.
#[must_use]
pub fn usual(name: &str) -> Option<&'static str> {
    let is_it = |known: &str| match known.split_once('*') {
        Some((start, end)) => {
            let size = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
            size.is_some_and(|size| !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        }
        None => known == name,
    };
    SETTINGS.iter().find(|(known, _)| is_it(known)).map(|(_, says)| *says)
}

#[cfg(test)]
mod tests {
    use super::{UNLIMITED, usual};

    #[test]
    fn what_moves_or_ends_tasks_is_no_setting() {
        let others = [
            "cgroup.freeze",
            "cgroup.kill",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
            "cgroup.type",
            "devices.allow",
            "freezer.state",
            "hugetlb..max",
            "hugetlb.2MB.events.max",
            "memory.reclaim",
            "release_agent",
            "tasks",
        ];
        for name in others {
            assert_eq!(usual(name), None, "{name}");
        }
        assert_eq!(usual("hugetlb.2MB.rsvd.max"), Some(UNLIMITED));
        assert_eq!(usual("memory.min"), Some("0"));
    }
}
