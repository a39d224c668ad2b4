//! `floe migrate`.

use super::{keys::KeysFolder, tcp::Tcp};
use crate::{Context, act, failure::Outcome, output};
use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use floe_migrate::{
    keys::Keys,
    link::{
        Address, Manner,
        message::{Outcome as There, STREAMS},
    },
    protocol::Decision,
    record::Record,
    source::{Effort, Files as Going, Request, Summary, migrate, settle},
};
use floe_sandbox::Sandbox;
use serde_json::json;
use std::{
    num::{NonZeroU16, NonZeroU64},
    time::Duration,
};

/// Move a running sandbox to another host, where floe receive waits for it.
///
/// What stands in the way, here or there, is told in one list before anything is stopped. Then its memory goes over while it
/// runs, and what it writes meanwhile, in rounds, until little is left. For that it stands still; it is built there, compared
/// with the image, and held frozen. Only then does it end here and run there. Whatever goes wrong before, on either side or
/// between, it runs on here as if nothing had happened; never do both run.
///
/// HOST:PORT is reached by TLS with keys that both sides have pinned (floe keys), and a HOST that is a pinned name with that key;
/// unix:PATH by a socket; ssh://USER@HOST:PORT, of which USER and PORT may be left out, by starting `floe receive --stdio` there.
///
/// Example: floe migrate job oak:7070
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["name", "settle"]))]
pub struct Migrate {
    /// The sandbox.
    #[arg(requires = "address")]
    name: Option<String>,
    /// Where floe receive waits.
    #[arg(value_name = "ADDRESS")]
    address: Option<Address>,
    /// Only tell what stands in the way, here and there. The sandbox stands still for a moment.
    #[arg(long)]
    dry_run: bool,
    /// Tell targets what became of migrations whose floe was killed here, or could not reach them any more: until then they may
    /// hold a sandbox frozen.
    #[arg(long, conflicts_with_all = ["name", "dry_run"])]
    settle: bool,
    /// Without encryption and keys, to an address of this host's own (127.0.0.1:PORT).
    #[arg(long, conflicts_with = "settle")]
    insecure: bool,
    #[command(flatten)]
    keys: KeysFolder,
    /// zstd level, from -7 (fast) to 22 (small). With auto memory is sent as it is where the way is faster than zstd, and by
    /// levels up to 9 where it is far slower: by what is seen while it goes over.
    #[arg(long, default_value = "auto", value_name = "auto|LEVEL", allow_hyphen_values = true, value_parser = level)]
    level: Level,
    /// Which files go with it, if floe receive allows it. With used the programs and libraries that are mapped and the files that are
    /// open for reading, with the directories that they and the processes are in, where they are lacking there. What is
    /// there already, and other, stands in the way; what the sandbox writes to must be there in any case. With rootfs all of its
    /// own root directory (floe run --rootfs), as it is when the sandbox stands still: it takes the place of what is at that path
    /// there, from which files that are the same are taken.
    #[arg(long, value_enum, value_name = "WHICH", default_value = "none")]
    files: Files,
    /// Send memory over so many connections at once, at most 16; not by ssh://. More than one pay where a single connection
    /// does not fill the way: it is long, and packets are lost on it.
    #[arg(long, value_name = "COUNT", default_value_t = NonZeroU16::MIN, value_parser = streams)]
    streams: NonZeroU16,
    /// How often memory is sent, at most, while the sandbox runs; with 0 it stands still for all of it. Without it that is 8
    /// times, and 0 of less than 8 MiB.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(..=32))]
    rounds: Option<u32>,
    /// Send no more bytes per second, e.g. 100m.
    #[arg(long, value_name = "BYTES", value_parser = bandwidth)]
    bandwidth: Option<NonZeroU64>,
    /// TCP connections with processes outside of the sandbox.
    #[arg(long, value_enum, value_name = "HOW", default_value = "refuse")]
    tcp: Tcp,
    /// Let the sandbox run there before all of its memory is in place, as floe restore --lazy does, and where much is left behind the
    /// rounds, before that has gone over (post-copy). It stands still for less. Until all is there it needs this host: it waits
    /// where memory is lacking while the connection is broken; if the target's processes that bring it are killed, it is lost.
    #[arg(long)]
    lazy: bool,
    /// How long to wait for what passes by itself, as in floe checkpoint.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = super::seconds)]
    patience: Duration,
    /// How long the other side may be silent before the connection counts as broken.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = super::seconds)]
    timeout: Duration,
    /// How long the sandbox may stand still, at most, until the target holds all of it; then it runs on here.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = super::seconds)]
    stop_limit: Duration,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

impl Migrate {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let (Some(name), Some(address)) = (&self.name, &self.address) else {
            return self.settle(context);
        };
        let keys = match address {
            Address::Tcp(_) if !self.insecure => Some(self.keys.open()?),
            _ => None,
        };
        let request = Request {
            sandbox: Sandbox::open(&context.state_dir, name)?,
            state_dir: &context.state_dir,
            address,
            keys: keys.as_ref(),
            level: self.level.0,
            streams: self.streams,
            files: match self.files {
                Files::None => Going::None,
                Files::Used => Going::Used,
                Files::Rootfs => Going::Rootfs,
            },
            rounds: self.rounds,
            bandwidth: self.bandwidth,
            lazy: self.lazy,
            tcp: self.tcp.into(),
            patience: self.patience,
            silence: self.timeout,
            stop_limit: self.stop_limit,
            dry_run: self.dry_run,
        };
        let summary = act::perform(|control| migrate(&request, control))??;
        if self.json {
            output::json(&self.as_json((name, address), &summary))?;
        } else {
            context.tell(&in_words(address, &summary));
        }
        Ok(0)
    }

    fn settle(&self, context: &Context) -> Outcome {
        let (left, unreadable) = Record::left(&context.state_dir)?;
        let keys: Option<Keys> = match left.iter().all(|record| record.insecure) {
            true => None,
            false => Some(self.keys.open()?),
        };
        let all = act::perform(|control| {
            let manner = Manner {
                keys: keys.as_ref(),
                patience: self.timeout,
                interrupted: control.interrupted,
                demand: None,
                unattended: true,
            };
            settle(&context.state_dir, manner)
        })??;
        let mut failure: Option<anyhow::Error> = None;
        for error in unreadable {
            let error = anyhow::Error::from(error).context("a migration can't be settled");
            context.tell(&format!("{error:#}"));
            failure = Some(error);
        }
        for settled in all {
            let (name, address) = (&settled.record.sandbox, &settled.record.address);
            match settled.told {
                Ok((_, Some(There::Runs))) => context.tell(&format!("{name} runs at {address}")),
                Ok((Decision::Commit, _)) => {
                    failure = Some(anyhow::anyhow!(
                        "{name} has ended here for the one at {address}, where there is none any more"
                    ));
                }
                Ok((Decision::Abort, _)) => context.tell(&format!("{address} holds nothing of {name}")),
                Err(error) => {
                    let error =
                        Err::<(), _>(error).with_context(|| format!("settle the migration of {name} to {address}"));
                    failure = error.err().or(failure);
                }
            }
        }
        failure.map_or(Ok(0), |error| Err(error.into()))
    }

    fn as_json(&self, (name, address): (&str, &Address), summary: &Summary) -> serde_json::Value {
        let levels: serde_json::Map<_, _> = by_level(summary)
            .into_iter()
            .map(|(level, bytes)| (level, json!(bytes)))
            .collect();
        json!({
            "name": name,
            "to": address.to_string(),
            "processes": summary.counts.processes,
            "threads": summary.counts.threads,
            "memory": summary.counts.memory,
            "rounds": summary.rounds,
            "streams": self.streams,
            "level": self.level.0.map_or_else(|| json!("auto"), |level| json!(level)),
            "levels": levels,
            "files": summary.files.0,
            "file_bytes": summary.files.1,
            "files_there": summary.files_there.0,
            "file_bytes_there": summary.files_there.1,
            "bytes": summary.bytes,
            "last_bytes": summary.last_bytes,
            "behind_bytes": summary.behind,
            "paused_ms": milliseconds(summary.paused),
            "frozen_ms": milliseconds(summary.frozen),
            "total_ms": milliseconds(summary.total),
            "runs_there": summary.outcome.map(|outcome| outcome == There::Runs),
        })
    }
}

/// Files that go with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Files {
    /// None.
    None,
    /// What it reads.
    Used,
    /// A root directory of its own.
    Rootfs,
}

/// A level that was said; `None`: auto.
#[derive(Debug, Clone, Copy)]
struct Level(Option<i32>);

fn level(text: &str) -> Result<Level, String> {
    if text == "auto" {
        return Ok(Level(None));
    }
    let number = text.parse().ok().filter(|level| (-7..=22).contains(level));
    number
        .map(|level| Level(Some(level)))
        .ok_or_else(|| "auto, or a number from -7 to 22".to_owned())
}

fn streams(text: &str) -> Result<NonZeroU16, String> {
    let number = text.parse().ok().filter(|count: &NonZeroU16| count.get() <= STREAMS);
    number.ok_or_else(|| format!("a number from 1 to {STREAMS}"))
}

/// Bytes of memory by the level that made them small, the least work first.
fn by_level(summary: &Summary) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = Vec::new();
    for (effort, bytes) in &summary.efforts {
        let name = match effort {
            Effort::Raw => "raw".to_owned(),
            Effort::Level(level) | Effort::Exactly(level) => level.to_string(),
        };
        match all.last_mut() {
            Some((last, sum)) if *last == name => *sum += bytes,
            _ => all.push((name, *bytes)),
        }
    }
    all
}

fn bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let bytes = super::limits::bytes(text)?;
    NonZeroU64::new(bytes).ok_or_else(|| "nothing would be sent".to_owned())
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn in_words(address: &Address, summary: &Summary) -> String {
    let counts = summary.counts;
    let what = format!(
        "{}, {}, {} of memory",
        output::count(counts.processes as usize, "process", "processes"),
        output::count(counts.threads as usize, "thread", "threads"),
        output::bytes(counts.memory)
    );
    let Some(outcome) = summary.outcome else {
        return format!("nothing stands in the way, here or at {address}: {what}");
    };
    let levels: Vec<String> = by_level(summary)
        .into_iter()
        .map(|(level, bytes)| match level.as_str() {
            "raw" => format!("{} of memory as it was", output::bytes(bytes)),
            level => format!("{} by level {level}", output::bytes(bytes)),
        })
        .collect();
    let done = format!(
        "{}, {} sent{}, {} of them while it stood still, for {:.1} ms of {:.1} ms",
        output::count(summary.rounds as usize, "round", "rounds"),
        output::bytes(summary.bytes),
        if levels.is_empty() {
            String::new()
        } else {
            format!(" ({})", levels.join(", "))
        },
        output::bytes(summary.last_bytes),
        milliseconds(summary.frozen),
        milliseconds(summary.total)
    );
    let done = match summary.behind {
        0 => done,
        bytes => format!("{done}; {} of them when it ran there already", output::bytes(bytes)),
    };
    let files = |(count, bytes): (u64, u64)| {
        let count = output::count(count as usize, "file", "files");
        format!("{count}, {}", output::bytes(bytes))
    };
    let done = match (summary.files, summary.files_there) {
        ((0, _), (0, _)) => done,
        (sent, (0, _)) => format!("{}, sent before; {done}", files(sent)),
        (sent, there) => format!(
            "{}, sent before; {} were there already; {done}",
            files(sent),
            files(there)
        ),
    };
    match outcome {
        There::Runs => format!("runs at {address}: {what}; {done}"),
        There::None => format!("went to {address}, and has ended there already: {what}; {done}"),
    }
}
