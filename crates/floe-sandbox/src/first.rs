//! PID 1 of a sandbox, from its birth to its exec.

use crate::{
    account::Account,
    execute::{FLOE_FAILED, execute, unknown},
    link,
    message::{self, kind},
    mounts,
    spec::{Console, Origin, SandboxSpec},
};
use floe_sys::fork;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, sethostname, setsid},
};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
};

/// What PID 1 executes.
#[derive(Debug)]
pub enum Program {
    /// The spec's command.
    Command,
    /// A program in memory, which inherits the descriptors in `keep` under their numbers.
    Seed {
        /// It.
        executable: OwnedFd,
        /// Descriptors.
        keep: Vec<RawFd>,
    },
}

/// The life of PID 1; returns its exit status where it does not come to the exec.
pub fn live(
    spec: &SandboxSpec,
    name: &str,
    program: &Program,
    monitor: &OwnedFd,
    streams: [Option<OwnedFd>; 3],
) -> i32 {
    let account = match prepare(spec, name, monitor, streams) {
        Ok(account) => account,
        Err((error, text)) => {
            report(monitor, error, &text);
            return FLOE_FAILED;
        }
    };
    if !matches!(message::get(monitor), Ok(Some((kind::EXECUTE, _)))) {
        return FLOE_FAILED;
    }
    execute(spec, account.as_ref(), program, monitor)
}

/// Tells the monitor what failed.
pub fn report(monitor: &OwnedFd, error: Errno, text: &str) {
    if let Err(error) = message::put(monitor, kind::FAILED, &message::failure(error, text)) {
        tracing::debug!(%error, "the monitor is gone");
    }
}

/// Why something failed, and what was attempted.
pub type Failure = (Errno, String);

pub fn failed(text: impl Into<String>) -> impl FnOnce(Errno) -> Failure {
    let text = text.into();
    move |error| (error, text)
}

/// Makes it all ready; whom the command is to run as.
fn prepare(
    spec: &SandboxSpec,
    name: &str,
    monitor: &OwnedFd,
    streams: [Option<OwnedFd>; 3],
) -> Result<Option<Account>, Failure> {
    let told = await_message(monitor, kind::PLACED)?;
    setsid().map_err(failed("make a session"))?;
    if spec.cgroup == Origin::Own {
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed("make a cgroup namespace"))?;
    }
    if spec.uts == Origin::Own {
        let host = spec.hostname.as_deref().unwrap_or(name);
        sethostname(host).map_err(failed(format!("set the host name {host}")))?;
        if let Some(domain) = &spec.domainname {
            floe_sys::namespace::set_domain_name(domain.as_bytes())
                .map_err(failed(format!("set the NIS domain name {domain}")))?;
        }
    }
    if spec.net == Origin::Own {
        floe_sys::network::raise_loopback().map_err(failed("raise the loopback device"))?;
    }
    // One that is made again gets its addresses with the rest of its network.
    if spec.link.as_ref().is_some_and(|link| link.address.is_none()) {
        link::raise_inside(&told).map_err(failed("raise the network device eth0"))?;
    }
    if spec.mount == Origin::Own {
        own_mounts(spec)?;
        mounts::make(&spec.mounts)?;
    }
    message::put(monitor, kind::MOUNTED, &[]).map_err(failed("tell the monitor"))?;
    await_message(monitor, kind::CONSOLE)?;
    connect_streams(spec.console, streams)?;
    let account = spec
        .run_as
        .as_ref()
        .map(|wanted| wanted.find(Path::new("/")))
        .transpose();
    let account = account.map_err(|text| (Errno::ENOENT, text))?;
    if let Some(account) = &account {
        give_streams(spec.console, account).map_err(|error| (error, unknown(account, error)))?;
    }
    if let Some(directory) = &spec.workdir {
        chdir(directory.as_os_str()).map_err(failed(format!(
            "enter the working directory {}",
            directory.to_string_lossy()
        )))?;
    }
    fork::default_signals();
    message::put(monitor, kind::READY, &[]).map_err(failed("tell the monitor"))?;
    Ok(account)
}

fn await_message(monitor: &OwnedFd, wanted: u8) -> Result<Vec<u8>, Failure> {
    match message::get(monitor) {
        Ok(Some((got, payload))) if got == wanted => Ok(payload),
        Ok(_) => Err((Errno::EPIPE, "hear from the monitor".to_owned())),
        Err(error) => Err((error, "hear from the monitor".to_owned())),
    }
}

fn own_mounts(spec: &SandboxSpec) -> Result<(), Failure> {
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(failed("make the mounts private"))?;
    // Else it is the command's PID namespace that /proc is to show; but in another root directory this one is below it there, and
    // not the host's: who sees no proc may mount none in a user namespace.
    if spec.pid_depth == 1 || spec.mounts.root.is_some() {
        mount_proc()?;
    }
    if spec.has_devpts() { own_terminals() } else { Ok(()) }
}

/// Mounts a /proc of the calling process's PID namespace.
pub fn mount_proc() -> Result<(), Failure> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none: Option<&str> = None;
    mount(Some("proc"), "/proc", Some("proc"), quiet, none).map_err(failed("mount a private /proc"))
}

/// Mounts terminals of its own (devpts) in the calling thread's mount namespace, as a new sandbox has them.
///
/// # Errors
/// What was attempted, and why it failed.
pub fn own_terminals() -> Result<(), Failure> {
    let none: Option<&str> = None;
    let group = if knows_group(TTY) { ",gid=5" } else { "" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let (kind, options) = (Some("devpts"), Some(options.as_str()));
    mount(kind, "/dev/pts", kind, flags, options).map_err(failed("mount a private devpts"))?;
    mount(Some("/dev/pts/ptmx"), "/dev/ptmx", none, MsFlags::MS_BIND, none).map_err(failed("bind /dev/ptmx"))
}

/// The group that terminals belong to: tty of every Linux.
const TTY: u64 = 5;

/// Whether the user namespace knows a group.
fn knows_group(group: u64) -> bool {
    let known = floe_sys::namespace::known_ids("gid_map");
    known.is_ok_and(|known| known.iter().any(|range| range.contains(&group)))
}

fn connect_streams(console: Console, streams: [Option<OwnedFd>; 3]) -> Result<(), Failure> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    let connect = failed("connect the standard streams");
    let result = (|| {
        let streams: Vec<OwnedFd> = match console {
            Console::Terminal { index, .. } => {
                let path = format!("/dev/pts/{index}");
                let terminal = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
                floe_sys::terminal::control(terminal.as_raw_fd(), libc::TIOCSCTTY, &mut [0; 8])?;
                vec![
                    terminal.try_clone().map_err(|_| Errno::EMFILE)?,
                    terminal.try_clone().map_err(|_| Errno::EMFILE)?,
                    terminal,
                ]
            }
            Console::Pipes { .. } => streams
                .into_iter()
                .map(|stream| {
                    stream.map_or_else(
                        || open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()),
                        Ok,
                    )
                })
                .collect::<Result<_, Errno>>()?,
        };
        dup2_stdin(streams[0].as_fd())?;
        dup2_stdout(streams[1].as_fd())?;
        dup2_stderr(streams[2].as_fd())
    })();
    result.map_err(connect)
}

/// Lets a user open the standard streams by their names again (/dev/stdout), as a login does.
fn give_streams(console: Console, account: &Account) -> Result<(), Errno> {
    let owner = Some(Uid::from_raw(account.user));
    match console {
        Console::Terminal { .. } => return fchown(std::io::stdin(), owner, None),
        Console::Pipes { stdin: true } => fchown(std::io::stdin(), owner, None)?,
        // It is /dev/null, which is everybody's.
        Console::Pipes { stdin: false } => {}
    }
    fchown(std::io::stdout(), owner, None)?;
    fchown(std::io::stderr(), owner, None)
}
