//! What few mappings have.

use serde::{Deserialize, Serialize};

/// Guard regions, NUMA policy and huge pages of a mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmaDetails {
    /// Guard regions (MADV_GUARD_INSTALL): first byte and first byte behind it; lowest first, not touching.
    pub guards: Vec<(u64, u64)>,
    /// mbind(2), where it is not the task's own policy.
    pub policy: Option<RangePolicy>,
    /// Bytes of a page of private memory from hugetlbfs (MAP_HUGETLB); 0 for ordinary pages.
    pub huge_page: u64,
}

/// Where memory is taken from on a machine with several NUMA nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangePolicy {
    /// MPOL_* with its MPOL_F_* flags.
    pub mode: u32,
    /// Numbers of nodes, lowest first.
    pub nodes: Vec<u32>,
}
