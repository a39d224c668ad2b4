//! What a map is and holds, and how it is made again.

use floe_sys::bpf_map::{Map, MapInfo};
use serde::{Deserialize, Serialize};
use std::io;

/// The object behind files of a map.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MapContents {
    /// BPF_MAP_TYPE_*.
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) most: u32,
    /// BPF_F_*.
    pub(super) flags: u32,
    /// Where the flags say that it was made for one.
    pub(super) node: u32,
    /// 16 bytes, from the first NUL on of no meaning.
    #[serde(with = "serde_bytes")]
    pub(super) name: Vec<u8>,
    /// Whether it can't be written any more, but by programs in the kernel.
    pub(super) frozen: bool,
    /// One behind the other; none of queues and stacks.
    #[serde(with = "serde_bytes")]
    pub(super) keys: Vec<u8>,
    /// One behind the other: of maps of each processor as many as there can be, each of a multiple of eight bytes.
    #[serde(with = "serde_bytes")]
    pub(super) values: Vec<u8>,
}

/// Kinds that are carried: hash, array, both of each processor, hashes that forget, trie, queue, stack.
pub(super) const KINDS: [u32; 9] = [1, 2, 5, 6, 9, 10, 11, QUEUE, STACK];
const QUEUE: u32 = 22;
const STACK: u32 = 23;

/// BPF_F_NUMA_NODE.
const NUMA_NODE: u32 = 1 << 2;
/// Flags that are carried: BPF_F_NO_PREALLOC, _NUMA_NODE, _ZERO_SEED, _RDONLY_PROG, _WRONLY_PROG, _MMAPABLE.
pub(super) const FLAGS: u32 = 1 | NUMA_NODE | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10;

/// Bytes of keys and values that a map may have room for: the kernel may take memory for all of them at once.
pub(super) const MOST_ROOM: u64 = 1 << 30;

/// Bytes of them that one with such sizes has room for.
pub(super) fn room(key_bytes: u32, value_bytes: u32, most: u32) -> u64 {
    (u64::from(key_bytes) + u64::from(value_bytes)).saturating_mul(most.into())
}

/// Whether a map of this kind has no keys.
pub(super) fn is_queue(kind: u32) -> bool {
    [QUEUE, STACK].contains(&kind)
}

impl MapContents {
    /// Makes the map.
    pub(super) fn make(&self) -> io::Result<Map> {
        let impossible = |what: &str| io::Error::other(what.to_owned());
        if !KINDS.contains(&self.kind) || self.flags & !FLAGS != 0 {
            return Err(impossible("it is of a kind that floe does not know"));
        }
        if room(self.key_bytes, self.value_bytes, self.most) > MOST_ROOM {
            return Err(impossible("it has room for more than a map may"));
        }
        let mut like = MapInfo {
            kind: self.kind,
            key_size: self.key_bytes,
            value_size: self.value_bytes,
            max_entries: self.most,
            map_flags: self.flags,
            ..MapInfo::default()
        };
        let length = self.name.len().min(like.name.len() - 1);
        like.name[..length].copy_from_slice(&self.name[..length]);
        let node = if self.flags & NUMA_NODE == 0 { 0 } else { self.node };
        let map = Map::create(&like, node)?;
        self.fill(&map)?;
        if self.frozen {
            map.freeze()?;
        }
        Ok(map)
    }

    fn fill(&self, map: &Map) -> io::Result<()> {
        let (key, value) = (self.key_bytes as usize, map.value_bytes());
        let count = self.values.len().checked_div(value).unwrap_or(0);
        if (self.keys.len(), self.values.len()) != (count * key, count * value) {
            let reason = "its keys and values do not fit, or this machine can have another number of processors";
            return Err(io::Error::other(reason));
        }
        for index in 0..count {
            let at = |all: &'_ [u8], size: usize| all[index * size..(index + 1) * size].to_vec();
            map.update(&at(&self.keys, key), &at(&self.values, value))?;
        }
        // Those that forget may do so before they are full.
        for key in self.keys.chunks_exact(key.max(1)) {
            map.lookup(key)?;
        }
        Ok(())
    }
}
