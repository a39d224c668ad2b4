//! The processes of a namespace, as a tree.

use super::print::Line;
use floe_sandbox::namespaces::Namespace;
use std::collections::HashMap;

/// What is deeper stands beside what is this deep: chains of processes can be as long as there are PIDs.
const DEEPEST: usize = 100;

/// The trees that processes make, each of which is the first of one of these.
pub fn trees(all: &[Namespace]) -> Vec<Line<'_>> {
    let process = |of: &Namespace| of.first.as_ref().map_or((0, 0), |first| (first.pid, first.ppid));
    let places: HashMap<i32, usize> = all
        .iter()
        .enumerate()
        .map(|(place, one)| (process(one).0, place))
        .collect();
    let above = |place: usize| {
        let (pid, ppid) = process(&all[place]);
        places.get(&ppid).copied().filter(|_| ppid != pid)
    };
    let mut below: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    for place in 0..all.len() {
        below.entry(above(place)).or_default().push(place);
    }
    // Each behind those above it, with the one that it is drawn below.
    let mut order: Vec<(usize, Option<usize>)> = Vec::with_capacity(all.len());
    let mut waiting: Vec<(Option<usize>, Option<usize>, usize)> = vec![(None, None, 0)];
    while let Some((of, drawn_below, depth)) = waiting.pop() {
        for place in below.remove(&of).unwrap_or_default() {
            order.push((place, drawn_below));
            let next = if depth < DEEPEST { Some(place) } else { drawn_below };
            waiting.push((Some(place), next, depth + 1));
        }
    }
    let mut made: HashMap<Option<usize>, Vec<(usize, Line<'_>)>> = HashMap::new();
    for (place, drawn_below) in order.into_iter().rev() {
        let line = Line {
            namespace: &all[place],
            children: sorted(made.remove(&Some(place)).unwrap_or_default()),
        };
        made.entry(drawn_below).or_default().push((place, line));
    }
    sorted(made.remove(&None).unwrap_or_default())
}

fn sorted<'a>(mut lines: Vec<(usize, Line<'a>)>) -> Vec<Line<'a>> {
    lines.sort_by_key(|(place, _)| *place);
    lines.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::{DEEPEST, Line, Namespace, trees};
    use floe_sandbox::namespaces::Process;
    use floe_sys::namespace::Kind;

    fn of(pid: i32, ppid: i32) -> Namespace {
        let process = Process {
            pid,
            ppid,
            uid: 0,
            command: String::new(),
        };
        Namespace {
            kind: Kind::Pid,
            inode: 1,
            path: None,
            processes: 1,
            first: Some(process),
            mounts: Vec::new(),
            parent: None,
            owner: None,
            number: None,
        }
    }

    fn shape(lines: &[Line<'_>]) -> String {
        let one = |line: &Line<'_>| {
            let pid = line.namespace.first.as_ref().map_or(0, |first| first.pid);
            let below = shape(&line.children);
            if below.is_empty() {
                pid.to_string()
            } else {
                format!("{pid}({below})")
            }
        };
        lines.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn children_stand_below_their_parents() {
        let all = [of(2, 0), of(3, 2), of(5, 3), of(7, 2), of(9, 4), of(10, 9)];
        assert_eq!(shape(&trees(&all)), "2(3(5) 7) 9(10)");
        assert!(trees(&[]).is_empty());
    }

    #[test]
    fn a_long_chain_is_a_tree_that_is_not_deep() {
        let all: Vec<Namespace> = (1..50_000).map(|pid| of(pid, pid - 1)).collect();
        let mut lines = trees(&all);
        let mut depth = 0;
        let mut count = 0;
        while let Some(line) = lines.pop() {
            count += lines.len() + 1;
            lines = line.children;
            depth += 1;
        }
        assert!(depth <= DEEPEST + 1 && count == all.len(), "{depth} {count}");
    }
}
