//! A real program in a sandbox, in a folder of its own.

use crate::{Host, PID_METHODS, until};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Such a program.
#[derive(Debug)]
pub struct Program<'a> {
    host: &'a Host,
    /// Its sandbox.
    pub name: String,
    /// Its working directory.
    pub folder: PathBuf,
    /// Where its image goes.
    pub image: String,
}

impl<'a> Program<'a> {
    /// Starts one.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn start(host: &'a Host, base: &str, command: &[&str]) -> Self {
        Self::start_with(host, base, &[], command)
    }

    /// Starts one, with options for `floe run`.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn start_with(host: &'a Host, base: &str, options: &[&str], command: &[&str]) -> Self {
        let (name, folder) = (host.name(base), host.path(base));
        fs::create_dir_all(&folder).expect("a folder");
        let place = folder.display().to_string();
        let line = [&["run", "-d", "--name", &name, "-w", &place], options, &["--"], command];
        host.done(&line.concat());
        let image = host.path(&format!("{base}.floe")).display().to_string();
        Self {
            host,
            name,
            folder,
            image,
        }
    }

    /// So many round trips, each a while after the last, at moments that differ from round to round.
    ///
    /// # Panics
    /// Where one fails.
    pub fn round_trips(&self, rounds: usize) {
        self.round_trips_with(rounds, &[]);
    }

    /// The same, with options for `floe checkpoint`.
    ///
    /// # Panics
    /// Where one fails.
    pub fn round_trips_with(&self, rounds: usize, options: &[&str]) {
        for (round, method) in PID_METHODS.iter().cycle().take(rounds).enumerate() {
            // No race is waited for: these are the moments at which it is frozen, and any will do.
            std::thread::sleep(Duration::from_millis(40 + 37 * round as u64));
            let line = ["checkpoint", &self.name, "-o", &self.image];
            self.host.done(&[&line[..], options].concat());
            self.host.done(&["restore", "-d", "--pid-method", method, &self.image]);
        }
    }

    /// So many round trips of a program that is at times in a state that is refused, each of whose findings holds one of
    /// these texts: then floe says so, and the program runs on.
    ///
    /// # Panics
    /// Where something else is refused, or a restore fails.
    pub fn round_trips_between(&self, rounds: usize, passing: &[&str]) {
        let mut trips = 0;
        crate::until("round trips", || {
            let saved = self.host.floe(&["checkpoint", &self.name, "-o", &self.image]);
            if saved.status == 0 {
                self.host.done(&["restore", "-d", &self.image]);
                trips += 1;
            } else {
                let findings: Vec<&str> = saved.err.lines().filter(|line| line.starts_with("  - ")).collect();
                let known = |line: &&str| passing.iter().any(|text| line.contains(text));
                assert!(!findings.is_empty() && findings.iter().all(known), "{}", saved.err);
            }
            trips == rounds
        });
    }

    /// What it printed, when it has ended with status 0.
    ///
    /// # Panics
    /// Where it ends in another way.
    #[must_use]
    pub fn result(&self) -> String {
        let status = self.host.done(&["wait", &self.name]);
        let log = self.host.done(&["logs", &self.name]);
        assert_eq!(status, "0\n", "{}: {log}", self.name);
        log
    }

    /// A file of its folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Waits until it has made a file.
    ///
    /// # Panics
    /// Where it does not.
    pub fn await_file(&self, name: &str) {
        until(name, || self.file(name).exists());
    }

    /// Lets it come to its end.
    ///
    /// # Panics
    /// Where it can't be told.
    pub fn finish(&self) {
        fs::write(self.file("stop"), "").expect("tell it to end");
    }
}

/// Whether a program is installed; where it is not, says that something is skipped.
#[must_use]
pub fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()));
    if !found {
        crate::skip(&format!("{program} is not installed"));
    }
    found
}

/// The source of a program of `tests/programs`.
#[must_use]
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs").join(name)
}
