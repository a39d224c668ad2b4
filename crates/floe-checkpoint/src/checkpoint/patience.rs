//! What passes by itself is waited for: the tree runs on for a moment, and is stopped and looked at anew.
//!
//! Connections that wait to be accepted pass when the tree accepts them, but where others come all the time some wait at
//! each look. So new ones are held back meanwhile; to their clients that looks like a network that loses packets.

use floe_resources::{
    file::Newcomers,
    refusal::{Passing, Refusal},
};
use floe_sys::Pid;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long the tree runs before the second look. Then it is twice as long each time: calls with a time-out that begin it
/// anew when they are stopped come to their end too, where that takes less than half of all the time.
const SHORTEST: Duration = Duration::from_millis(2);

/// How long what passes by itself is waited for.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
    pause: Duration,
    /// Addresses at which connections wait.
    crowded: BTreeSet<SocketAddr>,
    newcomers: Option<Newcomers>,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            pause: SHORTEST,
            crowded: BTreeSet::new(),
            newcomers: None,
        }
    }

    /// Holds back new connections to a tree, which runs still, from before it is looked at until it has ended: whoever came
    /// meanwhile would be told of its end.
    pub(super) fn let_nobody_in(&mut self, root: Pid) {
        match Newcomers::places(root) {
            Ok(places) if places.is_empty() => {}
            Ok(places) => {
                self.crowded.extend(places);
                self.hold_newcomers_back(root);
            }
            Err(error) => tracing::debug!(%error, "new connections come until the tree ends"),
        }
    }

    /// Gives the tree, which runs, time to get rid of what stands in the way; false where that is of no use, or there is
    /// no more time.
    pub(super) fn waits_for(&mut self, findings: &[Refusal], root: Pid) -> bool {
        let passing: Option<Vec<Passing>> = findings.iter().map(|finding| finding.passing).collect();
        let left = self.until.saturating_duration_since(Instant::now());
        let Some(passing) = passing.filter(|_| !left.is_zero()) else {
            return false;
        };
        let before = self.crowded.len();
        self.crowded
            .extend(passing.into_iter().filter_map(|passing| match passing {
                Passing::Accepted(place) => Some(place),
                Passing::OfItself => None,
            }));
        if self.crowded.len() > before {
            self.hold_newcomers_back(root);
        }
        // There is nothing else that tells when it has done so.
        std::thread::sleep(self.pause.min(left));
        self.pause *= 2;
        true
    }

    /// Where that does not work the tree has to be found at a moment at which none wait.
    fn hold_newcomers_back(&mut self, root: Pid) {
        self.newcomers = None;
        let places: Vec<_> = self.crowded.iter().copied().collect();
        match Newcomers::hold_back(&places, root) {
            Ok(held) => self.newcomers = Some(held),
            Err(error) => tracing::debug!(%error, "new connections come while those that wait are accepted"),
        }
    }
}
