//! Whose an image's tree was, and what its word counts.

use super::is_host_root;
use floe_image::{
    ImageFiles,
    record::{IdRange, OwnerRecord, UserNamespaceRecord},
};
use floe_sandbox::{Ids, UserSpace};
use std::os::unix::fs::MetadataExt;

/// Refuses to hand an image to a user whose bases are another's, or root's.
pub fn refuse_others_bases(image: &ImageFiles, maker: u32) -> anyhow::Result<()> {
    for found in image.owners_of_bases() {
        let (name, owner) = found?;
        let is_theirs = owner.is_some_and(|owner| owner.namespace.maker.0 == maker);
        anyhow::ensure!(
            is_theirs,
            "{name}, a base of the image, is of no tree of user {maker}'s"
        );
    }
    Ok(())
}

/// What an image says of whose its tree was counts where nobody but root and whom it names can have written it, or what it is based
/// on: its files are theirs alone. What came by a pipe has no such file; without a word of a user it is taken for root's there.
pub fn refuse_others_word(image: &ImageFiles, record: Option<&OwnerRecord>) -> anyhow::Result<()> {
    let maker = record.map_or(0, |record| record.namespace.maker.0);
    let says = match record {
        Some(_) => format!("says that its tree was user {maker}'s"),
        None => "does not say that its tree was an ordinary user's".to_owned(),
    };
    let how = "say by --owner whose it is to be: UID, UID:GID, or none for root's";
    let own = image.metadata()?;
    let its = |base: Option<&str>| {
        base.map_or_else(
            || "its file".to_owned(),
            |name| format!("{name}, which it is based on,"),
        )
    };
    let bases = image.metadata_of_bases();
    let bases = bases.map(|found| found.map(|(name, found)| (Some(name), found)));
    for found in std::iter::once(Ok((None, own.clone()))).chain(bases) {
        let (name, found) = found?;
        let (its, user) = (its(name), found.uid());
        anyhow::ensure!(
            [0, maker].contains(&user),
            "the image {says}, and {its} is user {user}'s, who can have written that; {how}"
        );
        anyhow::ensure!(
            found.mode() & 0o022 == 0,
            "the image {says}, and others than the user of {its} can have written that (chmod go-w); {how}"
        );
    }
    // Looked at last: whose file it is its user can remove meanwhile.
    anyhow::ensure!(
        own.nlink() > 0 || record.is_none(),
        "the image {says}, and came by a pipe, from whom is not known; {how}"
    );
    Ok(())
}

/// Refuses, as the host's root, what is of an ordinary user's tree, where it would become one of root's.
pub fn refuse_users(image: &ImageFiles) -> anyhow::Result<()> {
    if !is_host_root()? {
        return Ok(());
    }
    let own = image.owner()?.map(|owner| ("the image".to_owned(), owner));
    let bases = image.owners_of_bases().map(|found| {
        let (name, owner) = found?;
        Ok(owner.map(|owner| (name.to_owned(), owner)))
    });
    let bases: Vec<_> = bases.collect::<anyhow::Result<_>>()?;
    let Some((name, owner)) = std::iter::once(own).chain(bases).flatten().next() else {
        return Ok(());
    };
    let user = owner.namespace.maker.0;
    anyhow::bail!("{name} says that its tree was user {user}'s, and here all become root's: receive it as that user")
}

/// The record of a user namespace.
pub fn record(space: &UserSpace) -> OwnerRecord {
    let ranges = |ids: &[Ids]| {
        let range = |ids: &Ids| IdRange {
            inside: ids.inside,
            above: ids.host,
            count: ids.count,
        };
        ids.iter().map(range).collect()
    };
    OwnerRecord {
        namespace: UserNamespaceRecord {
            maker: space.owner,
            users: ranges(&space.users),
            groups: ranges(&space.groups),
            setgroups: space.setgroups,
        },
    }
}

/// The user namespace of a record.
pub fn space(record: &OwnerRecord) -> UserSpace {
    let ids = |ranges: &[IdRange]| {
        let ids = |range: &IdRange| Ids {
            inside: range.inside,
            host: range.above,
            count: range.count,
        };
        ranges.iter().map(ids).collect()
    };
    let namespace = &record.namespace;
    UserSpace {
        owner: namespace.maker,
        users: ids(&namespace.users),
        groups: ids(&namespace.groups),
        setgroups: namespace.setgroups,
    }
}

#[cfg(test)]
mod tests {
    use super::{is_host_root, refuse_others_word, refuse_users};
    use floe_image::ImageFiles;
    use std::fs::File;

    #[test]
    fn root_takes_no_image_of_a_users_for_its_own() {
        if !is_host_root().expect("who this is") {
            return;
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/v1.floe");
        let image = ImageFiles::from(File::open(golden).expect("an image"));
        let error = refuse_users(&image).expect_err("it has an owner").to_string();
        assert!(error.contains("receive it as that user"), "{error}");
    }

    /// Its user can remove a file that root has opened, so that it has no name either, as what came by a pipe.
    #[test]
    fn a_file_that_is_gone_is_its_users_still() {
        if !is_host_root().expect("who this is") {
            return;
        }
        let file = tempfile::tempfile().expect("a file without a name");
        let image = ImageFiles::from(file.try_clone().expect("again"));
        refuse_others_word(&image, None).expect("root has written it");
        std::os::unix::fs::fchown(&file, Some(5), None).expect("give it away");
        let error = refuse_others_word(&image, None)
            .expect_err("it is another's")
            .to_string();
        assert!(error.contains("its file is user 5's"), "{error}");
    }
}
