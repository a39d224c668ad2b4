//! Settings of namespaces: only those that floe carries, of namespaces that there are, and only numbers.

use super::ensure;
use crate::{
    Image,
    record::{NamespaceContents, NamespaceOrigin, SysctlKind},
};

/// A setting that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {fault}")]
pub struct SysctlFault {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// `kernel.sem` has four numbers of 64 bits at most.
const VALUE_BYTES: usize = 128;

pub(super) fn check(image: &Image) -> Result<(), SysctlFault> {
    let sandbox = image.sandbox();
    let mut seen = std::collections::HashSet::new();
    for record in &sandbox.sysctls {
        let bad = |fault| {
            let name = record.title();
            move || SysctlFault { name, fault }
        };
        let known = record.kind.names().contains(&record.name.as_str());
        ensure(known, bad("is none that is carried"))?;
        let exists = match record.kind {
            SysctlKind::Ipc if record.namespace == 0 => sandbox.ipc == NamespaceOrigin::Own,
            SysctlKind::Ipc => sandbox.ipc_namespace(record.namespace).is_some(),
            SysctlKind::Pid => (record.namespace as usize).checked_sub(1).is_none_or(|place| {
                let found = sandbox.pid_namespaces.get(place);
                found.is_some_and(|namespace| !namespace.ended)
            }),
            SysctlKind::User => (record.namespace as usize).checked_sub(1).is_none_or(|place| {
                let found = sandbox.namespaces.get(place);
                found.is_some_and(|record| matches!(record.contents, NamespaceContents::User(_)))
            }),
        };
        ensure(exists, bad("is of a namespace that is not there"))?;
        let is_number = |word: &str| word.parse::<i64>().is_ok() || word.parse::<u64>().is_ok();
        let numbers =
            record.value.len() <= VALUE_BYTES && !record.value.is_empty() && record.value.split(' ').all(is_number);
        ensure(numbers, bad("has no numbers as its value"))?;
        let first = seen.insert((record.kind, record.namespace, record.name.as_str()));
        ensure(first, bad("is there twice"))?;
    }
    Ok(())
}
