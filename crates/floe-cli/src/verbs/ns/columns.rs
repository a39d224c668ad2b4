//! The columns of lsns, and what they say.

use floe_sandbox::namespaces::Namespace;
use floe_sys::namespace::Kind;
use nix::unistd::{Uid, User};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
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

pub use Column as C;

/// With their names, which but for the last are those of lsns.
pub const COLUMNS: [(Column, &str); 14] = [
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

/// Those that are told where none are named.
pub const USUAL: [Column; 6] = [C::Ns, C::Type, C::Nprocs, C::Pid, C::User, C::Command];
/// Those of members of one namespace.
pub const USUAL_OF_MEMBERS: [Column; 4] = [C::Pid, C::Ppid, C::User, C::Command];
/// Where only network namespaces are wanted.
pub const USUAL_OF_NETWORKS: [Column; 8] = [
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
pub struct Columns {
    named: Vec<Column>,
    besides: bool,
}

/// Parses such a list.
pub fn columns(text: &str) -> Result<Columns, String> {
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

impl Columns {
    /// What is wanted, where these are the usual ones.
    pub fn with(&self, mut usual: Vec<Column>) -> Vec<Column> {
        if !self.besides {
            return self.named.clone();
        }
        for column in &self.named {
            if !usual.contains(column) {
                usual.push(*column);
            }
        }
        usual
    }
}

impl Column {
    /// What lsns calls it.
    pub fn name(self) -> &'static str {
        COLUMNS
            .iter()
            .find(|(column, _)| *column == self)
            .map_or("", |(_, name)| name)
    }

    /// What it says of a namespace, in the shape that lsns gives it.
    pub fn value(self, namespace: &Namespace, names: &mut Names) -> Value {
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
pub struct Names {
    users: HashMap<u32, String>,
    sandboxes: HashMap<u64, String>,
}

impl Names {
    /// With names of sandboxes by the namespaces that are theirs.
    pub fn new(sandboxes: HashMap<u64, String>) -> Self {
        Self {
            users: HashMap::new(),
            sandboxes,
        }
    }

    fn user(&mut self, uid: u32) -> String {
        let look_up = || match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => user.name,
            // As ls(1) does.
            Ok(None) | Err(_) => uid.to_string(),
        };
        self.users.entry(uid).or_insert_with(look_up).clone()
    }
}
