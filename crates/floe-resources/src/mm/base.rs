//! What is as an earlier image has it, the base of the new one: such pages are not stored again.
//!
//! A page that is known not to be written since that image was made ([`Seen`]) is not even read. All others are compared
//! with what the base has for the same owner at the same place. That an owner is the same one as then is only a guess, so
//! what is compared may be compared in vain, but is never wrong.

use super::{
    fill::{FillError, Filler, Target},
    runs::{outside, within},
    track::Seen,
};
use floe_image::{
    Image,
    record::{BaseRecord, ContentOwner, PageRun},
};
use floe_sys::memory::RemoteRange;
use std::{collections::HashMap, ffi::OsStr, io, ops::Range, os::unix::ffi::OsStrExt, sync::Mutex};

const PAGE: usize = 4096;
/// Bytes that are read at once.
const BLOCK: usize = 16 * PAGE;

/// An image on which another one is to be based.
#[derive(Debug)]
pub struct Base {
    image: Image,
    name: Vec<u8>,
    /// The positions of page maps.
    maps: HashMap<ContentOwner, usize>,
}

impl Base {
    /// The image, whose file has this name.
    #[must_use]
    pub fn new(image: Image, name: &OsStr) -> Self {
        let maps = image.page_maps().iter().enumerate();
        let maps = maps.map(|(position, map)| (map.owner, position)).collect();
        let name = name.as_bytes().to_vec();
        Self { image, name, maps }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// What the new image says of it.
    #[must_use]
    pub fn record(&self) -> BaseRecord {
        BaseRecord {
            id: self.image.identity().id,
            name: self.name.clone(),
            pages: self.image.stored_pages(),
        }
    }

    /// The pages of an owner that are in `content` (sorted) and as in this image. Those that were `seen` to be written are
    /// not among them; others that were not seen to be unchanged are read.
    ///
    /// # Errors
    /// [`FillError`].
    pub(super) fn unchanged(
        &self,
        owner: ContentOwner,
        content: &[Range<u64>],
        seen: Option<&Seen>,
        read: &(dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync),
    ) -> Result<Vec<PageRun>, FillError> {
        let Some(position) = self.maps.get(&owner) else {
            return Ok(Vec::new());
        };
        let there = within(&self.image.page_maps()[*position].runs, content);
        let nothing = Seen::default();
        let seen = seen.unwrap_or(&nothing);
        let unread = outside(content.iter().cloned(), &seen.unchanged);
        let unread = outside(unread.into_iter(), &seen.written);
        let compare = Compare {
            read,
            same: Mutex::new(Vec::new()),
        };
        Filler::new(&self.image).to(&compare, &within(&there, &unread))?;
        let mut same = compare.same.into_inner().expect("no thread panics with the lock held");
        same.extend(seen.unchanged.iter().cloned());
        same.sort_unstable_by_key(|range| range.start);
        Ok(within(&there, &same))
    }
}

/// Compares pages with what is there now.
struct Compare<'a> {
    read: &'a (dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync),
    /// What is the same, in no order.
    same: Mutex<Vec<Range<u64>>>,
}

impl Target for Compare<'_> {
    fn same_way(&self, _one: u64, _other: u64) -> bool {
        true
    }

    fn scatter(&self, places: &[RemoteRange], bytes: &[u8]) -> Result<(), FillError> {
        let mut there = vec![0; BLOCK.min(bytes.len())];
        let mut same: Vec<Range<u64>> = Vec::new();
        let mut rest = bytes;
        for place in places {
            let (stored, behind) = rest.split_at(place.bytes);
            rest = behind;
            for (block, stored) in (0..).zip(stored.chunks(BLOCK)) {
                let address = place.start + block * BLOCK as u64;
                let there = &mut there[..stored.len()];
                (self.read)(address, there).map_err(|source| FillError::Compared { address, source })?;
                for (page, (one, other)) in (0..).zip(there.chunks(PAGE).zip(stored.chunks(PAGE))) {
                    if one == other {
                        let start = address + page * PAGE as u64;
                        add(&mut same, start..start + PAGE as u64);
                    }
                }
            }
        }
        let mut all = self.same.lock().expect("no thread panics with the lock held");
        all.append(&mut same);
        Ok(())
    }
}

fn add(list: &mut Vec<Range<u64>>, range: Range<u64>) {
    match list.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}
