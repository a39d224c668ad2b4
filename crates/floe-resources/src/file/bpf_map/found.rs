//! Finds maps, reads what they hold, and finds out who else has them.

use super::{
    super::{DumpContext, FileError, FoundFile, event::Lines},
    OBJECT_KIND,
    contents::{FLAGS, KINDS, MOST_ROOM, MapContents, is_queue, room},
};
use crate::refusal::{Refusals, Subject};
use floe_image::{codec, record::ObjectRecord};
use floe_sys::bpf_map::{self, Map, MapInfo};
use nix::errno::Errno;
use std::{collections::HashMap, io, os::fd::AsFd};

/// Bytes of keys and values that are read of a map.
const MOST_BYTES: u64 = 16 << 20;

/// The maps found so far, by the kernel's number; none where one was refused.
#[derive(Debug, Default)]
pub(crate) struct FoundMaps {
    all: HashMap<u32, Option<FoundMap>>,
    numbers: u32,
}

#[derive(Debug)]
struct FoundMap {
    /// In the image.
    number: u32,
    /// How many open files, and whoever else, have it.
    references: u64,
    /// How many of these are the tree's.
    files: u64,
    /// For a finding.
    subject: Subject,
    title: String,
}

impl FoundMaps {
    /// Refuses those that somebody else has too, when all files are found.
    pub(crate) fn refuse_shared(&self, refusals: &mut Refusals) {
        let shared = self.all.values().flatten().filter(|map| map.references != map.files);
        for map in shared {
            let others = map.references.saturating_sub(map.files);
            let reason = format!(
                "a map of bpf(2) that {others} others have: programs in the kernel, other maps, names in a BPF file \
                 system, or processes outside of the tree"
            );
            let advice = "close it, and have a process outside of the tree hold it";
            refusals.add(Some(&map.subject), map.title.clone(), reason, advice);
        }
    }
}

/// The number of the map behind a file; `None` where it was refused. It is called once for each open file.
pub(super) fn number_of(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<u32>, FileError> {
    let info = bpf_map::info(file.as_fd()).map_err(FileError::system("look at", file.title()))?;
    if let Some(known) = context.maps.all.get_mut(&info.id) {
        return Ok(known.as_mut().map(|known| {
            known.files += 1;
            known.number
        }));
    }
    let found = match read(file, &info, context)? {
        Ok((contents, references)) => {
            let number = context.maps.numbers;
            context.maps.numbers += 1;
            context.objects.push(ObjectRecord {
                kind: OBJECT_KIND.to_owned(),
                id: number,
                version: 1,
                body: codec::encode(&contents)?,
            });
            Some(FoundMap {
                number,
                references,
                files: 1,
                subject: file.subject.clone(),
                title: file.title(),
            })
        }
        Err(reason) => {
            let advice = "close it, and have a process outside of the tree hold it";
            context.refusals.add(Some(&file.subject), file.title(), reason, advice);
            None
        }
    };
    let number = found.as_ref().map(|found| found.number);
    context.maps.all.insert(info.id, found);
    Ok(number)
}

/// What a map is, and how many have it; or why it can't be carried.
type Read = Result<(MapContents, u64), String>;

fn read(file: &FoundFile, info: &MapInfo, context: &DumpContext<'_>) -> Result<Read, FileError> {
    if let Some(reason) = obstacle(info) {
        return Ok(Err(reason));
    }
    let used = match context.memory.bpf_map(file.as_fd()) {
        Ok(used) => used,
        Err(error) => {
            return Ok(Err(format!(
                "whether others have a map of bpf(2) can't be read from the kernel's memory by floe: {error}"
            )));
        }
    };
    let frozen = Lines::read(file)?.number("frozen", 10)? != 0;
    let held = if is_queue(info.kind) {
        let values = context
            .memory
            .bpf_queue(file.as_fd(), info.value_size, info.max_entries);
        values.map(|values| Some((Vec::new(), values)))
    } else {
        entries(info)
    };
    let held = held.map_err(|source| FileError::System {
        action: "read",
        object: file.title(),
        source,
    })?;
    let Some((keys, values)) = held else {
        let reason = format!("a map of bpf(2) that holds more than {} MiB", MOST_BYTES >> 20);
        return Ok(Err(reason));
    };
    let contents = MapContents {
        kind: info.kind,
        key_bytes: info.key_size,
        value_bytes: info.value_size,
        most: info.max_entries,
        flags: info.map_flags,
        node: used.numa_node.max(0) as u32,
        name: info.name.to_vec(),
        frozen,
        keys,
        values,
    };
    Ok(Ok((contents, used.references)))
}

fn obstacle(info: &MapInfo) -> Option<String> {
    let kind = info.kind;
    if !KINDS.contains(&kind) {
        return Some(format!(
            "a map of bpf(2) of kind {kind}: what it holds are programs, maps, sockets or events of the kernel's"
        ));
    }
    if info.map_flags & !FLAGS != 0 {
        return Some(format!(
            "a map of bpf(2) with flags that can't be carried ({:#x})",
            info.map_flags
        ));
    }
    let typed = info.btf_id != 0 || info.btf_vmlinux_value_type_id != 0;
    if typed || info.ifindex != 0 || info.map_extra != 0 {
        return Some("a map of bpf(2) with types (BTF), or on a network device".to_owned());
    }
    let room = room(info.key_size, info.value_size, info.max_entries);
    if is_queue(kind) && room > MOST_BYTES {
        return Some(format!(
            "a queue of bpf(2) that may hold more than {} MiB",
            MOST_BYTES >> 20
        ));
    }
    (room > MOST_ROOM).then(|| format!("a map of bpf(2) with room for more than {} MiB", MOST_ROOM >> 20))
}

/// Keys and values.
type Held = (Vec<u8>, Vec<u8>);

/// All that a map holds; `None` where that is too much.
fn entries(info: &MapInfo) -> io::Result<Option<Held>> {
    // The file that was found may be one that can't be read.
    let map = Map::of(bpf_map::by_id(info.id, 0)?)?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut next = map.next_key(None)?;
    while let Some(key) = next {
        match map.lookup(&key) {
            // Arrays have all their keys, with zeros.
            Ok(value) if is_array(info.kind) && value.iter().all(|byte| *byte == 0) => {}
            Ok(value) => {
                keys.extend(&key);
                values.extend(value);
            }
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if (keys.len() + values.len()) as u64 > MOST_BYTES {
            return Ok(None);
        }
        next = map.next_key(Some(&key))?;
    }
    Ok(Some((keys, values)))
}

/// Arrays, and those of each processor.
fn is_array(kind: u32) -> bool {
    [2, 6].contains(&kind)
}
