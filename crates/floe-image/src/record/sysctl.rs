//! Settings of namespaces below /proc/sys: sysctl(8).

use serde::{Deserialize, Serialize};

/// The kinds of namespaces that have settings of their own, but networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SysctlKind {
    /// IPC.
    Ipc,
    /// PID: of each level.
    Pid,
    /// User.
    User,
}

/// A setting that differs from that of a new namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SysctlRecord {
    /// Of which kind of namespace.
    pub kind: SysctlKind,
    /// Which namespace of the kind: 0 is that of the tree's root.
    pub namespace: u32,
    /// Its name, one of [`SysctlKind::names`].
    pub name: String,
    /// Numbers, with blanks between them.
    pub value: String,
}

impl SysctlKind {
    /// The settings that are carried, by their paths below /proc/sys.
    #[must_use]
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ipc => &[
                "kernel/shmmax",
                "kernel/shmall",
                "kernel/shmmni",
                "kernel/shm_rmid_forced",
                "kernel/shm_next_id",
                "kernel/msgmax",
                "kernel/msgmnb",
                "kernel/msgmni",
                "kernel/msg_next_id",
                "kernel/sem",
                "kernel/sem_next_id",
                "kernel/auto_msgmni",
                "fs/mqueue/queues_max",
                "fs/mqueue/msg_max",
                "fs/mqueue/msgsize_max",
                "fs/mqueue/msg_default",
                "fs/mqueue/msgsize_default",
            ],
            Self::Pid => &["kernel/pid_max", "vm/memfd_noexec"],
            Self::User => &[
                "user/max_cgroup_namespaces",
                "user/max_ipc_namespaces",
                "user/max_mnt_namespaces",
                "user/max_net_namespaces",
                "user/max_pid_namespaces",
                "user/max_time_namespaces",
                "user/max_user_namespaces",
                "user/max_uts_namespaces",
                "user/max_inotify_instances",
                "user/max_inotify_watches",
                "user/max_fanotify_groups",
                "user/max_fanotify_marks",
            ],
        }
    }
}

impl SysctlRecord {
    /// What findings call it: `sysctl kernel.sem`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("sysctl {}", self.name.replace('/', "."))
    }
}
