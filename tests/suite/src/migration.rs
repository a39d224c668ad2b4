//! Two hosts between which sandboxes move, and a way between them that breaks, or ends somebody, at a chosen frame.

use crate::{Host, Outcome, run, signal, spawn, until};
use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// A folder of `here` with a program `ssh`, as a PATH that begins with it: it runs at `there` what ssh would with these arguments, and
/// fails with others.
///
/// # Panics
/// Where it can't be written.
#[must_use]
pub fn pretend_ssh(here: &Host, there: &Host, arguments: &str) -> String {
    let programs = here.folder("programs");
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\ncase \"$*\" in '{arguments} '*) ;; *) exit 7 ;; esac\n\
         PATH={}:$PATH FLOE_STATE_DIR={} exec sh -c \"$last\"\n",
        here.program("floe").parent().expect("a folder").display(),
        there.path("state").display()
    );
    let ssh = programs.join("ssh");
    fs::write(&ssh, script).expect("write");
    fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a program");
    format!("{}:{}", programs.display(), std::env::var("PATH").expect("a path"))
}

/// A `floe receive` of a host. Dropped, it is ended.
#[derive(Debug)]
pub struct Receiver<'a> {
    host: &'a Host,
    child: Child,
    address: String,
}

impl<'a> Receiver<'a> {
    /// One at a socket of the host.
    ///
    /// # Panics
    /// Where it does not come up.
    #[must_use]
    pub fn start(host: &'a Host) -> Self {
        Self::start_with(
            host,
            &format!("unix:{}", host.path("receive.sock").display()),
            &[],
            |_| {},
        )
    }

    /// One at another address, with options, whose command somebody changes.
    ///
    /// # Panics
    /// Where it does not come up.
    #[must_use]
    pub fn start_with(
        host: &'a Host,
        address: &str,
        options: &[&str],
        change: impl FnOnce(&mut std::process::Command),
    ) -> Self {
        let mut command = host.command(&[&["receive", "--listen", address], options].concat());
        change(&mut command);
        let mut child = spawn(&mut command);
        // It tells where it is on standard error, which is read on so that it never waits for it.
        let mut reader = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).expect("a line");
        let told = line.trim().strip_prefix("receiving at ");
        let address = told.unwrap_or_else(|| panic!("floe receive: {line}")).to_owned();
        thread::spawn(move || drop(std::io::copy(&mut reader, &mut std::io::sink())));
        Self { host, child, address }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Starts it anew at the same place, if it has ended.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn restart(&mut self) {
        if self.child.try_wait().expect("wait for floe").is_some() {
            *self = Self::start(self.host);
        }
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), libc::SIGTERM);
            // It stays for a sandbox that lacks memory, which nobody brings any more where a test has failed.
            let end = Instant::now() + Duration::from_secs(20);
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > end {
                    kill_all(&children(self.pid()));
                    kill_all(&[self.pid()]);
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// At which frame something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The type of a message, or `data`, or `piece` of one that comes by several connections.
    pub frame: &'static str,
    /// The how many-th of these, from 1 on.
    pub number: usize,
    /// Whether it still comes through.
    pub passes: bool,
}

type Act = Box<dyn Fn() + Send>;

/// A way to another address, at which one thing happens once.
#[derive(Debug)]
pub struct Way {
    path: PathBuf,
}

struct Armed {
    point: Point,
    seen: usize,
    act: Option<Act>,
    cuts: bool,
}

impl Way {
    /// One from the socket `path` to that at `to`; `act` happens at `point`, and then the connection is cut. Later ones come
    /// through.
    ///
    /// # Panics
    /// Without a socket.
    #[must_use]
    pub fn make(path: PathBuf, to: &Path, point: Point, act: Act) -> Self {
        Self::arm(path, to, (point, act, true))
    }

    /// One that stays whole: `act` happens at `point`, before that frame comes through.
    ///
    /// # Panics
    /// Without a socket.
    #[must_use]
    pub fn watch(path: PathBuf, to: &Path, point: Point, act: Act) -> Self {
        Self::arm(path, to, (point, act, false))
    }

    fn arm(path: PathBuf, to: &Path, (point, act, cuts): (Point, Act, bool)) -> Self {
        let listener = UnixListener::bind(&path).expect("a socket");
        let to = to.to_owned();
        let armed = Arc::new(Mutex::new(Armed {
            point,
            seen: 0,
            act: Some(act),
            cuts,
        }));
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                // Nobody may be there; then whoever called finds the connection closed.
                let Ok(far) = UnixStream::connect(&to) else { continue };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let (from, into) = (from.try_clone().expect("a copy"), into.try_clone().expect("a copy"));
                    let armed = Arc::clone(&armed);
                    thread::spawn(move || carry(from, into, &armed));
                }
            }
        });
        Self { path }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Carries frames until one side ends.
fn carry(mut from: UnixStream, mut into: UnixStream, armed: &Mutex<Armed>) {
    let mut next = || -> std::io::Result<bool> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        let name = match head[0] {
            b'm' => serde_json::from_slice::<serde_json::Value>(&body).expect("a message")["type"]
                .as_str()
                .expect("its type")
                .to_owned(),
            b'd' => "data".to_owned(),
            b'p' => "piece".to_owned(),
            _ => String::new(),
        };
        let (point, act, cuts) = {
            let mut armed = armed.lock().expect("nobody panicked");
            armed.seen += usize::from(armed.point.frame == name);
            let is_it = armed.point.frame == name && armed.seen == armed.point.number;
            let act = if is_it { armed.act.take() } else { None };
            (armed.point, act, armed.cuts)
        };
        if let (Some(act), false) = (&act, cuts) {
            act();
        }
        if act.is_none() || point.passes {
            into.write_all(&[&head[..], &body].concat())?;
        }
        if let (Some(act), true) = (act, cuts) {
            act();
            return Ok(false);
        }
        Ok(true)
    };
    while next().unwrap_or(false) {}
    for end in [&from, &into] {
        // It may be closed already.
        drop(end.shutdown(Shutdown::Both));
    }
}

/// Children of a process.
#[must_use]
pub fn children(process: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The monitor of a sandbox in a state directory.
///
/// # Panics
/// Without one.
#[must_use]
pub fn monitor(state_dir: &Path, name: &str) -> i32 {
    let text = fs::read_to_string(state_dir.join(name).join("state.json")).expect("its state");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    state["monitor"].as_i64().expect("its monitor") as i32
}

/// Sends SIGKILL to processes that may have ended.
pub fn kill_all(processes: &[i32]) {
    for process in processes {
        // SAFETY: plain numbers; the processes are children of the test's own, or of theirs.
        unsafe { libc::kill(*process, libc::SIGKILL) };
    }
}

/// One copy of a sandbox runs, and nothing is left of another, or of the way there.
///
/// # Panics
/// Where it is otherwise.
pub fn expect_one(hosts: [&Host; 2], name: &str, when: &str) -> usize {
    let states = || hosts.map(|host| host.state(name));
    until(&format!("{when}: one copy that runs"), || {
        let mut states = states();
        states.sort();
        states == ["none", "running"]
    });
    for host in hosts {
        let left = host.path("state").join(".migrations");
        let names = fs::read_dir(&left)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        // The process of a connection that broke may be about to notice what became of it; nothing else may be there.
        let may_go = names.iter().all(|name| name.ends_with(".rest"));
        assert!(may_go, "{when}: a record is left in {}: {names:?}", left.display());
        until(&format!("{when}: nothing is left in {}", left.display()), || {
            !left.exists()
        });
    }
    usize::from(states()[1] == "running")
}

/// A host's keys: where they are, and their fingerprint.
///
/// # Panics
/// Without any.
#[must_use]
pub fn keys(host: &Host) -> (String, String) {
    let folder = host.path("keys").display().to_string();
    let fingerprint = host.done(&["keys", "--keys", &folder]).trim().to_owned();
    assert!(fingerprint.starts_with("sha256:"), "{fingerprint}");
    (folder, fingerprint)
}

/// Has two hosts trust each other's keys; the folders.
///
/// # Panics
/// Where one does not.
#[must_use]
pub fn pin_each_other(hosts: [&Host; 2]) -> [String; 2] {
    let all = hosts.map(keys);
    for (host, (own, other)) in hosts.into_iter().zip([(&all[0], &all[1]), (&all[1], &all[0])]) {
        host.done(&["keys", "--keys", &own.0, "pin", "other", &other.1]);
    }
    all.map(|(folder, _)| folder)
}

/// Settles what is left at a host.
#[must_use]
pub fn settle(host: &Host) -> Outcome {
    run(&mut host.command(&["migrate", "--settle"]))
}
