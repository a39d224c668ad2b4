//! Trees that were made under another kernel: their tasks know functions of its vDSO by address, and this kernel's are elsewhere.
//!
//! What the kernel had mapped there becomes ordinary memory: in the place of its vDSO stands that vDSO's own file, as the image has it,
//! each of whose functions goes to this kernel's; in the place of its data stand zeros, which tell code that is still in the
//! middle of a function (a signal came there) to ask the kernel. This kernel's vDSO is mapped where there is room.

use super::{Obstacle, RestoreError};
use crate::checkpoint::read_vdso;
use floe_image::{
    Image,
    record::{
        AddressSpaceRecord, HeaderRecord, NsPid, ProcessRecord, ThreadRecord, VdsoRecord, VmaDetails, VmaRecord,
        VmaSource,
    },
};
use floe_resources::mm::first_gap;
use floe_sys::{Pid, memory::MemoryFile, procfs::Mapping};
use floe_tracee::{Registers, vdso_bridge};
use std::{collections::HashMap, ops::Range};

const TEXT: &str = "[vdso]";

/// What is to be written in the place of the other kernel's vDSO.
#[derive(Debug, Default)]
pub struct Bridge {
    text: Vec<u8>,
    /// Where, by the process whose address space it is.
    places: HashMap<NsPid, u64>,
}

impl Bridge {
    /// Writes it into an address space whose mappings are there.
    pub fn write(&self, tid: Pid, space: NsPid) -> Result<(), RestoreError> {
        let Some(place) = self.places.get(&space) else {
            return Ok(());
        };
        MemoryFile::open(tid)
            .and_then(|memory| memory.write(*place, &self.text))
            .map_err(|source| RestoreError::System {
                action: format!("write what leads to this kernel's vDSO into process {space}"),
                source,
            })
    }
}

/// Has the image's address spaces be what they can be under this kernel, or tells why they can't.
pub fn prepare(image: &mut Image) -> Result<(Bridge, Vec<Obstacle>), RestoreError> {
    let own = Pid::new(std::process::id() as i32);
    let mappings = Mapping::read_all(own)?;
    let (here, text) = read_vdso(own, &mappings)?;
    let there = &image.header().vdso;
    if there.mappings.is_empty() || *there == here {
        return Ok(Default::default());
    }
    match bridge(image, (&here, &text)) {
        Ok((bridge, base)) => {
            let own = own_mappings(&mappings, &here, base);
            image.change_address_spaces(|space| give_way(space, &own));
            Ok((bridge, Vec::new()))
        }
        Err(reason) => {
            let HeaderRecord { kernel, .. } = image.header();
            let obstacle = Obstacle {
                object: "vDSO".to_owned(),
                reason: format!(
                    "the image was made on Linux {kernel}, whose vDSO differs from this kernel's: {reason}"
                ),
            };
            Ok((Bridge::default(), vec![obstacle]))
        }
    }
}

/// The bridge, and where this kernel's mappings are to begin.
fn bridge(image: &Image, (here, text): (&VdsoRecord, &[u8])) -> Result<(Bridge, u64), String> {
    let old = image
        .machine()
        .map(|machine| &machine.vdso)
        .filter(|old| !old.is_empty());
    let old = old.ok_or("it does not hold that, so that nothing can be put in its place")?;
    let bytes: Vec<u64> = here.mappings.iter().map(|(_, bytes)| *bytes).collect();
    let at = here.mappings.iter().position(|(name, _)| name == TEXT);
    let at = at.ok_or("there is none here (boot option vdso=0?)")?;
    let taken = image.address_spaces().iter().flat_map(|space| &space.vmas);
    let base = first_gap(taken.map(|vma| vma.start..vma.end).collect(), bytes.iter().sum());
    let mut places = HashMap::new();
    for space in image.address_spaces() {
        let Some(vma) = space.vmas.iter().find(|vma| is_text(vma)) else {
            continue;
        };
        if vma.end - vma.start < old.len() as u64 {
            return Err("its mapping is shorter".to_owned());
        }
        places.insert(space.pid, vma.start);
        for process in image
            .processes()
            .iter()
            .filter(|process| shares(image, process, space.pid))
        {
            within(&process.threads, &(vma.start..vma.end))?;
        }
    }
    let text = vdso_bridge(old, text, base + bytes[..at].iter().sum::<u64>());
    let text = text.map_err(|name| format!("this one has nothing for {name}"))?;
    Ok((Bridge { text, places }, base))
}

fn is_text(vma: &VmaRecord) -> bool {
    matches!(&vma.source, VmaSource::Special { name } if name == TEXT)
}

/// Whether an address space is the one of a process: its own, or that of the parent that it shares with.
fn shares(image: &Image, process: &ProcessRecord, space: NsPid) -> bool {
    let mut whose = process;
    while whose.shared & libc::CLONE_VM as u32 != 0 {
        match image.processes().iter().find(|other| other.pid == whose.ppid) {
            Some(parent) => whose = parent,
            None => return false,
        }
    }
    whose.pid == space
}

/// No thread may be in the middle of one of its functions, which reads data that is not there any more.
fn within(threads: &[ThreadRecord], text: &Range<u64>) -> Result<(), String> {
    let inside = threads.iter().find(|thread| {
        let registers = Registers::from_bytes(&thread.registers.general);
        registers.is_some_and(|registers| text.contains(&registers.instruction()))
    });
    match inside {
        Some(thread) => Err(format!(
            "task {} is in the middle of a function of it; save the tree again",
            thread.tid
        )),
        None => Ok(()),
    }
}

/// What this kernel has mapped, from `base` on.
fn own_mappings(mappings: &[Mapping], here: &VdsoRecord, base: u64) -> Vec<VmaRecord> {
    let mut at = base;
    let own = here.mappings.iter().filter_map(|(name, bytes)| {
        let known = mappings.iter().find(|mapping| mapping.path == name.as_bytes())?;
        let start = at;
        at += bytes;
        Some(VmaRecord {
            start,
            end: at,
            prot: known.prot,
            flags: known.flags.clone(),
            name: None,
            source: VmaSource::Special { name: name.clone() },
            details: VmaDetails::default(),
        })
    });
    own.collect()
}

/// Makes what the other kernel had mapped ordinary memory, and adds what this one has.
fn give_way(space: &mut AddressSpaceRecord, own: &[VmaRecord]) {
    let had_some = space.vmas.iter().any(is_text);
    for vma in &mut space.vmas {
        if matches!(vma.source, VmaSource::Special { .. }) {
            vma.source = VmaSource::Anonymous;
            vma.flags.clear();
            vma.details = VmaDetails::default();
        }
    }
    if let (true, Some(first)) = (had_some, own.first()) {
        let before = space.vmas.partition_point(|vma| vma.end <= first.start);
        space.vmas.splice(before..before, own.iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::{give_way, within};
    use floe_image::record::{AddressSpaceRecord, MmLayout, NsPid, ThreadRecord, VmaDetails, VmaRecord, VmaSource};

    fn vma(start: u64, end: u64, source: VmaSource) -> VmaRecord {
        VmaRecord {
            start,
            end,
            prot: 5,
            flags: vec![*b"dd"],
            name: None,
            source,
            details: VmaDetails::default(),
        }
    }

    fn special(name: &str) -> VmaSource {
        VmaSource::Special { name: name.to_owned() }
    }

    #[test]
    fn what_another_kernel_had_mapped_is_memory_and_this_ones_is_added() {
        let mut space = AddressSpaceRecord {
            pid: NsPid(1),
            vmas: vec![
                vma(0x1000, 0x2000, VmaSource::Anonymous),
                vma(0x8000, 0xc000, special("[vvar]")),
                vma(0xc000, 0xe000, special("[vdso]")),
            ],
            layout: MmLayout::default(),
            auxv: vec![],
            exe: 0,
            lock_future: 0,
        };
        let own = [
            vma(0x2000, 0x3000, special("[vvar]")),
            vma(0x3000, 0x4000, special("[vdso]")),
        ];
        give_way(&mut space, &own);
        let starts: Vec<u64> = space.vmas.iter().map(|vma| vma.start).collect();
        assert_eq!(starts, [0x1000, 0x2000, 0x3000, 0x8000, 0xc000]);
        assert_eq!(space.vmas[1..3], own);
        assert!(
            space.vmas[3..]
                .iter()
                .all(|vma| vma.source == VmaSource::Anonymous && vma.flags.is_empty())
        );
        // Where there was none, there is none.
        space.vmas.truncate(1);
        give_way(&mut space, &own);
        assert_eq!(space.vmas.len(), 1);
    }

    #[test]
    fn who_is_in_the_middle_of_a_function_is_found() {
        let mut thread = ThreadRecord::default();
        // The instruction pointer is the 17th register.
        thread.registers.general = [vec![0; 128], 0xc010_u64.to_le_bytes().to_vec(), vec![0; 80]].concat();
        assert!(within(&[thread.clone()], &(0xc000..0xe000)).is_err());
        assert!(within(&[thread], &(0xe000..0xf000)).is_ok());
    }
}
