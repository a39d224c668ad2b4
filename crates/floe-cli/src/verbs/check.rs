//! `floe check`.

use super::{
    cpu::Lesser,
    image_file::{self, Bases},
    map::Map,
    owner::OwnerOption,
};
use crate::{
    Context, act,
    behalf::Behalf,
    failure::{Failure, Outcome},
    output,
};
use clap::{Args, ValueEnum};
use floe_checkpoint::{
    host::{Act, Feature, Hindrances, features},
    restore::{self, FilesMode, Obstacle},
};
use floe_image::ImageFiles;
use floe_resources::{
    file::{Grants, Outside, TcpMode},
    ns::{mounts::Given, network::GivenEnds},
};
use floe_sandbox::become_root;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Tell what this host offers to floe, and to you: what is there, what it is needed for, what to do where it is not.
///
/// The kernel is asked by trying, in processes and namespaces that end with it. With a verb only what has to do with that is
/// told, and the exit status is 1 where something is missing that it can't do without. With --image, besides what restore
/// needs, everything that stands in the way of that image here is told, in one list; as root of one of an ordinary user's tree what
/// is there for that user (--owner).
///
/// Example: floe check restore --image job.floe
#[derive(Debug, Args)]
pub struct Check {
    /// What is to be done here [default: with --image restore].
    #[arg(value_enum)]
    verb: Option<Verb>,
    /// An image that is to be restored here; - for standard input.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    bases: Bases,
    #[command(flatten)]
    owner: OwnerOption,
    /// Of the image: a processor that lacks what the tree's programs may use.
    #[arg(long, value_enum, value_name = "HOW", default_value = "check")]
    cpu: Lesser,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verb {
    Run,
    Checkpoint,
    Restore,
}

impl From<Verb> for Act {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Run => Self::Run,
            Verb::Checkpoint => Self::Checkpoint,
            Verb::Restore => Self::Restore,
        }
    }
}

impl Check {
    /// Runs the verb.
    pub fn run(self, context: &Context) -> Outcome {
        let wanted = match (self.verb, &self.image) {
            (Some(Verb::Run | Verb::Checkpoint), Some(_)) => {
                return Err(anyhow::anyhow!("--image is about floe restore").into());
            }
            (None, Some(_)) => Some(Act::Restore),
            (verb, _) => verb.map(Act::from),
        };
        let image = match (&context.handed, self.image.as_deref()) {
            (_, None) => None,
            (Some(handed), Some(_)) => Some(handed.image()?),
            (None, Some(path)) => Some(image_file::open(path, &self.bases)?),
        };
        let (image, of_whom) = match image.map(|image| (self.owner.of(context, &image), image)) {
            None => (None, None),
            Some((Ok(None), image)) => (Some(image), None),
            Some((Ok(Some((owner, space))), image)) => {
                let behalf = Behalf {
                    owner,
                    image: Some(image),
                    output: None,
                    space: Some(space),
                    inherited: Vec::new(),
                };
                return behalf.perform();
            }
            // For whom to look is not known.
            Some((Err(error), _)) => (None, Some(error)),
        };
        // Interrupted, it first takes away what it has made.
        let all = act::perform(|_| features())??;
        let shown: Vec<&Feature> = all
            .iter()
            .filter(|feature| wanted.is_none_or(|act| feature.used_by.contains(&act)))
            .collect();
        let obstacles = match (image, of_whom) {
            (Some(image), _) => self.obstacles(context, image)?,
            (None, Some(error)) => vec![Obstacle {
                object: "owner of the tree".to_owned(),
                reason: format!("{error:#}"),
            }],
            (None, None) => Vec::new(),
        };
        self.print(&shown, &obstacles)?;
        match wanted.map(|act| hindrances(act, &shown, &obstacles)) {
            Some(found) if !found.list.is_empty() => Err(found.into()),
            _ => Ok(0),
        }
    }

    /// What stands in the way of a restore.
    fn obstacles(&self, context: &Context, image: ImageFiles) -> Result<Vec<Obstacle>, Failure> {
        // As restore does.
        match &context.handed {
            Some(handed) => handed.become_root()?,
            None => become_root(Map::default().ids_for(&image)?)?,
        }
        let grants = Grants::take(Vec::new(), &[])?;
        let outside = Outside {
            tcp: TcpMode::Established,
            moves: false,
            grants: &grants,
            mounts: &Given::default(),
            ends: &GivenEnds::default(),
            terminal: false,
        };
        let found = act::perform(|control| {
            restore::dry_run(image, (outside, (FilesMode::Check, self.cpu.into()), None), control)
        })??;
        Ok(found.obstacles)
    }

    fn print(&self, shown: &[&Feature], obstacles: &[Obstacle]) -> anyhow::Result<()> {
        if self.json {
            let obstacles: Vec<Value> = obstacles
                .iter()
                .map(|obstacle| json!({ "object": obstacle.object, "reason": obstacle.reason }))
                .collect();
            let features: Vec<Value> = shown.iter().map(|feature| object(feature)).collect();
            let mut whole = json!({ "features": features });
            if self.image.is_some() {
                whole["obstacles"] = Value::Array(obstacles);
            }
            return output::json(&whole);
        }
        let rows: Vec<Vec<String>> = shown
            .iter()
            .map(|feature| {
                vec![
                    feature.name.to_owned(),
                    feature.standing.to_string(),
                    feature.found.clone(),
                    feature.used_for.to_owned(),
                    feature.advice.unwrap_or_default().to_owned(),
                ]
            })
            .collect();
        output::table(&["FEATURE", "HERE", "FOUND", "NEEDED FOR", "WHAT TO DO"], &rows);
        Ok(())
    }
}

fn object(feature: &Feature) -> Value {
    let acts = |acts: &[Act]| acts.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "name": feature.name,
        "here": feature.standing.to_string(),
        "found": feature.found,
        "needed_for": feature.used_for,
        "what_to_do": feature.advice,
        "used_by": acts(feature.used_by),
        "needed_by": acts(feature.needed_by),
    })
}

fn hindrances(act: Act, shown: &[&Feature], obstacles: &[Obstacle]) -> Hindrances {
    let hindering = shown.iter().filter(|feature| feature.hinders(act));
    let told = hindering.map(|feature| {
        let advice = feature.advice.unwrap_or_default();
        format!("{}: {}; {advice}", feature.name, feature.found)
    });
    Hindrances {
        act,
        list: told.chain(obstacles.iter().map(ToString::to_string)).collect(),
    }
}
