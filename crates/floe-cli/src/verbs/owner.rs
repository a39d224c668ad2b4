//! As whom root deals with an image of an ordinary user's tree: an option of `floe restore` and `floe check`.

use crate::{Context, behalf};
use clap::Args;
use floe_image::{Image, ImageFiles};
use floe_sandbox::{Owner, UserSpace};
use std::str::FromStr;

/// Whose the tree of an image is to be.
#[derive(Debug, Args)]
pub struct OwnerOption {
    /// As root, of a tree that was in an ordinary user's user namespace: image makes it as that user, in a user namespace of theirs
    /// with the users and groups of the host that it had, if this host has given them these (/etc/subuid, /etc/subgid); UID or
    /// UID:GID as another one; none makes a tree of root's, in which root of the namespace is root of this host. By itself what the
    /// image says counts only where its file is root's or that user's, and nobody else may write to it. The sandbox is that
    /// user's: restored it is kept in --state-dir, else in /run/user/UID/floe, and runs in the background (-d).
    #[arg(long, value_name = "WHOM", default_value = "image")]
    owner: Whom,
}

/// As whom root makes a tree that was an ordinary user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// As whom the image tells.
    Image,
    /// As a user, of the group that is given or of theirs.
    User(u32, Option<u32>),
    /// As root.
    Root,
}

impl FromStr for Whom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| "give image, UID, UID:GID, or none".to_owned());
        Ok(match (text, text.split_once(':')) {
            ("image", _) => Self::Image,
            ("none", _) => Self::Root,
            (_, Some((user, group))) => Self::User(number(user)?, Some(number(group)?)),
            (user, None) => Self::User(number(user)?, None),
        })
    }
}

impl OwnerOption {
    /// The ordinary user as whom root restores the tree, and the user namespace that it is to be in.
    pub fn of(&self, context: &Context, image: &ImageFiles) -> anyhow::Result<Option<(Owner, UserSpace)>> {
        if context.handed.is_some() || !behalf::is_host_root()? {
            return Ok(None);
        }
        let record = image.owner()?;
        // What is wrong with the image is told before whose it is.
        if record.is_some() {
            Image::open(image.try_clone()?)?;
        }
        if self.owner == Whom::Image {
            behalf::refuse_others_word(image, record.as_ref())?;
        }
        let Some(record) = record else {
            let is_named = matches!(self.owner, Whom::User(..));
            anyhow::ensure!(!is_named, "--owner: the tree was in no ordinary user's user namespace");
            return Ok(None);
        };
        let space = behalf::space(&record);
        let owner = match self.owner {
            Whom::Root => return Ok(None),
            Whom::Image => Owner::new(space.owner.0, None)?,
            Whom::User(user, group) => Owner::new(user, group)?,
        };
        behalf::refuse_others_bases(image, space.owner.0)?;
        let space = owner.may_have(&space)?;
        Ok(Some((owner, space)))
    }
}
