//! Two network namespaces between which packets go.

use crate::{Host, Network};

/// Two hosts' networks with a way between them.
#[derive(Debug)]
pub struct TwoNetworks([Network; 2]);

impl TwoNetworks {
    /// Makes them: eth0 has 10.9.0.1/24 on the first side, and 10.9.0.2/24 on the second one.
    ///
    /// # Panics
    /// Where it does not come about.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "processes are started")]
    pub fn new() -> Self {
        let made = Self([Network::new(), Network::new()]);
        let there = made.0[1].pid();
        made.shell(0, &format!("ip link add eth0 type veth peer name eth0 netns {there}"));
        for (side, address) in ["10.9.0.1/24", "10.9.0.2/24"].into_iter().enumerate() {
            made.shell(
                side,
                &format!("ip addr add {address} dev eth0; ip link set lo up; ip link set eth0 up"),
            );
        }
        made
    }

    /// A host on each side.
    #[must_use]
    pub fn hosts(&self) -> [Host; 2] {
        self.0.each_ref().map(Network::host)
    }

    /// The option of nsenter(1) for one side.
    #[must_use]
    pub fn enter(&self, side: usize) -> String {
        format!("--net=/proc/{}/ns/net", self.0[side].pid())
    }

    /// Runs commands of a shell on one side, which must succeed.
    ///
    /// # Panics
    /// Where they do not.
    pub fn shell(&self, side: usize, line: &str) {
        self.0[side].shell(line);
    }
}
