//! BTF, the kernel's description of its own types, Documentation/bpf/btf.rst. It is read anew for each look, in one pass:
//! a few places of members are wanted among more than a hundred thousand types, and a parser that keeps them all takes 61
//! MiB for it.

use std::{collections::HashMap, io};

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;

/// Kinds of types, include/uapi/linux/btf.h.
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const ENUM64: u32 = 19;
    pub const LAST: u32 = ENUM64;
}

/// All types of the running kernel.
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins, by its id; the first one is void.
    places: Vec<u32>,
    named: HashMap<&'static str, u32>,
}

impl Btf {
    /// Reads them, and finds the structures with these names.
    pub(super) fn read(wanted: &[&'static str]) -> io::Result<Self> {
        Self::parse(std::fs::read(PATH)?, wanted).ok_or_else(|| io::Error::other(format!("{PATH} can't be understood")))
    }

    fn parse(bytes: Vec<u8>, wanted: &[&'static str]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(4)? as usize;
        let (types, types_bytes) = (header + word(8)? as usize, word(12)? as usize);
        let strings = header + word(16)? as usize;
        let mut all = Self {
            strings,
            places: vec![0],
            named: HashMap::new(),
            bytes,
        };
        let (mut at, end) = (types, types.checked_add(types_bytes)?);
        while at < end {
            let (kind, count) = all.kind_at(at)?;
            if kind == kind::STRUCT {
                let name = all.name_at(all.word(at)?)?;
                if let Some(name) = wanted.iter().find(|wanted| wanted.as_bytes() == name) {
                    all.named.entry(name).or_insert(all.places.len() as u32);
                }
            }
            all.places.push(at as u32);
            at += TYPE_BYTES
                + match kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                    kind::ENUM | kind::FUNC_PROTO => 8 * count,
                    1..=kind::LAST => 0,
                    _ => return None,
                };
        }
        Some(all)
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    /// Kind and number of members.
    fn kind_at(&self, at: usize) -> Option<(u32, usize)> {
        let info = self.word(at + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name_at(&self, offset: u32) -> Option<&[u8]> {
        let text = self.bytes.get(self.strings + offset as usize..)?;
        text.split(|byte| *byte == 0).next()
    }

    /// The id of a type with a name that was wanted.
    pub(super) fn id(&self, name: &'static str) -> io::Result<u32> {
        let found = self.named.get(name).copied();
        found.ok_or_else(|| io::Error::other(format!("this kernel has no {name}")))
    }

    /// The id of a function.
    pub(super) fn function(&self, name: &str) -> io::Result<u32> {
        let is_it = |place: &u32| {
            let at = *place as usize;
            let named = |at| self.name_at(self.word(at)?);
            self.kind_at(at).is_some_and(|(kind, _)| kind == kind::FUNC) && named(at) == Some(name.as_bytes())
        };
        // The first type has no place.
        let found = self.places.iter().skip(1).position(is_it);
        let found = found.ok_or_else(|| io::Error::other(format!("this kernel has no {name}")))?;
        Ok(found as u32 + 1)
    }

    /// Bytes of a structure that was wanted.
    pub(super) fn size(&self, structure: &'static str) -> io::Result<u64> {
        let place = self.places[self.id(structure)? as usize];
        let size = self.word(place as usize + 8);
        size.map(u64::from)
            .ok_or_else(|| io::Error::other("a type without a size"))
    }

    /// Byte offset of a member in a structure that was wanted. `member` may be a path: `outer.inner`.
    pub(super) fn offset(&self, structure: &'static str, member: &str) -> io::Result<u64> {
        self.find(structure, member).map(|(bits, _)| bits / 8)
    }

    /// The bit at which a member begins that is smaller than a byte.
    pub(super) fn bit(&self, structure: &'static str, member: &str) -> io::Result<u64> {
        self.find(structure, member).map(|(bits, _)| bits)
    }

    /// Whether a member is an array, and not what points to one.
    pub(super) fn is_array(&self, structure: &'static str, member: &str) -> io::Result<bool> {
        Ok(self.array(structure, member)?.is_some())
    }

    /// How many elements an array has; `None` for a member that is none.
    pub(super) fn array(&self, structure: &'static str, member: &str) -> io::Result<Option<u32>> {
        let (_, of) = self.find(structure, member)?;
        let place = self.places.get(of as usize).copied().unwrap_or(0) as usize;
        let is_array = self.kind_at(place).is_some_and(|(kind, _)| kind == kind::ARRAY);
        // Behind the type: of what, by what, how many.
        Ok(self.word(place + TYPE_BYTES + 8).filter(|_| is_array))
    }

    fn find(&self, structure: &'static str, path: &str) -> io::Result<(u64, u32)> {
        let step = |(bits, of), member: &str| {
            let (more, of) = self.member(of, member.as_bytes())?;
            Some((bits + more, of))
        };
        let found = path.split('.').try_fold((0, self.id(structure)?), step);
        found.ok_or_else(|| io::Error::other(format!("this kernel's {structure} has no {path}")))
    }

    /// Offset in bits and type. Members of unnamed structures and unions within belong to the outer one.
    fn member(&self, id: u32, wanted: &[u8]) -> Option<(u64, u32)> {
        let at = *self.places.get(id as usize)? as usize;
        let (kind, count) = self.kind_at(at)?;
        if ![kind::STRUCT, kind::UNION].contains(&kind) {
            return None;
        }
        let has_bits = self.word(at + 4)? >> 31 != 0;
        for member in (0..count).map(|index| at + TYPE_BYTES + 12 * index) {
            let name = self.name_at(self.word(member)?)?;
            let place = self.word(member + 8)?;
            let offset = u64::from(if has_bits { place & 0xff_ffff } else { place });
            if name == wanted {
                return Some((offset, self.word(member + 4)?));
            }
            if name.is_empty()
                && let Some((inner, of)) = self.member(self.word(member + 4)?, wanted)
            {
                return Some((offset + inner, of));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Btf;

    #[test]
    fn finds_members_also_of_unnamed_structures() {
        let types = Btf::read(&["list_head", "mm_struct", "page", "tty_struct"]).expect("types of this kernel");
        assert_eq!(types.offset("list_head", "prev").ok(), Some(8));
        assert!(types.offset("mm_struct", "ioctx_table").expect("it is there") > 0);
        assert!(types.offset("list_head", "last").is_err());
        assert_eq!(types.is_array("list_head", "prev").ok(), Some(false));
        assert_eq!(types.array("tty_struct", "name").ok(), Some(Some(64)));
        let within = types.offset("tty_struct", "flow.stopped").expect("it is there");
        assert!(within > types.offset("tty_struct", "flow").expect("it is there"));
        assert!(types.id("no_such_struct").is_err());
    }

    #[test]
    fn foreign_and_short_files_are_no_types() {
        let whole = std::fs::read(super::PATH).expect("read");
        assert!(Btf::parse(b"\x9f\xeb".to_vec(), &[]).is_none());
        assert!(Btf::parse(vec![0; 100], &[]).is_none());
        assert!(Btf::parse(whole[..whole.len() / 2].to_vec(), &["page"]).is_none());
    }
}
