//! Which ends of connections belong together. Addresses tell it within one network namespace; a connection between two has an
//! end in each, and others may have the same addresses in further ones.

use super::Ends;
use std::collections::{HashMap, HashSet};

/// Who has the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    /// The end at this place of the list.
    End(usize),
    /// It waits to be accepted in this network namespace.
    Unaccepted(u32),
    /// It can't be told which of several.
    Several,
    /// Nobody of the tree.
    Nobody,
}

/// An end in a network namespace.
type Placed = (u32, Ends);

/// Finds the other ends of all, among themselves and those whose `clients` wait to be accepted.
pub(super) fn find(all: &[Placed], clients: &HashSet<Placed>) -> Vec<Other> {
    let mut places: HashMap<Ends, Vec<usize>> = HashMap::new();
    for (place, (_, ends)) in all.iter().enumerate() {
        places.entry(*ends).or_default().push(place);
    }
    let mut networks: HashMap<Ends, Vec<u32>> = HashMap::new();
    for (network, ends) in clients {
        networks.entry(*ends).or_default().push(*network);
    }
    let opposite = |(network, (local, remote)): Placed| -> Vec<usize> {
        let found = places.get(&(remote, local)).map_or(&[][..], Vec::as_slice);
        let own = found.iter().find(|place| all[**place].0 == network);
        match own {
            Some(own) => vec![*own],
            None if leads_out((local, remote)) => found.to_vec(),
            None => Vec::new(),
        }
    };
    // Those that have theirs in their own network namespace are nobody else's.
    let paired = |place: usize| {
        let found = opposite(all[place]);
        found.iter().any(|other| all[*other].0 == all[place].0)
    };
    let candidates = |place: usize| -> Vec<usize> {
        let network = all[place].0;
        let found = opposite(all[place]).into_iter();
        found
            .filter(|other| all[*other].0 == network || !paired(*other))
            .collect()
    };
    let waits = |(network, ends): Placed| -> Option<Other> {
        let found = networks.get(&ends)?;
        match found.as_slice() {
            found if found.contains(&network) => Some(Other::Unaccepted(network)),
            _ if !leads_out(ends) => None,
            [only] => Some(Other::Unaccepted(*only)),
            _ => Some(Other::Several),
        }
    };
    let other = |place: usize| match candidates(place).as_slice() {
        [] => waits(all[place]).unwrap_or(Other::Nobody),
        [other] if candidates(*other) == [place] => Other::End(*other),
        _ => Other::Several,
    };
    (0..all.len()).map(other).collect()
}

/// Whether a connection can leave its network namespace.
fn leads_out((local, remote): Ends) -> bool {
    !local.ip().is_loopback() && !remote.ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::{Other, Placed, find};
    use std::collections::HashSet;

    fn end(network: u32, local: &str, remote: &str) -> Placed {
        let address = |text: &str| text.parse().expect("an address");
        (network, (address(local), address(remote)))
    }

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:5000";

    #[test]
    fn equal_addresses_belong_together_in_their_own_network_namespaces() {
        let (here, there) = ("127.0.0.1:80", "127.0.0.1:5000");
        let all = [
            end(0, here, there),
            end(3, there, here),
            end(3, here, there),
            end(0, there, here),
        ];
        let found = find(&all, &HashSet::new());
        assert_eq!(found, [3, 2, 1, 0].map(Other::End));
        assert_eq!(find(&all[..2], &HashSet::new()), [Other::Nobody; 2]);
        let clients = HashSet::from([end(3, here, there)]);
        assert_eq!(find(&all[..1], &clients), [Other::Nobody]);
        assert_eq!(find(&all[2..3], &clients), [Other::Unaccepted(3)]);
    }

    #[test]
    fn ends_are_in_two_network_namespaces() {
        let pair = [end(1, A, B), end(2, B, A)];
        assert_eq!(find(&pair, &HashSet::new()), [Other::End(1), Other::End(0)]);
        let client = HashSet::from([end(1, B, A)]);
        assert_eq!(find(&pair[1..], &client), [Other::Unaccepted(1)]);
        let several = HashSet::from([end(1, B, A), end(4, B, A)]);
        assert_eq!(find(&pair[1..], &several), [Other::Several]);
        assert_eq!(find(&pair[..1], &HashSet::new()), [Other::Nobody]);
    }

    #[test]
    fn which_of_several_it_is_can_not_be_told() {
        let all = [end(1, A, B), end(2, B, A), end(3, A, B), end(4, B, A)];
        assert_eq!(find(&all, &HashSet::new()), [Other::Several; 4]);
        assert_eq!(find(&all[..3], &HashSet::new()), [Other::Several; 3]);
        // One that has its own is not in question.
        let all = [end(1, A, B), end(2, B, A), end(3, A, B), end(3, B, A)];
        assert_eq!(find(&all, &HashSet::new()), [1, 0, 3, 2].map(Other::End));
    }
}
