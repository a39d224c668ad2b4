//! What an end holds, and which other one it belongs to.
//!
//! What one end has sent and the other has not got is read from its send queue, which the kernel shows in repair mode
//! alone. That is switched off again at once, and is not needed where both ends are in the tree and nothing is on its way,
//! as nearly always.

use super::{
    Body, Ends, Look, NAME, OPTIONS, OtherEnd, Stream, TcpMode, addresses, canonical,
    hold::{Held, Place, is_own},
    outside,
    partners::{self, Other},
    repair::{Queue, Repair, may_repair},
    sent::Sent,
    stream::hides_bytes,
    untold,
    waiting::{Clients, FoundListener},
};
use crate::{
    file::{
        DumpContext, FileError, FoundFile,
        memory::Memory,
        socket::{
            address::is_of_a_link, has_error, has_events, inet, keeper::Keeper, number_option, options::bound_device,
            plain_options, refuse, tcp_state::TcpState,
        },
    },
    ns::NetworkSpace,
    refusal::{Passing, Refusals, Subject},
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    descriptor::{self, pidfd_getfd},
    netfilter::Way,
    socket::{is_somebodys, option},
};
use nix::errno::Errno;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

/// Ends found so far.
pub(in crate::file) struct FoundConnections {
    carried: Vec<FoundConnection>,
    /// What becomes of those whose other ends are outside of the tree.
    mode: TcpMode,
    /// How the network of the tree's root is joined to floe's own, where it is.
    joined: Option<Way>,
    /// The address of the tree's root, and the program that is between its network and floe's own, where one is.
    carrier: Option<(Ipv4Addr, &'static str)>,
    /// Those of ends that were refused.
    refused: HashSet<Ends>,
    /// Sockets that listen.
    pub(in crate::file::socket) listening: Vec<FoundListener>,
    /// Where the tree listens, and connections wait that can't be told.
    pub(in crate::file::socket) hidden: Vec<SocketAddr>,
}

/// An end that was found. Its record is complete when the other end is known.
struct FoundConnection {
    network: NetworkSpace,
    pidfd: Rc<OwnedFd>,
    number: i32,
    subject: Subject,
    title: String,
    body: Body,
}

pub(super) fn dump(file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let ends = addresses(file.as_fd()).map_err(FileError::system("read the addresses of", file.title()))?;
    let body = dump_end(file, ends, context)?;
    if let (None, Some((local, remote))) = (&body, ends) {
        context
            .connections
            .refused
            .insert((canonical(local), canonical(remote)));
    }
    Ok(body)
}

fn dump_end(file: &FoundFile, ends: Option<Ends>, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
    let wrap = |action| FileError::system(action, file.title());
    let tcp = TcpState::read(file.as_fd()).map_err(wrap("read the state of"))?;
    if !tcp.is_carried() {
        let reason = "a TCP connection that is only being made can't be carried yet";
        let refused = refuse(file, context, reason);
        context.refusals.last_passes(Passing::OfItself);
        return refused;
    }
    if has_error(file.as_fd()).map_err(wrap("poll"))? {
        return refuse(
            file,
            context,
            "a socket with an error that nobody has read can't be carried yet",
        );
    }
    if let Some(reason) = untold(file.as_fd(), &context.memory).map_err(wrap("poll"))? {
        return refuse(file, context, &reason);
    }
    if option(file.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP).is_ok_and(|name| !name.is_empty()) {
        return refuse(file, context, "TLS in the kernel (TCP_ULP) can't be carried");
    }
    if !may_repair(file.as_fd()) {
        return refuse(
            file,
            context,
            "only the root of its network (CAP_NET_ADMIN) may look into a TCP connection; run floe as root, or the workload with --net none",
        );
    }
    let Some((local, remote)) = ends else {
        return refuse(file, context, "a TCP connection without addresses can't be carried");
    };
    if let Err(error) = context.memory.readable()
        && hides_bytes(file, &tcp, (local, remote))?
    {
        let reason = format!(
            "what waits behind an urgent byte of a TCP connection is told by the kernel's memory alone, which can't be read ({error})"
        );
        let refused = refuse(file, context, &reason);
        context.refusals.last_passes(Passing::OfItself);
        return refused;
    }
    let family = number_option(file.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(wrap("read the family of"))?;
    let kind = (family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let Some(options) = plain_options(file, (kind, &OPTIONS), context)? else {
        return Ok(None);
    };
    if is_of_a_link(local.ip()) {
        let ends = (canonical(local), canonical(remote));
        let mut all = context.connections.carried.iter();
        let is_alike = |one: &FoundConnection| one.network.number == file.network.number && one.body.ends() == ends;
        if bound_device(&options).is_none() || all.any(is_alike) {
            let reason = "an address of one network device (scope), of a connection by no device or of two that differ by it alone, can't be carried";
            return refuse(file, context, reason);
        }
    }
    let body = Body {
        family,
        local,
        remote,
        // Until that is known.
        other: OtherEnd::Closed,
        shut_write: tcp.has_sent_end(),
        shut_read: false,
        queue: Stream::default(),
        coming: 0,
        got_end: false,
        options,
    };
    let record = codec::encode(&body)?;
    context.connections.carried.push(FoundConnection {
        network: file.network.clone(),
        pidfd: Rc::clone(&file.pidfd),
        number: file.number,
        subject: file.subject.clone(),
        title: file.title(),
        body,
    });
    Ok(Some(record))
}

/// Completes the records of connections, in the order in which they were found; refuses those whose other end is outside.
///
/// Tasks stand still, but what they have sent is still on its way. So first all that has been sent is looked at, and only
/// then what has come: whatever comes in between is seen at least once, and sequence numbers tell what was seen twice.
pub(in crate::file) fn resolve(
    (all, keeper, memory): (&FoundConnections, &Keeper, &Memory),
    records: &mut [OpenFileRecord],
    refusals: &mut Refusals,
) -> Result<Option<Held>, FileError> {
    let (found, look) = (&all.carried, (keeper, memory));
    let others = all.others();
    let is_known = |index: usize| !matches!(others[index], Other::Nobody);
    // Before anything of them is looked at: what comes from outside would change them meanwhile.
    let outside = all.outside(&others, refusals)?;
    let held = Held::take(all.places(&outside)?)?;
    let mut sent = HashMap::with_capacity(found.len());
    for (index, one) in found.iter().enumerate().filter(|(index, _)| is_known(*index)) {
        sent.insert(index, (one.unreceived(look)?, one.body.shut_write));
    }
    let files = records.iter().filter(|record| record.kind == NAME);
    let files: Vec<u32> = files.map(|record| record.id).collect();
    let connections = records.iter_mut().filter(|record| record.kind == NAME);
    let mut clients = Clients::new();
    for (record, (index, one)) in connections.zip(found.iter().enumerate()) {
        let mut body = one.body.clone();
        if outside.contains(&index) {
            one.look_outside(look, &mut body)?;
            if !body.queue.is_possible() {
                one.refuse_urgent("an urgent byte that was read before it had come in order", refusals);
            }
        } else if let Other::End(other) = others[index] {
            body.other = OtherEnd::Tree(files[other]);
            let news = one.receive(look, &mut body, sent.get(&other))?;
            // The kernel would tell of it while the tree is restored, when nobody can be sent SIGURG.
            if news && one.has_owner()? {
                one.refuse_urgent(
                    "an urgent byte that the end which gets SIGURG was not told of yet",
                    refusals,
                );
            } else if body.is_filtered() && body.queue.marks.iter().any(|mark| mark.at as usize >= body.come()) {
                one.refuse_urgent("an urgent byte on its way to a socket with a filter", refusals);
            } else if !body.queue.has_all() {
                one.refuse_urgent("an urgent byte that was told of and not sent yet", refusals);
            }
        } else if let (Other::Unaccepted(network), Some((sent, _))) = (others[index], sent.get(&index)) {
            body.other = OtherEnd::Unaccepted;
            one.receive(look, &mut body, None)?;
            let shut = u8::from(body.shut_read) | u8::from(body.shut_write) << 1;
            clients.insert((network, body.ends()), (record.id, shut, sent));
        } else if one.is_alone()? {
            body.other = OtherEnd::Closed;
            one.receive(look, &mut body, None)?;
            // Nobody sends it any more.
            body.queue.forget_missing();
        } else {
            body.other = OtherEnd::GivenUp;
        }
        record.body = codec::encode(&body)?;
    }
    let waiting = all.listening.iter();
    let waiting = waiting.map(|one| one.resolve((memory, all.mode), &clients, refusals));
    inet::note_waiting(records, waiting)?;
    Ok(held)
}

impl FoundConnections {
    pub(in crate::file) fn new(mode: TcpMode, joined: Option<Way>, carrier: Option<(Ipv4Addr, &'static str)>) -> Self {
        Self {
            carried: Vec::new(),
            mode,
            joined,
            carrier,
            refused: HashSet::new(),
            listening: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Who has the other end of each.
    fn others(&self) -> Vec<Other> {
        let listening = self.listening.iter();
        let clients = listening.flat_map(|one| one.clients().map(|ends| (one.network(), ends)));
        let carried: Vec<_> = self
            .carried
            .iter()
            .map(|one| (one.network.number, one.body.ends()))
            .collect();
        partners::find(&carried, &clients.collect())
    }

    /// Those that are carried though their other ends are outside, by their places; refuses those that aren't.
    fn outside(&self, others: &[Other], refusals: &mut Refusals) -> Result<Vec<usize>, FileError> {
        let mut outside = Vec::new();
        for (index, (one, other)) in self.carried.iter().zip(others).enumerate() {
            let (local, remote) = one.body.ends();
            let is_told_elsewhere = self.refused.contains(&(remote, local))
                || self.hidden.iter().any(|place| inet::comes_to(remote, *place));
            if let Other::Several = other {
                let reason = "several connections of the tree have its addresses, in different network namespaces: which is its other \
                              end is not told";
                refusals.add(Some(&one.subject), one.title.clone(), reason, "end one of them");
                continue;
            }
            let elsewhere = match other {
                Other::End(end) => Some(self.carried[*end].network.number),
                Other::Unaccepted(network) => Some(*network),
                Other::Several | Other::Nobody => None,
            };
            if elsewhere.is_some_and(|network| network != one.network.number) && !one.has_way() {
                let reason = "it is between two network namespaces, and there is no way to its other end any more, by which it is made again";
                refusals.add(
                    Some(&one.subject),
                    one.title.clone(),
                    reason,
                    "put its devices and routes back, or end it",
                );
            }
            if !matches!(other, Other::Nobody) || is_told_elsewhere || one.is_alone()? {
                continue;
            }
            match self.mode {
                TcpMode::Established if is_of_a_link(local.ip()) => refusals.add(
                    Some(&one.subject),
                    one.title.clone(),
                    "an address of one network device (scope) of a TCP connection with an end outside of the tree can't be carried yet".to_owned(),
                    "use another address, end the connection, or give it up by --tcp close",
                ),
                TcpMode::Close => {}
                TcpMode::Established | TcpMode::Refuse if self.carrier_of(one).is_some() => refusals.add(
                    Some(&one.subject),
                    one.title.clone(),
                    format!(
                        "{} has this TCP connection with {remote} in its hands, and ends with the tree",
                        self.carrier_of(one).unwrap_or_default()
                    ),
                    "give it up by --tcp close, or end it",
                ),
                TcpMode::Established if one.is_in_floes_network()? || self.is_joined(one) || (one.has_way() && !one.stays_inside()) => {
                    outside.push(index);
                }
                TcpMode::Established => refusals.add(
                    Some(&one.subject),
                    one.title.clone(),
                    format!(
                        "{remote}, the other end of this TCP connection, is in the tree's own network but not in the tree, or there is no way to it any more"
                    ),
                    "put its devices and routes back, end the connection, or give it up by --tcp close",
                ),
                TcpMode::Refuse => refusals.add(
                    Some(&one.subject),
                    one.title.clone(),
                    format!("the other end of this TCP connection, {remote}, is outside of the tree"),
                    "carry it by --tcp established, give it up by --tcp close, or end it",
                ),
            }
        }
        Ok(outside)
    }
}

impl FoundConnections {
    /// Where the packets of some are to be held back.
    fn places(&self, outside: &[usize]) -> Result<Vec<(Place, Vec<Ends>)>, FileError> {
        let (mut here, mut on_the_way) = (Vec::new(), Vec::new());
        let mut within: BTreeMap<u32, (Place, Vec<Ends>)> = BTreeMap::new();
        for index in outside {
            let one = &self.carried[*index];
            let ends = one.body.ends();
            if self.is_joined(one) {
                on_the_way.push(ends);
            } else if one.is_in_floes_network()? {
                here.push(ends);
            } else {
                let place = || (Place::Within(one.network.clone()), Vec::new());
                within.entry(one.network.number).or_insert_with(place).1.push(ends);
            }
        }
        let way = self.joined.clone().map(|way| (Place::OnTheWay(way), on_the_way));
        let shared = [(Place::Here, here)].into_iter().chain(way);
        Ok(shared.chain(within.into_values()).collect())
    }

    /// Whether its packets come by the way that joins the network of the tree's root to floe's.
    fn is_joined(&self, one: &FoundConnection) -> bool {
        let (local, _) = one.body.ends();
        let inside = self.joined.as_ref().map(|way| way.inside);
        one.network.number == 0 && inside.is_some_and(|inside| local.ip() == inside)
    }

    /// The program that its packets come by, where one is between.
    fn carrier_of(&self, one: &FoundConnection) -> Option<&'static str> {
        let (local, _) = one.body.ends();
        let (inside, name) = self.carrier?;
        (one.network.number == 0 && local.ip() == inside).then_some(name)
    }
}

/// What is in a receive queue, whether the other end's last is known to have come, and whether nothing more can be read.
type Come = (Stream, bool, bool);

impl FoundConnection {
    fn wrap(&self, action: &'static str) -> impl FnOnce(Errno) -> FileError {
        FileError::system(action, self.title.clone())
    }

    fn socket(&self) -> Result<OwnedFd, FileError> {
        pidfd_getfd(self.pidfd.as_fd(), self.number).map_err(self.wrap("fetch"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
        let object = self.title.clone();
        move |source| FileError::System { action, object, source }
    }

    fn refuse_urgent(&self, what: &str, refusals: &mut Refusals) {
        let reason = format!("{what} can't be carried");
        refusals.add(Some(&self.subject), self.title.clone(), reason, "have it received");
        refusals.last_passes(Passing::OfItself);
    }

    /// Whether somebody is sent signals about it.
    fn has_owner(&self) -> Result<bool, FileError> {
        let signals = descriptor::signals(self.socket()?.as_fd()).map_err(self.wrap("read the owner of"))?;
        Ok(signals.owner.is_some())
    }

    /// What this end has sent and the other has not acknowledged.
    fn unreceived(&self, look: Look<'_>) -> Result<Option<Sent>, FileError> {
        let socket = self.socket()?;
        Sent::read(socket.as_fd(), self.body.shut_write, look).map_err(self.failed("read the send queue of"))
    }

    /// Whether nobody has the other end any more, which was on this host.
    fn is_alone(&self) -> Result<bool, FileError> {
        let (local, remote) = self.body.ends();
        let socket = self.socket()?;
        let state = TcpState::read(socket.as_fd()).map_err(self.wrap("read the state of"))?;
        Ok(state.has_got_end() && remote.ip().is_loopback() && !self.is_others(remote, local)?)
    }

    /// Whether it is in the network namespace in which floe is.
    fn is_in_floes_network(&self) -> Result<bool, FileError> {
        let found = self.network.is_floes();
        found.map_err(|error| self.failed("look at the network of")(io::Error::other(error)))
    }

    /// Whether its network namespace has its address still, and a way to the other end.
    fn has_way(&self) -> bool {
        let (local, remote) = self.body.ends();
        let connect = || UdpSocket::bind((local.ip(), 0))?.connect(remote);
        is_of_a_link(local.ip()) || self.network.run(connect).is_ok()
    }

    /// Whether its network namespace has the other end's address, too.
    fn stays_inside(&self) -> bool {
        let (_, remote) = self.body.ends();
        self.network.run(|| Ok(is_own(remote.ip()))).unwrap_or(true)
    }

    /// Notes what the other end, which is outside, relies on, and what waits to be read.
    fn look_outside(&self, look: Look<'_>, body: &mut Body) -> Result<(), FileError> {
        let socket = self.socket()?;
        let (outside, queue, got_end) =
            outside::read(socket.as_fd(), look).map_err(self.failed("read the state of"))?;
        let ended = has_events(socket.as_fd(), libc::POLLRDHUP).map_err(self.wrap("poll"))?;
        body.got_end = got_end;
        body.shut_read = ended && !got_end;
        body.queue = queue;
        body.other = OtherEnd::Outside(Box::new(outside));
        Ok(())
    }

    /// Whether a process outside of the tree has the end with these addresses.
    fn is_others(&self, local: SocketAddr, remote: SocketAddr) -> Result<bool, FileError> {
        let look = || Ok(is_somebodys(local, remote)?);
        let found = self.network.run(look);
        found.map_err(|error| FileError::System {
            action: "look for the other end of",
            object: self.title.clone(),
            source: io::Error::other(error),
        })
    }

    /// Notes what has come to this end and what is on its way from the other; whether that has an urgent byte which this end
    /// was not told of.
    fn receive(
        &self,
        (keeper, memory): Look<'_>,
        body: &mut Body,
        other: Option<&(Option<Sent>, bool)>,
    ) -> Result<bool, FileError> {
        let socket = self.socket()?;
        let look = || -> io::Result<Come> {
            let queue = Stream::read(socket.as_fd(), (keeper, memory))?;
            let got_end = TcpState::read(socket.as_fd())?.has_got_end();
            Ok((queue, got_end, has_events(socket.as_fd(), libc::POLLRDHUP)?))
        };
        let action = "look at what waits in";
        let Some((Some(sent), shut_write)) = other else {
            let (queue, got_end, ended) = look().map_err(self.failed(action))?;
            (body.queue, body.got_end, body.shut_read) = (queue, got_end, ended && !got_end);
            return Ok(false);
        };
        let number = || Repair::of(socket.as_fd(), keeper).and_then(|repair| repair.queue(Queue::Receive));
        let stands = || -> io::Result<(u32, Come)> {
            loop {
                let before = number()?;
                let seen = look()?;
                if number()? == before {
                    return Ok((before, seen));
                }
            }
        };
        let (got, (queue, got_end, ended)) = stands().map_err(self.failed(action))?;
        let come = queue.bytes.len();
        (body.queue, body.got_end, body.shut_read) = (queue, got_end, ended && !got_end);
        // The end itself counts as one.
        let end = u32::from(*shut_write && !got_end);
        let news = sent.append_behind(got.wrapping_add(end), &mut body.queue);
        body.coming = (body.queue.bytes.len() - come) as u32;
        news.ok_or(Errno::EPROTO)
            .map_err(self.wrap("make out what is on its way to"))
    }
}
