//! The source of a migration: the acts on one page.
//!
//! ```text
//! connect -> look (the tree is stopped for a moment; what stands in the way here, and there)
//!         -> rounds (memory goes over while the tree runs) -> record: begun
//!         -> save (the tree stops, the rest goes over) -> the target holds it -> record: decided, the tree ends
//!         -> told -> no record
//! ```
//! What is done after each of these, whatever happens, [`protocol::Source`](crate::protocol::Source) says.

mod files;
mod hand;
mod pace;
mod pump;
mod rounds;
mod save;
mod streams;
mod tuner;

use crate::{
    keys::Keys,
    link::{
        self, Address, Link, LinkError, Manner,
        frame::FrameError,
        message::{Id, Instance, Message, Outcome, STREAMS, VERSION},
    },
    protocol::{Decision, Phase, Source},
    record::{Record, RecordError, There},
    refusal::Refusal,
    worker::Counts,
};
use files::Offered;
use floe_checkpoint::{checkpoint::thaw_without_traces, stage::Control};
pub use floe_image::Effort;
use floe_resources::file::TcpMode;
use floe_sandbox::{HandoverError, Sandbox, SandboxError, StateDir, StateError};
use hand::Hand;
use pace::Pace;
use rounds::Rounds;
use std::{
    cell::Cell,
    io,
    num::{NonZeroU16, NonZeroU64},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tuner::Tuner;

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
    /// Whether the files that it reads and has mapped go with it, where they are lacking at the target.
    pub files: bool,
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

/// What was done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Times that memory was sent, the last one among them.
    pub rounds: u32,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Bytes among them for which the tree stood still.
    pub last_bytes: u64,
    /// Bytes of memory by how much work went into making them small; none where the user has said a level.
    pub efforts: Vec<(Effort, u64)>,
    /// Files that were sent, and their bytes.
    pub files: (u64, u64),
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

/// A migration under way: what was asked for, and what is learned of the way to the other host.
struct Course<'a> {
    request: &'a Request<'a>,
    control: &'a Control<'a>,
    pace: Mutex<Pace>,
    tuner: Mutex<Tuner>,
    /// Images that went over several connections.
    images: Cell<u32>,
}

impl<'a> Course<'a> {
    fn new(request: &'a Request<'a>, control: &'a Control<'a>) -> Result<Self, MigrateError> {
        let per_second = request.bandwidth.map(NonZeroU64::get);
        let tuner = Tuner::new(request.level, per_second).map_err(MigrateError::system("map memory"))?;
        Ok(Self {
            request,
            control,
            pace: Mutex::new(Pace::new(request.bandwidth)),
            tuner: Mutex::new(tuner),
            images: Cell::new(0),
        })
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        streams::lock(&self.pace)
    }

    fn tuner(&self) -> MutexGuard<'_, Tuner> {
        streams::lock(&self.tuner)
    }

    /// The number of the next image that goes over several connections.
    fn next_image(&self) -> u32 {
        self.images.replace(self.images.get() + 1)
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
    let course = Course::new(request, control)?;
    let id = Id::new().map_err(MigrateError::system("choose the migration's id"))?;
    let mut link = greet(request.address, request.manner(control))?;
    let (counts, instance, offered) = save::look(&course, &id, &mut link)?;
    if request.dry_run {
        return Ok(Summary {
            rounds: 0,
            bytes: 0,
            last_bytes: 0,
            efforts: Vec::new(),
            files: offered.sent,
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
    let moved = hand_over((&course, &rounds, &offered), begin, (id, instance), link);
    if moved.is_err() && rounds.follows {
        rounds::forget(sandbox);
    }
    moved
}

/// Sends what is left of a tree, and hands it over.
fn hand_over(
    (course, rounds, offered): (&Course<'_>, &Rounds, &Offered),
    begin: Instant,
    (id, instance): (Id, Instance),
    link: Link,
) -> Result<Summary, MigrateError> {
    let Course { request, control, .. } = course;
    let sandbox = &request.sandbox;
    let record = Record::begin(
        id,
        sandbox,
        There {
            address: request.address,
            insecure: request.keys.is_none(),
            instance,
            key: link.key(),
        },
    );
    record.write(request.state_dir)?;
    let mut hand = Hand {
        state: Source::Undecided,
        record: &record,
        state_dir: request.state_dir,
        sandbox: Some(sandbox),
        manner: request.manner(control),
        link: Some(link),
        worker: None,
        ends: false,
        failure: None,
        counts: Counts::default(),
        untold: None,
        outcome: None,
    };
    let sent = save::save(course, (rounds, offered), &mut hand);
    let (outcome, counts) = hand.finish()?;
    let sent = sent?;
    let ran_on = outcome.map(|(_, since)| since);
    let frozen = ran_on
        .zip(sent.stopped)
        .map_or(Duration::ZERO, |(ran_on, stopped)| ran_on - stopped);
    sandbox.wait_until_gone()?;
    Ok(Summary {
        rounds: rounds.count() + 1,
        bytes: rounds.bytes + sent.bytes,
        last_bytes: sent.bytes,
        efforts: course.tuner().bytes(),
        files: offered.sent,
        paused: rounds.paused,
        counts,
        frozen,
        total: begin.elapsed(),
        outcome: outcome.map(|(outcome, _)| outcome),
    })
}

/// A hand-over that nobody worked on any more, and what came of it.
#[derive(Debug)]
pub struct Settled {
    /// Its record.
    pub record: Record,
    /// The decision that the target was told, and how the sandbox stands there; or why it could not be told.
    pub told: Result<(Decision, Option<Outcome>), MigrateError>,
}

/// Tells targets what has become of migrations whose floe was killed, or gave up telling them.
///
/// # Errors
/// [`RecordError`] where the records can't be read.
pub fn settle(state_dir: &StateDir, manner: Manner<'_>) -> Result<Vec<Settled>, RecordError> {
    let mut all = Vec::new();
    let (records, _) = Record::left(state_dir)?;
    for record in records {
        let told = settle_one(
            &record,
            state_dir,
            Manner {
                keys: manner.keys.filter(|_| !record.insecure),
                demand: record.key,
                ..manner
            },
        );
        all.push(Settled { record, told });
    }
    Ok(all)
}

/// How long a monitor may take for what it was ordered, and a killed tree to end.
const MOMENT: Duration = Duration::from_secs(10);

/// How far a hand-over has come by its record, when its monitor has done what it was ordered, and can't write it any more.
fn phase_left(record: &Record, state_dir: &StateDir) -> Result<Phase, MigrateError> {
    let begin = Instant::now();
    while record.monitor.lives() {
        let asked = match Sandbox::open(state_dir, &record.sandbox) {
            Ok(sandbox) => sandbox.wait_for_monitor(MOMENT),
            // It is about to end, having removed it.
            Err(SandboxError::State(StateError::Unknown(_))) => Err(HandoverError::Gone),
            Err(error) => return Err(error.into()),
        };
        match asked {
            Ok(()) => break,
            Err(HandoverError::Gone) if begin.elapsed() < MOMENT => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(record.written_phase(state_dir)?)
}

/// The same, of one that nobody works on any more: where that has ended the tree, it is gone.
fn settled_phase(record: &Record, state_dir: &StateDir) -> Result<Phase, MigrateError> {
    let begin = Instant::now();
    let phase = phase_left(record, state_dir)?;
    // A monitor that has written it has killed the tree, unless it was killed itself.
    while phase == Phase::Decided && record.pid1.lives() && (record.monitor.lives() || record.pid1.is_ending()) {
        if begin.elapsed() > 2 * MOMENT {
            return Err(HandoverError::Refused("the tree was killed, and has not ended yet".to_owned()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(phase)
}

/// Thaws a tree that counts, whose monitor was killed between freezing it and keeping the record.
fn thaw_left_frozen(record: &Record, state_dir: &StateDir) {
    if record.was_frozen || record.monitor.lives() || !record.pid1.lives() {
        return;
    }
    let thawed = Sandbox::open(state_dir, &record.sandbox).and_then(|sandbox| sandbox.cgroup());
    match thawed {
        Ok(None) => {}
        Ok(Some(cgroup)) => {
            if let Err(error) = thaw_without_traces(&cgroup) {
                tracing::error!(%error, "the sandbox stays frozen");
            }
        }
        Err(error) => tracing::error!(%error, "the sandbox may stay frozen"),
    }
}

fn settle_one(
    record: &Record,
    state_dir: &StateDir,
    manner: Manner<'_>,
) -> Result<(Decision, Option<Outcome>), MigrateError> {
    let phase = settled_phase(record, state_dir)?;
    let lives = record.pid1.lives();
    if lives {
        thaw_left_frozen(record, state_dir);
    }
    let (state, steps) = Source::resume(phase, lives);
    let Source::Telling(decision) = state else {
        return Err(MigrateError::Interrupted);
    };
    let mut hand = Hand {
        state,
        record,
        state_dir,
        sandbox: None,
        manner,
        link: None,
        worker: None,
        ends: false,
        failure: None,
        counts: Counts::default(),
        untold: None,
        outcome: None,
    };
    hand.carry_out(steps);
    let (outcome, _) = hand.finish()?;
    Ok((decision, outcome.map(|(outcome, _)| outcome)))
}
