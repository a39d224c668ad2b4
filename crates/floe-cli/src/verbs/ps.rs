//! `floe ps`.

use super::limits::ShownLimits;
use crate::{Context, failure::Outcome, output};
use clap::Args;
use floe_cgroup::Limits;
use floe_sandbox::{LinkState, Sandbox, Status, tasks};
use serde::Serialize;
use std::collections::BTreeMap;

/// List the sandboxes, or the tree of one with its PIDs on every level.
///
/// Example: floe ps job
#[derive(Debug, Args)]
pub struct Ps {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The sandbox.
    name: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: &'static str,
    pid: i32,
    status: Option<i32>,
    cgroup: Option<String>,
    limits: Option<ShownLimits>,
    address: Option<String>,
    published: Vec<String>,
    /// The level of processors that it was started for.
    cpu: Option<String>,
    created: u64,
    command: Vec<String>,
}

impl Ps {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        match &self.name {
            Some(name) => print_tasks(&Sandbox::open(&context.state_dir, name)?, self.json),
            None => print_sandboxes(&Sandbox::list(&context.state_dir)?, self.json),
        }
    }
}

fn print_sandboxes(all: &[Sandbox], json: bool) -> Outcome {
    let rows: Vec<Row> = all
        .iter()
        .map(|sandbox| {
            let state = sandbox.state();
            Row {
                name: state.name.clone(),
                state: sandbox.status_word(),
                pid: state.pid1,
                status: if let Status::Exited(status) = state.status {
                    Some(status)
                } else {
                    None
                },
                cgroup: state.cgroup.as_deref().map(|path| path.display().to_string()),
                // Several files each, and the table does not tell them.
                limits: json.then(|| limits(sandbox)),
                address: state.link.as_ref().map(|link| link.address.to_string()),
                published: published(state.link.as_ref()),
                cpu: state.processor.level.clone(),
                created: state.created,
                command: state.command.clone(),
            }
        })
        .collect();
    if json {
        output::json(&rows)?;
        return Ok(0);
    }
    // Only where some sandbox has one.
    let joined = rows.iter().any(|row| row.address.is_some());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let state = row
                .status
                .map_or(row.state.to_owned(), |status| format!("{} ({status})", row.state));
            let address = row.address.clone().unwrap_or_else(|| "-".to_owned());
            let place = [&[address], &row.published[..]].concat().join(" ");
            let mut cells = vec![row.name.clone(), state, row.pid.to_string()];
            cells.extend(joined.then_some(place));
            cells.push(row.command.join(" "));
            cells
        })
        .collect();
    let mut titles = vec!["NAME", "STATE", "PID"];
    titles.extend(joined.then_some("ADDRESS"));
    titles.push("COMMAND");
    output::table(&titles, &cells);
    Ok(0)
}

/// Ports of the host.
fn published(link: Option<&LinkState>) -> Vec<String> {
    let ports = link.iter().flat_map(|link| &link.published);
    ports.map(ToString::to_string).collect()
}

/// Those in force; none of a sandbox that has ended.
fn limits(sandbox: &Sandbox) -> ShownLimits {
    // It may end meanwhile, and its cgroups with it.
    let found = sandbox.cgroups().ok().and_then(|cgroups| Limits::read(&cgroups).ok());
    found.unwrap_or_default().into()
}

fn print_tasks(sandbox: &Sandbox, json: bool) -> Outcome {
    let tasks = tasks::list(sandbox)?;
    if json {
        output::json(&tasks)?;
        return Ok(0);
    }
    let rows: Vec<(i32, i32, Vec<String>)> = tasks
        .iter()
        .map(|task| {
            let levels: Vec<String> = task.nspid.iter().map(ToString::to_string).collect();
            let cells = vec![
                task.pid.to_string(),
                levels.join(" → "),
                task.ppid.to_string(),
                task.pgid.to_string(),
                task.sid.to_string(),
                task.state.to_string(),
                task.threads.to_string(),
                task.comm.clone(),
            ];
            // Of what was put into the cgroup from outside, the sandbox knows no number.
            (task.nspid.first().copied().unwrap_or(0), task.host_ppid, cells)
        })
        .collect();
    let cells: Vec<Vec<String>> = as_tree(rows);
    output::table(
        &[
            "PID",
            "HOST → INNERMOST",
            "PPID",
            "PGID",
            "SID",
            "S",
            "THREADS",
            "COMMAND",
        ],
        &cells,
    );
    Ok(0)
}

/// Orders rows (id, parent, cells) as a tree, with the last cell indented by depth.
pub fn as_tree(rows: Vec<(i32, i32, Vec<String>)>) -> Vec<Vec<String>> {
    let known: Vec<i32> = rows.iter().map(|(pid, ..)| *pid).collect();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut cells = BTreeMap::new();
    for (pid, parent, row) in rows {
        let parent = if known.contains(&parent) { parent } else { 0 };
        children.entry(parent).or_default().push(pid);
        cells.insert(pid, row);
    }
    let mut ordered = Vec::new();
    let mut stack: Vec<(i32, usize)> = children
        .get(&0)
        .into_iter()
        .flatten()
        .rev()
        .map(|pid| (*pid, 0))
        .collect();
    while let Some((pid, depth)) = stack.pop() {
        if let Some(mut row) = cells.remove(&pid) {
            if let Some(last) = row.last_mut() {
                *last = format!("{}{last}", "  ".repeat(depth));
            }
            ordered.push(row);
        }
        stack.extend(
            children
                .get(&pid)
                .into_iter()
                .flatten()
                .rev()
                .map(|child| (*child, depth + 1)),
        );
    }
    ordered
}
