//! `floe ns`.

mod columns;
mod members;
mod print;

use crate::{Context, failure::Outcome};
use clap::{Args, ValueEnum};
use columns::{C, COLUMNS, Column, Columns, Names, USUAL, USUAL_OF_MEMBERS, USUAL_OF_NETWORKS, columns};
use floe_sandbox::namespaces::{self, Namespace, Node, Relation, forest};
use floe_sys::{Pid, namespace::Kind};
use print::{Line, Shape, json_of, text_of};
use std::collections::BTreeSet;

/// List the namespaces of this machine, as lsns does: who is in them, what else keeps them alive, how they belong together.
///
/// Namespaces that no process is in are shown too: those that are mounted (ip netns add, unshare --net=FILE), those that a
/// descriptor, a thread or the next child of a process holds, and those that others were made in or belong to; but not a
/// network that only a socket keeps. Of processes that you may not trace the kernel tells no namespaces: an ordinary user
/// sees their own.
///
/// Example: floe ns -t pid -t user --tree
#[derive(Debug, Args)]
pub struct Ns {
    /// Columns, separated by commas; with a + in front besides the usual ones. NS: inode number. TYPE. PATH: a file that
    /// opens it. NPROCS: number of processes. PID: the lowest. PPID, COMMAND, UID, USER: of that process. NETNSID: the number
    /// that this network namespace has for it. NSFS: where it is mounted. PNS: the one that it was made in. ONS: the user
    /// namespace that it belongs to. And SANDBOX, which lsns does not have: whose it is.
    #[arg(short, long, value_name = "COLUMNS", value_parser = columns)]
    output: Option<Columns>,
    /// Only of this kind: mnt, net, ipc, user, pid, uts, cgroup, time. May be given several times.
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kinds: Vec<Kind>,
    /// Only those that this process, or thread, is in.
    #[arg(short, long, visible_alias = "task", value_name = "PID")]
    pid: Option<i32>,
    /// Draw trees: of what was made in what, of what belongs to which user namespace, or of processes.
    #[arg(short = 'T', long, value_enum, value_name = "RELATION", conflicts_with = "raw", num_args = 0..=1, default_missing_value = "parent")]
    tree: Option<Tree>,
    /// Print no headings.
    #[arg(short, long)]
    noheadings: bool,
    /// Print JSON, all columns where none are named.
    #[arg(short = 'J', long, conflicts_with = "raw")]
    json: bool,
    /// All columns.
    #[arg(long, conflicts_with = "output")]
    output_all: bool,
    /// For other programs to read: one blank between columns, and blanks within them as \x20.
    #[arg(short, long)]
    raw: bool,
    /// Only those that a mount alone keeps, as of `ip netns add`: no process is in them.
    #[arg(short = 'P', long)]
    persistent: bool,
    /// A list and no tree; of the processes of one namespace, which are a tree otherwise.
    #[arg(short, long, conflicts_with = "tree")]
    list: bool,
    /// Taken as lsns takes it: nothing is cut off.
    #[arg(short = 'u', long)]
    notruncate: bool,
    /// Taken as lsns takes it: each is one line.
    #[arg(short = 'W', long)]
    nowrap: bool,
    /// The processes of this namespace, by its inode number, in the place of all namespaces.
    #[arg(value_name = "NAMESPACE", conflicts_with_all = ["kinds", "pid", "tree", "persistent"])]
    namespace: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tree {
    /// PID and user namespaces below those they were made in.
    Parent,
    /// All below the user namespaces that they belong to.
    Owner,
    /// Each below that of the same kind in which its first process was started.
    Process,
}

impl From<Tree> for Relation {
    fn from(tree: Tree) -> Self {
        match tree {
            Tree::Parent => Self::Parent,
            Tree::Owner => Self::Owner,
            Tree::Process => Self::Process,
        }
    }
}

impl Ns {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let mut names = Names::new(namespaces::of_sandboxes(&context.state_dir)?);
        match self.namespace {
            None => self.list(&mut names)?,
            Some(inode) => self.members(inode, &mut names)?,
        }
        Ok(0)
    }

    fn list(&self, names: &mut Names) -> anyhow::Result<()> {
        let of_process: Option<BTreeSet<u64>> = match self.pid {
            Some(pid) => Some(namespaces::of(Pid::new(pid))?.into_values().collect()),
            None => None,
        };
        let is_wanted = |namespace: &Namespace| {
            let is_of_process = of_process.as_ref().is_none_or(|all| all.contains(&namespace.inode));
            let is_persistent = namespace.processes == 0 && !namespace.mounts.is_empty();
            (self.kinds.is_empty() || self.kinds.contains(&namespace.kind))
                && is_of_process
                && (!self.persistent || is_persistent)
        };
        let mut all = namespaces::list()?;
        all.retain(is_wanted);
        let lines: Vec<Line<'_>> = match self.tree {
            Some(tree) => forest(&all, tree.into()).into_iter().map(line).collect(),
            None => all.iter().map(alone).collect(),
        };
        let usual: &[Column] = if self.kinds == [Kind::Network] {
            &USUAL_OF_NETWORKS
        } else {
            &USUAL
        };
        self.print(&lines, (usual, C::Ns), names)
    }

    fn members(&self, inode: u64, names: &mut Names) -> anyhow::Result<()> {
        let all = namespaces::list()?;
        let found = all.into_iter().find(|namespace| namespace.inode == inode);
        let found =
            found.ok_or_else(|| anyhow::anyhow!("there is no namespace {inode}, or none that you may look into"))?;
        let members = namespaces::members(&found)?;
        let each: Vec<Namespace> = members
            .into_iter()
            .map(|process| Namespace {
                first: Some(process),
                ..found.clone()
            })
            .collect();
        let lines: Vec<Line<'_>> = if self.list {
            each.iter().map(alone).collect()
        } else {
            members::trees(&each)
        };
        self.print(&lines, (&USUAL_OF_MEMBERS, C::Command), names)
    }

    fn print(&self, lines: &[Line<'_>], (usual, drawn): (&[Column], Column), names: &mut Names) -> anyhow::Result<()> {
        let every = || COLUMNS.iter().map(|(column, _)| *column).collect();
        let usual = match self.namespace {
            None if self.json => every(),
            _ => usual.to_vec(),
        };
        let columns = match &self.output {
            _ if self.output_all => every(),
            Some(columns) => columns.with(usual),
            None => usual,
        };
        if self.json {
            return json_of(lines, &columns, names);
        }
        let shape = Shape {
            drawn,
            headings: !self.noheadings,
            raw: self.raw,
        };
        text_of(lines, &columns, names, shape);
        Ok(())
    }
}

fn alone(namespace: &Namespace) -> Line<'_> {
    Line {
        namespace,
        children: Vec::new(),
    }
}

fn line(node: Node<'_>) -> Line<'_> {
    Line {
        namespace: node.namespace,
        children: node.children.into_iter().map(line).collect(),
    }
}
