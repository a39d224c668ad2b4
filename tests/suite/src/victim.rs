//! A victim in a sandbox: started, asked to check itself, taken through checkpoint and restore.

use crate::{Host, Portrait, command, until};
use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A victim's program.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    std::env::var_os("FLOE_VICTIMS").map_or_else(|| command::built(name), |folder| Path::new(&folder).join(name))
}

/// A victim that runs.
#[derive(Debug)]
pub struct Victim<'a> {
    host: &'a Host,
    folder: PathBuf,
    /// The sandbox it is in.
    pub sandbox: String,
    round: u32,
}

impl<'a> Victim<'a> {
    /// Starts a victim as the sandbox `name`, and waits until it has made its state.
    ///
    /// # Panics
    /// Where it can't make its state.
    #[must_use]
    pub fn start(host: &'a Host, name: &str, options: &[&str], arguments: &[&str]) -> Self {
        Self::start_as(name, host, name, options, arguments)
    }

    /// The same in a sandbox of another name.
    ///
    /// # Panics
    /// As [`Victim::start`].
    #[must_use]
    pub fn start_as(sandbox: &str, host: &'a Host, name: &str, options: &[&str], arguments: &[&str]) -> Self {
        let folder = host.path(&format!("stage-{name}"));
        std::fs::create_dir_all(&folder).expect("the victim's folder");
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("for victims that are other users");
        let (program, place) = (host.program(name), folder.display().to_string());
        let sabotage = arguments.contains(&"--sabotage");
        let arguments: Vec<&str> = arguments.iter().copied().filter(|a| *a != "--sabotage").collect();
        let mut line = vec!["run", "-d", "--name", sandbox];
        line.extend(options);
        line.extend(["--", program.to_str().expect("a plain path")]);
        line.extend(sabotage.then_some("--sabotage"));
        line.push(&place);
        line.extend(arguments);
        host.done(&line);
        let victim = Self {
            host,
            folder,
            sandbox: sandbox.to_owned(),
            round: 0,
        };
        victim.wait_for("ready");
        victim
    }

    /// Lets it check itself; what it says.
    ///
    /// # Panics
    /// Where it says nothing.
    #[must_use]
    pub fn verdict(&mut self) -> String {
        self.round += 1;
        std::fs::write(self.folder.join(format!("check.{}", self.round)), "").expect("ask the victim");
        self.wait_for(&format!("result.{}", self.round))
    }

    /// Lets it check itself.
    ///
    /// # Panics
    /// Where it finds something.
    pub fn check(&mut self, when: &str) {
        let verdict = self.verdict();
        assert_eq!(verdict, "ok", "{} {when}", self.sandbox);
    }

    /// Lets it check itself, on whichever host it is now.
    ///
    /// # Panics
    /// Where it finds something.
    pub fn check_anywhere(&mut self, when: &str) {
        self.ask_later()();
        self.expect_answers(when);
    }

    /// Has somebody else ask it to check itself, before the checks that it is asked for from now on.
    pub fn ask_later(&mut self) -> impl Fn() + Send + use<> {
        self.round += 1;
        let question = self.folder.join(format!("check.{}", self.round));
        move || std::fs::write(&question, "").expect("ask the victim")
    }

    /// Waits for the answers to all that it was asked, wherever it is.
    ///
    /// # Panics
    /// Where it finds something.
    pub fn expect_answers(&self, when: &str) {
        for round in 1..=self.round {
            let answer = self.folder.join(format!("result.{round}"));
            until("the victim's answer", || answer.exists());
            let verdict = std::fs::read_to_string(answer).expect("an answer");
            assert_eq!(verdict, "ok", "{} {when}", self.sandbox);
        }
    }

    /// Checkpoints it and restores it under the name `into`; what the kernel tells of its tasks must be the same then.
    ///
    /// # Panics
    /// Where either fails, or something differs.
    pub fn round_trip(&mut self, into: &str, method: &str) {
        let before = Portrait::take(self.host, &self.sandbox);
        self.round_trip_unseen(into, method);
        let after = before.take_again(self.host, into);
        before.expect_same(&after, &format!("{into} after a restore by {method}"));
    }

    /// Checkpoints it and restores it under the name `into`, where a look at its tasks, which stops them for a moment,
    /// would be in the way.
    ///
    /// # Panics
    /// Where either fails.
    pub fn round_trip_unseen(&mut self, into: &str, method: &str) {
        let image = self.host.path("image.floe");
        let image = image.to_str().expect("a plain path");
        self.host.done(&["checkpoint", &self.sandbox, "-o", image]);
        self.host
            .done(&["restore", "-d", "--name", into, "--pid-method", method, image]);
        into.clone_into(&mut self.sandbox);
    }

    fn wait_for(&self, file: &str) -> String {
        let (path, failed) = (self.folder.join(file), self.folder.join("result.0"));
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(&path) {
                return text;
            }
            if let Ok(text) = std::fs::read_to_string(&failed) {
                panic!("{} could not make its state: {text}", self.sandbox);
            }
            let alive = self.host.sandboxes().contains(&self.sandbox);
            assert!(
                alive && Instant::now() < end,
                "{} says nothing: {}",
                self.sandbox,
                self.trouble()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn trouble(&self) -> String {
        let ps = self.host.floe(&["ps", &self.sandbox]);
        let logs = self.host.floe(&["logs", &self.sandbox]);
        format!("{}{}{}{}", ps.out, ps.err, logs.out, logs.err)
    }
}
