//! What a table's block of entries consists of.

use super::Layout;

/// Bytes of a match or target before what is its own.
const HEAD: usize = 32;
/// Where its name is, and how long that is at most.
const NAME: usize = 2;
const NAME_BYTES: usize = 29;

/// An entry.
pub(super) struct Entry {
    /// Where it begins.
    pub start: usize,
    /// Names of its matches and of its target.
    pub extensions: Vec<String>,
}

/// All entries; `None` where they are not whole, one behind the other, up to the end.
pub(super) fn split(block: &[u8], layout: &Layout) -> Option<Vec<Entry>> {
    let mut found = Vec::new();
    let mut start = 0;
    while start < block.len() {
        let [target, next] = [0, 2].map(|at| half(block, start + layout.places + at));
        let (target, next) = (usize::from(target?), usize::from(next?));
        let entry = block.get(start..start + next)?;
        let mut extensions = Vec::new();
        let mut at = layout.head;
        while at < target {
            at += extension(entry.get(at..target)?, &mut extensions)?;
        }
        if at != target || at + extension(entry.get(target..)?, &mut extensions)? != next {
            return None;
        }
        found.push(Entry { start, extensions });
        start += next;
    }
    Some(found)
}

/// Reads the name of one that begins here; its length.
fn extension(bytes: &[u8], names: &mut Vec<String>) -> Option<usize> {
    let length = usize::from(half(bytes, 0)?);
    let name = bytes.get(NAME..NAME + NAME_BYTES)?.split(|byte| *byte == 0).next()?;
    if !(HEAD..=bytes.len()).contains(&length) {
        return None;
    }
    names.push(String::from_utf8_lossy(name).into_owned());
    Some(length)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(two.try_into().ok()?))
}
