//! Extended registers as NT_X86_XSTATE has them: the legacy region of FXSAVE, a header that says which components are in use, and
//! the components, in the processor's own order. Intel SDM volume 1, 13.4.

use floe_sys::processor::Component;
use std::ops::Range;

/// The legacy region, x87 and SSE.
const LEGACY: usize = 512;
/// Where the header says which components are in use (XSTATE_BV).
const IN_USE: Range<usize> = 512..520;
/// Where the header ends.
const HEADER_END: usize = 576;
/// Protection keys, whose register is never at its initial value under Linux.
const KEYS: u32 = 9;
/// What Linux sets that to (init_pkru).
const ALL_KEYS_BUT_ONE: u32 = 0x5555_5554;

fn content(extended: &[u8], component: &Component) -> Vec<u8> {
    let start = component.offset as usize;
    let told = extended.get(start.min(extended.len())..).unwrap_or_default();
    let mut bytes = told[..told.len().min(component.bytes as usize)].to_vec();
    // Zeros at the end may have been left out.
    bytes.resize(component.bytes as usize, 0);
    bytes
}

/// The numbers of the components beyond x87 and SSE of which a task has something that a processor without them would lose: what is
/// marked as in use, and at other values than those that every task begins with.
#[must_use]
pub fn components_in_use(extended: &[u8], layout: &[Component]) -> Vec<u32> {
    let marks = marks(extended);
    let counts = |number: &u32| {
        let Some(component) = layout.iter().find(|known| known.number == *number) else {
            return true;
        };
        let bytes = content(extended, component);
        let usual = bytes.iter().all(|byte| *byte == 0);
        let usual_keys = *number == KEYS && bytes.starts_with(&ALL_KEYS_BUT_ONE.to_le_bytes());
        !usual && !usual_keys
    };
    (2..63)
        .filter(|number| marks & 1 << number != 0)
        .filter(counts)
        .collect()
}

fn marks(extended: &[u8]) -> u64 {
    let bytes = extended.get(IN_USE).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

/// The same registers for a processor that has its components elsewhere, `bytes` long. What it does not have is left out.
#[must_use]
pub fn moved_components(extended: &[u8], from: &[Component], to: &[Component], bytes: usize) -> Vec<u8> {
    let mut moved = extended.to_vec();
    moved.resize(bytes, 0);
    if from == to || extended.len() <= LEGACY || bytes < HEADER_END {
        return moved;
    }
    let mut marks = marks(extended);
    moved[HEADER_END..].fill(0);
    for number in 2..63 {
        if marks & 1 << number == 0 {
            continue;
        }
        let find = |layout: &[Component]| layout.iter().find(|known| known.number == number).copied();
        let (Some(old), Some(new)) = (find(from), find(to)) else {
            marks &= !(1 << number);
            continue;
        };
        let content = content(extended, &old);
        let there = new.offset as usize..(new.offset + new.bytes.min(old.bytes)) as usize;
        match moved.get_mut(there) {
            Some(there) => there.copy_from_slice(&content[..there.len()]),
            None => marks &= !(1 << number),
        }
    }
    moved[IN_USE].copy_from_slice(&marks.to_le_bytes());
    moved
}

#[cfg(test)]
mod tests {
    use super::{components_in_use, moved_components};
    use floe_sys::processor::Component;

    fn component(number: u32, offset: u32, bytes: u32) -> Component {
        Component { number, offset, bytes }
    }

    /// One that says `marks`, and has `content` at some place.
    fn extended(marks: u64, (at, content): (usize, &[u8])) -> Vec<u8> {
        let mut bytes = vec![0; at + content.len()];
        bytes[..4].copy_from_slice(&[1, 2, 3, 4]);
        bytes[512..520].copy_from_slice(&marks.to_le_bytes());
        bytes[at..].copy_from_slice(content);
        bytes
    }

    #[test]
    fn what_is_as_every_task_begins_is_not_in_use() {
        let layout = [component(2, 576, 256), component(9, 832, 8)];
        let keys = extended(0b10_0000_0111, (832, &0x5555_5554_u32.to_le_bytes()));
        assert_eq!(components_in_use(&keys, &layout), []);
        let keys = extended(0b10_0000_0111, (832, &0x5555_5550_u32.to_le_bytes()));
        assert_eq!(components_in_use(&keys, &layout), [9]);
        let upper = extended(0b111, (600, &[7]));
        assert_eq!(components_in_use(&upper, &layout), [2]);
        assert_eq!(components_in_use(&upper, &[]), [2]);
        assert_eq!(components_in_use(&upper[..512], &layout), []);
    }

    #[test]
    fn components_are_where_the_other_processor_has_them() {
        let from = [component(2, 576, 256), component(5, 832, 64)];
        let to = [component(2, 576, 256), component(5, 1088, 64)];
        let old = extended(0b10_0111, (840, &[9, 8]));
        let new = moved_components(&old, &from, &to, 1152);
        assert_eq!((&new[1096..1098], &new[840..842]), (&[9, 8][..], &[0, 0][..]));
        assert_eq!((&new[..4], new[512]), (&[1, 2, 3, 4][..], 0b10_0111));
        assert_eq!(components_in_use(&new, &to), [5]);
        // Back, and to one that has no such component.
        let back = moved_components(&new, &to, &from, 896);
        assert!(back[..842] == old && back[842..].iter().all(|byte| *byte == 0));
        let without = moved_components(&old, &from, &from[..1], 832);
        assert_eq!((without.len(), without[512]), (832, 0b111));
        assert!(moved_components(&old, &from, &from, 900)[..842] == old);
    }
}
