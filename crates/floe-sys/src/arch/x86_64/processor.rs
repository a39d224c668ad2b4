//! What CPUID says: Intel SDM volume 2A "CPUID", AMD APM volume 3 appendix E.

use crate::processor::{Component, Level};
use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};

/// The registers that CPUID answers in.
#[derive(Debug, Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature: where CPUID tells of it, what the kernel must have enabled for it (XCR0), and the first level that has it.
#[derive(Debug)]
pub struct Entry {
    /// Its name, as the vendors' manuals have it.
    pub name: &'static str,
    leaf: (u32, u32),
    place: (Register, u32),
    enabled: u64,
    /// The first level that has it (psABI, "Micro-Architecture Levels"); `None` where no level has.
    pub level: Option<Level>,
}

/// Bits of XCR0: SSE and AVX.
const AVX: u64 = 0b110;
/// Besides those the three of AVX-512.
const AVX512: u64 = AVX | 0b111 << 5;
/// Besides SSE both of AMX.
const AMX: u64 = 0b11 << 17;

const fn entry(
    name: &'static str,
    leaf: (u32, u32),
    place: (Register, u32),
    enabled: u64,
    level: Option<Level>,
) -> Entry {
    Entry {
        name,
        leaf,
        place,
        enabled,
        level,
    }
}

const BASIC: (u32, u32) = (1, 0);
const MORE: (u32, u32) = (7, 0);
const MOST: (u32, u32) = (7, 1);
const STATE: (u32, u32) = (0xd, 1);
const BEYOND: (u32, u32) = (0x8000_0001, 0);

use Register::{Eax, Ebx, Ecx, Edx};

/// Instructions that programs use where they find them: those of the levels, those that glibc's functions are chosen by, and those
/// that libraries for cryptography, compression and arithmetic look for. What only makes the same instructions faster (ERMS,
/// FSRM) is not among them.
pub const FEATURES: &[Entry] = &[
    entry("SSE3", BASIC, (Ecx, 0), 0, Some(Level::V2)),
    entry("SSSE3", BASIC, (Ecx, 9), 0, Some(Level::V2)),
    entry("SSE4.1", BASIC, (Ecx, 19), 0, Some(Level::V2)),
    entry("SSE4.2", BASIC, (Ecx, 20), 0, Some(Level::V2)),
    entry("POPCNT", BASIC, (Ecx, 23), 0, Some(Level::V2)),
    entry("CMPXCHG16B", BASIC, (Ecx, 13), 0, Some(Level::V2)),
    entry("LAHF", BEYOND, (Ecx, 0), 0, Some(Level::V2)),
    entry("XSAVE", BASIC, (Ecx, 27), 0, Some(Level::V3)),
    entry("AVX", BASIC, (Ecx, 28), AVX, Some(Level::V3)),
    entry("AVX2", MORE, (Ebx, 5), AVX, Some(Level::V3)),
    entry("BMI1", MORE, (Ebx, 3), 0, Some(Level::V3)),
    entry("BMI2", MORE, (Ebx, 8), 0, Some(Level::V3)),
    entry("F16C", BASIC, (Ecx, 29), AVX, Some(Level::V3)),
    entry("FMA", BASIC, (Ecx, 12), AVX, Some(Level::V3)),
    entry("LZCNT", BEYOND, (Ecx, 5), 0, Some(Level::V3)),
    entry("MOVBE", BASIC, (Ecx, 22), 0, Some(Level::V3)),
    entry("AVX512F", MORE, (Ebx, 16), AVX512, Some(Level::V4)),
    entry("AVX512BW", MORE, (Ebx, 30), AVX512, Some(Level::V4)),
    entry("AVX512CD", MORE, (Ebx, 28), AVX512, Some(Level::V4)),
    entry("AVX512DQ", MORE, (Ebx, 17), AVX512, Some(Level::V4)),
    entry("AVX512VL", MORE, (Ebx, 31), AVX512, Some(Level::V4)),
    entry("XSAVEC", STATE, (Eax, 1), 0, None),
    entry("FMA4", BEYOND, (Ecx, 16), AVX, None),
    entry("XOP", BEYOND, (Ecx, 11), AVX, None),
    entry("SSE4A", BEYOND, (Ecx, 6), 0, None),
    entry("TBM", BEYOND, (Ecx, 21), 0, None),
    entry("RTM", MORE, (Ebx, 11), 0, None),
    entry("AES", BASIC, (Ecx, 25), 0, None),
    entry("PCLMULQDQ", BASIC, (Ecx, 1), 0, None),
    entry("SHA", MORE, (Ebx, 29), 0, None),
    entry("RDRAND", BASIC, (Ecx, 30), 0, None),
    entry("RDSEED", MORE, (Ebx, 18), 0, None),
    entry("ADX", MORE, (Ebx, 19), 0, None),
    entry("RDTSCP", BEYOND, (Edx, 27), 0, None),
    entry("FSGSBASE", MORE, (Ebx, 0), 0, None),
    entry("CLFLUSHOPT", MORE, (Ebx, 23), 0, None),
    entry("CLWB", MORE, (Ebx, 24), 0, None),
    entry("GFNI", MORE, (Ecx, 8), 0, None),
    entry("VAES", MORE, (Ecx, 9), AVX, None),
    entry("VPCLMULQDQ", MORE, (Ecx, 10), AVX, None),
    entry("AVX512_IFMA", MORE, (Ebx, 21), AVX512, None),
    entry("AVX512_VBMI", MORE, (Ecx, 1), AVX512, None),
    entry("AVX512_VBMI2", MORE, (Ecx, 6), AVX512, None),
    entry("AVX512_VNNI", MORE, (Ecx, 11), AVX512, None),
    entry("AVX512_BITALG", MORE, (Ecx, 12), AVX512, None),
    entry("AVX512_VPOPCNTDQ", MORE, (Ecx, 14), AVX512, None),
    entry("AVX512_BF16", MOST, (Eax, 5), AVX512, None),
    entry("AVX512_FP16", MORE, (Edx, 23), AVX512, None),
    entry("AVX_VNNI", MOST, (Eax, 4), AVX, None),
    entry("AVX_IFMA", MOST, (Eax, 23), AVX, None),
    entry("AMX_TILE", MORE, (Edx, 24), AMX, None),
    entry("AMX_INT8", MORE, (Edx, 25), AMX, None),
    entry("AMX_BF16", MORE, (Edx, 22), AMX, None),
];

fn ask((leaf, part): (u32, u32)) -> CpuidResult {
    let most = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    // Beyond the last leaf some processors answer with what that says.
    if leaf > most {
        return CpuidResult {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
    }
    __cpuid_count(leaf, part)
}

/// The components of a task's extended state that the kernel has enabled (XCR0); 0 where there is no XSAVE.
#[must_use]
pub fn enabled() -> u64 {
    if ask(BASIC).ecx & 1 << 27 == 0 {
        return 0;
    }
    // SAFETY: the kernel has enabled XSAVE (OSXSAVE), and with it XGETBV.
    unsafe { xcr0() }
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: register 0 is there where the instruction is.
    unsafe { _xgetbv(0) }
}

/// The features of this processor that programs can use under this kernel.
#[must_use]
pub fn features() -> Vec<&'static Entry> {
    let enabled = enabled();
    let is_here = |entry: &&Entry| {
        let told = ask(entry.leaf);
        let (register, bit) = entry.place;
        let word = match register {
            Eax => told.eax,
            Ebx => told.ebx,
            Ecx => told.ecx,
            Edx => told.edx,
        };
        word & 1 << bit != 0 && enabled & entry.enabled == entry.enabled
    };
    FEATURES.iter().filter(is_here).collect()
}

/// Where the components beyond the first two stand in a task's extended state (leaf 0Dh).
#[must_use]
pub fn components() -> Vec<Component> {
    let enabled = enabled();
    let is_enabled = |number: &u32| enabled & 1 << number != 0;
    let place = |number| {
        let told = ask((0xd, number));
        Component {
            number,
            offset: told.ebx,
            bytes: told.eax,
        }
    };
    (2..63).filter(is_enabled).map(place).collect()
}
