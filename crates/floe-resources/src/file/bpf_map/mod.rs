//! Maps of bpf(2) that only the tree has: no program in the kernel, no name, no process outside. What is in them is read
//! key by key, and of queues and stacks, which give what is read away, from the kernel's memory.

mod contents;
mod found;

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, set_status};
use contents::MapContents;
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::bpf_map;
pub(super) use found::FoundMaps;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

const OBJECT_KIND: &str = "bpf-map";

/// include/uapi/linux/bpf.h: what a file of a map may be used for.
const RDONLY: u32 = 1 << 3;
const WRONLY: u32 = 1 << 4;

/// The kind.
pub struct BpfMap;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    map: u32,
}

/// The kernel's numbers of maps that were made again, by their number in the image. Who has a file of one keeps it.
pub(super) type MadeMaps = HashMap<u32, u32>;

impl FileKind for BpfMap {
    fn name(&self) -> &'static str {
        "bpf-map"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        file.link == b"anon_inode:bpf-map"
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let map = found::number_of(file, context)?;
        Ok(map.map(|map| codec::encode(&Body { map })).transpose()?)
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let (map, contents) = possible(record, context)?;
        let wrap = |action| FileError::system(action, format!("map {map}"));
        let mut made = None;
        let id = match context.maps.get(&map) {
            Some(id) => *id,
            None => {
                let new = contents.make().map_err(|source| FileError::System {
                    action: "make again",
                    object: format!("map {map}"),
                    source,
                })?;
                let id = new.info().id;
                context.maps.insert(map, id);
                made = Some(new);
                id
            }
        };
        let flags = match record.flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => RDONLY,
            libc::O_WRONLY => WRONLY,
            _ => 0,
        };
        let file = bpf_map::by_id(id, flags).map_err(wrap("open"))?;
        drop(made);
        set_status(file.as_fd(), record)?;
        Ok(file)
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        Ok(format!("map {}", body.map))
    }

    fn obstacle(&self, _record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        Ok(None)
    }
}

fn possible(record: &OpenFileRecord, context: &OpenContext<'_>) -> Result<(u32, MapContents), FileError> {
    let body: Body = decode(record)?;
    let mut objects = context.objects.iter();
    let object = objects.find(|object| object.kind == OBJECT_KIND && object.id == body.map);
    let unknown = |what: String| FileError::Unknown { id: record.id, what };
    let object = object.ok_or_else(|| unknown(format!("the image lacks map {}", body.map)))?;
    let contents: MapContents = codec::decode(&object.body).map_err(|source| FileError::Decode {
        id: record.id,
        kind: OBJECT_KIND.to_owned(),
        source,
    })?;
    Ok((body.map, contents))
}
