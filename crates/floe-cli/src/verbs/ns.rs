//! `floe ns`.

use crate::{Context, failure::Outcome, output};
use clap::{Args, ValueEnum};
use floe_sandbox::namespaces::{self, Namespace, Node, Relation, forest};
use floe_sys::{Pid, namespace::Kind};
use nix::unistd::{Uid, User};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};

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
    #[arg(short, long, value_name = "PID")]
    pid: Option<i32>,
    /// Draw trees: of what was made in what, of what belongs to which user namespace, or of processes.
    #[arg(long, value_enum, value_name = "RELATION", num_args = 0..=1, require_equals = true, default_missing_value = "parent")]
    tree: Option<Tree>,
    /// Print no headings.
    #[arg(short, long)]
    noheadings: bool,
    /// Print JSON, all columns where none are named.
    #[arg(long)]
    json: bool,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Ns,
    Type,
    Path,
    Nprocs,
    Pid,
    Ppid,
    Command,
    Uid,
    User,
    Netnsid,
    Nsfs,
    Pns,
    Ons,
    Sandbox,
}

use Column as C;

/// With their names, which but for the last are those of lsns.
const COLUMNS: [(Column, &str); 14] = [
    (C::Ns, "NS"),
    (C::Type, "TYPE"),
    (C::Path, "PATH"),
    (C::Nprocs, "NPROCS"),
    (C::Pid, "PID"),
    (C::Ppid, "PPID"),
    (C::Command, "COMMAND"),
    (C::Uid, "UID"),
    (C::User, "USER"),
    (C::Netnsid, "NETNSID"),
    (C::Nsfs, "NSFS"),
    (C::Pns, "PNS"),
    (C::Ons, "ONS"),
    (C::Sandbox, "SANDBOX"),
];

const USUAL: [Column; 6] = [C::Ns, C::Type, C::Nprocs, C::Pid, C::User, C::Command];
/// Where only network namespaces are wanted.
const USUAL_OF_NETWORKS: [Column; 8] = [
    C::Ns,
    C::Type,
    C::Nprocs,
    C::Pid,
    C::User,
    C::Netnsid,
    C::Nsfs,
    C::Command,
];

/// Columns as they were asked for.
#[derive(Debug, Clone)]
struct Columns {
    named: Vec<Column>,
    besides: bool,
}

fn columns(text: &str) -> Result<Columns, String> {
    let (names, besides) = match text.strip_prefix('+') {
        Some(names) => (names, true),
        None => (text, false),
    };
    let find = |name: &str| {
        let found = COLUMNS.iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
        found.map(|(column, _)| *column).ok_or_else(|| {
            let all: Vec<&str> = COLUMNS.iter().map(|(_, name)| *name).collect();
            format!("there is no column {name:?}: {}", all.join(", "))
        })
    };
    let named = names.split(',').map(find).collect::<Result<_, _>>()?;
    Ok(Columns { named, besides })
}

impl Column {
    fn name(self) -> &'static str {
        COLUMNS
            .iter()
            .find(|(column, _)| *column == self)
            .map_or("", |(_, name)| name)
    }

    /// What it says of a namespace, in the shape that lsns gives it.
    fn value(self, namespace: &Namespace, names: &mut Names) -> Value {
        let first = namespace.first.as_ref();
        match self {
            C::Ns => json!(namespace.inode),
            C::Type => json!(namespace.kind.name()),
            C::Path => json!(namespace.path),
            C::Nprocs => json!(namespace.processes),
            C::Pid => json!(first.map(|process| process.pid)),
            C::Ppid => json!(first.map(|process| process.ppid)),
            C::Command => json!(first.map(|process| &process.command)),
            C::Uid => json!(first.map(|process| process.uid)),
            C::User => json!(first.map(|process| names.user(process.uid))),
            C::Netnsid if namespace.kind != Kind::Network => Value::Null,
            C::Netnsid => json!(
                namespace
                    .number
                    .map_or("unassigned".to_owned(), |number| number.to_string())
            ),
            C::Nsfs if namespace.mounts.is_empty() => Value::Null,
            C::Nsfs => {
                let paths: Vec<_> = namespace.mounts.iter().map(|path| path.to_string_lossy()).collect();
                json!(paths.join("\n"))
            }
            C::Pns => json!(namespace.parent.unwrap_or(0)),
            C::Ons => json!(namespace.owner.unwrap_or(0)),
            C::Sandbox => json!(names.sandboxes.get(&namespace.inode)),
        }
    }
}

/// Names of users, each looked up once, and of sandboxes, by their namespaces.
#[derive(Debug)]
struct Names {
    users: HashMap<u32, String>,
    sandboxes: HashMap<u64, String>,
}

impl Names {
    fn user(&mut self, uid: u32) -> String {
        let look_up = || match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => user.name,
            // As ls(1) does.
            Ok(None) | Err(_) => uid.to_string(),
        };
        self.users.entry(uid).or_insert_with(look_up).clone()
    }
}

impl Ns {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let of_process: Option<BTreeSet<u64>> = match self.pid {
            Some(pid) => Some(namespaces::of(Pid::new(pid))?.into_values().collect()),
            None => None,
        };
        let mut all = namespaces::list()?;
        all.retain(|namespace| {
            let of_kind = self.kinds.is_empty() || self.kinds.contains(&namespace.kind);
            of_kind
                && of_process
                    .as_ref()
                    .is_none_or(|wanted| wanted.contains(&namespace.inode))
        });
        let columns = self.columns();
        let trees = match self.tree {
            Some(tree) => forest(&all, tree.into()),
            None => {
                let alone = |namespace| Node {
                    namespace,
                    children: Vec::new(),
                };
                all.iter().map(alone).collect()
            }
        };
        let mut names = Names {
            users: HashMap::new(),
            sandboxes: namespaces::of_sandboxes(&context.state_dir)?,
        };
        if self.json {
            let objects: Vec<Value> = trees.iter().map(|node| object(node, &columns, &mut names)).collect();
            output::json(&json!({ "namespaces": objects }))?;
            return Ok(0);
        }
        let mut rows = Vec::new();
        draw(&trees, None, &mut |namespace, art| {
            let cells = columns.iter().map(|column| {
                let text = cell(&column.value(namespace, &mut names));
                if *column == C::Ns { format!("{art}{text}") } else { text }
            });
            rows.push(cells.collect());
        });
        let header: Vec<&str> = columns.iter().map(|column| column.name()).collect();
        output::table(if self.noheadings { &[] } else { &header }, &rows);
        Ok(0)
    }

    fn columns(&self) -> Vec<Column> {
        let usual = || {
            if self.json {
                COLUMNS.iter().map(|(column, _)| *column).collect()
            } else if self.kinds == [Kind::Network] {
                USUAL_OF_NETWORKS.to_vec()
            } else {
                USUAL.to_vec()
            }
        };
        match &self.output {
            None => usual(),
            Some(columns) if columns.besides => {
                let mut all: Vec<Column> = usual();
                for column in &columns.named {
                    if !all.contains(column) {
                        all.push(*column);
                    }
                }
                all
            }
            Some(columns) => columns.named.clone(),
        }
    }
}

fn object(node: &Node<'_>, columns: &[Column], names: &mut Names) -> Value {
    let mut fields = Map::new();
    for column in columns {
        fields.insert(column.name().to_lowercase(), column.value(node.namespace, names));
    }
    if !node.children.is_empty() {
        let children: Vec<Value> = node
            .children
            .iter()
            .map(|child| object(child, columns, names))
            .collect();
        fields.insert("children".to_owned(), Value::Array(children));
    }
    Value::Object(fields)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace('\n', ","),
        other => other.to_string(),
    }
}

/// Tells `row` of each namespace with what is drawn in front of it; `before` is what is drawn in front of all of these,
/// `None` for roots.
fn draw<'a>(trees: &[Node<'a>], before: Option<&str>, row: &mut dyn FnMut(&'a Namespace, &str)) {
    for (index, node) in trees.iter().enumerate() {
        let is_last = index + 1 == trees.len();
        let (own, behind) = match before {
            None => (String::new(), String::new()),
            Some(before) if is_last => (format!("{before}└─"), format!("{before}  ")),
            Some(before) => (format!("{before}├─"), format!("{before}│ ")),
        };
        row(node.namespace, &own);
        draw(&node.children, Some(&behind), row);
    }
}
