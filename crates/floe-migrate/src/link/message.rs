//! What source and target say to each other: `docs/wire-protocol.md`.

use crate::{
    files::Entry,
    protocol::Decision,
    tree::{Node, TreePath},
};
use serde::{Deserialize, Serialize};

/// Version of the protocol. Version 2 did not know of [`Message::Missing`] parts, version 1 neither of [`Message::Join`] nor of
/// pieces.
pub const VERSION: u32 = 3;
/// More connections that a migration may have, over which images go.
pub const STREAMS: u16 = 16;

/// A part of an image: its first byte, and how many.
pub type Part = (u64, u64);
/// Parts that one message tells of at most, which fits into a frame.
pub const PARTS: usize = 20_000;
/// Parts of an image that may come later.
pub const MISSING: usize = 1 << 16;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// The first one of each side.
    Hello {
        /// Of the protocol.
        version: u32,
        /// Of floe.
        floe: String,
    },
    /// Source: a sandbox is to come. An image without memory follows, as data, to its [`End`](Self::End).
    Offer {
        /// Of the hand-over.
        id: Id,
        /// Of the sandbox.
        name: String,
        /// How many more connections are to [`Join`](Self::Join), over which the later images come; none where they come by
        /// this one. At most [`STREAMS`].
        streams: u16,
        /// Whether files come with it: behind the image they are told of by [`Files`](Self::Files), or [`Tree`](Self::Tree).
        files: bool,
    },
    /// Source: what the sandbox uses, each behind the directories that it is in, by their paths.
    Files {
        /// Some of it.
        entries: Vec<Entry>,
        /// Whether that is all.
        last: bool,
    },
    /// Target: which of these files are lacking here, by their numbers from 0 on. Each follows, as data, to its
    /// [`End`](Self::End).
    Want {
        /// Ascending.
        files: Vec<u32>,
    },
    /// Source: its root tree, each file behind the directory that it is in, by their paths; or, behind the last image, what of that
    /// is other by then.
    Tree {
        /// Some of it.
        nodes: Vec<Node>,
        /// Bytes that these take on their disk.
        stored: u64,
        /// What is no more.
        removed: Vec<TreePath>,
        /// Whether that is all.
        last: bool,
    },
    /// Target: of which regular files of the tree the content is lacking here, by their numbers from 0 on. Each follows, as pieces,
    /// to its [`End`](Self::End); or [`Skip`](Self::Skip) for all, where the source only wants to know.
    Lacking {
        /// Ascending.
        files: Vec<u32>,
        /// Whether that is all.
        last: bool,
    },
    /// Source, as the first one behind [`Hello`](Self::Hello) in another connection: it belongs to this hand-over.
    Join {
        /// Of the hand-over.
        id: Id,
        /// Which of its connections, from 0 on.
        stream: u16,
    },
    /// Target: pieces of images may come by it.
    Joined,
    /// Target: nothing stands in the way of it.
    Accepted {
        /// Who would hold it.
        instance: Instance,
    },
    /// Target: it can't be, or has failed; nothing is left of it here.
    Refused {
        /// Why.
        reason: String,
        /// All that stands in the way.
        findings: Vec<String>,
    },
    /// Source: an image of the tree, which runs meanwhile, follows, as data, to its [`End`](Self::End): on the base of the one before, if there was one.
    Round,
    /// Target: it has the round.
    Kept,
    /// Target: it could not keep the round, and will keep no other one.
    NotKept {
        /// Why.
        reason: String,
    },
    /// Source: nothing has come of the round; what was sent of it is forgotten. Or no content of files is to come.
    Skip,
    /// Source: the last image follows, as data, to its [`End`](Self::End), on the base of the last round.
    Image {
        /// Whether the tree may run before all of its memory is in its place.
        lazy: bool,
    },
    /// Source: it was that long; or, in a connection that has joined, so much of it came by that one.
    End {
        /// Bytes.
        bytes: u64,
    },
    /// Source, before the [`End`](Self::End) of the last image, which then comes as pieces: these parts of it come when the tree runs
    /// already. Target, behind [`Joined`](Self::Joined): these have not come.
    Missing {
        /// Some of them; at the source ascending, at the target the most urgent first.
        parts: Vec<Part>,
        /// Whether that is all.
        last: bool,
    },
    /// Target: somebody waits for these parts.
    Fetch {
        /// Which.
        parts: Vec<Part>,
    },
    /// Target: no part of the image is needed any more.
    Whole,
    /// Source, as the first one behind [`Hello`](Self::Hello) in another connection: parts of this hand-over's image that are
    /// [`Missing`](Self::Missing) come by it.
    Resume {
        /// Of the hand-over.
        id: Id,
    },
    /// Target: what it is doing.
    Stage {
        /// Name of a stage of restore.
        name: String,
    },
    /// Target: the tree stands here, verified, frozen, and will until it is told.
    Prepared,
    /// Source: what becomes of it.
    Decided {
        /// Of the hand-over.
        id: Id,
        /// Who accepted it, and is meant.
        instance: Instance,
        /// What.
        decision: Decision,
    },
    /// Target: another one is meant; nothing is known of that hand-over here.
    Unknown,
    /// Target: that is done.
    Done {
        /// How the sandbox stands now.
        outcome: Outcome,
    },
}

/// How a sandbox of a hand-over stands at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It runs.
    Runs,
    /// There is none: it was dropped, or it ran and has ended, or its host was started anew.
    None,
}

/// A state directory, told from all others: of which start of which machine, and which folder there. What another one says
/// of a hand-over means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    boot: String,
    device: u64,
    inode: u64,
    /// When the folder was made, in nanoseconds, where its file system knows that: numbers of inodes are used again.
    made: Option<u64>,
}

impl Instance {
    /// That of a folder here.
    ///
    /// # Errors
    /// Those of open(2) and statx(2).
    pub fn of(folder: &std::path::Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(folder)?;
        let boot = floe_sys::procfs::read_text("/proc/sys/kernel/random/boot_id").map_err(std::io::Error::other)?;
        let made = found
            .created()
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(Self {
            boot: boot.trim().to_owned(),
            device: found.dev(),
            inode: found.ino(),
            made: made.and_then(|made| u64::try_from(made.as_nanos()).ok()),
        })
    }
}

/// Of a hand-over: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// One that nobody else has.
    ///
    /// # Errors
    /// Where the kernel has no random numbers.
    pub fn new() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no random numbers"))?;
        Ok(Self(crate::hex(&bytes)))
    }

    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(digit) {
            Ok(Self(text))
        } else {
            Err("not the id of a hand-over")
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Id, Instance, Message};

    #[test]
    fn a_folder_that_is_made_anew_is_another_one() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("state");
        let of = || Instance::of(&folder).expect("one");
        std::fs::create_dir(&folder).expect("made");
        let first = of();
        assert_eq!(first, of());
        std::fs::remove_dir(&folder).expect("removed");
        assert!(Instance::of(&folder).is_err());
        std::fs::create_dir(&folder).expect("made");
        assert_ne!(first, of());
    }

    #[test]
    fn an_id_is_no_path() {
        for bad in ["", "../../../../etc/passwd/../../../x", "0123", &"G".repeat(32)] {
            assert!(Id::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        let text = format!(r#"{{"type":"decided","id":"{}","decision":"Abort"}}"#, "../".repeat(11));
        assert!(serde_json::from_str::<Message>(&text).is_err());
        let text = format!(r#"{{"type":"join","id":"{}","stream":0}}"#, "/".repeat(32));
        assert!(serde_json::from_str::<Message>(&text).is_err());
        let id = Id::new().expect("random numbers");
        assert_eq!(Id::try_from(id.as_str().to_owned()), Ok(id));
    }
}
