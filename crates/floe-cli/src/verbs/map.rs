//! Who is in the user namespace of an ordinary user's sandbox: options of `floe run` and `floe restore`.

use crate::failure::Failure;
use anyhow::Context as _;
use clap::Args;
use floe_image::{Image, ImageFiles};
use floe_sandbox::IdMap;
use nix::unistd::{getegid, geteuid};

/// Users of a user namespace.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Map {
    /// As an ordinary user: besides yourself, who are root in the sandbox, have the users and groups in it that /etc/subuid and
    /// /etc/subgid give you, from 1 on. Takes newuidmap and newgidmap (package uidmap).
    #[arg(long)]
    map_auto: bool,
    /// As an ordinary user: appear as this user in the sandbox, of the group of that number or of the one given. There is no
    /// root in it then, and so no terminal of its own (-t). A restore does so by itself where all of the saved tree were
    /// you.
    #[arg(long, value_name = "UID[:GID]", value_parser = ids, conflicts_with = "map_auto")]
    map_user: Option<(u32, u32)>,
}

/// Parses a user and perhaps a group.
fn ids(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
    let both = number(user).zip(number(group));
    both.ok_or_else(|| "give numbers: UID, or UID:GID".to_owned())
}

impl Map {
    /// Who is in it.
    pub fn ids(self) -> IdMap {
        match self.map_user {
            Some((user, group)) => IdMap::As(user, group),
            None if self.map_auto => IdMap::RootAndGiven,
            None => IdMap::Root,
        }
    }

    /// Who is in it for the tree of an image: where all of that were the caller, and none was root, that one, unless told otherwise.
    pub fn ids_for(self, image: &ImageFiles) -> Result<IdMap, Failure> {
        let ids = self.ids();
        if ids != IdMap::Root || geteuid().is_root() {
            return Ok(ids);
        }
        let image = Image::open(image.try_clone().context("open the image once more")?);
        // What is wrong with it the restore says.
        let Ok(image) = image else { return Ok(ids) };
        let threads = image.processes().iter().flat_map(|process| &process.threads);
        let own = (geteuid().as_raw(), getegid().as_raw());
        let mut users: Vec<(u32, u32)> = threads
            .flat_map(|thread| {
                let who = &thread.credentials;
                who.uids.into_iter().zip(who.gids)
            })
            .collect();
        users.sort_unstable();
        users.dedup();
        Ok(match users[..] {
            [(user, group)] if (user, group) == own => IdMap::As(user, group),
            _ => IdMap::Root,
        })
    }
}
