//! The protocol: ready, check.N, result.N, stop; and the parts that child processes play in it.
//!
//! A child publishes `part-NAME.0` when its state is made and `part-NAME.N` for each check; its ancestor that expects
//! the part takes the text over into its own result.

use crate::Findings;
use std::{
    cell::RefCell,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(15);

/// Where a victim performs: its folder, its arguments, the parts played by its children.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    args: Vec<String>,
    sabotage: bool,
    parts: RefCell<Vec<String>>,
}

/// Runs a victim: `build` makes the state and returns the check of it.
pub fn play<C: FnMut(&mut Findings)>(build: impl FnOnce(&Stage) -> C) -> ! {
    let stage = Stage::from_args();
    let built = catch_unwind(AssertUnwindSafe(|| build(&stage)));
    let trouble = match &built {
        Ok(_) => stage.trouble_of_parts(0),
        Err(panic) => vec![format!("panic: {}", message(&**panic))],
    };
    match built {
        Ok(check) if trouble.is_empty() => {
            stage.publish("ready", "");
            stage.serve("result", check)
        }
        _ => {
            stage.publish("result.0", &format!("FAIL: {}", trouble.join("; ")));
            process::exit(1)
        }
    }
}

/// Waits until `holds`, for a minute at most; whether it came to hold.
pub fn wait_until(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

impl Stage {
    fn from_args() -> Self {
        let mut args: Vec<String> = std::env::args().skip(1).collect();
        let sabotage = args.first().is_some_and(|first| first == "--sabotage");
        if sabotage {
            args.remove(0);
        }
        if args.is_empty() {
            eprintln!("usage: victim [--sabotage] DIR [ARG…]");
            process::exit(2);
        }
        let dir = PathBuf::from(args.remove(0));
        Self {
            dir,
            args,
            sabotage,
            parts: RefCell::default(),
        }
    }

    /// The victim's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the victim's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The n-th argument after the folder.
    #[must_use]
    pub fn arg(&self, n: usize) -> Option<&str> {
        self.args.get(n).map(String::as_str)
    }

    /// Forks a child that plays the part `name`, and waits until its state is made. Its host is the calling process.
    pub fn child<C: FnMut(&mut Findings)>(&self, name: &str, build: impl FnOnce(&Self) -> C) -> i32 {
        self.expect(name);
        let pid = fork(|| self.act(name, build));
        self.wait_for_part(name);
        pid
    }

    /// Takes the findings of the part `name`, whoever plays it, into the own result.
    pub fn expect(&self, name: &str) {
        self.parts.borrow_mut().push(name.to_owned());
    }

    /// Waits until the state of the part `name` is made.
    pub fn wait_for_part(&self, name: &str) {
        let path = self.path(&format!("part-{name}.0"));
        assert!(wait_until(|| path.exists()), "part {name} did not get ready");
    }

    /// Plays the part `name` in this process from now on.
    pub fn act<C: FnMut(&mut Findings)>(&self, name: &str, build: impl FnOnce(&Self) -> C) -> ! {
        self.parts.borrow_mut().clear();
        let label = format!("part-{name}");
        match catch_unwind(AssertUnwindSafe(|| build(self))) {
            Ok(check) => {
                self.publish(&format!("{label}.0"), &self.trouble_of_parts(0).join("; "));
                self.serve(&label, check)
            }
            Err(panic) => {
                self.publish(&format!("{label}.0"), &format!("panic: {}", message(&*panic)));
                process::exit(1)
            }
        }
    }

    fn serve<C: FnMut(&mut Findings)>(&self, label: &str, mut check: C) -> ! {
        let stop = self.path("stop");
        for round in 1.. {
            let asked = self.path(&format!("check.{round}"));
            while !exists(&asked) {
                if exists(&stop) {
                    process::exit(0);
                }
                std::thread::sleep(PAUSE);
            }
            let mut findings = Findings::new(self.sabotage);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&mut findings))) {
                findings.add(format!("panic: {}", message(&*panic)));
            }
            for trouble in self.trouble_of_parts(round) {
                findings.add(trouble);
            }
            self.publish(&format!("{label}.{round}"), &findings.verdict());
        }
        unreachable!("rounds do not end")
    }

    fn trouble_of_parts(&self, round: u64) -> Vec<String> {
        let mut trouble = Vec::new();
        for part in self.parts.borrow().iter() {
            let path = self.path(&format!("part-{part}.{round}"));
            wait_until(|| exists(&path));
            match fs::read_to_string(&path) {
                Ok(text) if text.is_empty() || text == "ok" => {}
                Ok(text) => trouble.push(format!("{part}: {}", text.trim_start_matches("FAIL: "))),
                Err(error) => trouble.push(format!("{part} says nothing ({error})")),
            }
        }
        trouble
    }

    fn publish(&self, name: &str, text: &str) {
        let beside = self.path(&format!(".{name}.{}", process::id()));
        fs::write(&beside, text).unwrap_or_else(|error| panic!("write {}: {error}", beside.display()));
        fs::rename(&beside, self.path(name)).expect("rename within the victim's folder");
    }
}

/// Forks; the child runs `child` and never returns.
pub fn fork<N>(child: impl FnOnce() -> N) -> i32 {
    // SAFETY: victims fork before they make threads, so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let ended = catch_unwind(AssertUnwindSafe(child));
            // SAFETY: leaves without running the parent's exit handlers.
            unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
        }
        pid => pid,
    }
}

/// Like [`fork`], but the child is PID 1 of a PID namespace below the caller's.
pub fn first<N>(child: impl FnOnce() -> N) -> i32 {
    // SAFETY: as for fork; without a stack of its own the child goes on with a copy of the caller's.
    match unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => panic!("clone: {}", std::io::Error::last_os_error()),
        0 => {
            let ended = catch_unwind(AssertUnwindSafe(child));
            // SAFETY: leaves without running the parent's exit handlers.
            unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
        }
        pid => pid as i32,
    }
}

fn exists(path: &Path) -> bool {
    // Not access(2), which asks for the real uid.
    fs::symlink_metadata(path).is_ok()
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        panic.downcast_ref::<&str>().copied().unwrap_or("no message")
    }
}
