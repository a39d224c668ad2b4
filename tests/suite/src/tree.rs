//! A tree that is easy to look at from outside: processes and threads that count, in a file each.

use crate::Host;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What runs in the sandbox: two shells in a pipeline and a program with three threads. The files never get shorter: a tree
/// that is killed anywhere leaves them as long as an image of it wants them.
const SCRIPT: &str = r#"
python3 -c '
import os, threading, time
def count(name):
    n = 0
    while True:
        n += 1
        with open(os.open(name, os.O_WRONLY | os.O_CREAT), "w") as file: file.write("%08d" % n)
        time.sleep(0.01)
for n in range(3): threading.Thread(target=count, args=("thread-%d" % n,)).start()
' &
i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done | while read n; do printf %08d $n 1<>pipeline; done &
wait
"#;

const COUNTERS: [&str; 4] = ["thread-0", "thread-1", "thread-2", "pipeline"];

/// Such a tree, in a sandbox.
#[derive(Debug)]
pub struct Counting<'a> {
    host: &'a Host,
    folder: PathBuf,
    name: String,
}

impl<'a> Counting<'a> {
    /// Starts one as the sandbox `name`, and waits until everything in it counts.
    ///
    /// # Panics
    /// Where it does not.
    #[must_use]
    pub fn start(host: &'a Host, name: &str, options: &[&str]) -> Self {
        let folder = host.folder(&format!("counting-{name}"));
        let place = folder.display().to_string();
        let mut line = vec!["run", "-d", "--name", name, "-w", &place];
        line.extend(options);
        line.extend(["--", "bash", "-c", SCRIPT]);
        host.done(&line);
        let tree = Self {
            host,
            folder,
            name: name.to_owned(),
        };
        tree.expect_alive("at the start");
        tree
    }

    /// The numbers so far.
    #[must_use]
    pub fn numbers(&self) -> [u64; 4] {
        COUNTERS.map(|name| {
            let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        })
    }

    /// Every counter goes on within half a minute.
    ///
    /// # Panics
    /// Where one does not.
    pub fn expect_alive(&self, when: &str) {
        let (before, end) = (self.numbers(), Instant::now() + PATIENCE);
        while !self.numbers().iter().zip(before).all(|(now, before)| *now > before) {
            let ps = self.host.floe(&["ps", &self.name]);
            assert!(
                Instant::now() < end,
                "{when}: counters stand at {:?}, were {before:?}; {}{}",
                self.numbers(),
                ps.out,
                ps.err
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `floe ps --json` tells of the tasks in the sandbox `name`, which holds this tree or a copy of it, but for the
    /// children that its shells fork for a moment.
    ///
    /// # Panics
    /// Where there is no such sandbox.
    #[must_use]
    pub fn lasting(&self, name: &str) -> Vec<serde_json::Value> {
        let printed = self.host.done(&["ps", "--json", name]);
        let mut tasks: Vec<serde_json::Value> = serde_json::from_str(&printed).expect("a list");
        tasks.retain(|task| task["ppid"].as_i64().expect("a number") <= 1);
        tasks
    }
}
