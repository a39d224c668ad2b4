//! A root tree that comes with a sandbox: what of it is there already, what of it came, and that it is the source's.

use super::{
    build,
    session::{Ended, Session, out_of_turn},
    spool::ALIVE,
    stage::{Stage, StageError},
    swap::{self, Place},
};
use crate::{
    files::sha256,
    link::{
        Link,
        frame::Frame,
        message::{Id, Message},
    },
    protocol::Decision,
    refusal::Refusal,
    tree::{Fault, Kind, MOST, Node, TreePath, root_of},
};
use floe_resources::ns::mounts::Given;
use nix::unistd::{getegid, geteuid, getgroups};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

/// Numbers that go into one message.
const NUMBERS: usize = 1 << 16;

/// A tree that came.
#[derive(Debug)]
pub struct Tree {
    stage: Stage,
    /// What the source has told of.
    expected: BTreeMap<TreePath, Node>,
    /// Where it is for now.
    path: PathBuf,
    /// Paths of the sandbox at which the right files will be when it is built.
    pub coming: BTreeSet<Vec<u8>>,
}

impl From<StageError> for Ended {
    fn from(error: StageError) -> Self {
        Self::Refused(Refusal::of(&error))
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Refused(Refusal::of(&fault))
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Ended {
    Ended::Refused(Refusal::of(error))
}

/// Lets the source hear that this side lives, and hears whether floe is told to stop.
struct Ticks<'a>(&'a mut Link, Instant);

impl Ticks<'_> {
    fn tick(&mut self) -> Result<(), Ended> {
        if self.0.is_told_to_stop() {
            return Err(Ended::Refused(Refusal::plain("interrupted")));
        }
        if self.1.elapsed() > ALIVE {
            self.0.send_alive()?;
            self.1 = Instant::now();
        }
        Ok(())
    }
}

fn ticks(link: &mut Link) -> Ticks<'_> {
    Ticks(link, Instant::now())
}

/// Files, what is no more, and what they take on a disk.
struct Listing {
    nodes: Vec<Node>,
    removed: Vec<TreePath>,
    stored: u64,
}

/// Bytes of names, attributes and targets of links that a tree may have.
const MOST_BYTES: usize = 512 << 20;

fn listed(link: &mut Link) -> Result<Listing, Ended> {
    let mut all = Listing {
        nodes: Vec::new(),
        removed: Vec::new(),
        stored: 0,
    };
    let mut room = MOST_BYTES;
    loop {
        let (nodes, removed, stored, last) = match link.receive()? {
            Message::Tree {
                nodes,
                removed,
                stored,
                last,
            } => (nodes, removed, stored, last),
            Message::Files { .. } => {
                let text = "floe receive takes root trees there, not the files that a sandbox uses (--files)";
                return Err(Ended::Refused(Refusal::plain(text)));
            }
            Message::Decided {
                decision: Decision::Abort,
                ..
            } => return Err(Ended::Told),
            _ => return Err(out_of_turn()),
        };
        let is_empty = nodes.is_empty() && removed.is_empty();
        // Behind what came before, of which the order is known.
        let paths = all.nodes.last().into_iter().chain(&nodes).map(|node| &node.path);
        let is_sorted =
            paths.is_sorted_by(|one, next| one < next) && all.removed.last().into_iter().chain(&removed).is_sorted();
        room = nodes
            .iter()
            .map(Node::bytes)
            .chain(removed.iter().map(|path| path.bytes().len()))
            .fold(room, usize::saturating_sub);
        all.nodes.extend(nodes);
        all.removed.extend(removed);
        all.stored = all.stored.saturating_add(stored);
        if all.nodes.len().max(all.removed.len()) > MOST || room == 0 || !is_sorted || is_empty && !last {
            return Err(out_of_turn());
        }
        if last {
            return Ok(all);
        }
    }
}

impl Tree {
    /// Takes all of what the source offers that is lacking here.
    pub fn take(
        session: &Session<'_>,
        (records, id): (&File, &Id),
        roots: &[PathBuf],
        link: &mut Link,
    ) -> Result<Self, Ended> {
        let listing = listed(link)?;
        let path = root_of(records).map_err(Ended::Refused)?;
        let path = session.request.mounts.root().map_or(path, Path::to_owned);
        let mut findings = unmakeable(&listing.nodes);
        let place = Place::find(&path, roots);
        let place = match place.and_then(|place| has_room(&place, &listing).map(|()| place)) {
            Ok(place) if findings.is_empty() => place,
            hindered => {
                findings.extend(
                    hindered
                        .err()
                        .map(|reason| format!("root tree {}: {reason}", path.display())),
                );
                let reason = format!("{} in the way of its root tree there", things(findings.len()));
                return Err(Ended::Refused(Refusal { reason, findings }));
            }
        };
        let expected: BTreeMap<_, _> = listing
            .nodes
            .iter()
            .map(|node| (node.path.clone(), node.clone()))
            .collect();
        check(&expected)?;
        let state_dir = session.request.state_dir;
        let (top, path) = swap::begin(state_dir, id, &place).map_err(|error| refused(&error))?;
        let mut tree = Self {
            stage: Stage::new(top, place.old),
            expected,
            path,
            coming: build::on_root(records).map_err(Ended::Refused)?,
        };
        let lacking = tree.put_all(&listing.nodes, link)?;
        tell(link, &lacking)?;
        tree.fetch_all(&listing.nodes, &lacking, link)?;
        tree.stage.close(false)?;
        Ok(tree)
    }

    /// The sandbox stands still: takes what is other than it was. Then it is the source's tree.
    pub fn take_changes(&mut self, link: &mut Link) -> Result<(), Ended> {
        let listing = listed(link)?;
        for path in &listing.removed {
            self.expected.remove(path);
        }
        let changed = listing.nodes.iter().map(|node| (node.path.clone(), node.clone()));
        self.expected.extend(changed);
        check(&self.expected)?;
        for path in listing.removed.iter().rev() {
            self.stage.remove(path)?;
        }
        let lacking = self.put_all(&listing.nodes, link)?;
        tell(link, &lacking)?;
        self.fetch_all(&listing.nodes, &lacking, link)?;
        self.stage.close(true)?;
        let mut ticks = ticks(link);
        let findings = self.stage.differences(&self.expected, &mut || ticks.tick())?;
        match findings.len() {
            0 => Ok(()),
            count => Err(Ended::Refused(Refusal {
                reason: format!("{count} files of its root tree are not as they are at the source"),
                findings,
            })),
        }
    }

    /// What is given for mounts, with this tree for the root directory.
    pub fn given(&self, given: &Given) -> Given {
        given.with_root(self.path.clone())
    }

    fn put_all(&mut self, nodes: &[Node], link: &mut Link) -> Result<Vec<u32>, Ended> {
        let mut ticks = ticks(link);
        let mut lacking = Vec::new();
        for (number, node) in (0..).zip(nodes) {
            ticks.tick()?;
            if self.stage.put(node, &mut || ticks.tick())? {
                lacking.push(number);
            }
        }
        Ok(lacking)
    }

    fn fetch_all(&mut self, nodes: &[Node], lacking: &[u32], link: &mut Link) -> Result<(), Ended> {
        for number in lacking {
            let node = &nodes[*number as usize];
            let Kind::File { size, .. } = node.kind else { continue };
            let file = self.stage.content(&node.path)?;
            let Some(bytes) = fetch((*number, size), &file, link)? else {
                return Ok(());
            };
            let mut ticks = ticks(link);
            let sum = sha256(&file, || ticks.tick())?.map_err(|error| refused(&error))?;
            self.stage.filled(&node.path, (bytes, sum))?;
        }
        Ok(())
    }
}

/// Tells what is lacking, in as many messages as it takes.
fn tell(link: &mut Link, lacking: &[u32]) -> Result<(), Ended> {
    let mut rest = lacking;
    loop {
        let (some, later) = rest.split_at(rest.len().min(NUMBERS));
        rest = later;
        link.send(&Message::Lacking {
            files: some.to_vec(),
            last: rest.is_empty(),
        })?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

fn things(count: usize) -> String {
    match count {
        1 => "1 thing stands".to_owned(),
        _ => format!("{count} things stand"),
    }
}

/// What an ordinary user can't make.
fn unmakeable(nodes: &[Node]) -> Vec<String> {
    let user = geteuid().as_raw();
    if user == 0 {
        return Vec::new();
    }
    let mut groups: Vec<u32> = getgroups()
        .unwrap_or_default()
        .iter()
        .map(|group| group.as_raw())
        .collect();
    groups.push(getegid().as_raw());
    let reason = |node: &Node| match node.kind {
        Kind::Link { .. } => None,
        Kind::Device { .. } => Some("it is a device, which only root can make there".to_owned()),
        _ if node.uid != user || !groups.contains(&node.gid) => {
            let (uid, gid) = (node.uid, node.gid);
            Some(format!(
                "it belongs to {uid}:{gid}, to whom only root can give it there"
            ))
        }
        _ => None,
    };
    let named = nodes
        .iter()
        .filter_map(|node| Some(format!("file {}: {}", node.path, reason(node)?)));
    named.collect()
}

/// Both trees are there for a while.
fn has_room(place: &Place, listing: &Listing) -> Result<(), String> {
    let (bytes, files) = place
        .room()
        .map_err(|error| format!("its filesystem can't be looked at: {error}"))?;
    let (stored, count) = (listing.stored, listing.nodes.len() as u64);
    match files {
        _ if stored > bytes => Err(format!(
            "it takes {stored} bytes, and its filesystem has room for {bytes}"
        )),
        Some(files) if count > files => Err(format!("it has {count} files, and its filesystem has room for {files}")),
        _ => Ok(()),
    }
}

/// Each is in a directory, and what has another name is there by its first one.
fn check(all: &BTreeMap<TreePath, Node>) -> Result<(), Ended> {
    let is_right = |node: &Node| {
        let above = node.path.parent().and_then(|(above, _)| all.get(&above));
        let is_in_one = match above {
            Some(above) => above.kind == Kind::Directory,
            None => node.path == TreePath::default() && node.kind == Kind::Directory,
        };
        let is_named = match &node.kind {
            Kind::Link { to } => {
                let first = all.get(to).filter(|_| *to < node.path);
                first.is_some_and(|first| !matches!(first.kind, Kind::Directory | Kind::Link { .. }))
            }
            _ => true,
        };
        is_in_one && is_named
    };
    match all.contains_key(&TreePath::default()) && all.len() <= MOST && all.values().all(is_right) {
        true => Ok(()),
        false => Err(out_of_turn()),
    }
}

/// Takes the content of one, and how long that is; `None` where none is to come.
fn fetch((number, size): (u32, u64), file: &File, link: &mut Link) -> Result<Option<u64>, Ended> {
    let mut next = 0;
    loop {
        match link.receive_any()? {
            Frame::Piece(place, got) => {
                let end = place.offset.checked_add(got as u64).filter(|end| *end <= size);
                let (Some(end), true) = (end, place.image == number && place.offset >= next) else {
                    return Err(out_of_turn());
                };
                file.write_all_at(link.data(got), place.offset)
                    .map_err(|error| refused(&error))?;
                next = end;
            }
            Frame::Message(Message::End { bytes }) if (next..=size).contains(&bytes) => {
                file.set_len(bytes).map_err(|error| refused(&error))?;
                return Ok(Some(bytes));
            }
            Frame::Message(Message::Skip) => return Ok(None),
            Frame::Message(Message::Decided {
                decision: Decision::Abort,
                ..
            }) => return Err(Ended::Told),
            Frame::Alive => {}
            Frame::Message(_) | Frame::Data(_) => return Err(out_of_turn()),
        }
        if link.is_told_to_stop() {
            return Err(Ended::Refused(Refusal::plain("interrupted")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tree::{Bytes, Kind, Node, TreePath};
    use std::collections::BTreeMap;

    fn node(path: &str, kind: Kind) -> Node {
        Node {
            path: TreePath::try_from(Bytes(path.as_bytes().to_vec())).expect("a path"),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            times: [0; 2],
            attributes: Vec::new(),
        }
    }

    fn is_right(nodes: &[Node]) -> bool {
        let all: BTreeMap<TreePath, Node> = nodes.iter().map(|node| (node.path.clone(), node.clone())).collect();
        check(&all).is_ok()
    }

    #[test]
    fn nothing_is_in_what_is_no_directory() {
        let top = || node("", Kind::Directory);
        let symlink = || Kind::Symlink {
            target: Bytes(b"/etc".to_vec()),
        };
        let link = |to: &str| Kind::Link {
            to: node(to, Kind::Fifo).path,
        };
        assert!(is_right(&[top(), node("a", Kind::Directory), node("a/b", symlink())]));
        assert!(is_right(&[top(), node("a", Kind::Fifo), node("b", link("a"))]));
        for wrong in [
            &[][..],
            &[node("", symlink())],
            &[node("a", Kind::Directory)],
            &[top(), node("a", symlink()), node("a/passwd", Kind::Fifo)],
            &[top(), node("a/b", Kind::Fifo)],
            &[top(), node("b", link("a"))],
            &[top(), node("a", link("b")), node("b", Kind::Fifo)],
            &[top(), node("a", Kind::Directory), node("b", link("a"))],
            &[top(), node("a", Kind::Fifo), node("b", link("a")), node("c", link("b"))],
            &[top(), node("a", link("a"))],
        ] {
            assert!(!is_right(wrong), "{wrong:?}");
        }
    }
}
