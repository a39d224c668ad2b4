//! The source of a migration: the acts on one page.
//!
//! ```text
//! connect -> look (the tree is stopped for a moment; what stands in the way here, and there)
//!         -> rounds (memory goes over while the tree runs) -> record: begun
//!         -> save (the tree stops, the rest goes over) -> the target holds it -> record: decided, the tree ends
//!         -> told -> no record
//! ```
//! What is done after each of these, whatever happens, [`protocol::Source`](crate::protocol::Source) says.

mod course;
mod files;
mod hand;
mod pace;
mod pump;
mod rest;
mod rounds;
mod save;
mod settle;
mod streams;
mod tree;
mod tuner;

use crate::{
    keys::Keys,
    link::{
        self, Address, Link, LinkError, Manner,
        frame::FrameError,
        message::{Id, Instance, Message, Outcome, STREAMS, VERSION},
    },
    protocol::{Decision, Source},
    record::{Left, Record, RecordError, There},
    refusal::Refusal,
    worker::Counts,
};
use course::Course;
use files::Offered;
use floe_checkpoint::stage::Control;
pub use floe_image::Effort;
use floe_resources::file::TcpMode;
use floe_sandbox::{HandoverError, Sandbox, SandboxError, StateDir};
use hand::{Hand, Way};
use rest::Rest;
use rounds::Rounds;
pub use settle::{Settled, settle};
use std::{
    io,
    num::{NonZeroU16, NonZeroU64},
    path::PathBuf,
    time::{Duration, Instant},
};
use tree::Tree;

/// What is to move, and where.
#[derive(Debug)]
pub struct Request<'a> {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Where sandboxes are kept.
    pub state_dir: &'a StateDir,
    /// Where the other floe is reached.
    pub address: &'a Address,
    /// Keys; `None` without encryption.
    pub keys: Option<&'a Keys>,
    /// zstd level; `None`: by what the way to the other host allows.
    pub level: Option<i32>,
    /// Which files go with it.
    pub files: Files,
    /// Connections by which images go at the same time. More than one by [`Address::Tcp`] and [`Address::Unix`] alone, and at
    /// most 16.
    pub streams: NonZeroU16,
    /// How often memory is sent, at most, while the tree runs, where somebody says so.
    pub rounds: Option<u32>,
    /// Bytes per second that are sent, at most.
    pub bandwidth: Option<NonZeroU64>,
    /// Whether the tree may run at the target before all of its memory is in its place there.
    pub lazy: bool,
    /// How long what passes by itself is waited for, as in a checkpoint.
    pub patience: Duration,
    /// How long the other side may be silent.
    pub silence: Duration,
    /// How long the tree may stand still until the target holds it.
    pub stop_limit: Duration,
    /// What becomes of TCP connections whose other ends are outside of the tree.
    pub tcp: TcpMode,
    /// Only look what stands in the way.
    pub dry_run: bool,
}

/// Files that go with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// None.
    None,
    /// What it reads and has mapped, where that is lacking at the target.
    Used,
    /// The tree of a root directory of its own.
    Rootfs,
}

/// Files on their way.
#[derive(Debug)]
enum Going {
    None,
    Used(Offered),
    Rootfs(Box<Tree>),
}

impl Going {
    /// Regular files that were sent, and their bytes; the same of those that were there already.
    fn counts(&self) -> [(u64, u64); 2] {
        match self {
            Self::None => [(0, 0); 2],
            Self::Used(offered) => [offered.sent, offered.there],
            Self::Rootfs(tree) => [tree.sent, tree.there],
        }
    }
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Times that memory was sent, the last one among them.
    pub rounds: u32,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Bytes among them for which the tree stood still.
    pub last_bytes: u64,
    /// Bytes among them that were sent when it ran at the target already.
    pub behind: u64,
    /// Bytes of memory by how much work went into making them small; none where the user has said a level.
    pub efforts: Vec<(Effort, u64)>,
    /// Files that were sent, and their bytes.
    pub files: (u64, u64),
    /// The same of those that were there already.
    pub files_there: (u64, u64),
    /// The longest that the tree stood still in an earlier round.
    pub paused: Duration,
    /// What the tree consists of.
    pub counts: Counts,
    /// From when the tree stopped here until it ran there.
    pub frozen: Duration,
    /// All of it.
    pub total: Duration,
    /// How it stands there; `None` after a dry run.
    pub outcome: Option<Outcome>,
}

/// A migration that did not come about, or is not through.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The connection, at the beginning.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The connection, later.
    #[error("talk to {peer}; the sandbox runs on here")]
    Talk {
        /// With whom.
        peer: String,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// One of several connections.
    #[error("send an image to {peer} over several connections; the sandbox runs on here")]
    Stream {
        /// To whom.
        peer: String,
        /// What is wrong with one of them.
        #[source]
        source: FrameError,
    },
    /// Not over that.
    #[error("{0} carries one connection: more (--streams) go to HOST:PORT and unix:PATH, and at most 16")]
    Streams(Address),
    /// The keys were not agreed on.
    #[error("{peer} does not let this host in: is its key pinned there? (floe keys here, floe keys pin there)")]
    NotLetIn {
        /// Who.
        peer: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// Another version.
    #[error("{peer} speaks version {version} of floe's protocol, and this floe version {VERSION}")]
    Version {
        /// Who.
        peer: String,
        /// Which.
        version: u32,
    },
    /// Not what comes next.
    #[error("{0} said something that has no place there; the sandbox runs on here")]
    OutOfTurn(String),
    /// It can't be, or has failed, and runs on.
    #[error("{who}: {}; the sandbox runs on here", .refusal.reason)]
    Refused {
        /// Who says so.
        who: String,
        /// Why.
        refusal: Refusal,
    },
    /// The target takes too long.
    #[error("it would have stood still for more than {0} s (--stop-limit); the sandbox runs on here")]
    Standstill(u64),
    /// Told to stop.
    #[error("interrupted; the sandbox runs on here")]
    Interrupted,
    /// The process that saves it was killed.
    #[error("the process that saves the tree was killed; the sandbox runs on here")]
    Killed,
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The record.
    #[error("keep the record of the migration")]
    Record(#[from] RecordError),
    /// Its monitor did not end it.
    #[error("have the sandbox's monitor decide; the sandbox runs on here")]
    Monitor(#[from] HandoverError),
    /// A system call.
    #[error("{action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Decided, but not told.
    #[error(
        "the target could not be told that {}: {reason}; it keeps what it holds frozen until it is (floe migrate --settle)",
        told(*.decision)
    )]
    Untold {
        /// What.
        decision: Decision,
        /// Why not.
        reason: String,
    },
    /// Decided and told, but not all of its memory has gone over.
    #[error(
        "the sandbox runs at {peer}, but some of its memory has not gone over: it waits there where it needs it, until it has (floe \
         migrate --settle){}", of_so_much(*.bytes)
    )]
    Behind {
        /// Where it runs.
        peer: String,
        /// How many bytes, where that is known.
        bytes: Option<u64>,
    },
    /// The file with that memory.
    #[error("read {path}, which has memory that the sandbox at {peer} may lack; where it has all, remove {record}")]
    Rest {
        /// The file.
        path: PathBuf,
        /// Where it runs.
        peer: String,
        /// What says that it may.
        record: PathBuf,
        /// Why it can't be read.
        #[source]
        source: io::Error,
    },
    /// The target lets run what was not to run.
    #[error(
        "sandbox {0} runs on here, and the target says that it runs there too: somebody has decided so by hand; end one of them"
    )]
    Two(String),
}

impl MigrateError {
    /// What was found, each a line.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        match self {
            Self::Refused { refusal, .. } => &refusal.findings,
            _ => &[],
        }
    }

    /// Whether this host has refused it.
    fn is_refusal_here(&self) -> bool {
        matches!(self, Self::Refused { who, .. } if who == save::HERE)
    }

    fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

fn of_so_much(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!("; {bytes} bytes"))
}

fn told(decision: Decision) -> &'static str {
    match decision {
        Decision::Commit => "the sandbox is now the one there",
        Decision::Abort => "the migration was given up",
    }
}

impl Request<'_> {
    fn manner(&self, control: &Control<'_>) -> Manner<'_> {
        Manner {
            keys: self.keys,
            patience: self.silence,
            interrupted: control.interrupted,
            demand: None,
            unattended: false,
        }
    }

    /// Connections besides the first one, by which images go; none where they go by that.
    fn more_streams(&self) -> u16 {
        match self.streams.get() {
            _ if self.dry_run => 0,
            1 => 0,
            more => more,
        }
    }
}

/// Connects, and finds out who is there.
fn greet(address: &Address, manner: Manner<'_>) -> Result<Link, MigrateError> {
    let mut link = link::connect(address, manner)?;
    let hello = Message::Hello {
        version: VERSION,
        floe: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = link.send(&hello).and_then(|()| link.receive());
    link.set_deadline(None);
    match answer {
        Ok(Message::Hello { version: VERSION, .. }) => Ok(link),
        Ok(Message::Hello { version, .. }) => Err(MigrateError::Version {
            peer: link.peer().to_owned(),
            version,
        }),
        Ok(Message::Refused { reason, findings }) => Err(MigrateError::Refused {
            who: link.peer().to_owned(),
            refusal: Refusal::from_peer(&reason, &findings),
        }),
        Ok(_) => Err(MigrateError::OutOfTurn(link.peer().to_owned())),
        // What rustls finds wrong: here it can only be the answer to this host's certificate.
        Err(FrameError::Io(source)) if manner.keys.is_some() && source.kind() == io::ErrorKind::InvalidData => {
            Err(MigrateError::NotLetIn {
                peer: link.peer().to_owned(),
                source,
            })
        }
        Err(source) => Err(MigrateError::Talk {
            peer: link.peer().to_owned(),
            source,
        }),
    }
}

/// Moves a sandbox. The caller must have one thread.
///
/// # Errors
/// [`MigrateError`]; unless it says otherwise the sandbox runs on as if nothing had happened.
pub fn migrate(request: &Request<'_>, control: &Control<'_>) -> Result<Summary, MigrateError> {
    let begin = Instant::now();
    let sandbox = &request.sandbox;
    let several = request.streams.get() > 1;
    if several && matches!(request.address, Address::Ssh { .. }) || request.streams.get() > STREAMS {
        return Err(MigrateError::Streams(request.address.clone()));
    }
    sandbox.refuse_held()?;
    sandbox.pid1()?;
    if request.files == Files::Rootfs {
        tree::refuse_without(sandbox)?;
    }
    let course = Course::new(request, control)?;
    let id = Id::new().map_err(MigrateError::system("choose the migration's id"))?;
    let mut link = greet(request.address, request.manner(control))?;
    let (counts, instance, mut going) = save::look(&course, &id, &mut link)?;
    if request.dry_run {
        return Ok(Summary {
            rounds: 0,
            bytes: 0,
            last_bytes: 0,
            behind: 0,
            efforts: Vec::new(),
            files: going.counts()[0],
            files_there: going.counts()[1],
            paused: Duration::ZERO,
            counts,
            frozen: Duration::ZERO,
            total: begin.elapsed(),
            outcome: None,
        });
    }
    if several {
        streams::join(&course, &mut link, (&id, request.more_streams()))?;
    }
    let rounds = Rounds::send(&course, counts.memory, &mut link);
    let rounds = rounds.inspect_err(|_| rounds::forget(sandbox))?;
    let moved = hand_over((&course, &rounds, &mut going), begin, (id, instance), link);
    if moved.is_err() && rounds.follows {
        rounds::forget(sandbox);
    }
    moved
}

/// Sends what is left of a tree, and hands it over.
fn hand_over(
    (course, rounds, going): (&Course<'_>, &Rounds, &mut Going),
    begin: Instant,
    (id, instance): (Id, Instance),
    link: Link,
) -> Result<Summary, MigrateError> {
    let Course { request, control, .. } = course;
    let sandbox = &request.sandbox;
    // Little is not worth that the sandbox depends on this host for a while.
    let rest = match request.lazy && rounds.leaves_much {
        true => Rest::make(&id),
        false => None,
    };
    let there = There {
        address: request.address,
        insecure: request.keys.is_none(),
        instance,
        key: link.key(),
    };
    let left = rest.as_ref().map(|rest| Left {
        path: rest.path().to_owned(),
        bandwidth: request.bandwidth,
    });
    let record = Record::begin(id, sandbox, there, left);
    if let Err(error) = record.write(request.state_dir) {
        rest.iter().for_each(|rest| rest::remove(rest.path()));
        return Err(error.into());
    }
    let mut hand = Hand {
        state: Source::Undecided,
        record: &record,
        state_dir: request.state_dir,
        sandbox: Some(sandbox),
        manner: request.manner(control),
        link: Some(link),
        way: Way::First,
        rest,
        unwanted: false,
        worker: None,
        ends: false,
        failure: None,
        counts: Counts::default(),
        untold: None,
        outcome: None,
    };
    let sent = save::save(course, (rounds, going), &mut hand);
    let finished = hand.finish()?;
    let sent = sent?;
    let ran_on = finished.outcome.map(|(_, since)| since);
    let frozen = ran_on
        .zip(sent.stopped)
        .map_or(Duration::ZERO, |(ran_on, stopped)| ran_on - stopped);
    sandbox.wait_until_gone()?;
    Ok(Summary {
        rounds: rounds.count() + 1,
        bytes: rounds.bytes + sent.bytes + finished.behind,
        last_bytes: sent.bytes,
        behind: finished.behind,
        efforts: course.tuner().bytes(),
        files: going.counts()[0],
        files_there: going.counts()[1],
        paused: rounds.paused,
        counts: finished.counts,
        frozen,
        total: begin.elapsed(),
        outcome: finished.outcome.map(|(outcome, _)| outcome),
    })
}
