//! What no call tells of maps of bpf(2): include/linux/bpf.h, kernel/bpf/queue_stack_maps.c.

use super::FileMemory;
use std::{io, os::fd::BorrowedFd};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 2] = ["bpf_map", "bpf_queue_stack"];

/// Who uses a map, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUse {
    /// How many open files, programs, names and other maps have it.
    pub references: u64,
    /// The node that it was made for; -1 for any.
    pub numa_node: i32,
}

impl FileMemory {
    /// Of a map that the caller has open.
    ///
    /// # Errors
    /// Those of reading.
    pub fn bpf_map(&self, map: BorrowedFd<'_>) -> io::Result<MapUse> {
        let memory = &self.0;
        let map = memory.member("file", memory.file(map)?, "private_data")?;
        Ok(MapUse {
            references: memory.member("bpf_map", map, "refcnt")?,
            numa_node: memory.number("bpf_map", map, "numa_node")? as i32,
        })
    }

    /// What a queue or stack that the caller has open holds, of as many bytes each, first one first.
    ///
    /// # Errors
    /// Those of reading.
    pub fn bpf_queue(&self, map: BorrowedFd<'_>, value_bytes: u32, most: u32) -> io::Result<Vec<u8>> {
        let memory = &self.0;
        let map = memory.member("file", memory.file(map)?, "private_data")?;
        let queue = map - memory.types.offset("bpf_queue_stack", "map")?;
        let number = |member| memory.number("bpf_queue_stack", queue, member).map(u64::from);
        let (head, mut tail, size) = (number("head")?, number("tail")?, number("size")?);
        if head >= size || tail >= size || size > u64::from(most) + 1 {
            return Err(io::Error::other("a queue is not as it should be"));
        }
        let first = queue + memory.types.offset("bpf_queue_stack", "elements")?;
        let mut values = Vec::new();
        while tail != head {
            values.extend(memory.bytes(first + tail * u64::from(value_bytes), value_bytes as usize)?);
            tail = (tail + 1) % size;
        }
        Ok(values)
    }
}
