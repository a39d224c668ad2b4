//! Namespaces, and what is mounted in them.

use super::{
    ALL, Finding, MAKING, NONE, Probe, RESTORING, TREES,
    attempt::{Caller, words},
};
use floe_sys::{capability, fork, namespace::Kind};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::wait::{WaitStatus, waitpid},
    unistd::{Uid, User},
};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "namespaces",
        used_for: "sandboxes",
        advice: "run floe as root, or allow user namespaces to ordinary users (below)",
        used_by: MAKING,
        needed_by: MAKING,
        ask: kinds,
    },
    Probe {
        name: "time namespaces",
        used_for: "clocks that go on from where they stood",
        advice: "a kernel with CONFIG_TIME_NS",
        used_by: RESTORING,
        needed_by: RESTORING,
        ask: time,
    },
    Probe {
        name: "private /proc",
        used_for: "sandboxes that see their own processes alone",
        advice: "in a container: one whose /proc has nothing mounted over it (docker run --security-opt systempaths=unconfined)",
        used_by: MAKING,
        needed_by: MAKING,
        ask: proc,
    },
    Probe {
        name: "private terminals",
        used_for: "run -t, and trees that have a terminal",
        advice: "a kernel with CONFIG_UNIX98_PTYS; a /dev/pts",
        used_by: MAKING,
        needed_by: NONE,
        ask: terminals,
    },
    Probe {
        name: "nested PID namespaces",
        used_for: "sandboxes in sandboxes, unshare -p inside",
        advice: "fewer levels above this one: the kernel has 32 in all; user.max_pid_namespaces",
        used_by: ALL,
        needed_by: NONE,
        ask: depth,
    },
    Probe {
        name: "user namespaces",
        used_for: "ordinary users: all of floe, in a user namespace of their own",
        advice: "sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1, \
                 kernel.apparmor_restrict_unprivileged_userns=0, where there are such",
        used_by: ALL,
        needed_by: NONE,
        ask: users,
    },
    Probe {
        name: "newuidmap",
        used_for: "ordinary users: more than one user and group in a sandbox (--map-auto)",
        advice: "install uidmap, and give the user a line in /etc/subuid and /etc/subgid (usermod --add-subuids)",
        used_by: ALL,
        needed_by: NONE,
        ask: subordinate,
    },
    Probe {
        name: "overlayfs",
        used_for: "trees whose files lie on it, as those of containers do",
        advice: "a kernel with CONFIG_OVERLAY_FS",
        used_by: TREES,
        needed_by: NONE,
        ask: overlay,
    },
];

fn kinds(caller: &Caller) -> Finding {
    let (mut there, mut lacking) = (Vec::new(), Vec::new());
    let mut needed = false;
    let asked = Kind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, Kind::User | Kind::Time));
    for kind in asked {
        match caller.attempt(kind.flag(), || Ok(0)) {
            Ok(_) => there.push(kind.name()),
            Err(error) => {
                needed |= kind != Kind::Network;
                lacking.push(format!("{kind}: {}", words(&error)));
            }
        }
    }
    let found = format!("{}{}", there.join(" "), caller.place());
    match (lacking.is_empty(), needed) {
        (true, _) => Finding::Yes(found),
        (false, false) => Finding::Partly(format!("{found}; {}", lacking.join("; "))),
        (false, true) => Finding::No(lacking.join("; ")),
    }
}

/// Says yes with where it was done.
fn done<T>(caller: &Caller, result: io::Result<T>, yes: impl FnOnce(T) -> String) -> Finding {
    match result {
        Ok(value) => Finding::Yes(format!("{}{}", yes(value), caller.place())),
        Err(error) => Finding::No(words(&error)),
    }
}

fn time(caller: &Caller) -> Finding {
    let result = caller.attempt(Kind::Time.flag(), || Ok(0));
    done(caller, result, |_| "one was made".to_owned())
}

const NOTHING: Option<&str> = None;

/// Mounts that the calling process makes from now on are its namespace's alone.
fn seclude() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(mount(NOTHING, "/", NOTHING, flags, NOTHING)?)
}

fn proc(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNS | libc::CLONE_NEWPID, || {
        seclude()?;
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), quiet, NOTHING)?;
        fs::read_link("/proc/self").map(|own| own.display().to_string())
    });
    done(caller, result, |_| "one was mounted".to_owned())
}

fn terminals(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNS, || {
        seclude()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let options = Some("newinstance,ptmxmode=0666");
        mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, options)?;
        File::options().read(true).write(true).open("/dev/pts/ptmx").map(|_| 0)
    });
    done(caller, result, |_| "one was opened".to_owned())
}

fn overlay(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWNS, || {
        seclude()?;
        // There is nobody in this mount namespace to miss it, and it is there everywhere.
        let place = Path::new("/proc");
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), NOTHING)?;
        for name in ["lower", "upper", "work", "all"] {
            fs::create_dir(place.join(name))?;
        }
        let options = "lowerdir=/proc/lower,upperdir=/proc/upper,workdir=/proc/work";
        let target = place.join("all");
        mount(
            Some("overlay"),
            &target,
            Some("overlay"),
            MsFlags::empty(),
            Some(options),
        )?;
        fs::write(target.join("file"), "text").map(|()| 0)
    });
    done(caller, result, |_| "one was mounted".to_owned())
}

/// The kernel's MAX_PID_NS_LEVEL, and some.
const DEEPEST: i32 = 40;

fn depth(caller: &Caller) -> Finding {
    let result = caller.attempt(libc::CLONE_NEWPID, || Ok(dive(1)));
    done(caller, result, |levels: i32| {
        format!("{levels} more levels below this one")
    })
}

/// How many levels there are from the caller's, which is this many below where it began, to the last that can be made.
fn dive(level: i32) -> i32 {
    if level >= DEEPEST {
        return level;
    }
    let Ok(child) = fork::child_in(libc::CLONE_NEWPID as u64, None, || dive(level + 1)) else {
        return level;
    };
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, reached)) => return reached,
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return level,
        }
    }
}

fn users(caller: &Caller) -> Finding {
    // The number is nobody's in particular: no files and no processes.
    const NOBODY: u32 = 65_534;
    // In a user namespace there may be no second user.
    let is_root = caller.user == 0 && caller.is_of_host;
    let (user, group) = if is_root {
        (NOBODY, NOBODY)
    } else {
        (caller.user, caller.group)
    };
    let ordinary = Caller {
        user,
        group,
        capabilities: 0,
        is_of_host: caller.is_of_host,
    };
    let result = caller.attempt(0, || {
        if is_root {
            capability::become_powerless(user, group)?;
            // Who changes users loses the right to their own files in /proc, where the namespace's users are written.
            nix::sys::prctl::set_dumpable(true)?;
        }
        ordinary.attempt(libc::CLONE_NEWNS | libc::CLONE_NEWPID, || Ok(0))
    });
    match result {
        Ok(_) => Finding::Yes(format!("allowed{}", limits())),
        Err(error) => Finding::No(format!("{}{}", words(&error), limits())),
    }
}

/// What is set against, or limits, namespaces of ordinary users.
fn limits() -> String {
    let number = |path: String| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let mut told = Vec::new();
    for (name, bad) in [
        ("unprivileged_userns_clone", 0),
        ("apparmor_restrict_unprivileged_userns", 1),
    ] {
        if number(format!("/proc/sys/kernel/{name}")) == Some(bad) {
            told.push(format!("kernel.{name} is {bad}"));
        }
    }
    for kind in Kind::ALL {
        let name = format!("max_{kind}_namespaces");
        match number(format!("/proc/sys/user/{name}")) {
            Some(limit) if limit == 0 || kind == Kind::User => told.push(format!("user.{name} is {limit}")),
            _ => {}
        }
    }
    if told.is_empty() {
        String::new()
    } else {
        format!("; {}", told.join(", "))
    }
}

fn subordinate(caller: &Caller) -> Finding {
    let there = |program: &str| {
        let folders = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"];
        folders.iter().any(|folder| Path::new(folder).join(program).exists())
    };
    let missing: Vec<&str> = ["newuidmap", "newgidmap"]
        .into_iter()
        .filter(|name| !there(name))
        .collect();
    if !missing.is_empty() {
        return Finding::No(format!("{} not installed", missing.join(", ")));
    }
    if caller.user == 0 {
        return Finding::Yes("installed; root does not need it".to_owned());
    }
    let name = User::from_uid(Uid::from_raw(caller.user))
        .ok()
        .flatten()
        .map(|user| user.name);
    let number = caller.user.to_string();
    let has_line = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut owners = text.lines().filter_map(|line| line.split(':').next());
        owners.any(|owner| owner == number || Some(owner) == name.as_deref())
    };
    if has_line("/etc/subuid") && has_line("/etc/subgid") {
        Finding::Yes("installed, and numbers are set aside for you".to_owned())
    } else {
        Finding::Partly("installed, but no numbers are set aside for you".to_owned())
    }
}
