//! How root's floe starts the user's: with nothing of root's but what the work takes.

use anyhow::Context as _;
use floe_sandbox::Owner;
use floe_sys::{Pid, capability, descriptor::keep_over_exec, fork, sched};
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, setrlimit},
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};
use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
};

/// All that the child needs to become that user's floe.
pub struct Start {
    program: File,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    owner: Owner,
    handed: Vec<RawFd>,
    null: File,
}

impl Start {
    pub fn prepare(owner: &Owner, (socket, output, image): (RawFd, Option<&File>, &[File])) -> anyhow::Result<Self> {
        let output = output.map(AsRawFd::as_raw_fd);
        let image: Vec<RawFd> = image.iter().map(AsRawFd::as_raw_fd).collect();
        let text = |numbers: &[RawFd]| numbers.iter().map(RawFd::to_string).collect::<Vec<_>>().join(",");
        let numbers = format!("{socket}:{}:{}", text(output.as_slice()), text(&image));
        let mut own = std::env::args_os().map(OsStringExt::into_vec);
        let mut arguments = vec![
            own.next().unwrap_or_default(),
            b"--handed".to_vec(),
            numbers.into_bytes(),
            b"--handed-at".to_vec(),
            std::env::current_dir()?.into_os_string().into_vec(),
        ];
        arguments.extend(own);
        // Root's other variables are none of the user's business.
        let kept = ["PATH", "FLOE_STATE_DIR", "FLOE_FAIL_AT"];
        let mut environment: Vec<Vec<u8>> = kept
            .iter()
            .filter_map(|name| Some([name.as_bytes(), b"=", &std::env::var_os(name)?.into_vec()].concat()))
            .collect();
        if let Some(runtime) = runtime_of(owner) {
            environment.push(format!("XDG_RUNTIME_DIR={runtime}").into_bytes());
        }
        let strings = |all: Vec<Vec<u8>>| all.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            program: File::open("/proc/self/exe").context("open the program of floe")?,
            arguments: strings(arguments)?,
            environment: strings(environment)?,
            owner: owner.clone(),
            handed: std::iter::once(socket).chain(output).chain(image).collect(),
            null: File::open("/dev/null").context("open /dev/null")?,
        })
    }

    /// Becomes the user and executes floe; returns only if it failed.
    pub fn execute(
        &self,
        front: nix::unistd::Pid,
        (out, err): (&io::PipeWriter, &io::PipeWriter),
        inherited: &[OwnedFd],
    ) -> Errno {
        let attempt = || -> Result<(), Errno> {
            dup2_stdin(&self.null)?;
            dup2_stderr(err)?;
            dup2_stdout(out)?;
            give_up_precedence();
            // Root's terminal is none of the user's business, and its keys neither.
            nix::unistd::setsid()?;
            capability::leave_keyring()?;
            fork::default_signals();
            fork::close_on_exec_from(3);
            self.handed.iter().for_each(|number| keep_over_exec(*number));
            inherited.iter().for_each(|file| keep_over_exec(file.as_raw_fd()));
            let Owner { user, group, groups } = &self.owner;
            capability::become_member(*user, *group, groups)?;
            capability::give_up()?;
            // Where root stands the user may not have come, and files would be found from there.
            nix::unistd::chdir("/")?;
            // A change of user would undo it.
            fork::signal_at_parents_end(Signal::SIGTERM, front)
        };
        match attempt() {
            Ok(()) => fork::execute_descriptor(self.program.as_raw_fd(), &self.arguments, &self.environment),
            Err(error) => error,
        }
    }
}

/// What puts root's processes before others is not for the user's: to run first, to be spared when memory runs out. What the
/// kernel does not let be given up stays.
fn give_up_precedence() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let told = |what: &str, result: Result<(), io::Error>| {
        if let Err(error) = result {
            tracing::debug!(%error, what, "stays as root's");
        }
    };
    told("scheduling", sched::give_up_precedence(Pid::new(0)).map_err(Into::into));
    for resource in [Resource::RLIMIT_NICE, Resource::RLIMIT_RTPRIO] {
        told("a resource limit", setrlimit(resource, 0, 0).map_err(Into::into));
    }
    let score = fs::read_to_string(SCORE).ok();
    let score: Option<i32> = score.and_then(|text| text.trim().parse().ok());
    if score.is_some_and(|score| score < 0) {
        told("the score of memory", fs::write(SCORE, "0"));
    }
    // Others are not to write what the user's floe makes.
    let own = umask(Mode::empty());
    umask(own | Mode::from_bits_retain(0o022));
}

/// Where that user's sandboxes are by default: the directory that a login gives them.
pub fn runtime_of(owner: &Owner) -> Option<String> {
    let path = format!("/run/user/{}", owner.user);
    let found = std::fs::metadata(&path).ok()?;
    (found.is_dir() && found.uid() == owner.user).then_some(path)
}
