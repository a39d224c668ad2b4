//! What workers do at the target: look what stands in the way, and build the tree.

use super::session::Session;
use crate::{
    link::message::Id,
    refusal::Refusal,
    worker::{Counts, Ends, Relay},
};
use floe_checkpoint::{
    host::{Act, Standing, features},
    restore::{self, dry_run_awaiting, restore},
    stage::Control,
};
use floe_image::{Coming, Image, ImageFiles};
use floe_resources::{
    file::{Grants, Outside, TcpMode, on_disk},
    ns::mounts::Given,
};
use floe_sandbox::{Holding, Sandbox};
use std::{collections::BTreeSet, error::Error, fs::File, io, path::Path, sync::Arc, time::Duration};

fn of(error: impl Error + 'static) -> Refusal {
    Refusal::of(&error)
}

fn of_boxed(error: Box<dyn Error + Send + Sync>) -> Refusal {
    Refusal::of(&*(error as Box<dyn Error>))
}

/// What is given to every sandbox that comes.
fn outside<'a>(session: &Session<'a>, mounts: &'a Given, grants: &'a Grants) -> Outside<'a> {
    Outside {
        // The source says which connections come.
        tcp: TcpMode::Established,
        moves: true,
        grants,
        mounts,
        ends: session.request.net,
        terminal: false,
    }
}

/// What it takes to hold a tree frozen.
const FREEZER: &str = "cgroup freezer";

/// Finds all that stands in the way here of a tree whose records are known, for which these `mounts` are given, and of which files
/// are `coming` to these paths.
pub fn look(
    session: &Session<'_>,
    (records, name): (&File, &str),
    (mounts, coming): (&Given, &BTreeSet<Vec<u8>>),
    ends: &Ends,
) -> Result<Counts, Refusal> {
    let mut findings = Vec::new();
    for feature in features().map_err(of)? {
        let is_lacking = feature.standing == Standing::No && feature.name == FREEZER;
        if is_lacking || feature.hinders(Act::Restore) {
            let advice = feature.advice.unwrap_or_default();
            findings.push(format!("{}: {}; {advice}", feature.name, feature.found));
        }
    }
    if Sandbox::open(session.request.state_dir, name).is_ok() {
        findings.push(format!("sandbox {name}: there is one of this name already"));
    }
    let records = ImageFiles::from(records.try_clone().map_err(of)?);
    (session.request.become_user)(&records).map_err(of_boxed)?;
    let grants = Grants::take(Vec::new(), &[]).map_err(of)?;
    let outside = outside(session, mounts, &grants);
    let observer = Relay(ends);
    let control = Control {
        interrupted: session.interrupted,
        fail_at: None,
        observer: &observer,
    };
    let given = (outside, session.request.differences, None);
    let found = dry_run_awaiting(records, given, coming, &control).map_err(of)?;
    findings.extend(found.obstacles.iter().map(ToString::to_string));
    match findings.len() {
        0 => Ok(Counts::default()),
        count => Err(Refusal {
            reason: match count {
                1 => "1 thing stands in the way there".to_owned(),
                _ => format!("{count} things stand in the way there"),
            },
            findings,
        }),
    }
}

/// A tree that is to be built.
pub struct Building<'a> {
    /// Images of the rounds, the oldest first, and the last one.
    pub images: &'a [File],
    /// Who brings what is still to come of that.
    pub coming: Option<Arc<dyn Coming>>,
    /// Whether it may run before all of its memory is in its place.
    pub lazy: bool,
    pub mounts: &'a Given,
}

/// Builds the tree of an image, and leaves it held.
pub fn build(
    session: &Session<'_>,
    building: Building<'_>,
    (id, permit): (&Id, &Path),
    ends: &Ends,
) -> Result<Counts, Refusal> {
    let Building {
        images,
        coming,
        lazy,
        mounts,
    } = building;
    let mut image = chain(images).map_err(of)?;
    if let Some(coming) = coming {
        image = image.awaiting(coming);
    }
    (session.request.become_user)(&image).map_err(of_boxed)?;
    let grants = Grants::take(Vec::new(), &[]).map_err(of)?;
    let outside = outside(session, mounts, &grants);
    let holding = Holding {
        id: id.as_str().to_owned(),
        permit: permit.to_owned(),
    };
    let observer = Relay(ends);
    let control = Control {
        interrupted: session.interrupted,
        fail_at: session.fail_at,
        observer: &observer,
    };
    let request = restore::Request {
        image,
        state_dir: session.request.state_dir,
        name: None,
        pid_method: session.request.pid_method,
        foreground: false,
        outside,
        differences: session.request.differences,
        publish: None,
        hold: Some(&holding),
        lazy,
        before_thaw: &mut |_| Ok(()),
    };
    let report = restore(request, &control).map_err(of)?;
    Ok(Counts {
        processes: report.processes as u64,
        threads: 0,
        memory: report.memory,
        frozen: Duration::ZERO,
    })
}

/// Paths that a tree has open, mapped, or is in, and that its root directory has, not what is mounted there.
pub fn on_root(records: &File) -> Result<BTreeSet<Vec<u8>>, Refusal> {
    let records = ImageFiles::from(records.try_clone().map_err(of)?);
    let image = Image::open(records).map_err(of)?;
    let mounts = image
        .mount_namespaces()
        .first()
        .map_or(&[][..], |space| &space.mounts[..]);
    let is_on_root = |path: &Vec<u8>| {
        let mut others = mounts.iter().skip(1);
        !others.any(|mount| {
            path.strip_prefix(&mount.point.0[..])
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    };
    let mut all = BTreeSet::new();
    let mapped = image.mapped_files().iter().filter(|file| file.mount_namespace == 0);
    all.extend(mapped.map(|file| file.path.clone()));
    for record in image.open_files().iter().filter(|record| record.mount_namespace == 0) {
        all.extend(on_disk(record).map_err(of)?.map(|file| file.path));
    }
    let places = image
        .processes()
        .iter()
        .flat_map(|process| [&process.cwd, &process.root]);
    all.extend(
        places
            .filter(|place| place.mount_namespace == 0)
            .map(|place| place.path.clone()),
    );
    all.retain(is_on_root);
    Ok(all)
}

/// An image with those of the rounds before it.
fn chain(images: &[File]) -> io::Result<ImageFiles> {
    let (own, rounds) = images.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    let named = rounds.iter().enumerate().rev();
    let bases = named.map(|(number, file)| Ok((format!("of round {}", number + 1), file.try_clone()?)));
    Ok(ImageFiles::chained(own.try_clone()?, bases.collect::<io::Result<_>>()?))
}
