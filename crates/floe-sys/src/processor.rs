//! What programs find out about the processor they run on, and go by from then on.

use crate::arch::processor;
use std::{fmt, str::FromStr};

pub use processor::enabled;

/// A part of a task's extended state (XSAVE) beyond those of x87 and SSE, in the form that NT_X86_XSTATE has: Intel SDM volume 1,
/// 13.4.3. Where it stands differs from vendor to vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// Its bit in XCR0.
    pub number: u32,
    /// Bytes before it.
    pub offset: u32,
    /// Its bytes.
    pub bytes: u32,
}

/// The components of this processor that the kernel has enabled, by number.
#[must_use]
pub fn components() -> Vec<Component> {
    processor::components()
}

/// The names of the instructions that programs may choose by and that are usable here, in a fixed order.
#[must_use]
pub fn features() -> Vec<&'static str> {
    processor::features().iter().map(|entry| entry.name).collect()
}

/// Whether the name is one that [`features`] can have.
#[must_use]
pub fn is_feature(name: &str) -> bool {
    processor::FEATURES.iter().any(|entry| entry.name == name)
}

/// A level of processors that programs can be limited to: x86-64 psABI, "Micro-Architecture Levels".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// `x86-64`: every 64-bit processor.
    V1,
    /// `x86-64-v2`: SSE4.2 and POPCNT, from 2009 on.
    V2,
    /// `x86-64-v3`: AVX2, BMI and FMA, from 2013 on.
    V3,
    /// `x86-64-v4`: AVX-512.
    V4,
}

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// Its name, as compilers and glibc have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// What it has of [`features`].
    pub fn features(self) -> impl Iterator<Item = &'static str> {
        let has = move |entry: &&processor::Entry| entry.level.is_some_and(|first| first <= self);
        processor::FEATURES.iter().filter(has).map(|entry| entry.name)
    }

    /// What of it this processor lacks.
    #[must_use]
    pub fn lacking(self) -> Vec<&'static str> {
        let here = features();
        self.features().filter(|name| !here.contains(name)).collect()
    }

    /// What glibc must not find so that it chooses nothing that this level lacks: the value of its tunable `glibc.cpu.hwcaps`. It
    /// passes over names that it does not know, as some versions do some of these.
    #[must_use]
    pub fn hidden(self) -> String {
        // Where each is hidden: below that level, or always.
        const ALL: [(&str, Option<Level>); 24] = [
            ("SSSE3", Some(Level::V2)),
            ("SSE4_1", Some(Level::V2)),
            ("SSE4_2", Some(Level::V2)),
            ("POPCNT", Some(Level::V2)),
            // Without it the dynamic linker saves registers by FXSAVE, for which it takes what every processor has.
            ("OSXSAVE", Some(Level::V3)),
            ("XSAVE", Some(Level::V3)),
            ("AVX", Some(Level::V3)),
            ("AVX2", Some(Level::V3)),
            ("AVX_Fast_Unaligned_Load", Some(Level::V3)),
            ("FMA", Some(Level::V3)),
            ("BMI1", Some(Level::V3)),
            ("BMI2", Some(Level::V3)),
            ("LZCNT", Some(Level::V3)),
            ("MOVBE", Some(Level::V3)),
            ("AVX512F", Some(Level::V4)),
            ("AVX512BW", Some(Level::V4)),
            ("AVX512CD", Some(Level::V4)),
            ("AVX512DQ", Some(Level::V4)),
            ("AVX512VL", Some(Level::V4)),
            ("XSAVEC", None),
            ("FMA4", None),
            ("RTM", None),
            ("ERMS", None),
            ("FSRM", None),
        ];
        let hidden = ALL.iter().filter(|(_, first)| first.is_none_or(|first| self < first));
        hidden.map(|(name, _)| format!("-{name}")).collect::<Vec<_>>().join(",")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|level| level.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no level of processors: {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Level, components, features};

    #[test]
    fn what_the_kernel_tells_of_is_found() {
        let text = std::fs::read_to_string("/proc/cpuinfo").expect("what the kernel tells");
        let flags = text.lines().find(|line| line.starts_with("flags")).expect("flags");
        let here = features();
        for (flag, name) in [
            ("ssse3", "SSSE3"),
            ("avx2", "AVX2"),
            ("avx512f", "AVX512F"),
            ("abm", "LZCNT"),
        ] {
            let told = flags.split_ascii_whitespace().any(|word| word == flag);
            assert_eq!(told, here.contains(&name), "{name}");
        }
    }

    #[test]
    fn components_do_not_overlap() {
        let mut all = components();
        all.sort_by_key(|component| component.offset);
        let apart = all
            .windows(2)
            .all(|pair| pair[0].offset + pair[0].bytes <= pair[1].offset);
        assert!(apart && all.iter().all(|component| component.offset >= 576));
    }

    #[test]
    fn a_level_hides_what_is_above_it() {
        let hidden = Level::V2.hidden();
        assert!(hidden.contains("-AVX2,") && hidden.contains("-OSXSAVE,") && !hidden.contains("SSE4_2"));
        assert!(!Level::V4.hidden().contains("AVX512") && Level::V4.hidden().contains("-RTM"));
        assert_eq!("x86-64-v3".parse(), Ok(Level::V3));
        assert!("x86-64-v9".parse::<Level>().is_err());
    }
}
