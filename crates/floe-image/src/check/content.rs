//! Page maps: every owner of pages has one, its runs lie inside the owner, and their pages are stored.

use super::{ADDRESS_LIMIT, PAGE, ensure};
use crate::{
    Image,
    record::{AddressSpaceRecord, ContentOwner, HUGE_PAGE, NodeKind, NsPid, PageMapRecord, PageRun, VmaSource},
};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
};

/// Pages that can't have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// No such owner.
    #[error("a page map belongs to {0}, which is missing")]
    Owner(Named),
    /// Two page maps.
    #[error("{0} has two page maps")]
    Twice(Named),
    /// No page map.
    #[error("{0} has no page map")]
    NoMap(Named),
    /// A run of pages.
    #[error("{pages} pages at {start:#x} of {owner} {fault}")]
    Run {
        /// Whose.
        owner: Named,
        /// Address or byte offset.
        start: u64,
        /// How many.
        pages: u64,
        /// What is wrong with them.
        fault: &'static str,
    },
    /// Huge pages.
    #[error("huge pages at {start:#x} of {owner} {fault}")]
    Huge {
        /// Whose.
        owner: Named,
        /// Address.
        start: u64,
        /// What is wrong with them.
        fault: &'static str,
    },
}

/// The owner of a page map, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named(pub ContentOwner);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ContentOwner::Process(pid) => write!(f, "process {pid}"),
            ContentOwner::Shmem(id) => write!(f, "shared memory object {id}"),
            ContentOwner::Ghost(id) => write!(f, "deleted file {id}"),
            ContentOwner::Log => write!(f, "the log"),
            ContentOwner::Segment { namespace: 0, id } => write!(f, "System V shared memory {id}"),
            ContentOwner::Segment { namespace, id } => {
                write!(f, "System V shared memory {id} of namespace {namespace}")
            }
            ContentOwner::Node { filesystem, node } => write!(f, "file {node} of filesystem {filesystem}"),
        }
    }
}

pub(super) fn check(image: &Image, living: &HashSet<i32>) -> Result<(), ContentFault> {
    let spaces: HashMap<i32, &AddressSpaceRecord> = image.address_spaces().iter().map(|s| (s.pid.0, s)).collect();
    let mut seen = HashSet::new();
    for map in image.page_maps() {
        let owner = Named(map.owner);
        let room = room(image, &spaces, map.owner).ok_or(ContentFault::Owner(owner))?;
        ensure(seen.insert(map.owner), || ContentFault::Twice(owner))?;
        runs(map, &room, image.stored_pages())?;
        huge_pages(map)?;
    }
    let processes = living.iter().map(|pid| ContentOwner::Process(NsPid(*pid)));
    let shmems = image.shmems().iter().map(|record| ContentOwner::Shmem(record.id));
    let ghosts = image.ghosts().iter().filter(|record| record.has_content());
    let ghosts = ghosts.map(|record| ContentOwner::Ghost(record.id));
    let log = image.sandbox().log.map(|_| ContentOwner::Log);
    let segments = image.sandbox().ipc_namespaces().flat_map(|(namespace, record)| {
        let ids = record.segments.iter().map(|segment| segment.permission.id);
        ids.map(move |id| ContentOwner::Segment { namespace, id })
    });
    let nodes = image.filesystems().iter().flat_map(|record| record.contents());
    let nodes = nodes.map(|(owner, _)| owner);
    for owner in processes
        .chain(shmems)
        .chain(ghosts)
        .chain(log)
        .chain(segments)
        .chain(nodes)
    {
        ensure(seen.contains(&owner), || ContentFault::NoMap(Named(owner)))?;
    }
    Ok(())
}

/// Where the owner can have pages, lowest first; `None` where there is no such owner. Sizes were checked before.
fn room(image: &Image, spaces: &HashMap<i32, &AddressSpaceRecord>, owner: ContentOwner) -> Option<Vec<Range<u64>>> {
    let sized = |size: u64| std::iter::once(0..size.next_multiple_of(PAGE)).collect();
    match owner {
        ContentOwner::Process(pid) => spaces.get(&pid.0).map(|space| private(space)),
        ContentOwner::Shmem(id) => image.shmems().get(id as usize).map(|record| sized(record.size)),
        ContentOwner::Ghost(id) => image
            .ghosts()
            .get(id as usize)
            .filter(|record| record.has_content())
            .map(|record| sized(record.size)),
        ContentOwner::Log => image.sandbox().log.map(sized),
        ContentOwner::Segment { namespace, id } => image
            .sandbox()
            .ipc_namespace(namespace)?
            .segment(id)
            .map(|record| sized(record.whole())),
        ContentOwner::Node { filesystem, node } => image.filesystems().get(filesystem as usize).and_then(|record| {
            match record.nodes.get(node as usize)?.kind {
                NodeKind::File { size } => Some(sized(size)),
                _ => None,
            }
        }),
    }
}

/// The private mappings, those that touch joined.
fn private(space: &AddressSpaceRecord) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for vma in &space.vmas {
        match vma.source {
            VmaSource::Anonymous | VmaSource::File { shared: false, .. } => {}
            VmaSource::File { shared: true, .. }
            | VmaSource::Shmem { .. }
            | VmaSource::Segment { .. }
            | VmaSource::AioRing(_)
            | VmaSource::Special { .. } => continue,
        }
        match joined.last_mut() {
            Some(last) if last.end == vma.start => last.end = vma.end,
            _ => joined.push(vma.start..vma.end),
        }
    }
    joined
}

fn runs(map: &PageMapRecord, room: &[Range<u64>], stored: u64) -> Result<(), ContentFault> {
    let mut last = 0;
    for run in &map.runs {
        last = placed(run, last, room, stored).map_err(|fault| ContentFault::Run {
            owner: Named(map.owner),
            start: run.start,
            pages: run.pages,
            fault,
        })?;
    }
    Ok(())
}

/// They tell how pages lay, not which there are, so they need not lie where there are pages.
fn huge_pages(map: &PageMapRecord) -> Result<(), ContentFault> {
    let mut last = 0;
    for run in &map.huge {
        let fault = |fault| ContentFault::Huge {
            owner: Named(map.owner),
            start: run.start,
            fault,
        };
        ensure(matches!(map.owner, ContentOwner::Process(_)), || fault("can't be"))?;
        ensure(run.count > 0, || fault("are none"))?;
        ensure(run.start.is_multiple_of(HUGE_PAGE), || {
            fault("do not begin with a huge page")
        })?;
        ensure(run.start >= last, || fault("are out of order or overlap others"))?;
        let bytes = run.count.checked_mul(HUGE_PAGE);
        last = bytes
            .and_then(|bytes| run.start.checked_add(bytes))
            .filter(|end| *end <= ADDRESS_LIMIT)
            .ok_or_else(|| fault("are too many"))?;
    }
    Ok(())
}

/// Where the run ends.
fn placed(run: &PageRun, last: u64, room: &[Range<u64>], stored: u64) -> Result<u64, &'static str> {
    let bytes = run.pages.checked_mul(PAGE);
    let end = bytes
        .and_then(|bytes| run.start.checked_add(bytes))
        .ok_or("are too many")?;
    ensure(run.pages > 0, || "are none")?;
    ensure(run.start.is_multiple_of(PAGE), || "do not begin with a page")?;
    ensure(run.start >= last, || "are out of order or overlap others")?;
    let inside = room
        .get(room.partition_point(|range| range.end <= run.start))
        .is_some_and(|range| range.start <= run.start && end <= range.end);
    ensure(inside, || "lie outside of it")?;
    let behind = run.first.0.checked_add(run.pages);
    ensure(behind.is_some_and(|behind| behind <= stored), || "are not stored")?;
    Ok(end)
}
