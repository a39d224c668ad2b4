//! How an inherited address space becomes another one: what is unmapped, resized, kept and mapped. Pure.

use super::runs::outside;
use floe_image::record::{AddressSpaceRecord, VmaRecord, VmaSource};
use std::ops::Range;

/// The steps, in the order in which they are to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assembly {
    /// Ranges of inherited mappings that go.
    pub unmap: Vec<Range<u64>>,
    /// Inherited mappings that change their length in place: start, old bytes, new bytes.
    pub resize: Vec<(u64, u64, u64)>,
    /// Positions in the wanted list of inherited mappings that get another protection.
    pub protect: Vec<usize>,
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
    /// The wanted mappings of the task it was forked from, which are all in place, lowest first; none for the seed.
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
    let olds: Vec<&VmaRecord> = inherited.vmas.iter().filter(|vma| !is_special(vma)).collect();
    for (index, vma) in wanted.vmas.iter().enumerate() {
        if let VmaSource::Special { name } = &vma.source {
            if let Some((_, now)) = inherited.special.iter().find(|(known, _)| known == name) {
                plan.special.push((name.clone(), now.clone(), vma.start..vma.end));
            }
            continue;
        }
        let first = olds.partition_point(|old| old.end <= vma.start);
        let overlapping = olds[first..].iter().take_while(|old| old.start < vma.end);
        let stays = |old: &&&VmaRecord| inheritable(old, vma, inherited.drop_file);
        match overlapping.copied().find(|old| stays(&old)) {
            Some(old) => {
                plan.kept.push(vma.start..vma.end.min(old.end));
                if vma.end > old.end {
                    plan.resize.push((old.start, old.end - old.start, vma.end - vma.start));
                }
                if vma.prot != old.prot {
                    plan.protect.push(index);
                }
            }
            None => plan.map.push(index),
        }
    }
    plan.unmap = outside(olds.iter().map(|old| old.start..old.end), &plan.kept);
    plan
}

fn is_special(vma: &VmaRecord) -> bool {
    matches!(vma.source, VmaSource::Special { .. })
}

/// Whether pages of `old` may stay in the place of `new`: it is a part of it, or reaches further up from the same start.
fn inheritable(old: &VmaRecord, new: &VmaRecord, drop_file: Option<u32>) -> bool {
    let dropped = |vma: &VmaRecord| matches!(vma.source, VmaSource::File { file, .. } if drop_file == Some(file));
    let part = old.start <= new.start && new.end <= old.end;
    let grown = old.start == new.start && old.prot == new.prot && matches!(old.source, VmaSource::Anonymous);
    (part || grown) && alike(old, new) && !dropped(old)
}

/// Whether two mappings are of one kind, so that where both have an address it can have the same page after a fork.
/// Protections may differ where they can be changed.
#[must_use]
pub fn alike(old: &VmaRecord, new: &VmaRecord) -> bool {
    let not_copied = [b"dc", b"wf", b"lo"]
        .iter()
        .any(|flag| old.flags.contains(flag) || new.flags.contains(flag));
    let together = |one: u64, other: u64| one.wrapping_sub(old.start) == other.wrapping_sub(new.start);
    let same_source = match (&old.source, &new.source) {
        (VmaSource::Anonymous, VmaSource::Anonymous) => true,
        (
            VmaSource::File { file, offset, shared },
            VmaSource::File {
                file: other,
                offset: at,
                shared: too,
            },
        ) => (file, shared) == (other, too) && together(*offset, *at) && (!shared || old.prot == new.prot),
        (
            VmaSource::Shmem { object, offset },
            VmaSource::Shmem {
                object: other,
                offset: at,
            },
        ) => object == other && together(*offset, *at) && old.prot == new.prot,
        _ => false,
    };
    // Whether fork copies guards of files and of shared memory depends on the kernel.
    let guarded_file = !matches!(new.source, VmaSource::Anonymous) && !new.details.guards.is_empty();
    // Pages of hugetlbfs can't be dropped piece by piece.
    let huge = old.details.huge_page != 0;
    same_source
        && !not_copied
        && !guarded_file
        && !huge
        && old.flags == new.flags
        && old.name == new.name
        && old.details == new.details
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
        AddressSpaceRecord {
            pid: NsPid(1),
            vmas,
            layout: MmLayout::default(),
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
    fn parts_stay_and_change_their_protection() {
        let old = [anonymous(0x1000, 0x9000)];
        let inherited = Inherited {
            vmas: &old,
            ..Inherited::default()
        };
        let unwritable = VmaRecord {
            prot: 1,
            ..anonymous(0x4000, 0x5000)
        };
        let plan = assemble(
            &inherited,
            &space(vec![anonymous(0x2000, 0x4000), unwritable, anonymous(0x5000, 0x6000)]),
        );
        let (lower, upper) = (0x1000..0x2000, 0x6000..0x9000);
        assert_eq!((plan.unmap, plan.protect), (vec![lower, upper], vec![1]));
        assert_eq!(plan.kept, [0x2000..0x4000, 0x4000..0x5000, 0x5000..0x6000]);
        assert!(plan.map.is_empty() && plan.resize.is_empty());
    }

    #[test]
    fn a_file_stays_where_it_shows_the_same_bytes() {
        let file = |start, end, offset| VmaRecord {
            source: VmaSource::File {
                file: 3,
                offset,
                shared: false,
            },
            ..anonymous(start, end)
        };
        let old = [file(0x1000, 0x5000, 0x7000)];
        let inherited = Inherited {
            vmas: &old,
            ..Inherited::default()
        };
        assert!(
            assemble(&inherited, &space(vec![file(0x2000, 0x3000, 0x8000)]))
                .map
                .is_empty()
        );
        assert_eq!(
            assemble(&inherited, &space(vec![file(0x2000, 0x3000, 0x7000)])).map,
            [0]
        );
        let dropped = Inherited {
            drop_file: Some(3),
            ..inherited
        };
        assert_eq!(assemble(&dropped, &space(vec![file(0x1000, 0x5000, 0x7000)])).map, [0]);
    }

    #[test]
    fn the_seed_gets_everything_mapped() {
        let plan = assemble(&Inherited::default(), &space(vec![anonymous(0x1000, 0x2000)]));
        assert_eq!((plan.map, plan.unmap.len(), plan.kept.len()), (vec![0], 0, 0));
    }
}
