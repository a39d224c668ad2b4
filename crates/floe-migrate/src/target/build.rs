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
use floe_image::ImageFiles;
use floe_resources::file::{Grants, Outside, TcpMode};
use floe_sandbox::{Holding, Sandbox};
use std::{collections::BTreeSet, error::Error, fs::File, io, path::Path, time::Duration};

fn of(error: impl Error + 'static) -> Refusal {
    Refusal::of(&error)
}

fn of_boxed(error: Box<dyn Error + Send + Sync>) -> Refusal {
    Refusal::of(&*(error as Box<dyn Error>))
}

/// What is given to every sandbox that comes.
fn outside<'a>(session: &Session<'a>, grants: &'a Grants) -> Outside<'a> {
    Outside {
        // The source says which connections come.
        tcp: TcpMode::Established,
        moves: true,
        grants,
        mounts: session.request.mounts,
        ends: session.request.net,
        terminal: false,
    }
}

/// What it takes to hold a tree frozen.
const FREEZER: &str = "cgroup freezer";

/// Finds all that stands in the way here of a tree whose records are known, and of which files are `coming` to these paths.
pub fn look(
    session: &Session<'_>,
    (records, name): (&File, &str),
    coming: &BTreeSet<Vec<u8>>,
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
    let outside = outside(session, &grants);
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

/// Builds the tree of an image, and leaves it held. `images` are those of the rounds, the oldest first, and the image itself.
pub fn build(
    session: &Session<'_>,
    (images, lazy): (&[File], bool),
    (id, permit): (&Id, &Path),
    ends: &Ends,
) -> Result<Counts, Refusal> {
    let image = chain(images).map_err(of)?;
    (session.request.become_user)(&image).map_err(of_boxed)?;
    let grants = Grants::take(Vec::new(), &[]).map_err(of)?;
    let outside = outside(session, &grants);
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

/// An image with those of the rounds before it.
fn chain(images: &[File]) -> io::Result<ImageFiles> {
    let (own, rounds) = images.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    let named = rounds.iter().enumerate().rev();
    let bases = named.map(|(number, file)| Ok((format!("of round {}", number + 1), file.try_clone()?)));
    Ok(ImageFiles::chained(own.try_clone()?, bases.collect::<io::Result<_>>()?))
}
