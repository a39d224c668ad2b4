//! Maps of bpf(2), as programs that use them see them.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// include/uapi/linux/bpf.h.
const CREATE: i32 = 0;
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const NEXT_KEY: i32 = 4;
const FD_BY_ID: i32 = 14;
const INFO_BY_FD: i32 = 15;
const FREEZE: i32 = 22;

/// What a map is: the beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_vmlinux_value_type_id: u32,
    pub netns_dev: u64,
    pub netns_ino: u64,
    pub btf_id: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub btf_vmlinux_id: u32,
    pub map_extra: u64,
}
const _: () = assert!(size_of::<MapInfo>() == 88);

/// The attributes of BPF_MAP_CREATE up to the name.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
    padding: u32,
}
const _: () = assert!(size_of::<Create>() == 48);

/// Those about an element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
const _: () = assert!(size_of::<Element>() == 32);

fn call<T>(command: i32, attributes: &mut T) -> Result<i64, Errno> {
    // SAFETY: the structure has the stated size; the callers see to what it points to.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

/// Kinds of which each processor has values of its own: hash, array, and hash that forgets.
const OF_EACH_PROCESSOR: [u32; 3] = [5, 6, 10];

/// A map that is open.
#[derive(Debug)]
pub struct Map {
    file: OwnedFd,
    info: MapInfo,
    value_bytes: usize,
}

impl Map {
    /// What is open as `file`.
    ///
    /// # Errors
    /// Those of bpf(2), of what is no map, too.
    pub fn of(file: OwnedFd) -> io::Result<Self> {
        let info = info(file.as_fd())?;
        let value_bytes = if info.is_of_each_processor() {
            info.value_size.next_multiple_of(8) as usize * possible_processors()? as usize
        } else {
            info.value_size as usize
        };
        Ok(Self {
            file,
            info,
            value_bytes,
        })
    }

    /// A new one, which is empty. Of `like` its kind, sizes, flags and name count; `numa_node` where its flags say so.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn create(like: &MapInfo, numa_node: u32) -> io::Result<Self> {
        let mut attributes = Create {
            kind: like.kind,
            key_size: like.key_size,
            value_size: like.value_size,
            max_entries: like.max_entries,
            map_flags: like.map_flags,
            numa_node,
            name: like.name,
            ..Create::default()
        };
        Self::of(owned(call(CREATE, &mut attributes)?)?)
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of what a key has.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// The key behind `key`, the first one where there is none; `None` behind the last one.
    ///
    /// # Errors
    /// Those of bpf(2); EINVAL for what is no key of this map.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, Errno> {
        if let Some(key) = key {
            self.fits(key, None)?;
        }
        let mut next = vec![0; self.info.key_size as usize];
        let mut attributes = Element {
            map: self.file.as_raw_fd() as u32,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value: next.as_mut_ptr() as u64,
            ..Element::default()
        };
        match call(NEXT_KEY, &mut attributes) {
            Ok(_) => Ok(Some(next)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a key has.
    ///
    /// # Errors
    /// ENOENT where it has nothing; EINVAL for what is no key of this map.
    pub fn lookup(&self, key: &[u8]) -> Result<Vec<u8>, Errno> {
        self.fits(key, None)?;
        let mut value = vec![0; self.value_bytes];
        let mut attributes = Element {
            map: self.file.as_raw_fd() as u32,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        };
        call(LOOKUP, &mut attributes)?;
        Ok(value)
    }

    /// Gives a key a value; to a queue or stack, whose keys have no bytes, the next one.
    ///
    /// # Errors
    /// E2BIG where the map is full; EINVAL for what is no key or value of this map.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        self.fits(key, Some(value))?;
        let mut attributes = Element {
            map: self.file.as_raw_fd() as u32,
            key: if key.is_empty() { 0 } else { key.as_ptr() as u64 },
            value: value.as_ptr() as u64,
            ..Element::default()
        };
        call(UPDATE, &mut attributes).map(drop)
    }

    /// Keeps everybody but programs in the kernel from writing to it, for good.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn freeze(&self) -> Result<(), Errno> {
        let mut attributes = [self.file.as_raw_fd() as u32];
        call(FREEZE, &mut attributes).map(drop)
    }

    /// The kernel reads as many bytes as it says.
    fn fits(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), Errno> {
        let fits =
            key.len() == self.info.key_size as usize && value.is_none_or(|value| value.len() == self.value_bytes);
        if fits { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MapInfo {
    /// Whether each processor has a value of its own.
    #[must_use]
    pub fn is_of_each_processor(&self) -> bool {
        OF_EACH_PROCESSOR.contains(&self.kind)
    }
}

/// What a map is.
///
/// # Errors
/// Those of bpf(2).
pub fn info(map: BorrowedFd<'_>) -> Result<MapInfo, Errno> {
    let mut info = MapInfo::default();
    // Descriptor, bytes, address.
    let length = size_of::<MapInfo>() as u64;
    let mut attributes = [map.as_raw_fd() as u64 | length << 32, (&raw mut info) as u64];
    call(INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// The map with this number (CAP_SYS_ADMIN); `flags` may be BPF_F_RDONLY or BPF_F_WRONLY.
///
/// # Errors
/// ENOENT, EPERM.
pub fn by_id(id: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = [id, 0, flags];
    owned(call(FD_BY_ID, &mut attributes)?)
}

/// How many processors there can be: `0-7`, or `0,2-3`.
///
/// # Errors
/// Those of reading.
pub fn possible_processors() -> io::Result<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse().ok());
    let last: u32 = last.ok_or_else(|| io::Error::other("how many processors there can be is not told"))?;
    Ok(last + 1)
}

#[cfg(test)]
mod tests {
    use super::{Map, MapInfo, by_id};
    use crate::kernel::{FileMemory, MapUse};
    use nix::errno::Errno;
    use std::os::fd::AsFd;

    const HASH: u32 = 1;
    const QUEUE: u32 = 22;

    fn like(kind: u32, key_size: u32) -> MapInfo {
        let mut like = MapInfo {
            kind,
            key_size,
            value_size: 8,
            max_entries: 3,
            ..MapInfo::default()
        };
        like.name[..4].copy_from_slice(b"test");
        like
    }

    #[test]
    fn a_map_holds_what_it_was_given() {
        let map = Map::create(&like(HASH, 4), 0).expect("as root");
        map.update(b"key.", b"a value.").expect("room");
        assert_eq!(map.update(b"key", b"a value."), Err(Errno::EINVAL));
        assert_eq!(map.next_key(None), Ok(Some(b"key.".to_vec())));
        assert_eq!(map.next_key(Some(b"key.")), Ok(None));
        assert_eq!(map.lookup(b"key."), Ok(b"a value.".to_vec()));
        map.freeze().expect("once");
        assert_eq!(map.update(b"more", b"a value."), Err(Errno::EPERM));
        assert_eq!(&map.info().name[..5], b"test\0");
        let memory = FileMemory::open().expect("as root");
        let uses = || memory.bpf_map(map.as_fd()).expect("read").references;
        assert_eq!(uses(), 1);
        let other = by_id(map.info().id, 0).expect("as root");
        assert_eq!(uses(), 2);
        drop(other);
    }

    #[test]
    fn what_a_queue_holds_is_seen_and_left() {
        let queue = Map::create(&like(QUEUE, 0), 0).expect("as root");
        let memory = FileMemory::open().expect("as root");
        let seen = || memory.bpf_queue(queue.as_fd(), 8, 3).expect("read");
        assert_eq!(seen(), b"");
        for value in [b"one.....", b"two.....", b"three..."] {
            queue.update(&[], value).expect("room");
        }
        for _ in 0..2 {
            assert_eq!(seen(), b"one.....two.....three...");
        }
        assert!(matches!(
            memory.bpf_map(queue.as_fd()),
            Ok(MapUse { references: 1, .. })
        ));
    }
}
