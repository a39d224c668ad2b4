//! What programs depend on of the machine.

use super::ensure;
use crate::{Image, record::MachineRecord};
use std::collections::HashSet;

/// Bytes of the legacy region and the header of extended registers, which no component overlaps: Intel SDM volume 1, 13.4.
const BEFORE_COMPONENTS: u64 = 576;
/// No vDSO is longer, by far.
const MOST_VDSO: usize = 1 << 16;

/// A machine that none can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineFault {
    /// Components.
    #[error("component {0} of its extended registers stands nowhere, or where another one does")]
    Component(u32),
    /// The vDSO.
    #[error("its vDSO has {0} bytes")]
    Vdso(usize),
}

pub(super) fn check(image: &Image) -> Result<(), MachineFault> {
    let Some(MachineRecord { components, vdso, .. }) = image.machine() else {
        return Ok(());
    };
    ensure(vdso.len() <= MOST_VDSO, || MachineFault::Vdso(vdso.len()))?;
    let size = u64::from(image.header().xstate_size);
    let mut numbers = HashSet::new();
    let mut ranges: Vec<(u64, u64, u32)> = Vec::new();
    for component in components {
        let (number, start) = (component.number, u64::from(component.offset));
        let end = start + u64::from(component.bytes);
        let fits = (2..63).contains(&number) && numbers.insert(number) && start < end;
        ensure(
            fits && (BEFORE_COMPONENTS..=size).contains(&start) && end <= size,
            || MachineFault::Component(number),
        )?;
        ranges.push((start, end, number));
    }
    ranges.sort_unstable();
    let overlapping = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0);
    ensure(overlapping.is_none(), || {
        MachineFault::Component(overlapping.map_or(0, |pair| pair[1].2))
    })
}
