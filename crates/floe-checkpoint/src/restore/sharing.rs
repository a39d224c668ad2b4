//! What parents hold while they fork, so that their children share pages again that no parent of theirs has any more: it
//! wrote others over them, unmapped them, or ended. Pure.
//!
//! Pages can be shared only by inheriting them. So whoever is the nearest common ancestor of all processes that have a
//! page at an address *lends* it to them: it holds the page until the last of them is forked, in place of what it has
//! there itself, and so does every process between. Then each makes its own memory out of what it holds.
//!
//! Where two pages are wanted at one address, the child that is forked first gets its own. The other one is not shared by
//! as many as before, which costs memory and nothing else: whatever a process inherits, what differs is written.

use super::plan::Step;
use floe_image::{
    Image,
    record::{AddressSpaceRecord, ContentOwner, HugeRun, PageId, PageMapRecord, PageRun, VmaRecord, VmaSource},
};
use floe_resources::mm::{RunList, alike, differing, overlay, without};
use std::collections::{BTreeSet, HashMap};

const PAGE: u64 = 4096;
/// What is wanted of parents, in runs of pages for each fork, is followed up to here. No tree that grew by itself needs as
/// much; an image that claims to gets its pages without sharing them.
const MOST_WANTED: usize = 1 << 20;

/// An address space with its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its mappings.
    pub space: AddressSpaceRecord,
    /// Its private pages.
    pub runs: Vec<PageRun>,
    /// Where pages are huge ones, as far as they are there.
    pub huge: Vec<HugeRun>,
}

/// What one process holds while it forks.
#[derive(Debug)]
pub struct Lending {
    /// Before it forks anybody.
    pub first: Held,
    /// Before it forks one child, where that is something else than before.
    pub before: HashMap<i32, Held>,
    /// The child behind which it gets its own memory.
    pub last: i32,
}

/// Address spaces and pages of all processes of an image.
#[derive(Debug, Default)]
pub struct Memory<'a> {
    /// Address spaces by PID.
    pub spaces: HashMap<i32, &'a AddressSpaceRecord>,
    /// Private pages by PID, lowest address first.
    pub runs: HashMap<i32, &'a [PageRun]>,
    /// Where they are huge ones.
    pub huge: HashMap<i32, &'a [HugeRun]>,
}

impl<'a> Memory<'a> {
    /// That of an image.
    pub fn of(image: &'a Image) -> Self {
        let owned = |map: &'a PageMapRecord| match map.owner {
            ContentOwner::Process(pid) => Some((pid.0, map)),
            ContentOwner::Shmem(_)
            | ContentOwner::Ghost(_)
            | ContentOwner::Log
            | ContentOwner::Segment { .. }
            | ContentOwner::Node { .. } => None,
        };
        let maps = || image.page_maps().iter().filter_map(owned);
        Self {
            spaces: image
                .address_spaces()
                .iter()
                .map(|space| (space.pid.0, space))
                .collect(),
            runs: maps().map(|(pid, map)| (pid, map.runs.as_slice())).collect(),
            huge: maps().map(|(pid, map)| (pid, map.huge.as_slice())).collect(),
        }
    }

    /// The pages of a process.
    pub fn runs(&self, pid: i32) -> &'a [PageRun] {
        self.runs.get(&pid).copied().unwrap_or(&[])
    }

    /// Where they are huge ones.
    pub fn huge(&self, pid: i32) -> &'a [HugeRun] {
        self.huge.get(&pid).copied().unwrap_or(&[])
    }
}

/// Pages that a process, or one below it, wants to inherit.
#[derive(Debug, Clone, Copy)]
struct Want {
    run: PageRun,
    /// Whose mapping it lies in.
    member: i32,
}

/// Who wants what of whom.
#[derive(Debug, Default)]
pub struct Wants {
    /// By child: what it is to inherit from the one that forks it.
    of: HashMap<i32, Vec<Want>>,
}

impl Wants {
    /// Finds pages that several processes have and none of those that fork them.
    pub fn find(memory: &Memory<'_>, steps: &[Step]) -> Self {
        let family = Family::of(steps);
        let mut pieces = Vec::new();
        for pid in memory.spaces.keys() {
            let Some(order) = family.order(*pid) else { continue };
            let above = family
                .ancestors(*pid)
                .find(|above| memory.spaces.contains_key(above))
                .map_or(&[][..], |above| memory.runs(above));
            pieces.extend(differing(above, memory.runs(*pid)).into_iter().map(|run| Piece {
                shift: run.first.0.wrapping_sub(run.start / PAGE),
                run,
                order,
            }));
        }
        pieces.sort_by_key(|piece| (piece.shift, piece.run.first.0, piece.order));
        let mut wants: HashMap<i32, Vec<Want>> = HashMap::new();
        let mut count = 0;
        for group in pieces.chunk_by(|one, other| one.shift == other.shift) {
            let shared = shared_by_several(group, &family);
            for piece in group {
                for (run, ancestor) in common(&piece.run, &shared) {
                    let member = family.pids[piece.order];
                    let path = std::iter::once(member).chain(family.ancestors(member));
                    for child in path.take_while(|pid| *pid != ancestor) {
                        wants.entry(child).or_default().push(Want { run, member });
                        count += 1;
                    }
                }
                if count > MOST_WANTED {
                    tracing::debug!("more pages are shared than are followed");
                    return Self::default();
                }
            }
        }
        for list in wants.values_mut() {
            *list = one_for_each_address(std::mem::take(list));
        }
        Self { of: wants }
    }

    /// The children that are best forked before their siblings, since their parent has its own pages only afterwards.
    pub fn early(&self) -> BTreeSet<i32> {
        self.of.keys().copied().collect()
    }

    /// What each process that lends pages holds meanwhile, in the order in which `steps` fork.
    pub fn lendings(&self, memory: &Memory<'_>, steps: &[Step]) -> HashMap<i32, Lending> {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for step in steps {
            if let Step::Fork { by, pid, .. } = *step {
                children.entry(by).or_default().push(pid);
            }
        }
        let lending = |(pid, children): (&i32, &Vec<i32>)| Some((*pid, self.lending(memory, *pid, children)?));
        children.iter().filter_map(lending).collect()
    }

    fn lending(&self, memory: &Memory<'_>, pid: i32, children: &[i32]) -> Option<Lending> {
        let own = *memory.spaces.get(&pid)?;
        let lacks = |child: &i32| !differing(memory.runs(pid), &self.runs(*child)).is_empty();
        let last = children.iter().rposition(lacks)?;
        let children: Vec<Child> = children[..=last]
            .iter()
            .map(|child| self.child(memory, pid, *child))
            .collect();
        let state = |from: usize| Loan::new(memory, pid, own).take(&children[from..]);
        let (first, _) = state(0);
        let mut before = HashMap::new();
        let mut now = first.clone();
        for (index, child) in children.iter().enumerate().skip(1) {
            if differing(&now.runs, &child.runs).is_empty() {
                continue;
            }
            let (next, got) = state(index);
            if !differing(&now.runs, &got).is_empty() {
                now = next.clone();
                before.insert(child.pid, next);
            }
        }
        Some(Lending {
            first,
            before,
            last: children[last].pid,
        })
    }

    fn runs(&self, child: i32) -> Vec<PageRun> {
        let wants = self.of.get(&child).map_or(&[][..], Vec::as_slice);
        wants.iter().map(|want| want.run).collect()
    }

    /// All that a child would inherit: also what its parent `by` has anyway.
    fn child(&self, memory: &Memory<'_>, by: i32, pid: i32) -> Child {
        let mut wants = self.of.get(&pid).cloned().unwrap_or_default();
        let runs = memory.runs(pid);
        let same = without(runs, &differing(memory.runs(by), runs));
        let same = without(&same, &self.runs(pid));
        wants.extend(same.into_iter().map(|run| Want { run, member: by }));
        wants.sort_by_key(|want| want.run.start);
        let runs = wants.iter().map(|want| want.run).collect();
        Child { pid, wants, runs }
    }
}

struct Child {
    pid: i32,
    wants: Vec<Want>,
    runs: Vec<PageRun>,
}

/// Pages of one process that its parent does not have.
struct Piece {
    /// Pieces of one shift have the same page at the same address, or different ones at different addresses.
    shift: u64,
    run: PageRun,
    /// The process, by the order of forks.
    order: usize,
}

/// Who forks whom.
#[derive(Debug)]
struct Family {
    /// In the order in which they are forked, each behind its parent and before its parent's next child.
    pids: Vec<i32>,
    orders: HashMap<i32, usize>,
    parents: HashMap<i32, i32>,
}

impl Family {
    fn of(steps: &[Step]) -> Self {
        let forks = |step: &Step| match *step {
            Step::Fork { by, pid, .. } => Some((pid, by)),
            _ => None,
        };
        let parents: HashMap<i32, i32> = steps.iter().filter_map(forks).collect();
        let pids: Vec<i32> = std::iter::once(1)
            .chain(steps.iter().filter_map(forks).map(|(pid, _)| pid))
            .collect();
        let orders = pids.iter().enumerate().map(|(order, pid)| (*pid, order)).collect();
        Self { pids, orders, parents }
    }

    fn order(&self, pid: i32) -> Option<usize> {
        self.orders.get(&pid).copied()
    }

    /// Who forked it, who forked that one, and so on.
    fn ancestors(&self, pid: i32) -> impl Iterator<Item = i32> + '_ {
        std::iter::successors(self.parents.get(&pid).copied(), |pid| self.parents.get(pid).copied())
    }

    /// The nearest process that is above both, or is one of them. Who comes later is never above the other.
    fn nearest(&self, one: usize, other: usize) -> i32 {
        let (mut one, mut other) = (one, other);
        while one != other {
            let later = if one > other { &mut one } else { &mut other };
            let above = self.parents.get(&self.pids[*later]);
            *later = above.and_then(|pid| self.order(*pid)).unwrap_or(0);
        }
        self.pids[one]
    }
}

/// Stored pages that several of these have, and the nearest common ancestor of those that do.
struct Segment {
    first: u64,
    end: u64,
    ancestor: i32,
}

fn shared_by_several(group: &[Piece], family: &Family) -> Vec<Segment> {
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * group.len());
    for piece in group {
        events.push((piece.run.first.0, true, piece.order));
        events.push((piece.run.first.0 + piece.run.pages, false, piece.order));
    }
    // Ends come before beginnings.
    events.sort_unstable();
    let mut found: Vec<Segment> = Vec::new();
    let mut having = BTreeSet::new();
    let mut since = 0;
    for (at, begins, order) in events {
        if let (Some(one), Some(other)) = (having.first(), having.last())
            && at > since
            && one != other
        {
            let ancestor = family.nearest(*one, *other);
            match found.last_mut() {
                Some(last) if last.end == since && last.ancestor == ancestor => last.end = at,
                _ => found.push(Segment {
                    first: since,
                    end: at,
                    ancestor,
                }),
            }
        }
        since = at;
        if begins {
            having.insert(order);
        } else {
            having.remove(&order);
        }
    }
    found
}

/// The parts of a run that lie in segments (sorted), each with its ancestor.
fn common<'a>(run: &'a PageRun, segments: &'a [Segment]) -> impl Iterator<Item = (PageRun, i32)> + 'a {
    let (first, end) = (run.first.0, run.first.0 + run.pages);
    let from = segments.partition_point(|segment| segment.end <= first);
    segments[from..]
        .iter()
        .take_while(move |segment| segment.first < end)
        .map(move |segment| {
            let (from, to) = (segment.first.max(first), segment.end.min(end));
            let part = PageRun {
                start: run.start + (from - first) * PAGE,
                pages: to - from,
                first: PageId(from),
            };
            (part, segment.ancestor)
        })
}

/// Leaves one want for each address, lowest first.
fn one_for_each_address(mut wants: Vec<Want>) -> Vec<Want> {
    wants.sort_by_key(|want| (want.run.start, want.member));
    let mut left: Vec<Want> = Vec::new();
    let mut end = 0;
    for want in wants {
        let run = want.run;
        let behind = run.start + run.pages * PAGE;
        let skip = end.max(run.start).min(behind) - run.start;
        if behind > end {
            left.push(Want {
                run: part(&run, run.start + skip, behind),
                ..want
            });
            end = behind;
        }
    }
    left
}

fn part(run: &PageRun, start: u64, end: u64) -> PageRun {
    PageRun {
        start,
        pages: (end - start) / PAGE,
        first: PageId(run.first.0 + (start - run.start) / PAGE),
    }
}

/// A process's memory with others' pages in it.
struct Loan<'a> {
    memory: &'a Memory<'a>,
    pid: i32,
    space: AddressSpaceRecord,
    /// Where mappings begin that pages are wanted of, so that they stay.
    used: BTreeSet<u64>,
    /// Whose pages it holds.
    members: BTreeSet<i32>,
    /// Addresses of mappings of its own that others stand in place of, as runs.
    gone: Vec<PageRun>,
}

impl<'a> Loan<'a> {
    fn new(memory: &'a Memory<'a>, pid: i32, own: &AddressSpaceRecord) -> Self {
        Self {
            memory,
            pid,
            space: own.clone(),
            used: BTreeSet::new(),
            members: BTreeSet::from([pid]),
            gone: Vec::new(),
        }
    }

    /// Takes what the children want, the first one's first; also tells what of that one's wants came true.
    fn take(mut self, children: &[Child]) -> (Held, Vec<PageRun>) {
        let mut taken: Vec<PageRun> = Vec::new();
        let mut got_first = Vec::new();
        for (index, child) in children.iter().enumerate() {
            let mut got = RunList::default();
            for want in &child.wants {
                for run in without(std::slice::from_ref(&want.run), &taken) {
                    self.add(&run, want.member, &mut got);
                }
            }
            let got = got.into_sorted();
            taken = overlay(&taken, &got);
            if index == 0 {
                got_first = got;
            }
        }
        self.gone.sort_by_key(|run| run.start);
        let own = without(self.memory.runs(self.pid), &self.gone);
        let mut huge: Vec<HugeRun> = self
            .members
            .iter()
            .flat_map(|member| self.memory.huge(*member).iter().copied())
            .collect();
        huge.sort_by_key(|run| (run.start, run.count));
        huge.dedup();
        let held = Held {
            runs: overlay(&own, &taken),
            huge,
            space: self.space,
        };
        (held, got_first)
    }

    /// Takes the pages of a run of `member`'s as far as they can have a mapping here.
    fn add(&mut self, run: &PageRun, member: i32, got: &mut RunList) {
        let Some(space) = self.memory.spaces.get(&member) else {
            return;
        };
        let end = run.start + run.pages * PAGE;
        let first = space.vmas.partition_point(|vma| vma.end <= run.start);
        for vma in space.vmas[first..].iter().take_while(|vma| vma.start < end) {
            let range = vma.start.max(run.start)..vma.end.min(end);
            if self.provide(vma, &range) {
                self.members.insert(member);
                let run = part(run, range.start, range.end);
                got.push(run.start, run.pages, run.first);
            }
        }
    }

    /// Sees to it that `range` is mapped here as in `wanted`.
    fn provide(&mut self, wanted: &VmaRecord, range: &std::ops::Range<u64>) -> bool {
        // What no child inherits is not lent.
        if !alike(wanted, wanted) {
            return false;
        }
        let vmas = &mut self.space.vmas;
        let first = vmas.partition_point(|vma| vma.end <= wanted.start);
        let count = vmas[first..].partition_point(|vma| vma.start < wanted.end);
        let there = first..first + count;
        if let Some(vma) = vmas[there.clone()]
            .iter()
            .find(|vma| vma.start <= range.start && range.end <= vma.end)
            && alike(vma, wanted)
        {
            self.used.insert(vma.start);
            return true;
        }
        // One that grew or grows further.
        if let [vma] = &mut vmas[there.clone()]
            && matches!(vma.source, VmaSource::Anonymous)
            && (vma.start == wanted.start || vma.end == wanted.end)
            && vma.prot == wanted.prot
            && alike(vma, wanted)
        {
            let was_used = self.used.remove(&vma.start);
            (vma.start, vma.end) = (vma.start.min(wanted.start), vma.end.max(wanted.end));
            debug_assert!(was_used || !self.used.contains(&vma.start), "each mapping begins once");
            self.used.insert(vma.start);
            return true;
        }
        let stays = |vma: &VmaRecord| self.used.contains(&vma.start) || matches!(vma.source, VmaSource::Special { .. });
        if vmas[there.clone()].iter().any(stays) {
            return false;
        }
        self.gone.extend(vmas[there.clone()].iter().map(|vma| PageRun {
            start: vma.start,
            pages: (vma.end - vma.start) / PAGE,
            first: PageId(0),
        }));
        vmas.splice(there, [wanted.clone()]);
        self.used.insert(wanted.start);
        true
    }
}

#[cfg(test)]
#[path = "sharing_tests.rs"]
mod tests;
