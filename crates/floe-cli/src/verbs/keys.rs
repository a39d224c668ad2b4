//! `floe keys`, and where keys are.

use crate::{failure::Outcome, output};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use floe_migrate::keys::{Fingerprint, Keys};
use std::path::PathBuf;

/// Show this host's key for migrations, and say which other hosts are let in.
///
/// floe migrate and floe receive talk to a host only if each has pinned the other's key: print it there, compare, pin it here, and
/// the other way round. The key is made when it is first asked for.
///
/// Example: floe keys pin oak sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
#[derive(Debug, Args)]
pub struct ShowKeys {
    #[command(flatten)]
    place: KeysFolder,
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Print the fingerprint of this host's key; so does no command.
    Show,
    /// List the hosts that are pinned.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let a host in, and be let in by it.
    Pin {
        /// What to call it.
        name: String,
        /// What floe keys prints there.
        fingerprint: Fingerprint,
    },
    /// Let a host in no more.
    Unpin {
        /// What it was called.
        name: String,
    },
}

/// Where keys are.
#[derive(Debug, Clone, Args)]
pub struct KeysFolder {
    /// Where keys are kept [default: /etc/floe, or $XDG_CONFIG_HOME/floe or ~/.config/floe for ordinary users].
    #[arg(long, env = "FLOE_KEYS_DIR", value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl KeysFolder {
    /// The keys in it.
    pub fn open(&self) -> anyhow::Result<Keys> {
        let folder = match &self.keys {
            Some(folder) => folder.clone(),
            None => default_folder()?,
        };
        Ok(Keys::open(&folder)?)
    }
}

fn default_folder() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/etc/floe"));
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = config
        .or(home)
        .context("there is no HOME to keep keys in; give --keys")?;
    Ok(folder.join("floe"))
}

impl ShowKeys {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let mut keys = self.place.open()?;
        match self.act.unwrap_or(Act::Show) {
            Act::Show => output::line(&keys.fingerprint().to_string()),
            Act::Pin { name, fingerprint } => keys.pin(&name, fingerprint)?,
            Act::Unpin { name } => keys.unpin(&name)?,
            Act::List { json: true } => {
                let peers = keys.peers().iter();
                let rows = peers
                    .map(|peer| serde_json::json!({ "name": peer.name, "fingerprint": peer.fingerprint.to_string() }));
                output::json(&rows.collect::<Vec<_>>())?;
            }
            Act::List { json: false } => {
                let peers = keys.peers().iter();
                let rows: Vec<_> = peers
                    .map(|peer| vec![peer.name.clone(), peer.fingerprint.to_string()])
                    .collect();
                output::table(&["NAME", "FINGERPRINT"], &rows);
            }
        }
        Ok(0)
    }
}
