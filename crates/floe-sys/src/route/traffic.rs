//! How devices queue what they send: queueing disciplines, their classes, and filters that choose among these (tc(8)), as messages
//! that can be given back to the kernel. linux/pkt_sched.h, pkt_cls.h, net/sched/.
//!
//! A message is a `struct tcmsg` and attributes, without what was counted. Kinds are carried that tell what they were told.

use super::message::{Request, attribute, attributes, dump, flagged};
use nix::errno::Errno;
use std::collections::BTreeSet;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTCLASS: u16 = 40;
const RTM_NEWTFILTER: u16 = 44;
/// From each of these to the one that asks.
const GET: u16 = 2;
/// `struct tcmsg`: device at 4, number at 8, where it is at 12, of filters priority and protocol at 16.
const HEAD: usize = 20;
const TC_H_ROOT: u32 = u32::MAX;
/// Where what comes in is looked at (TC_H_INGRESS, TC_H_CLSACT), and the places of its filters.
const TC_H_INGRESS: u32 = 0xffff_fff1;
const SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// The half of a number that tells the discipline.
const MAJOR: u32 = 0xffff_0000;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
const TCA_CHAIN: u16 = 11;
const TCA_HW_OFFLOAD: u16 = 12;
/// TCA_STATS, XSTATS, STATS2, PAD: what was counted.
const COUNTED: [u16; 4] = [3, 4, TCA_STATS2, 9];
/// TCA_STATS_RATE_EST and _RATE_EST64.
const ESTIMATED: [u16; 2] = [2, 5];

/// All that devices of a network namespace have of it, each list in an order in which it can be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// RTM_NEWQDISC: disciplines.
    pub disciplines: Vec<Vec<u8>>,
    /// RTM_NEWTCLASS: classes.
    pub classes: Vec<Vec<u8>>,
    /// RTM_NEWTFILTER: filters.
    pub filters: Vec<Vec<u8>>,
}

/// What can't be given back: the device's number, what it is, and why not.
pub type Strange = (u32, String, &'static str);

impl Traffic {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disciplines.is_empty() && self.classes.is_empty() && self.filters.is_empty()
    }

    /// Whether another one is the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let sorted = |traffic: &Self| {
            let mut sorted = traffic.clone();
            for list in [&mut sorted.disciplines, &mut sorted.classes, &mut sorted.filters] {
                list.sort_unstable();
            }
            sorted
        };
        sorted(self) == sorted(other)
    }

    /// The numbers of all devices that have some of it.
    #[must_use]
    pub fn devices(&self) -> BTreeSet<u32> {
        self.all().filter_map(|one| number(one, 4)).collect()
    }

    /// The same of other devices.
    #[must_use]
    pub fn moved(&self, to: impl Fn(u32) -> u32) -> Self {
        let mut moved = self.clone();
        for list in [&mut moved.disciplines, &mut moved.classes, &mut moved.filters] {
            for one in list {
                if let Some(device) = number(one, 4) {
                    one[4..8].copy_from_slice(&to(device).to_ne_bytes());
                }
            }
        }
        moved
    }

    fn all(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.disciplines.iter().chain(&self.classes).chain(&self.filters)
    }

    /// What the calling thread's network namespace has, and what of it can't be given back.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn read() -> Result<(Self, Vec<Strange>), Errno> {
        let mut found = Self::default();
        let mut strange = Vec::new();
        let mut places = Vec::new();
        for told in all(RTM_NEWQDISC + GET, 0, 0)? {
            let [device, own, place] = [4, 8, 12].map(|at| number(&told, at));
            let (Some(device), Some(own), Some(place)) = (device, own, place) else {
                return Err(Errno::EPROTO);
            };
            // Those that devices have by themselves have no number.
            if own == 0 && place != TC_H_INGRESS {
                continue;
            }
            let kind = kind(&told);
            match written(&unused(&told), discipline) {
                Ok(body) => found.disciplines.push(body),
                Err(why) => strange.push((device, format!("its queueing discipline {kind} (tc qdisc)"), why)),
            }
            if place == TC_H_INGRESS {
                places.extend(SIDES.map(|side| (device, side)));
            } else {
                places.push((device, own));
            }
        }
        let devices: BTreeSet<u32> = places.iter().map(|(device, _)| *device).collect();
        for device in devices {
            for told in all(RTM_NEWTCLASS + GET, device, 0)? {
                let own = number(&told, 8).ok_or(Errno::EPROTO)?;
                let kind = kind(&told);
                places.push((device, own));
                match written(&unused(&told), class) {
                    Ok(body) => found.classes.push(body),
                    // Others than htb's are there by themselves, or go with a discipline that is refused.
                    Err(_) if kind != "htb" => {}
                    Err(why) => strange.push((device, format!("its class {own:x} of {kind} (tc class)"), why)),
                }
            }
        }
        found.classes = parents_first(found.classes);
        places.sort_unstable();
        places.dedup();
        for (device, place) in places {
            read_filters((device, place), &mut found.filters, &mut strange)?;
        }
        Ok((found, strange))
    }

    /// Makes all of it in the calling thread's network namespace, whose devices have none yet.
    ///
    /// # Errors
    /// The device's number, and what the kernel says; EINVAL also for what [`Traffic::read`] would not tell, ELOOP where something is at a place that there is not.
    pub fn load(&self) -> Result<(), (u32, Errno)> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let put = |kind, body: &Vec<u8>| {
            let [device, own] = [4, 8].map(|at| number(body, at).unwrap_or(0));
            let made = if is_known(kind, body) {
                Request::new(kind, flags, body).perform()
            } else {
                Err(Errno::EINVAL)
            };
            made.map(|()| (device, own)).map_err(|error| (device, error))
        };
        let mut made = BTreeSet::new();
        let is_of = |body: &Vec<u8>, at| number(body, 4).zip(number(body, at));
        let classes: BTreeSet<_> = self.classes.iter().filter_map(|one| is_of(one, 8)).collect();
        let mut waiting: Vec<(u16, &Vec<u8>)> = (self.disciplines.iter().map(|one| (RTM_NEWQDISC, one)))
            .chain(self.classes.iter().map(|one| (RTM_NEWTCLASS, one)))
            .collect();
        while let Some((_, first)) = waiting.first() {
            let first = number(first, 4).unwrap_or(0);
            let before = waiting.len();
            let mut later = Vec::new();
            for (kind, body) in waiting {
                let (own, place) = (is_of(body, 8), is_of(body, 12));
                let discipline = own.map(|(device, own)| (device, own & MAJOR));
                let ready = match place {
                    _ if kind == RTM_NEWTCLASS => discipline.is_some_and(|one| made.contains(&one)),
                    Some((_, TC_H_ROOT | TC_H_INGRESS)) => true,
                    Some((device, at)) if classes.contains(&(device, at)) => made.contains(&(device, at)),
                    Some((device, at)) => made.contains(&(device, at & MAJOR)),
                    None => true,
                };
                if ready {
                    made.insert(put(kind, body)?);
                } else {
                    later.push((kind, body));
                }
            }
            if later.len() == before {
                return Err((first, Errno::ELOOP));
            }
            waiting = later;
        }
        self.filters
            .iter()
            .try_for_each(|one| put(RTM_NEWTFILTER, one).map(drop))
    }
}

/// Whether it is what would be kept of it.
fn is_known(kind: u16, body: &[u8]) -> bool {
    let options = match kind {
        RTM_NEWQDISC => discipline,
        RTM_NEWTCLASS => class,
        _ => filter,
    };
    body.len() >= HEAD && written(body, options).is_ok_and(|kept| kept == body)
}

/// None where the kernel knows nothing of the kind.
fn all(kind: u16, device: u32, place: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let mut head = [0; HEAD];
    head[4..8].copy_from_slice(&device.to_ne_bytes());
    head[12..16].copy_from_slice(&place.to_ne_bytes());
    match dump(kind, &head) {
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        all => all,
    }
}

/// A message that makes what another one tells of.
fn written(told: &[u8], options: fn(&str, &[u8]) -> Result<Vec<u8>, &'static str>) -> Result<Vec<u8>, &'static str> {
    let kind = kind(told);
    let (mut head, rest) = (told[..HEAD].to_vec(), &told[HEAD..]);
    let mut body = Vec::new();
    for (what, value) in attributes(rest) {
        match what {
            TCA_KIND | TCA_CHAIN => attribute(&mut body, what, value),
            TCA_OPTIONS => attribute(&mut body, what, &options(&kind, value)?),
            TCA_STATS2 if attributes(value).any(|(one, _)| ESTIMATED.contains(&one)) => {
                return Err("its rate is estimated, and by what is not told");
            }
            TCA_HW_OFFLOAD if value == [0] => {}
            _ if COUNTED.contains(&what) => {}
            _ => return Err("it has something that floe does not know"),
        }
    }
    if attributes(rest).all(|(what, _)| what != TCA_OPTIONS) {
        options(&kind, &[])?;
    }
    head.extend(body);
    Ok(head)
}

/// What is told of something that is no filter, without its last word: that says how often it is used, or what is in it.
fn unused(told: &[u8]) -> Vec<u8> {
    let mut told = told.to_vec();
    if let Some(word) = told.get_mut(HEAD - 4..HEAD) {
        word.fill(0);
    }
    told
}

/// Options of a discipline.
fn discipline(kind: &str, told: &[u8]) -> Result<Vec<u8>, &'static str> {
    match kind {
        "pfifo" | "bfifo" if told.len() == 4 => Ok(told.to_vec()),
        "ingress" | "clsact" if told.is_empty() => Ok(Vec::new()),
        "htb" => each(told, |what, value| match what {
            // TCA_HTB_INIT, struct tc_htb_glob: a version of its own, what is debugged, and how many packets went by.
            2 => Some(htb_init(value)),
            // TCA_HTB_DIRECT_QLEN.
            5 => Some(value.to_vec()),
            _ => None,
        }),
        "tbf" => {
            // TCA_TBF_PARMS, _RATE64 and _PRATE64; the next two are worked out.
            let mut options = Vec::new();
            for (what, value) in attributes(told).filter(|(what, _)| ![6, 7].contains(what)) {
                if ![1, 4, 5].contains(&what) {
                    return Err("it has an option that floe does not know");
                }
                attribute(&mut options, what, value);
            }
            let (burst, peak) = bursts(told).ok_or("floe can't read its options")?;
            // TCA_TBF_BURST and _PBURST.
            for (what, bytes) in [(6, Some(burst)), (7, peak)] {
                if let Some(bytes) = bytes {
                    attribute(&mut options, what, &bytes.to_ne_bytes());
                }
            }
            Ok(options)
        }
        _ => Err("disciplines of this kind are not carried, nor are their classes and filters"),
    }
}

fn htb_init(told: &[u8]) -> Vec<u8> {
    const VERSION: u32 = 3;
    let mut init = told.to_vec();
    for (at, value) in [(0, VERSION), (12, 0), (16, 0)] {
        if let Some(four) = init.get_mut(at..at + 4) {
            four.copy_from_slice(&value.to_ne_bytes());
        }
    }
    init
}

/// How many bytes may be sent at once, of the rate and of the peak rate. The kernel keeps, and tells, the time that they take; those
/// that don't take longer are no fewer than it was told.
fn bursts(told: &[u8]) -> Option<(u32, Option<u32>)> {
    const TICK: u64 = 64;
    const SECOND: u128 = 1_000_000_000;
    let of = |wanted| {
        attributes(told)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let long = |wanted| Some(u64::from_ne_bytes(of(wanted)?.try_into().ok()?));
    // struct tc_tbf_qopt: two struct tc_ratespec, with the overhead at 2 and the rate at 8; limit, buffer, mtu.
    let parameters = of(1)?;
    let bytes = |rate: u64, ticks: u32, spec: usize| {
        let time = (u64::from(ticks) + 1) * TICK - 1;
        let all = u128::from(time) * u128::from(rate) / SECOND;
        let overhead = parameters.get(spec + 2..spec + 4)?;
        let overhead = u16::from_ne_bytes(overhead.try_into().ok()?);
        u32::try_from(all).ok()?.checked_sub(u32::from(overhead))
    };
    let [rate, peak, buffer, mtu] = [8, 20, 28, 32].map(|at| number(parameters, at));
    let burst = bytes(long(4).unwrap_or(rate?.into()), buffer?, 0)?;
    let peak = long(5).unwrap_or(peak?.into());
    Some((burst, if peak == 0 { None } else { Some(bytes(peak, mtu?, 12)?) }))
}

/// Options of a class.
fn class(kind: &str, told: &[u8]) -> Result<Vec<u8>, &'static str> {
    match kind {
        // TCA_HTB_PARMS, struct tc_htb_opt, whose level follows from the others; _RATE64 and _CEIL64.
        "htb" => each(told, |what, value| match what {
            1 => {
                let mut parameters = value.to_vec();
                parameters.get_mut(36..40)?.fill(0);
                Some(parameters)
            }
            6 | 7 => Some(value.to_vec()),
            _ => None,
        }),
        _ => Err("classes of this kind are not carried"),
    }
}

/// Options of a filter.
fn filter(kind: &str, told: &[u8]) -> Result<Vec<u8>, &'static str> {
    /// TCA_CLS_FLAGS_SKIP_HW and _SKIP_SW.
    const FLAGS: u32 = 3;
    match kind {
        "u32" => {
            let mut options = Vec::new();
            for (what, value) in flagged(told) {
                match what {
                    // TCA_U32_CLASSID, HASH, LINK, DIVISOR, SEL, INDEV, MARK.
                    1..=5 | 8 | 10 => attribute(&mut options, what, value),
                    // TCA_U32_FLAGS.
                    11 => {
                        let flags = number(value, 0).unwrap_or(0) & FLAGS;
                        attribute(&mut options, what, &flags.to_ne_bytes());
                    }
                    // TCA_U32_PCNT, PAD.
                    9 | 12 => {}
                    _ => return Err("filters with actions are not carried"),
                }
            }
            Ok(options)
        }
        _ => Err("filters of this kind are not carried"),
    }
}

/// Options one by one; what a kind does not know is refused.
fn each(told: &[u8], kept: impl Fn(u16, &[u8]) -> Option<Vec<u8>>) -> Result<Vec<u8>, &'static str> {
    let mut options = Vec::new();
    for (what, value) in attributes(told) {
        let value = kept(what, value).ok_or("it has an option that floe does not know")?;
        attribute(&mut options, what, &value);
    }
    Ok(options)
}

/// Classes that others are in come before these; without their parent the kernel would take them for the first ones.
fn parents_first(mut waiting: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut sorted: Vec<Vec<u8>> = Vec::with_capacity(waiting.len());
    let mut known = BTreeSet::new();
    loop {
        let place = |one: &Vec<u8>| number(one, 4).zip(number(one, 12));
        let is_ready = |one: &Vec<u8>| place(one).is_none_or(|place| place.1 == TC_H_ROOT || known.contains(&place));
        let (ready, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_ready);
        if ready.is_empty() {
            sorted.extend(later);
            return sorted;
        }
        known.extend(ready.iter().filter_map(|one| number(one, 4).zip(number(one, 8))));
        sorted.extend(ready);
        waiting = later;
    }
}

/// Filters of one place. Those of a priority have tables: the first one comes with them, and its number tells in which order
/// priorities were made.
fn read_filters(
    (device, place): (u32, u32),
    found: &mut Vec<Vec<u8>>,
    strange: &mut Vec<Strange>,
) -> Result<(), Errno> {
    const FIRST: u32 = 0x800;
    const TABLE: u32 = 20;
    let mut roots: Vec<(Vec<u8>, u32)> = Vec::new();
    let mut others = Vec::new();
    // What tells one priority from another: it, the protocol and the chain.
    let group = |told: &[u8]| {
        let chain = attributes(&told[HEAD..]).find(|(kind, _)| *kind == TCA_CHAIN);
        [&told[16..HEAD], chain.map_or(&[][..], |(_, value)| value)].concat()
    };
    for told in all(RTM_NEWTFILTER + GET, device, place)? {
        let own = number(&told, 8).ok_or(Errno::EPROTO)?;
        let kind = kind(&told);
        let is_table = own & ((1 << TABLE) - 1) == 0;
        match written(&told, filter) {
            // Its priority alone.
            _ if own == 0 => {}
            Ok(_) if is_table && own >> TABLE >= FIRST => roots.push((group(&told), own)),
            Ok(body) => others.push((!is_table, body)),
            Err(why) => strange.push((device, format!("its filter {own:x} of {kind} (tc filter)"), why)),
        }
    }
    let root = |body: &[u8]| {
        let wanted = group(body);
        roots.iter().find(|(group, _)| *group == wanted).map(|(_, own)| *own)
    };
    // Tables before what is in them.
    others.sort_by_key(|(is_inside, body)| (root(body), *is_inside));
    found.extend(others.into_iter().map(|(_, body)| body));
    Ok(())
}

fn kind(told: &[u8]) -> String {
    let mut all = attributes(told.get(HEAD..).unwrap_or_default());
    let kind = all.find(|(kind, _)| *kind == TCA_KIND).map(|(_, value)| value);
    let kind = kind.unwrap_or_default().split(|byte| *byte == 0).next();
    String::from_utf8_lossy(kind.unwrap_or_default()).into_owned()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
#[path = "traffic/tests.rs"]
mod tests;
