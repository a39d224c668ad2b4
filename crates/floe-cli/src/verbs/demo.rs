//! `floe demo`: the whole story on a real tree, by the commands a user would give.

use crate::{failure::Outcome, output};
use anyhow::{Context as _, ensure};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Show what floe does, on a tree it makes by itself: a shell, a program with threads, a pipeline. Takes some seconds,
/// leaves nothing behind.
///
/// Example: floe demo
#[derive(Debug, Args)]
pub struct Demo {}

/// The program with threads.
#[derive(Debug, Args)]
pub struct DemoWorker {
    /// Where it counts.
    directory: PathBuf,
}

const THREADS: usize = 3;

impl DemoWorker {
    /// Counts in every thread until it is ended.
    pub fn run(self) -> Outcome {
        let count = |name: String| {
            let path = self.directory.join(&name);
            let beside = self.directory.join(format!("{name}.new"));
            for number in 1u64.. {
                // A reader sees one number or the next, never half of one.
                if fs::write(&beside, number.to_string())
                    .and_then(|()| fs::rename(&beside, &path))
                    .is_err()
                {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        thread::scope(|scope| {
            for index in 0..THREADS {
                scope.spawn(move || count(format!("counter-{index}")));
            }
        });
        Ok(1)
    }
}

/// A state directory and a sandbox that are gone when this is dropped.
struct Stage {
    folder: tempfile::TempDir,
    program: PathBuf,
}

const NAME: &str = "demo";

impl Drop for Stage {
    fn drop(&mut self) {
        // Whatever stage was reached; often there is nothing to remove.
        let _ = self.command(&["rm", "-f", NAME]).stderr(Stdio::null()).status();
    }
}

impl Stage {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("FLOE_STATE_DIR", self.folder.path().join("state"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs floe, showing the command and what it prints.
    fn show(&self, arguments: &[&str]) -> anyhow::Result<()> {
        output::line(&format!("\n$ floe {}", arguments.join(" ").replace(&self.path(), "…")));
        let done = self.command(arguments).output().context("run floe")?;
        for stream in [&done.stdout, &done.stderr] {
            String::from_utf8_lossy(stream)
                .lines()
                .for_each(|line| output::line(&format!("  {line}")));
        }
        ensure!(done.status.success(), "floe {} failed", arguments[0]);
        Ok(())
    }

    fn path(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn counters(&self) -> Vec<u64> {
        let read = |index| {
            fs::read_to_string(self.folder.path().join(format!("counter-{index}")))
                .ok()?
                .parse()
                .ok()
        };
        (0..THREADS).map(|index| read(index).unwrap_or(0)).collect()
    }

    fn ticks(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.folder.path().join("ticks.log")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn tree(&self) -> anyhow::Result<String> {
        let done = self.command(&["ps", NAME, "--json"]).output().context("run floe ps")?;
        let tasks: Vec<serde_json::Value> = serde_json::from_slice(&done.stdout).context("read floe ps --json")?;
        let text = |task: &serde_json::Value| {
            let inner = task["nspid"]
                .as_array()
                .and_then(|ids| ids.last())
                .cloned()
                .unwrap_or_default();
            format!("{inner}:{}:{}:{}", task["ppid"], task["sid"], task["comm"])
        };
        // sleep comes and goes by itself.
        Ok(tasks
            .iter()
            .map(text)
            .filter(|task| !task.contains("sleep"))
            .collect::<Vec<_>>()
            .join(" "))
    }
}

/// Waits until something holds, for at most ten seconds.
fn until(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds() {
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "{what} did not happen within ten seconds"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn script(program: &Path, folder: &str) -> String {
    format!(
        "'{}' demo-worker '{folder}' & i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done | tee '{folder}/ticks.log' >/dev/null & wait",
        program.display()
    )
}

fn compare(before: &str, after: &str) -> anyhow::Result<()> {
    ensure!(before == after, "the tree differs: before {before}, after {after}");
    Ok(())
}

fn check_order(ticks: &[u64]) -> anyhow::Result<()> {
    let in_order = ticks.iter().zip(1..).all(|(tick, wanted)| *tick == wanted);
    ensure!(in_order, "the pipeline lost or repeated a line");
    Ok(())
}

impl Demo {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let program = std::env::current_exe().context("find the floe program")?;
        let stage = Stage {
            folder: tempfile::tempdir().context("make a folder")?,
            program,
        };
        let image = format!("{}/demo.floe", stage.path());
        output::line("A shell starts a program with three counting threads, and a pipeline that writes ticks.");
        stage.show(&[
            "run",
            "-d",
            "--name",
            NAME,
            "--",
            "sh",
            "-c",
            &script(&stage.program, &stage.path()),
        ])?;
        until("the start of the tree", || {
            stage.counters().iter().all(|n| *n > 5) && stage.ticks().len() > 5
        })?;
        stage.show(&["ps", NAME])?;
        let before = stage.tree()?;
        output::line("\nIt is frozen, saved, and gone:");
        stage.show(&["checkpoint", NAME, "-o", &image])?;
        let (counters, ticks) = (stage.counters(), stage.ticks().len());
        output::line(&format!("  counters stand at {counters:?}, {ticks} ticks written"));
        stage.show(&["inspect", &image, "sizes"])?;
        output::line("\nAnd it comes back:");
        stage.show(&["restore", "-d", &image])?;
        let goes_on = || {
            stage
                .counters()
                .iter()
                .zip(&counters)
                .all(|(now, then)| *now > then + 5)
                && stage.ticks().len() > ticks + 5
        };
        until("the counters' going on", goes_on)?;
        stage.show(&["ps", NAME])?;
        let after = stage.tree()?;
        let now = stage.ticks();
        output::line(&format!(
            "  counters went on to {:?}, {} ticks written",
            stage.counters(),
            now.len()
        ));
        compare(&before, &after)?;
        check_order(&now)?;
        output::line("\nEvery process has the PID it had; no counter began anew; the pipeline lost no line.");
        Ok(0)
    }
}
