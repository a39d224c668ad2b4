//! Confinement of system calls, seccomp(2).

use serde::{Deserialize, Serialize};

/// How a thread's system calls are confined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompRecord {
    /// Strict mode: read, write, exit and rt_sigreturn alone. There are no filters then.
    pub strict: bool,
    /// Filters, the oldest first.
    pub filters: Vec<SeccompFilter>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// SECCOMP_FILTER_FLAG_LOG: what it does not allow is logged.
    pub log: bool,
    /// Its program: `struct sock_filter` after `struct sock_filter`, 8 bytes each.
    #[serde(with = "serde_bytes")]
    pub program: Vec<u8>,
}
