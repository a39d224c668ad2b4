//! Compares what was built with the image before the first instruction runs.

use super::{RestoreError, state::mappings_differ};
use floe_image::{
    Image,
    record::{DescriptorTableRecord, PosixTimerRecord, ProcessRecord, ProcessState, ThreadRecord},
};
use floe_sys::{
    Pid,
    descriptor::O_LARGEFILE,
    procfs::{self, FdInfos, PosixTimer, ProcError, Status},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Compares every process: `hosts` are their ids in floe's namespace.
pub fn compare(image: &Image, hosts: &BTreeMap<i32, Pid>) -> Result<(), RestoreError> {
    let mut differences = Vec::new();
    let owners = image.owners(libc::CLONE_FILES as u32);
    for record in image.processes() {
        match hosts.get(&record.pid.0) {
            Some(host) => process(image, record, *host, (hosts, &owners), &mut differences)?,
            None => differences.push(format!("process {} was not made", record.pid)),
        }
    }
    time_namespace(image, hosts, &mut differences)?;
    if differences.is_empty() {
        Ok(())
    } else {
        Err(RestoreError::Differs(differences))
    }
}

fn process(
    image: &Image,
    record: &ProcessRecord,
    host: Pid,
    (hosts, descriptor_owners): (&BTreeMap<i32, Pid>, &HashMap<i32, i32>),
    differences: &mut Vec<String>,
) -> Result<(), RestoreError> {
    let mut note = |what: &str, is: String, should: String| {
        if is != should {
            differences.push(format!("process {}: {what} is {is}, should be {should}", record.pid));
        }
    };
    let status = Status::read(&format!("/proc/{host}"))?;
    let stat = procfs::Stat::of(host)?;
    let last = |ids: &[i32]| ids.last().copied().unwrap_or(0).to_string();
    note("PID", last(&status.ns_pid), record.pid.to_string());
    note("process group", last(&status.ns_pgid), record.pgid.to_string());
    note("session", last(&status.ns_sid), record.sid.to_string());
    let parent = if image.sandbox().has_init || record.ppid.0 != 0 {
        record.ppid.0
    } else {
        1
    };
    if let Some(parent) = hosts.get(&parent) {
        note("parent (host)", stat.ppid.to_string(), parent.to_string());
    }
    if matches!(record.state, ProcessState::Zombie { .. }) {
        note("state", char::from(stat.state).to_string(), "Z".to_owned());
        return Ok(());
    }
    let leader = &record.threads[0];
    note("name", format!("{:?}", stat.comm), format!("{:?}", leader.comm));
    note(
        "threads",
        procfs::threads(host)?.len().to_string(),
        record.threads.len().to_string(),
    );
    if record.leader_ended.is_none() {
        note(
            "blocked signals",
            format!("{:x}", status.blocked),
            format!("{:x}", leader.signal_mask),
        );
    }
    note(
        "users",
        format!("{:?}", status.uids),
        format!("{:?}", leader.credentials.uids),
    );
    note(
        "groups",
        format!("{:?}", status.gids),
        format!("{:?}", leader.credentials.gids),
    );
    let [_, permitted, effective, bounding, _] = status.capabilities;
    let wanted = &leader.credentials;
    let sets = (wanted.permitted, wanted.effective, wanted.bounding);
    note(
        "capabilities",
        format!("{:x?}", (permitted, effective, bounding)),
        format!("{sets:x?}"),
    );
    confinement(record, host, &mut note)?;
    if !record.posix_timers.is_empty() {
        note(
            "POSIX timers",
            format!("{:?}", timers(host)?),
            format!("{:?}", wanted_timers(record)),
        );
    }
    let table = image
        .descriptor_tables()
        .iter()
        .find(|table| Some(&table.pid.0) == descriptor_owners.get(&record.pid.0));
    let numbers = |table: &floe_image::record::DescriptorTableRecord| -> Vec<i32> {
        table.descriptors.iter().map(|descriptor| descriptor.number).collect()
    };
    let wanted = table.map(numbers).unwrap_or_default();
    // Listing them takes longer than all else here, so it is done where their count differs. Each that is wanted is looked
    // at below.
    if procfs::descriptor_count(host)? != wanted.len() as u64 {
        note(
            "descriptors",
            format!("{:?}", procfs::descriptors(host)?),
            format!("{wanted:?}"),
        );
    }
    if let Some(table) = table {
        descriptors(image, table, host, differences)?;
    }
    if let Some(space) = image.address_spaces().iter().find(|space| space.pid == record.pid) {
        for difference in mappings_differ(host, space)? {
            differences.push(format!("process {}: {difference}", record.pid));
        }
    }
    Ok(())
}

/// All living processes are in one, and it is not floe's.
fn time_namespace(
    image: &Image,
    hosts: &BTreeMap<i32, Pid>,
    differences: &mut Vec<String>,
) -> Result<(), RestoreError> {
    let link = |whose: &str| {
        let path = format!("/proc/{whose}/ns/time");
        std::fs::read_link(&path).map_err(|source| ProcError::Read { path, source })
    };
    let zombies = image
        .processes()
        .iter()
        .filter(|p| matches!(p.state, ProcessState::Zombie { .. }));
    let zombies: BTreeSet<i32> = zombies.map(|process| process.pid.0).collect();
    let mut found = BTreeSet::from([link("self")?]);
    for host in hosts
        .iter()
        .filter(|(pid, _)| !zombies.contains(pid))
        .map(|(_, host)| host)
    {
        found.insert(link(&host.to_string())?);
    }
    if found.len() != 2 {
        differences.push(format!(
            "time namespaces of floe and of the tree are {found:?}, should be two"
        ));
    }
    Ok(())
}

/// Id, clock, way of telling, signal, value; and the thread that is told, where it is one alone.
type Timer = (i32, i32, i32, i32, u64, i32);

fn timers(host: Pid) -> Result<Vec<Timer>, ProcError> {
    let look = |timer: PosixTimer| {
        let target = if timer.notify & libc::SIGEV_THREAD_ID == 0 {
            0
        } else {
            let status = Status::read(&format!("/proc/{host}/task/{}", timer.target))?;
            status.ns_pid.last().copied().unwrap_or(0)
        };
        Ok((timer.id, timer.clock, timer.notify, timer.signal, timer.value, target))
    };
    PosixTimer::all(host)?.into_iter().map(look).collect()
}

fn wanted_timers(record: &ProcessRecord) -> Vec<Timer> {
    let look = |t: &PosixTimerRecord| (t.id, t.clock, t.notify, t.signal, t.value, t.target.0);
    record.posix_timers.iter().map(look).collect()
}

/// Compares modes of seccomp and numbers of filters of all threads, where the image knows of any.
fn confinement(
    record: &ProcessRecord,
    host: Pid,
    note: &mut dyn FnMut(&str, String, String),
) -> Result<(), RestoreError> {
    let wanted = |thread: &ThreadRecord| match (thread.seccomp.strict, thread.seccomp.filters.len()) {
        (true, _) => (1, 0),
        (false, 0) => (0, 0),
        (false, filters) => (2, filters as u32),
    };
    let wanted: BTreeMap<i32, (u32, u32)> = (record.threads.iter())
        .map(|thread| (thread.tid.0, wanted(thread)))
        .collect();
    if wanted.values().all(|(mode, _)| *mode == 0) {
        return Ok(());
    }
    let mut seen = BTreeMap::new();
    for tid in procfs::threads(host)? {
        let status = Status::read(&format!("/proc/{host}/task/{tid}"))?;
        let ns_tid = status.ns_pid.last().copied().unwrap_or(0);
        let wished = wanted.get(&ns_tid).map_or(0, |(_, filters)| *filters);
        // Older kernels don't count them.
        seen.insert(ns_tid, (status.seccomp, status.seccomp_filters.unwrap_or(wished)));
    }
    note("seccomp", format!("{seen:?}"), format!("{wanted:?}"));
    Ok(())
}

/// Flags that every kind of file puts back as they were.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_SYNC
    | O_LARGEFILE as i32;

/// Compares flags and positions.
fn descriptors(
    image: &Image,
    table: &DescriptorTableRecord,
    host: Pid,
    differences: &mut Vec<String>,
) -> Result<(), RestoreError> {
    let pid = table.pid;
    let mut infos = FdInfos::open(host)?;
    for descriptor in &table.descriptors {
        let Some(file) = image.open_files().get(descriptor.file as usize) else {
            continue;
        };
        let info = match infos.read(descriptor.number) {
            Ok(info) => info,
            Err(error) if error.is_gone() => {
                differences.push(format!(
                    "descriptor {} of process {} is missing",
                    descriptor.number, pid
                ));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let seen = (
            info.position as i64,
            info.flags as i32 & FLAGS,
            info.flags as i32 & libc::O_CLOEXEC != 0,
        );
        let wanted = (
            file.position as i64,
            file.flags as i32 & FLAGS,
            descriptor.close_on_exec,
        );
        if seen != wanted {
            differences.push(format!(
                "descriptor {} of process {} ({}): position, flags and close-on-exec are {seen:?}, should be {wanted:?}",
                descriptor.number, pid, file.kind
            ));
        }
    }
    Ok(())
}
