//! What PID 1 of a sandbox executes: a seed; or the command, as the user that it is to run as, below as many levels of PID
//! namespaces as were asked for, each with a small init.

use crate::{
    account::Account,
    first::{Failure, Program, mount_proc, report},
    init,
    spec::{Origin, SandboxSpec},
};
use floe_sys::{capability, exec, fork};
use nix::errno::Errno;
use std::{
    ffi::{CString, OsString},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

/// Exit status after an exec that failed: not found, or not executable.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// The same where floe failed.
pub const FLOE_FAILED: i32 = 125;

fn strings(words: &[OsString]) -> Vec<CString> {
    // A word with a NUL in it can't come from a command line.
    words
        .iter()
        .map(|word| CString::new(word.clone().into_vec()).unwrap_or_default())
        .collect()
}

/// Becomes the program; returns an exit status where it does not come to that.
pub fn execute(spec: &SandboxSpec, account: Option<&Account>, program: &Program, monitor: &OwnedFd) -> i32 {
    fork::close_on_exec_from(3);
    match program {
        Program::Seed { executable, keep } => {
            for number in keep {
                floe_sys::descriptor::keep_over_exec(*number);
            }
            let error = match capability::keep_over_exec() {
                Ok(()) => fork::execute_descriptor(executable.as_raw_fd(), &[c"floe-seed".to_owned()], &[]),
                Err(error) => error,
            };
            report(monitor, error, "execute the seed");
            FLOE_FAILED
        }
        Program::Command => {
            let command = Command { spec, account, monitor };
            command.on_level(1)
        }
    }
}

struct Command<'a> {
    spec: &'a SandboxSpec,
    account: Option<&'a Account>,
    monitor: &'a OwnedFd,
}

impl Command<'_> {
    /// The life of PID 1 of a level; the first one is the sandbox's own.
    fn on_level(&self, level: u32) -> i32 {
        let depth = self.spec.pid_depth;
        if level < depth {
            let what = format!(
                "make PID namespace {} of {depth} (the kernel nests 32 at most, with those that floe is in)",
                level + 1
            );
            return self.init(libc::CLONE_NEWPID as u64, &what, || self.on_level(level + 1));
        }
        if depth > 1
            && self.spec.mount == Origin::Own
            && let Err((error, text)) = mount_proc()
        {
            report(self.monitor, error, &text);
            return FLOE_FAILED;
        }
        if self.spec.init {
            self.init(0, "fork the command", || self.execute())
        } else {
            self.execute()
        }
    }

    /// Forks `main` into new namespaces, if any, and becomes the small init that watches over it.
    fn init(&self, namespaces: u64, what: &str, main: impl FnOnce() -> i32) -> i32 {
        let program = match init::program() {
            Ok(program) => program,
            Err(error) => {
                let error = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                report(self.monitor, error, "make the init program");
                return FLOE_FAILED;
            }
        };
        let child = match fork::child_in(namespaces, None, main) {
            Ok(child) => child,
            Err(error) => {
                report(self.monitor, error, what);
                return FLOE_FAILED;
            }
        };
        let number = CString::new(child.to_string()).unwrap_or_default();
        let name = CString::new(init::NAME).unwrap_or_default();
        let error = fork::execute_descriptor(program.as_raw_fd(), &[name, number], &[]);
        report(self.monitor, error, "execute the init program");
        FLOE_FAILED
    }

    fn execute(&self) -> i32 {
        let arguments = strings(&self.spec.command);
        let Some(program) = self.spec.command.first() else {
            return FLOE_FAILED;
        };
        let mut variables = self.spec.processor.environment(&self.spec.env);
        if let Some(account) = self.account {
            if let Err((error, text)) = become_user(account) {
                report(self.monitor, error, &text);
                return FLOE_FAILED;
            }
            // What was asked for counts more.
            let is_set = |name: &str| {
                let set = |variable: &OsString| variable.as_encoded_bytes().starts_with(format!("{name}=").as_bytes());
                self.spec.env.iter().any(set)
            };
            let lacking = account.variables.iter().filter(|(name, _)| !is_set(name));
            variables.extend(lacking.map(|(name, value)| format!("{name}={value}").into()));
        }
        let environment = strings(&variables);
        let path = environment
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let error = exec::search_and_execute(program.as_encoded_bytes(), path, &arguments, &environment);
        report(self.monitor, error, &format!("execute {}", program.to_string_lossy()));
        if error == Errno::ENOENT {
            NOT_FOUND
        } else {
            NOT_EXECUTABLE
        }
    }
}

fn become_user(account: &Account) -> Result<(), Failure> {
    capability::become_member(account.user, account.group, &account.groups)
        .map_err(|error| (error, unknown(account, error)))
}

/// Why one can't become a user.
pub fn unknown(account: &Account, error: Errno) -> String {
    let Account {
        user, group, groups, ..
    } = account;
    match error {
        Errno::EINVAL => {
            format!("become user {user} of group {group} (this user namespace knows other ones; --map-auto gives more)")
        }
        Errno::EPERM if !groups.is_empty() => format!(
            "become user {user} with groups of their own (this user namespace lets none be changed; --map-auto does)"
        ),
        _ => format!("become user {user} of group {group}"),
    }
}
