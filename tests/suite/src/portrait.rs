//! What the kernel tells of every task of a sandbox, read from outside while it is frozen: before a checkpoint and after a
//! restore it must be the same.
//!
//! Tasks are named by their ids inside. What may differ is not taken into a portrait, or made alike:
//!
//! | what | why |
//! | --- | --- |
//! | ids of the host, inode numbers, mount ids, numbers of pipes and pseudo-terminals | they are the kernel's; which descriptors lead to the same pipe is compared |
//! | start time, CPU time, faults, switches, sizes of memory, delays, what a task waits for | they begin anew, or change by themselves |
//! | running, sleeping, waiting | a task may be in any of these at any time |
//! | whether a task was forked and has not executed a program since; whether it used privileges; whether it dumped core | flags of the kernel's own, of which only setpgid(2) asks for one (docs/unsupported.md) |
//! | names of deleted files, and how they were opened (O_TMPFILE, O_NOFOLLOW) | they get another name, and are opened by it |
//! | offsets in memory of hugetlbfs | each part of an anonymous mapping that was cut is mapped anew, from its own beginning |
//! | neighbours in maps that are alike | the kernel joins them or not, as they came to be |
//! | whether anonymous memory that can't be written is accounted for (`ac`) | if it never held anything, mprotect(2) ends that |
//! | soft-dirty marks (`sd`), pages that are shared with others (`sh` of anonymous memory) | what the kernel notes of accesses |
//! | cgroup, and its name in paths of its files | each sandbox has its own |
//! | signals of timers, whether they are pending | timers go off between the looks |
//! | what a thread that has ended blocked, and how it was scheduled | it is of no use to anybody |
//! | the position of a file of /dev/net/tun | it has none; the kernel notes there how much was read last |
//! | queued signals (SigQ) | counted for the user on the whole host |

use crate::Host;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// What is told, by task and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portrait(BTreeMap<String, String>);

/// How often is looked again, at most, where a thread may not have come back into its call.
const AGAIN: usize = 50;

/// Files of a process that are compared byte by byte.
const FILES: [&str; 9] = [
    "limits",
    "auxv",
    "cmdline",
    "environ",
    "oom_score_adj",
    "coredump_filter",
    "personality",
    "uid_map",
    "gid_map",
];
/// Files of a thread that are.
const THREAD_FILES: [&str; 3] = ["comm", "timerslack_ns", "cpuset"];
/// Lines about a descriptor.
const TOLD: &[&str] = &["pos:", "flags:", "lock:"];
const TOLD_WITHOUT_POSITION: &[&str] = &["flags:", "lock:", "iff:"];
/// A file without positions, of which the kernel notes how much was read last.
const COUNTS: &str = "/dev/net/tun";
const DELETED: &str = "(deleted)";
const LINKS: [&str; 3] = ["exe", "cwd", "root"];
/// Lines of a thread's status that are compared as they stand.
const STATUS: [&str; 24] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "Kthread",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "Mems_allowed",
    "THP_enabled",
    "VmLck",
];
/// Fields of a thread's stat, by their numbers in proc_pid_stat(5).
const STAT: [(usize, &str); 18] = [
    (18, "priority"),
    (19, "nice"),
    (20, "num_threads"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (32, "blocked"),
    (33, "sigignore"),
    (34, "sigcatch"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
];
/// PF_WQ_WORKER and its like never show; PF_FORKNOEXEC, PF_SUPERPRIV, PF_DUMPCORE, PF_SIGNALED, PF_USED_MATH and what the
/// kernel sets for a moment are left out. PF_RANDOMIZE and PF_NO_SETAFFINITY stay.
const FLAGS: u64 = 0x0040_0000 | 0x0400_0000;
/// How the kind of a mapping of hugetlbfs ends.
const HUGE: &str = " ht)";
/// VmFlags that are left out.
const VOLATILE: [&str; 1] = ["sd"];

impl Portrait {
    /// Freezes a sandbox, looks at it, and lets it run on.
    ///
    /// # Panics
    /// Where it can't be frozen or read.
    #[must_use]
    pub fn take(host: &Host, sandbox: &str) -> Self {
        host.done(&["freeze", sandbox]);
        let portrait = Self::of_frozen(host, sandbox);
        host.done(&["thaw", sandbox]);
        portrait
    }

    fn of_frozen(host: &Host, sandbox: &str) -> Self {
        let tasks = crate::json(&host.done(&["ps", "--json", sandbox]));
        let ids = |task: &Value| {
            let ids = task["nspid"].as_array().expect("a list");
            let number = |id: Option<&Value>| id.and_then(Value::as_i64).expect("an id");
            (number(ids.first()), number(ids.last()))
        };
        let inner: HashMap<i64, i64> = tasks.as_array().expect("a list").iter().map(ids).collect();
        let mut told = BTreeMap::new();
        let mut names = Names::default();
        let mut processes: Vec<(i64, i64)> = inner.iter().map(|(host, inside)| (*inside, *host)).collect();
        processes.sort_unstable();
        for (inside, outside) in processes {
            let mut sitter = Sitter {
                folder: format!("/proc/{outside}"),
                name: format!("process {inside}"),
                told: &mut told,
            };
            sitter.process(&mut names);
            sitter.parent(&inner);
            let timers = fs::read_to_string(format!("/proc/{outside}/timers")).unwrap_or_default();
            let from_timers = signals_of_timers(&timers);
            for thread in list(&format!("/proc/{outside}/task")) {
                let folder = format!("/proc/{outside}/task/{thread}");
                let status = fs::read_to_string(format!("{folder}/status")).expect("a thread's status");
                let id = line(&status, "NSpid").and_then(|ids| ids.split_whitespace().last().map(str::to_owned));
                let mut sitter = Sitter {
                    folder,
                    name: format!("process {inside} thread {}", id.expect("NSpid")),
                    told: &mut told,
                };
                sitter.thread(&status, from_timers);
            }
        }
        Self(told)
    }

    /// Looks at a sandbox as [`Portrait::take`] does, when the first threads that had ended here have ended there too: they
    /// end by themselves, as soon as the tree runs.
    ///
    /// # Panics
    /// As there, and where one does not end.
    #[must_use]
    pub fn take_again(&self, host: &Host, sandbox: &str) -> Self {
        let mut now = Self::take(host, sandbox);
        let ended = |portrait: &Self| -> Vec<String> {
            let states = portrait
                .0
                .iter()
                .filter(|(key, state)| key.ends_with(": state") && state.starts_with('Z'));
            states.map(|(key, _)| key.clone()).collect()
        };
        let wanted = ended(self);
        crate::until("threads to end", || {
            let all = wanted.iter().all(|key| ended(&now).contains(key));
            if !all {
                now = Self::take(host, sandbox);
            }
            all
        });
        // A thread that was frozen before it had come back into a call with a mask of its own has its other one.
        for _ in 0..AGAIN {
            if !self.only_blocks_differ(&now) {
                break;
            }
            now = Self::take(host, sandbox);
        }
        now
    }

    /// Whether they differ, and in nothing but what threads block.
    fn only_blocks_differ(&self, now: &Self) -> bool {
        let keys: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let mut differing = keys
            .into_iter()
            .filter(|key| self.0.get(*key) != now.0.get(*key))
            .peekable();
        let is_there = differing.peek().is_some();
        is_there && differing.all(|key| key.ends_with(": SigBlk") || key.ends_with(": blocked"))
    }

    /// Compares with what is told now.
    ///
    /// # Panics
    /// Where something differs: lists it.
    pub fn expect_same(&self, now: &Self, when: &str) {
        let nothing = String::from("(nothing)");
        let keys: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| self.0.get(*key) != now.0.get(*key))
            .map(|key| {
                let (was, is) = (self.0.get(key).unwrap_or(&nothing), now.0.get(key).unwrap_or(&nothing));
                format!("{key}\n{}", difference(was, is))
            })
            .collect();
        assert!(differences.is_empty(), "{when}:\n{}", differences.join("\n"));
    }
}

/// Signals of the timers that /proc/PID/timers lists, and of interval timers, which it does not.
fn signals_of_timers(timers: &str) -> u64 {
    let listed = timers.lines().filter_map(|line| {
        let signal = line.strip_prefix("signal:")?.split_once('/')?.0;
        signal.trim().parse().ok()
    });
    let all = listed.chain([libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF]);
    let set = all.filter(|signal| (1..=64).contains(signal));
    set.fold(0, |set, signal: i32| set | 1 << (signal - 1))
}

/// The list of timers with ids as the tasks themselves know them.
fn with_inner_ids(timers: &str) -> String {
    let inner = |line: &str| {
        let (how, id) = line.strip_prefix("notify:")?.rsplit_once('.')?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let id = self::line(&status, "NSpid")?.split_whitespace().last()?.to_owned();
        Some(format!("notify:{how}.{id}"))
    };
    let lines = timers
        .lines()
        .map(|line| inner(line).unwrap_or_else(|| line.to_owned()));
    lines.collect::<Vec<_>>().join("\n")
}

/// The lines of two texts that the other one lacks.
fn difference(was: &str, is: &str) -> String {
    let lacking = |text: &str, other: &str, sign: char| -> Vec<String> {
        let others: std::collections::HashSet<&str> = other.lines().collect();
        let lines = text.lines().filter(|line| !others.contains(line));
        lines.map(|line| format!("  {sign} {line}")).collect()
    };
    [lacking(was, is, '-'), lacking(is, was, '+')].concat().join("\n")
}

fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    rest.map(str::trim)
}

/// Entries of a folder of /proc that are numbers, lowest first.
fn list(folder: &str) -> Vec<i64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<i64> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Names for things whose own names change: the first pipe that is seen is pipe 1.
#[derive(Debug, Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn of(&mut self, link: &str) -> String {
        let Some((kind, _)) = link.split_once(":[") else {
            return stable(link);
        };
        let next = self.0.len() + 1;
        format!("{kind} {}", self.0.entry(link.to_owned()).or_insert(next))
    }
}

/// A path without what changes: the names of deleted files, the numbers of pseudo-terminals.
fn stable(path: &str) -> String {
    let is_of_network = path.starts_with("/proc/") && path.contains("/net/");
    if let Some(path) = path.strip_suffix(" (deleted)").filter(|_| is_of_network) {
        // Whoever looks for it by its path takes that from who has it open.
        return path.to_owned();
    }
    if path.ends_with(" (deleted)") {
        return DELETED.to_owned();
    }
    // A file about a thread that has ended is one about a process afterwards.
    if let Some((_, thread)) = path.strip_prefix("/proc/").and_then(|rest| rest.split_once("/task/")) {
        return format!("/proc/thread/{thread}");
    }
    // A file of the sandbox's own cgroup is one of the new one's afterwards.
    if let Some((folder, rest)) = path
        .split_once("/floe/")
        .filter(|_| path.starts_with("/sys/fs/cgroup/"))
    {
        let name = rest.split_once('/').map_or("", |(_, name)| name);
        return format!("{folder}/floe/*/{name}");
    }
    path.to_owned()
}

/// A task that is looked at.
struct Sitter<'a> {
    folder: String,
    name: String,
    told: &'a mut BTreeMap<String, String>,
}

impl Sitter<'_> {
    fn tell(&mut self, what: &str, value: impl Into<String>) {
        self.told.insert(format!("{}: {what}", self.name), value.into());
    }

    fn text(&self, file: &str) -> String {
        let bytes = fs::read(format!("{}/{file}", self.folder)).unwrap_or_default();
        bytes
            .iter()
            .copied()
            .flat_map(std::ascii::escape_default)
            .map(char::from)
            .collect::<String>()
            .replace("\\n", "\n")
    }

    fn process(&mut self, names: &mut Names) {
        for file in FILES {
            self.tell(file, self.text(file));
        }
        for link in LINKS {
            let path = fs::read_link(format!("{}/{link}", self.folder)).unwrap_or_default();
            self.tell(link, stable(&path.to_string_lossy()));
        }
        let timers = self.text("timers");
        self.tell("timers", with_inner_ids(&timers));
        self.tell(
            "mappings",
            mappings(&fs::read(format!("{}/smaps", self.folder)).unwrap_or_default()),
        );
        for number in list(&format!("{}/fd", self.folder)) {
            let link = fs::read_link(format!("{}/fd/{number}", self.folder)).unwrap_or_default();
            let info = self.text(&format!("fdinfo/{number}"));
            let told = if link == Path::new(COUNTS) {
                TOLD_WITHOUT_POSITION
            } else {
                TOLD
            };
            let lines = info
                .lines()
                .filter(|line| told.iter().any(|start| line.starts_with(start)));
            let lines: Vec<String> = lines.map(without_numbers_of_a_lock).collect();
            let info: Vec<&str> = lines.iter().map(String::as_str).collect();
            let name = names.of(&link.to_string_lossy());
            let info = if name == DELETED {
                without_way_of_opening(&info)
            } else {
                info.join(" ")
            };
            self.tell(&format!("descriptor {number}"), format!("{name} {info}"));
        }
    }

    fn parent(&mut self, inner: &HashMap<i64, i64>) {
        let status = self.text("status");
        let parent: i64 = line(&status.replace("\\t", "\t"), "PPid")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        self.tell("parent", inner.get(&parent).copied().unwrap_or(0).to_string());
    }

    /// `from_timers` are signals that timers send, bit N-1 for signal N.
    fn thread(&mut self, status: &str, from_timers: u64) {
        let state = line(status, "State").unwrap_or_default();
        if state.starts_with('Z') {
            return self.tell("state", state);
        }
        for file in THREAD_FILES {
            self.tell(file, self.text(file));
        }
        for name in STATUS {
            let told = line(status, name).unwrap_or("(absent)");
            match u64::from_str_radix(told, 16) {
                Ok(set) if ["SigPnd", "ShdPnd"].contains(&name) => {
                    self.tell(name, format!("{:x}", set & !from_timers));
                }
                _ => self.tell(name, told),
            }
        }
        for name in ["NStgid", "NSpid", "NSpgid", "NSsid"] {
            let inside = line(status, name).and_then(|ids| ids.split_whitespace().last());
            self.tell(name, inside.unwrap_or("(absent)"));
        }
        self.tell(
            "state",
            if state.starts_with(['R', 'S', 'D']) {
                "alive"
            } else {
                state
            },
        );
        let stat = fs::read_to_string(Path::new(&self.folder).join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or("(absent)");
        for (number, name) in STAT {
            self.tell(name, field(number));
        }
        self.tell("env_end", field(51));
        let flags: u64 = field(9).parse().unwrap_or(0);
        self.tell("flags", format!("{:x}", flags & FLAGS));
        self.tell("terminal", if field(7) == "0" { "none" } else { "some" });
    }
}

/// Of a lock's line all but its place in the list, who set it, and the file.
fn without_numbers_of_a_lock(line: &str) -> String {
    let plain = line.replace("\\t", " ");
    let words: Vec<&str> = plain.split_whitespace().collect();
    match words[..] {
        ["lock:", _, kind, mode, access, _, _, start, end] => format!("lock: {kind} {mode} {access} {start} {end}"),
        _ => line.to_owned(),
    }
}

/// The lines of fdinfo of a deleted file without O_TMPFILE, O_DIRECTORY (a part of it) and O_NOFOLLOW.
fn without_way_of_opening(lines: &[&str]) -> String {
    let flags = |line: &str| {
        let digits = line.strip_prefix("flags:")?.trim_start_matches("\\t");
        let flags = u32::from_str_radix(digits, 8).ok()?;
        Some(format!(
            "flags: {:o}",
            flags & !(libc::O_TMPFILE | libc::O_NOFOLLOW) as u32
        ))
    };
    let lines = lines
        .iter()
        .map(|line| flags(line).unwrap_or_else(|| (*line).to_owned()));
    lines.collect::<Vec<_>>().join(" ")
}

/// A mapping, or several alike that touch.
struct Part {
    start: u64,
    end: u64,
    offset: u64,
    kind: String,
}

impl Part {
    /// Whether memory that can't be written any more is accounted for whether or not it holds something: not if it is
    /// anonymous.
    fn keeps_account(&self) -> bool {
        self.kind.starts_with("rw") || self.kind.starts_with("-w") || self.kind.contains('/')
    }
}

/// One line for each mapping of smaps: range, protection, offset, name, flags.
fn mappings(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut parts: Vec<Part> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let flags: Vec<&str> = flags
                .split_whitespace()
                .filter(|flag| !VOLATILE.contains(flag))
                .collect();
            if let Some(last) = parts.last_mut() {
                let flags: Vec<&str> = flags
                    .into_iter()
                    .filter(|flag| *flag != "ac" || last.keeps_account())
                    .collect();
                last.kind = format!("{} ({})", last.kind, flags.join(" "));
            }
        } else if !line.starts_with(|letter: char| letter.is_ascii_uppercase()) {
            join(&mut parts);
            parts.extend(part(line));
        }
    }
    join(&mut parts);
    let text = |part: &Part| {
        let offset = if part.kind.ends_with(HUGE) { 0 } else { part.offset };
        format!("{:x}-{:x} {offset:x} {}", part.start, part.end, part.kind)
    };
    parts.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Joins the last two where they touch and are alike.
fn join(parts: &mut Vec<Part>) {
    if let [.., one, other] = &mut parts[..] {
        let follows = one.offset == 0 && other.offset == 0 || one.offset + (one.end - one.start) == other.offset;
        if one.end == other.start && one.kind == other.kind && follows {
            one.end = other.end;
            parts.pop();
        }
    }
}

fn part(line: &str) -> Option<Part> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let protection = words.next()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let path = words.nth(2).unwrap_or("").trim();
    Some(Part {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
        kind: format!("{protection} {}", stable(path)),
    })
}
