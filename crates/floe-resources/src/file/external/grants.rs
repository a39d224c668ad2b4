//! What of the host's a restored tree gets because the user says so: `--external` and `--inherit-fd` of a restore.

use super::{Body, Externals, NAME, Rule, RuleError, Shape, given::Given, rules};
use crate::file::{
    FileError, decode,
    socket::{outside_peer, shown},
};
use floe_image::{Image, record::OpenFileRecord};
use floe_sys::descriptor::take_inherited;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::stat::fstat,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
};

/// It. Names, and descriptors of floe's own.
#[derive(Debug, Default)]
pub struct Grants {
    peers: Externals,
    descriptors: BTreeMap<String, Given>,
}

/// What can't be granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// A name.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// Given twice.
    #[error("{0:?} is given twice")]
    Twice(String),
    /// A descriptor.
    #[error("descriptor {number}, which is given as {name:?}")]
    Descriptor {
        /// Its number in floe.
        number: i32,
        /// As what.
        name: String,
        /// Why it can't be had.
        #[source]
        source: Errno,
    },
}

impl Grants {
    /// Takes what the user gives: rules for unix sockets, and descriptors of the calling process by name. It must not have
    /// opened any of its own yet.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn take(rules: Vec<Rule>, given: &[(String, i32)]) -> Result<Self, GrantError> {
        let mut descriptors = BTreeMap::new();
        for (name, number) in given {
            let failed = |source| GrantError::Descriptor {
                number: *number,
                name: name.clone(),
                source,
            };
            let own = take_inherited(*number).and_then(Given::new).map_err(failed)?;
            if descriptors.insert(rules::name_of(name)?, own).is_some() {
                return Err(GrantError::Twice(name.clone()));
            }
        }
        Ok(Self {
            peers: Externals::new(rules)?,
            descriptors,
        })
    }

    pub(super) fn descriptor(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(name).map(Given::as_fd)
    }

    /// Leaves the descriptors as the tree has them. Else their flags, and who gets signals about them, are put back.
    pub fn keep(&self) {
        self.descriptors.values().for_each(Given::keep);
    }

    /// What an image wants and is not given, or gets in vain: object and reason.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn obstacles(&self, image: &Image) -> Result<Vec<(String, String)>, FileError> {
        let (mut found, mut names) = (Vec::new(), BTreeSet::new());
        let mut unused: BTreeSet<&str> = self.descriptors.keys().map(String::as_str).collect();
        for record in image.open_files() {
            if let Some((name, kind)) = outside_peer(record)?
                && !self.peers.permits_peer(&name, kind)
            {
                let name = shown(&name);
                let reason = format!("connecting anew with what is outside of the tree takes --external unix:{name}");
                found.push((format!("unix socket connected with {name}"), reason));
            }
            if record.kind == NAME {
                let body: Body = decode(record)?;
                let reason = self.lacks(&body, record)?;
                found.extend(reason.map(|reason| (format!("{} {:?}", body.shape, body.name), reason)));
                unused.remove(body.name.as_str());
                if !names.insert(body.name.clone()) {
                    let reason = "two open files of the image have this name, and one descriptor can't be both";
                    found.push((format!("{} {:?}", body.shape, body.name), reason.to_owned()));
                }
            }
        }
        let in_vain = unused.into_iter().map(|name| {
            let reason = "the image has no file of this name (--inherit-fd)".to_owned();
            (format!("descriptor given as {name:?}"), reason)
        });
        found.extend(in_vain);
        Ok(found)
    }

    /// Why what is given for a file does not do.
    fn lacks(&self, body: &Body, record: &OpenFileRecord) -> Result<Option<String>, FileError> {
        let Some(given) = self.descriptor(&body.name) else {
            return Ok(Some(format!("nothing is given for it: --inherit-fd {}=FD", body.name)));
        };
        let wrap = |action| FileError::system(action, format!("what is given for {}", body.name));
        let shape = Shape::of(given).map_err(wrap("look at"))?;
        if shape != body.shape {
            return Ok(Some(format!("what is given for it is {shape}")));
        }
        let mode = fcntl(given, FcntlArg::F_GETFL).map_err(wrap("read the flags of"))? & libc::O_ACCMODE;
        let wanted = record.flags as i32 & libc::O_ACCMODE;
        if mode != wanted && (mode != libc::O_RDWR || shape.is_socket()) {
            let what = match wanted {
                libc::O_RDONLY => "for reading",
                libc::O_WRONLY => "for writing",
                _ => "for both reading and writing",
            };
            return Ok(Some(format!("what is given for it is not open {what}")));
        }
        let found = fstat(given).map_err(wrap("stat"))?;
        let is_another = (found.st_dev, found.st_ino) != body.identity;
        let lost = "something waited in it that the tree had not read, and what is given for it is another one";
        Ok((body.waits && is_another).then(|| lost.to_owned()))
    }
}
