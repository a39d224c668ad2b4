//! Finds the devices behind files, and whether others have them.

use super::{
    super::{DumpContext, FileError, FoundFile},
    OBJECT_KIND,
    device::Device,
};
use crate::refusal::{Passing, Refusals, Subject};
use floe_image::{codec, record::ObjectRecord};
use floe_sys::tun;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{collections::BTreeMap, os::fd::AsFd};

/// The devices found so far, by network namespace and name; none where one was refused.
#[derive(Debug, Default)]
pub(crate) struct FoundTuns(BTreeMap<(u32, Vec<u8>), Option<FoundTun>>);

#[derive(Debug)]
struct FoundTun {
    /// In the image.
    number: u32,
    /// How many files have it, where that can be several.
    queues: Option<u32>,
    /// How many of these are the tree's.
    files: u32,
    /// For a finding.
    subject: Subject,
    title: String,
}

/// Why a file can't be carried, what to do, and whether that passes.
type Obstacle = (String, &'static str, Option<Passing>);

impl FoundTuns {
    /// Refuses those that somebody else has too, when all files are found.
    pub(crate) fn refuse_shared(&self, refusals: &mut Refusals) {
        let shared = |tun: &&FoundTun| tun.queues.is_some_and(|queues| queues != tun.files);
        for tun in self.0.values().flatten().filter(shared) {
            let reason = "a process outside of the tree has the network device, too".to_owned();
            refusals.add(Some(&tun.subject), tun.title.clone(), reason, "end that process");
        }
    }

    /// Network namespaces and names of all: what is wrong with one is told already.
    pub(crate) fn all(&self) -> impl Iterator<Item = &(u32, Vec<u8>)> {
        self.0.keys()
    }
}

/// The device of a file, and whether its queue is switched off; or why it can't be carried.
pub(super) fn device_of(
    file: &FoundFile,
    context: &mut DumpContext<'_>,
) -> Result<Result<Option<(u32, bool)>, Obstacle>, FileError> {
    let wrap = |action| FileError::system(action, file.title());
    if let Err(error) = tun::namespace(file.as_fd()) {
        let reason = format!("floe is not told the network namespace of a tun: {error}");
        return Ok(Err((reason, "run floe as root", None)));
    }
    let Some((name, flags, detached)) = tun::device(file.as_fd()).map_err(wrap("look at"))? else {
        return Ok(Ok(None));
    };
    let place = (file.network.number, name.clone());
    if tun::has_filter(file.as_fd()).map_err(wrap("look for a filter of"))? {
        let reason = "a tap with a filter (TUNATTACHFILTER), which is told nowhere";
        return Ok(Err((reason.to_owned(), "detach it", None)));
    }
    if !detached && waits(file) {
        context.tuns.0.insert(place, None);
        let reason = "packets that wait in a tun can't be read without taking them";
        return Ok(Err((
            reason.to_owned(),
            "try again when it has read them",
            Some(Passing::OfItself),
        )));
    }
    if let Some(known) = context.tuns.0.get_mut(&place) {
        let Some(known) = known else {
            return Ok(Err((
                "its network device can't be carried".to_owned(),
                "close it",
                None,
            )));
        };
        known.files += 1;
        return Ok(Ok(Some((known.number, detached))));
    }
    let open = file.as_fd();
    let look = || Device::look(open, &name, flags);
    let looked = file.network.run(look);
    let (device, queues) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            context.tuns.0.insert(place, None);
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let name = String::from_utf8_lossy(&name);
            return Ok(Err((
                format!("the network device {name} can't be carried: {why}"),
                "close it",
                None,
            )));
        }
    };
    let number = context.tuns.0.len() as u32;
    context.objects.push(ObjectRecord {
        kind: OBJECT_KIND.to_owned(),
        id: number,
        version: 1,
        body: codec::encode(&device)?,
    });
    let found = FoundTun {
        number,
        queues,
        files: 1,
        subject: file.subject.clone(),
        title: file.title(),
    };
    context.tuns.0.insert(place, Some(found));
    Ok(Ok(Some((number, detached))))
}

/// Whether packets wait to be read.
fn waits(file: &FoundFile) -> bool {
    let mut asked = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let answered = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    answered
        && asked[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN))
}
