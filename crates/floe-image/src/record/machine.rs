//! What the tree's programs have found out about the machine, and go by.

use serde::{Deserialize, Serialize};

/// What of a processor and a kernel the tree's programs depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The level of processors that its programs are limited to (`floe run --cpu`), e.g. `x86-64-v2`.
    pub level: Option<String>,
    /// Names of the instructions that programs may have chosen by, of all hosts that the tree has been on, in no order.
    pub features: Vec<String>,
    /// Where the components of extended registers stand, by number: those of XCR0 beyond x87 and SSE.
    pub components: Vec<ComponentRecord>,
    /// The ELF file in `[vdso]`, without the unused tail of its last page; empty where the tree has none.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
}

/// A component of extended registers (XSAVE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentRecord {
    /// Its bit in XCR0.
    pub number: u32,
    /// Bytes before it.
    pub offset: u32,
    /// Its bytes.
    pub bytes: u32,
}
