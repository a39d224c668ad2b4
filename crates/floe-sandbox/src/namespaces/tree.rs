//! Namespaces as trees.

use super::Namespace;
use floe_sys::{Pid, procfs::Stat};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What makes one namespace stand below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The first process of the one has its parent in the other, which is of the same kind.
    Process,
    /// The one was made in the other: PID and user namespaces.
    Parent,
    /// The other is the user namespace that it belongs to.
    Owner,
}

/// A namespace and those below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    /// It.
    pub namespace: &'a Namespace,
    /// Those below it, by inode number.
    pub children: Vec<Self>,
}

/// The trees that a relation makes of these namespaces. What stands below one that is not among them is a root.
#[must_use]
pub fn forest(all: &[Namespace], relation: Relation) -> Vec<Node<'_>> {
    let known: HashMap<u64, &Namespace> = all.iter().map(|namespace| (namespace.inode, namespace)).collect();
    let mut below: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut roots = Vec::new();
    for namespace in all {
        let above = match relation {
            Relation::Parent => namespace.parent,
            Relation::Owner => namespace.owner,
            Relation::Process => above_by_process(namespace),
        };
        match above.filter(|above| known.contains_key(above) && *above != namespace.inode) {
            Some(above) => below.entry(above).or_default().push(namespace.inode),
            None => roots.push(namespace.inode),
        }
    }
    let mut made = HashSet::new();
    let mut forest: Vec<Node<'_>> = Vec::new();
    // Behind the roots come circles, which processes can make by setns(2).
    for inode in roots.into_iter().chain(all.iter().map(|namespace| namespace.inode)) {
        forest.extend(grow(inode, &known, &below, &mut made));
    }
    forest
}

fn grow<'a>(
    inode: u64,
    known: &HashMap<u64, &'a Namespace>,
    below: &BTreeMap<u64, Vec<u64>>,
    made: &mut HashSet<u64>,
) -> Option<Node<'a>> {
    let namespace = known.get(&inode)?;
    if !made.insert(inode) {
        return None;
    }
    let children = below.get(&inode).into_iter().flatten();
    Some(Node {
        namespace,
        children: children.filter_map(|child| grow(*child, known, below, made)).collect(),
    })
}

/// The namespace of the same kind that the parent of its first process is in.
fn above_by_process(namespace: &Namespace) -> Option<u64> {
    let mut ppid = namespace.first.as_ref()?.ppid;
    // A process has one parent, and none has itself above it.
    while ppid > 0 {
        let found = super::holders::of_task(&format!("/proc/{ppid}")).ok()?;
        match found.get(&namespace.kind) {
            Some(inode) if *inode != namespace.inode => return Some(*inode),
            _ => ppid = Stat::of(Pid::new(ppid)).ok()?.ppid,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Node, Relation, forest};
    use crate::namespaces::Namespace;
    use floe_sys::namespace::Kind;

    fn namespace(kind: Kind, inode: u64, parent: Option<u64>, owner: Option<u64>) -> Namespace {
        Namespace {
            kind,
            inode,
            path: None,
            processes: 0,
            first: None,
            mounts: Vec::new(),
            parent,
            owner,
            number: None,
        }
    }

    fn shape(forest: &[Node<'_>]) -> String {
        let told = forest.iter().map(|node| {
            let children = shape(&node.children);
            let inode = node.namespace.inode;
            if children.is_empty() {
                inode.to_string()
            } else {
                format!("{inode}({children})")
            }
        });
        told.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn trees_are_made_by_each_relation() {
        let all = [
            namespace(Kind::User, 1, None, None),
            namespace(Kind::Pid, 2, None, Some(1)),
            namespace(Kind::User, 3, Some(1), Some(1)),
            namespace(Kind::Pid, 4, Some(2), Some(3)),
            namespace(Kind::Mount, 5, None, Some(3)),
            namespace(Kind::Pid, 6, Some(4), Some(3)),
            namespace(Kind::Network, 7, None, Some(99)),
        ];
        assert_eq!(shape(&forest(&all, Relation::Parent)), "1(3) 2(4(6)) 5 7");
        assert_eq!(shape(&forest(&all, Relation::Owner)), "1(2 3(4 5 6)) 7");
        assert_eq!(shape(&forest(&all, Relation::Process)), "1 2 3 4 5 6 7");
    }

    #[test]
    fn a_circle_is_shown_once() {
        let all = [
            namespace(Kind::Pid, 1, Some(2), None),
            namespace(Kind::Pid, 2, Some(1), None),
        ];
        assert_eq!(shape(&forest(&all, Relation::Parent)), "1(2)");
    }
}
