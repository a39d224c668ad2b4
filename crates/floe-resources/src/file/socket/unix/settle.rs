//! What becomes of ends whose other end is outside of the tree: they connect anew where the user says so, and are refused else.

use super::{
    dump::{FoundSocket, FoundUnix},
    name, peer,
};
use crate::{
    file::{Externals, outside::who_holds, socket::queue::Message},
    refusal::Refusals,
};
use floe_sys::Pid;
use std::collections::{HashMap, HashSet};

impl FoundUnix {
    /// Settles what becomes of ends whose other end no task of the tree has: they connect anew where the user says so, and
    /// are refused else.
    pub(in crate::file) fn settle_outside(
        &mut self,
        inside: &HashSet<Pid>,
        external: &Externals,
        refusals: &mut Refusals,
    ) {
        let own: HashSet<u32> = self.found.iter().map(|one| one.body.socket).collect();
        let peers = self.found.iter().zip(&self.queues);
        let peers = peers.filter_map(|(one, queue)| Some((one, queue, one.peer?)));
        let missing: Vec<_> = peers
            .filter(|(_, _, peer)| !own.contains(peer) && !self.refused.contains(peer))
            .collect();
        if missing.is_empty() {
            return;
        }
        let links: HashMap<Vec<u8>, ()> = missing.iter().map(|(_, _, peer)| (link(*peer), ())).collect();
        let holders = who_holds(&links, inside);
        for (one, queue, peer) in missing {
            let name = self.name_of(peer);
            let to = name.filter(|name| external.permits_peer(name, one.body.kind));
            match to.map(|to| self.reconnect(one, queue, to).map(|()| to)) {
                Some(Ok(to)) => drop(self.outside.insert(one.body.socket, to.to_vec())),
                Some(Err(reason)) if queue.is_empty() => one.refuse(reason, "end that process", refusals),
                Some(Err(reason)) => one.refuse_for_now(reason, "end that process, or try again", refusals),
                None => one.refuse_outside(holders.get(&link(peer)), name, refusals),
            }
        }
    }

    fn name_of(&self, socket: u32) -> Option<&[u8]> {
        self.listed.as_ref()?.any(socket)?.name.as_deref()
    }

    /// Whether it can connect anew; or why not.
    fn reconnect(&self, one: &FoundSocket, queue: &[Message], to: &[u8]) -> Result<(), &'static str> {
        let listed = self.listed.as_ref();
        let is_listened_at = |to| listed.is_some_and(|listed| listed.is_listened_at(to, one.body.kind));
        if !one.body.is_of_letters() && !is_listened_at(to) {
            return Err("nobody listens any more where the other end of this socket, which is outside, accepted it");
        }
        if !queue.is_empty() && !one.body.takes_letters() {
            return Err("bytes from outside of the tree wait in this socket, and would be lost when it connects anew");
        }
        if !peer::is_lasting(to) {
            return Err("the name of its other end is a path from a directory of a process outside");
        }
        if name::is_path(to) && !name::outer_root(one.viewer).is_ok_and(|root| root.is_none()) {
            return Err(
                "the process that has it has a root directory of its own (chroot), where the name of its other end means something else",
            );
        }
        if !name::is_path(to) && !listed.is_some_and(|listed| listed.is_floes(one.body.network)) {
            return Err("its other end is in a network that ends with the tree");
        }
        Ok(())
    }
}

fn link(socket: u32) -> Vec<u8> {
    format!("socket:[{socket}]").into_bytes()
}

impl FoundSocket {
    fn refuse_outside(&self, holder: Option<&(Pid, String)>, name: Option<&[u8]>, refusals: &mut Refusals) {
        let who = match holder {
            Some((pid, name)) => format!("by {name} ({pid})"),
            None => "by a process floe can't see, or is on its way to one".to_owned(),
        };
        let name = name.map(name::shown);
        let place = name.as_ref().map_or_else(String::new, |name| format!(", at {name}"));
        let anew = name.map_or_else(String::new, |name| {
            format!(" connect anew when it is restored (--external unix:{name}),")
        });
        let reason = format!("the other end of this socket is held outside of the tree, {who}{place}");
        let own = self.body.socket;
        let advice = format!("end that process,{anew} or give another one then (--external socket:[{own}]=NAME)");
        refusals.add(Some(&self.subject), self.title.clone(), reason, advice);
    }
}
