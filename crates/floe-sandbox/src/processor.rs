//! What a workload may find out about the processor, so that it can go to another one later.

use floe_sys::processor::{Level, features};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// What the programs of a sandbox may have chosen by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessorState {
    /// The level that they are limited to ([`Level::name`]).
    pub level: Option<String>,
    /// Instructions ([`features`]) that hosts had on which it has been, this one among them.
    pub features: Vec<String>,
}

impl ProcessorState {
    /// The same with what this host has.
    #[must_use]
    pub fn here(&self) -> Self {
        let mut all = self.clone();
        for name in features() {
            if !all.features.iter().any(|known| known == name) {
                all.features.push(name.to_owned());
            }
        }
        all
    }

    /// The environment of a program that is started there: it is limited to the level, too.
    #[must_use]
    pub fn environment(&self, own: &[OsString]) -> Vec<OsString> {
        let level = self.level.as_deref().and_then(|name| name.parse().ok());
        level.map_or_else(|| own.to_vec(), |level| limited(own, level))
    }
}

/// The same environment, in which glibc's functions are chosen for a level of processors: `GLIBC_TUNABLES`, ld.so(8), whose other
/// settings stay.
fn limited(own: &[OsString], level: Level) -> Vec<OsString> {
    const VARIABLE: &[u8] = b"GLIBC_TUNABLES=";
    const HIDDEN: &[u8] = b"glibc.cpu.hwcaps=";
    let (given, mut all): (Vec<_>, Vec<_>) = own
        .iter()
        .cloned()
        .partition(|entry| entry.as_bytes().starts_with(VARIABLE));
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut hidden: Vec<Vec<u8>> = Vec::new();
    for tunable in given
        .iter()
        .flat_map(|entry| entry.as_bytes()[VARIABLE.len()..].split(|byte| *byte == b':'))
    {
        match tunable.strip_prefix(HIDDEN) {
            Some(names) => hidden.extend(names.split(|byte| *byte == b',').map(<[u8]>::to_vec)),
            None if tunable.is_empty() => {}
            None => kept.push(tunable.to_vec()),
        }
    }
    let wanted = level.hidden();
    for name in wanted.split(',').map(str::as_bytes) {
        // Whatever was said of it before.
        let plain = &name[1..];
        hidden.retain(|known| known.strip_prefix(b"-").unwrap_or(known) != plain);
        hidden.push(name.to_vec());
    }
    hidden.retain(|name| !name.is_empty());
    kept.push([HIDDEN, hidden.join(&b","[..]).as_slice()].concat());
    let value = kept.join(&b":"[..]);
    all.push(OsString::from_vec([VARIABLE, value.as_slice()].concat()));
    all
}

#[cfg(test)]
mod tests {
    use super::ProcessorState;
    use std::ffi::OsString;

    fn environment(level: Option<&str>, own: &[&str]) -> Vec<OsString> {
        let state = ProcessorState {
            level: level.map(str::to_owned),
            features: Vec::new(),
        };
        state.environment(&own.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_level_is_added_to_what_the_user_has() {
        assert_eq!(environment(None, &["A=b"]), ["A=b"]);
        let hidden = "-XSAVEC,-FMA4,-RTM,-ERMS,-FSRM";
        let all = format!("GLIBC_TUNABLES=glibc.cpu.hwcaps={hidden}");
        assert_eq!(environment(Some("x86-64-v4"), &["A=b"]), ["A=b", all.as_str()]);
        let own = "GLIBC_TUNABLES=glibc.malloc.check=3:glibc.cpu.hwcaps=RTM,-AVX2:glibc.rtld.nns=2";
        let all = format!("GLIBC_TUNABLES=glibc.malloc.check=3:glibc.rtld.nns=2:glibc.cpu.hwcaps=-AVX2,{hidden}");
        let both = environment(Some("x86-64-v4"), &[own]);
        assert_eq!(both, [all.as_str()]);
        // What is so already stays so.
        let once: Vec<&str> = both.iter().filter_map(|entry| entry.to_str()).collect();
        assert_eq!(environment(Some("x86-64-v4"), &once), both);
    }
}
