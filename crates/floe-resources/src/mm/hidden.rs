//! Guard regions in shared memory that floe reads where it is mapped: madvise(2), MADV_GUARD_INSTALL. Nobody reads there what
//! lies behind one, so it is read where somebody else has it mapped.

use super::content::{ContentPlace, Contents, MappedPart};
use crate::refusal::{Refusals, Subject};
use floe_sys::Pid;
use std::ops::Range;

/// Bytes of such memory behind a guard.
#[derive(Debug)]
pub(super) struct Hidden {
    subject: Subject,
    /// Which of the sources, and which of its bytes.
    source: usize,
    range: Range<u64>,
}

impl Contents {
    /// Has guards in the mapping at `start` of a process not be read.
    pub(super) fn leave_out(&mut self, subject: &Subject, (pid, start): (Pid, u64), guards: &[(u64, u64)]) {
        for (index, source) in self.sources.iter_mut().enumerate() {
            let ContentPlace::Memory(parts) = &mut source.place else {
                continue;
            };
            let Some(found) = parts.iter().position(|part| (part.pid, part.address) == (pid, start)) else {
                continue;
            };
            let part = parts.remove(found);
            let (seen, hidden) = cut(&part, guards);
            parts.extend(seen);
            self.hidden.extend(hidden.into_iter().map(|range| Hidden {
                subject: subject.clone(),
                source: index,
                range,
            }));
        }
    }

    /// Adds findings for what lies behind guards wherever it is mapped, when all processes have been looked at.
    pub fn refuse_hidden(&self, refusals: &mut Refusals) {
        for hidden in &self.hidden {
            let ContentPlace::Memory(parts) = &self.sources[hidden.source].place else {
                continue;
            };
            if !is_covered(&hidden.range, parts) {
                refusals.add(
                    Some(&hidden.subject),
                    "guard region in shared memory",
                    "what lies behind it floe could read only as the host's root",
                    "remove it (MADV_GUARD_REMOVE), or run floe as root",
                );
            }
        }
    }
}

/// A part without its guards, and the bytes of the object that these hide.
fn cut(part: &MappedPart, guards: &[(u64, u64)]) -> (Vec<MappedPart>, Vec<Range<u64>>) {
    let inside = |address: u64| part.range.start + (address - part.address);
    let hidden: Vec<Range<u64>> = guards.iter().map(|(start, end)| inside(*start)..inside(*end)).collect();
    let mut seen = Vec::new();
    let mut at = part.range.start;
    let ends = hidden
        .iter()
        .cloned()
        .chain(std::iter::once(part.range.end..part.range.end));
    for gap in ends {
        if at < gap.start {
            seen.push(MappedPart {
                range: at..gap.start,
                pid: part.pid,
                address: part.address + (at - part.range.start),
            });
        }
        at = gap.end;
    }
    (seen, hidden)
}

fn is_covered(range: &Range<u64>, parts: &[MappedPart]) -> bool {
    let mut at = range.start;
    while at < range.end {
        let further = parts
            .iter()
            .filter(|part| part.range.contains(&at))
            .map(|part| part.range.end);
        match further.max() {
            Some(end) => at = end,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{MappedPart, Pid, cut, is_covered};

    fn part(start: u64, end: u64, address: u64) -> MappedPart {
        MappedPart {
            range: start..end,
            pid: Pid::new(1),
            address,
        }
    }

    #[test]
    fn guards_are_cut_out() {
        let (seen, hidden) = cut(&part(100, 200, 1000), &[(1000, 1010), (1050, 1060), (1090, 1100)]);
        assert_eq!(seen, [part(110, 150, 1010), part(160, 190, 1060)]);
        assert_eq!(hidden, [100..110, 150..160, 190..200]);
        assert_eq!(cut(&part(0, 10, 50), &[(50, 60)]).0, []);
    }

    #[test]
    fn others_may_see_what_is_hidden() {
        let parts = [part(0, 10, 0), part(20, 30, 0), part(8, 15, 500)];
        assert!(is_covered(&(5..15), &parts));
        assert!(!is_covered(&(5..16), &parts));
        assert!(!is_covered(&(15..25), &parts));
    }
}
