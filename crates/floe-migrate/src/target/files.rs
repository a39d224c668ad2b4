//! Files that come with a sandbox: which are lacking here, and those that came, until they are put in their places.
//!
//! Nothing that is here is changed: a file with other content stands in the way, as does anything else at its path, and a symbolic
//! link on the way there.

use super::{
    session::{Ended, Session, out_of_turn},
    spool::{ALIVE, Spool},
    streams::Streams,
};
use crate::{
    files::{Entry, MOST, sha256},
    link::{Link, message::Message},
    refusal::Refusal,
};
use floe_sys::descriptor::open_beneath;
use nix::errno::Errno;
use std::{collections::BTreeSet, fs::File, io, os::fd::AsFd, time::Instant};

/// What came with a sandbox.
#[derive(Debug, Default)]
pub struct Delivery {
    /// What is lacking here, directories before what is in them, with the content of what is a file.
    pub lacking: Vec<(Entry, Option<File>)>,
}

fn refused() -> impl Fn(io::Error) -> Ended {
    |error| Ended::Refused(Refusal::of(&error))
}

impl Delivery {
    /// Takes what the source offers, as far as it is lacking here.
    pub fn take(session: &Session<'_>, link: &mut Link) -> Result<Self, Ended> {
        let entries = listed(link)?;
        let root = File::open("/").map_err(refused())?;
        let (mut lacking, mut findings) = (Vec::new(), Vec::new());
        let mut last = Instant::now();
        let mut tick = || -> Result<(), Ended> {
            if link.is_told_to_stop() {
                return Err(Ended::Refused(Refusal::plain("interrupted")));
            }
            if last.elapsed() > ALIVE {
                link.send_alive()?;
                last = Instant::now();
            }
            Ok(())
        };
        for (number, entry) in (0_u32..).zip(&entries) {
            match find(&root, entry, &mut tick)? {
                Found::Same => {}
                Found::Nothing => lacking.push(number),
                Found::Other(reason) => findings.push(format!("file {}: {reason}", entry.path)),
            }
        }
        if !findings.is_empty() {
            let reason = format!("{} of the files that it uses stand in the way there", findings.len());
            return Err(Ended::Refused(Refusal { reason, findings }));
        }
        let wanted = |number: &u32| entries[*number as usize].content.is_some();
        link.send(&Message::Want {
            files: lacking.iter().copied().filter(wanted).collect(),
        })?;
        let mut delivery = Self::default();
        for number in lacking {
            let entry = entries[number as usize].clone();
            let content = fetch(session, &entry, link)?;
            delivery.lacking.push((entry, content));
        }
        Ok(delivery)
    }

    /// Paths at which there will be something when the tree is built.
    pub fn coming(&self) -> BTreeSet<Vec<u8>> {
        self.lacking
            .iter()
            .map(|(entry, _)| entry.path.bytes().to_vec())
            .collect()
    }
}

fn listed(link: &mut Link) -> Result<Vec<Entry>, Ended> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let (entries, last) = match link.receive()? {
            Message::Files { entries, last } => (entries, last),
            Message::Tree { .. } => {
                let text = "floe receive takes the files that a sandbox uses there, not its root tree (--files)";
                return Err(Ended::Refused(Refusal::plain(text)));
            }
            _ => return Err(out_of_turn()),
        };
        let is_empty = entries.is_empty();
        all.extend(entries);
        let is_sorted = all.is_sorted_by(|one, next| one.path < next.path);
        if all.len() > MOST || !is_sorted || is_empty && !last {
            return Err(out_of_turn());
        }
        if last {
            return Ok(all);
        }
    }
}

/// What is at a path here.
enum Found {
    Same,
    Nothing,
    Other(String),
}

fn find(root: &File, entry: &Entry, tick: &mut impl FnMut() -> Result<(), Ended>) -> Result<Found, Ended> {
    tick()?;
    let open = |flags| open_beneath(root.as_fd(), entry.path.from_root(), flags | libc::O_NOFOLLOW, 0).map(File::from);
    let other = |reason: &str| Ok(Found::Other(reason.to_owned()));
    let found = match open(libc::O_PATH) {
        Ok(found) => found.metadata().map_err(refused())?,
        Err(Errno::ENOENT) => return Ok(Found::Nothing),
        Err(Errno::ELOOP) => {
            return other("a symbolic link is on the way to it here, and none is followed for what is sent");
        }
        Err(error) => return other(&format!("it can't be looked at here: {error}")),
    };
    let Some(content) = &entry.content else {
        return match found.is_dir() {
            true => Ok(Found::Same),
            false => other("it is a directory at the source, and something else here"),
        };
    };
    if !found.is_file() {
        return other("it is a regular file at the source, and something else here");
    }
    let same = found.len() == content.size
        && match open(libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(file) => sha256(&file, tick)?.map_err(refused())? == content.sha256,
            Err(error) => return other(&format!("it can't be opened here: {error}")),
        };
    match same {
        true => Ok(Found::Same),
        false => other("it has another content here, and what is here is not written over"),
    }
}

/// Takes the content of one that is lacking.
fn fetch(session: &Session<'_>, entry: &Entry, link: &mut Link) -> Result<Option<File>, Ended> {
    let Some(content) = &entry.content else {
        return Ok(None);
    };
    let arrived = Spool::new(link, &mut Streams::default(), content.size).take()?;
    let arrived = arrived.ok_or_else(out_of_turn)?;
    let sum = sha256(&arrived, || match session.is_told_to_stop() {
        true => Err(Ended::Refused(Refusal::plain("interrupted"))),
        false => Ok(()),
    })?
    .map_err(refused())?;
    if sum != content.sha256 || arrived.metadata().map_err(refused())?.len() != content.size {
        let text = format!(
            "file {} did not arrive as it was offered: it was changed meanwhile",
            entry.path
        );
        return Err(Ended::Refused(Refusal::plain(text)));
    }
    Ok(Some(arrived))
}
