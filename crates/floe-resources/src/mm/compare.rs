//! Compares the mappings that a process has with those that it should have. Neighbours that the kernel joined or kept
//! apart count as the same.

use super::classify::CARRIED_FLAGS;
use floe_image::record::{AddressSpaceRecord, VmaRecord, VmaSource};
use floe_sys::procfs::{Mapping, VmFlag};

/// Flags that every mapping has that is made alike, so that nobody has to look for them: how it grows, and accounting.
const USUAL_FLAGS: [&VmFlag; 3] = [b"gd", b"nr", b"ac"];

/// Whether some mapping of a record has flags that were set by the program, so that a look at those is worth its time.
#[must_use]
pub fn has_flags(space: &AddressSpaceRecord) -> bool {
    let chosen = |flag: &VmFlag| !USUAL_FLAGS.contains(&flag);
    space.vmas.iter().any(|vma| vma.flags.iter().any(chosen))
}

/// A text for each difference; flags are compared where `found` has any.
#[must_use]
pub fn same_layout(found: &[Mapping], wanted: &AddressSpaceRecord) -> Vec<String> {
    let found: Vec<&Mapping> = found.iter().filter(|mapping| mapping.path != b"[vsyscall]").collect();
    let with_flags = found.iter().any(|mapping| !mapping.flags.is_empty());
    let is = joined(found.iter().map(|mapping| Part {
        start: mapping.start,
        end: mapping.end,
        prot: mapping.prot,
        flags: if with_flags {
            carried(&mapping.flags)
        } else {
            Vec::new()
        },
    }));
    let should = joined(wanted.vmas.iter().map(|vma| Part {
        start: vma.start,
        end: vma.end,
        prot: vma.prot,
        flags: if with_flags { carried(&vma.flags) } else { Vec::new() },
    }));
    let lacking = |parts: &[Part], others: &[Part], how: &str| -> Vec<String> {
        let missing = |part: &&Part| {
            let at = others.partition_point(|other| other.start < part.start);
            others.get(at) != Some(part)
        };
        let text = |part: &Part| format!("mapping {} is {how}", part.text());
        parts.iter().filter(missing).map(text).collect()
    };
    let mut differences = lacking(&should, &is, "missing");
    differences.extend(lacking(&is, &should, "too many"));
    differences.extend(wanted.vmas.iter().filter_map(|vma| other_source(vma, &found)));
    differences
}

/// Whether what lies at the beginning of a mapping of a file or of shared memory shows another part, or not in that way.
fn other_source(vma: &VmaRecord, found: &[&Mapping]) -> Option<String> {
    let (offset, shared) = match vma.source {
        VmaSource::File { offset, shared, .. } => (offset, shared),
        VmaSource::Shmem { offset, .. } => (offset, true),
        _ => return None,
    };
    let at = found.partition_point(|mapping| mapping.end <= vma.start);
    let mapping = found.get(at).filter(|mapping| mapping.start <= vma.start)?;
    let is = (
        mapping.inode != 0,
        mapping.offset + (vma.start - mapping.start),
        mapping.shared,
    );
    let should = (true, offset, shared);
    (is != should).then(|| {
        format!(
            "mapping {:x}-{:x}: file, offset and sharing are {is:?}, should be {should:?}",
            vma.start, vma.end
        )
    })
}

#[derive(PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
    prot: u32,
    flags: Vec<VmFlag>,
}

impl Part {
    fn text(&self) -> String {
        let flags: Vec<_> = self.flags.iter().map(|flag| String::from_utf8_lossy(flag)).collect();
        format!("{:x}-{:x} prot {} {}", self.start, self.end, self.prot, flags.join(" "))
    }
}

/// Those that restore sets, in one order. Accounting follows from how memory was used, and ends with it.
fn carried(flags: &[VmFlag]) -> Vec<VmFlag> {
    let set = |flag: &&VmFlag| CARRIED_FLAGS.contains(flag) && *flag != b"ac";
    let mut flags: Vec<VmFlag> = flags.iter().filter(set).copied().collect();
    flags.sort_unstable();
    flags
}

fn joined(parts: impl Iterator<Item = Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(last) if last.end == part.start && last.prot == part.prot && last.flags == part.flags => {
                last.end = part.end;
            }
            _ => all.push(part),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{has_flags, same_layout};
    use floe_image::record::{AddressSpaceRecord, MmLayout, NsPid, VmaDetails, VmaRecord, VmaSource};
    use floe_sys::procfs::Mapping;

    const FOUND: &[u8] = b"1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac \n\
        2000-3000 r--p 00001000 fd:01 7 /a\nVmFlags: rd mr mw me dd \n";

    fn wanted(prot: u32, offset: u64, flags: &[[u8; 2]]) -> AddressSpaceRecord {
        let vma = |start, end, prot, source| VmaRecord {
            start,
            end,
            prot,
            flags: vec![],
            name: None,
            source,
            details: VmaDetails::default(),
        };
        let file = VmaSource::File {
            file: 0,
            offset,
            shared: false,
        };
        let anonymous = VmaSource::Anonymous;
        let mut vmas = vec![
            vma(0x1000, 0x1800, prot, anonymous.clone()),
            vma(0x1800, 0x2000, prot, anonymous),
            vma(0x2000, 0x3000, 1, file),
        ];
        vmas[2].flags = flags.to_vec();
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
    fn tells_what_differs() {
        let found = Mapping::parse_all(FOUND).expect("good text");
        let differences = |space: &AddressSpaceRecord| same_layout(&found, space).len();
        assert_eq!(same_layout(&found, &wanted(3, 0x1000, &[*b"dd"])), [""; 0]);
        assert_eq!(differences(&wanted(1, 0x1000, &[*b"dd"])), 2);
        assert_eq!(differences(&wanted(3, 0x2000, &[*b"dd"])), 1);
        assert_eq!(differences(&wanted(3, 0x1000, &[])), 2);
        assert!(has_flags(&wanted(3, 0, &[*b"dd"])) && !has_flags(&wanted(3, 0, &[*b"ac"])));
    }
}
