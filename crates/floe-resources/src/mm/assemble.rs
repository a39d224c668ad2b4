//! How an inherited address space becomes another one: what is unmapped, resized, kept and mapped. Pure.

use floe_image::record::{AddressSpaceRecord, VmaRecord, VmaSource};
use std::ops::Range;

/// The steps, in the order in which they are to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assembly {
    /// Ranges of inherited mappings that go.
    pub unmap: Vec<Range<u64>>,
    /// Inherited mappings that change their length in place: start, old bytes, new bytes.
    pub resize: Vec<(u64, u64, u64)>,
    /// Positions in the wanted list of mappings to be made.
    pub map: Vec<usize>,
    /// Ranges whose inherited pages stay, lowest first.
    pub kept: Vec<Range<u64>>,
    /// Positions in the wanted list of special mappings: name, where it is now, where it goes.
    pub special: Vec<(String, Range<u64>, Range<u64>)>,
}

/// What is mapped in a puppet before it is assembled.
#[derive(Debug, Clone, Default)]
pub struct Inherited<'a> {
    /// The wanted mappings of the task it was forked from, which are all in place; none for the seed.
    pub vmas: &'a [VmaRecord],
    /// The special mappings as they lie now: name, range.
    pub special: Vec<(String, Range<u64>)>,
    /// Id of a file none of whose mappings may be kept, because the executable changes.
    pub drop_file: Option<u32>,
}

/// Works out the steps. Special mappings that the wanted list lacks stay where they are.
#[must_use]
pub fn assemble(inherited: &Inherited<'_>, wanted: &AddressSpaceRecord) -> Assembly {
    let mut plan = Assembly::default();
    let mut keep = vec![None; wanted.vmas.len()];
    for old in inherited.vmas.iter().filter(|vma| !is_special(vma)) {
        let found = wanted
            .vmas
            .iter()
            .position(|new| new.start == old.start || new.end == old.end);
        match found.filter(|i| inheritable(old, &wanted.vmas[*i], inherited.drop_file)) {
            Some(index) if keep[index].is_none() => {
                if keep_part(&mut plan, old, &wanted.vmas[index]) {
                    keep[index] = Some(());
                } else {
                    plan.unmap.push(old.start..old.end);
                }
            }
            _ => plan.unmap.push(old.start..old.end),
        }
    }
    for (index, vma) in wanted.vmas.iter().enumerate() {
        if let VmaSource::Special { name } = &vma.source {
            if let Some((_, now)) = inherited.special.iter().find(|(known, _)| known == name) {
                plan.special.push((name.clone(), now.clone(), vma.start..vma.end));
            }
        } else if keep[index].is_none() {
            plan.map.push(index);
        }
    }
    plan.unmap = coalesce(std::mem::take(&mut plan.unmap));
    plan.kept.sort_by_key(|range| range.start);
    plan
}

/// Notes what of an inherited mapping stays; false where nothing can.
fn keep_part(plan: &mut Assembly, old: &VmaRecord, new: &VmaRecord) -> bool {
    let (old_bytes, new_bytes) = (old.end - old.start, new.end - new.start);
    if old.start == new.start {
        if new_bytes < old_bytes {
            plan.unmap.push(new.end..old.end);
        } else if new_bytes > old_bytes {
            plan.resize.push((old.start, old_bytes, new_bytes));
        }
        plan.kept.push(old.start..old.end.min(new.end));
        true
    } else if new.start > old.start {
        // Same end: a stack that had grown less far.
        plan.unmap.push(old.start..new.start);
        plan.kept.push(new.start..new.end);
        true
    } else {
        false
    }
}

fn is_special(vma: &VmaRecord) -> bool {
    matches!(vma.source, VmaSource::Special { .. })
}

/// Whether pages of `old` may stay in the place of `new`: alike in all but one end.
fn inheritable(old: &VmaRecord, new: &VmaRecord, drop_file: Option<u32>) -> bool {
    let not_copied = [b"dc", b"wf", b"lo"]
        .iter()
        .any(|flag| old.flags.contains(flag) || new.flags.contains(flag));
    let same_source = match (&old.source, &new.source) {
        (VmaSource::File { file, .. }, _) | (_, VmaSource::File { file, .. }) if drop_file == Some(*file) => false,
        (VmaSource::Anonymous, VmaSource::Anonymous) => true,
        (old_source, new_source) => old_source == new_source && old.start == new.start && old.end == new.end,
    };
    // Whether fork copies guards of files and of shared memory depends on the kernel.
    let guarded_file = !matches!(new.source, VmaSource::Anonymous) && !new.details.guards.is_empty();
    // Pages of hugetlbfs can't be dropped piece by piece.
    let huge = old.details.huge_page != 0;
    same_source
        && !not_copied
        && !guarded_file
        && !huge
        && old.prot == new.prot
        && old.flags == new.flags
        && old.name == new.name
        && old.details == new.details
}

fn coalesce(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::{Inherited, assemble};
    use floe_image::record::{AddressSpaceRecord, MmLayout, NsPid, VmaDetails, VmaRecord, VmaSource};

    fn anonymous(start: u64, end: u64) -> VmaRecord {
        VmaRecord {
            start,
            end,
            prot: 3,
            flags: vec![],
            name: None,
            source: VmaSource::Anonymous,
            details: VmaDetails::default(),
        }
    }

    fn space(vmas: Vec<VmaRecord>) -> AddressSpaceRecord {
        let layout = MmLayout {
            start_code: 0,
            end_code: 0,
            start_data: 0,
            end_data: 0,
            start_brk: 0,
            brk: 0,
            start_stack: 0,
            arg_start: 0,
            arg_end: 0,
            env_start: 0,
            env_end: 0,
        };
        AddressSpaceRecord {
            pid: NsPid(1),
            vmas,
            layout,
            auxv: vec![],
            exe: 0,
            lock_future: 0,
        }
    }

    #[test]
    fn keeps_what_is_the_same_and_grows_what_grew() {
        let old = [
            anonymous(0x1000, 0x3000),
            anonymous(0x8000, 0x9000),
            anonymous(0xa000, 0xb000),
        ];
        let inherited = Inherited {
            vmas: &old,
            ..Inherited::default()
        };
        let plan = assemble(
            &inherited,
            &space(vec![anonymous(0x1000, 0x5000), anonymous(0xa000, 0xb000)]),
        );
        let gone = 0x8000..0x9000;
        assert_eq!(plan.unmap, [gone]);
        assert_eq!(plan.resize, [(0x1000, 0x2000, 0x4000)]);
        assert_eq!(plan.kept, [0x1000..0x3000, 0xa000..0xb000]);
        assert!(plan.map.is_empty());
    }

    #[test]
    fn a_stack_that_grew_less_far_keeps_its_upper_end() {
        let old = [anonymous(0x1000, 0x5000)];
        let inherited = Inherited {
            vmas: &old,
            ..Inherited::default()
        };
        let plan = assemble(&inherited, &space(vec![anonymous(0x3000, 0x5000)]));
        let (lower, upper) = (0x1000..0x3000, 0x3000..0x5000);
        assert_eq!((plan.unmap, plan.kept), (vec![lower], vec![upper]));
    }

    #[test]
    fn the_seed_gets_everything_mapped() {
        let plan = assemble(&Inherited::default(), &space(vec![anonymous(0x1000, 0x2000)]));
        assert_eq!((plan.map, plan.unmap.len(), plan.kept.len()), (vec![0], 0, 0));
    }
}
