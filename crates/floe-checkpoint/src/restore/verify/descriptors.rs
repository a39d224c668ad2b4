//! Descriptors: which there are, and flags and position of each. Which are closed by exec the task was asked itself, when
//! it got them ([`place_wave`](floe_resources::file::place_wave)). /proc/PID/fdinfo tells all of it, but with it the stage of
//! 1,000 descriptors took 3.8 ms, and 1.1 ms without.

use super::{Differences, Process};
use floe_image::{
    Image,
    record::{DescriptorRecord, DescriptorTableRecord, ProcessRecord},
};
use floe_resources::file::{ConsoleTerminal, FileKind, is_external};
use floe_sys::{
    Pid,
    descriptor::{O_LARGEFILE, pidfd_getfd, pidfd_of_task},
    procfs::{self, ProcError},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    unistd::{Whence, lseek},
};
use std::os::fd::AsFd;

/// Flags that every kind of file puts back as they were.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_ASYNC
    | libc::O_SYNC
    | libc::O_PATH
    | O_LARGEFILE as i32;

/// Those that can be set of a file that is open.
const GIVEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC;

/// From so many on, two threads look at them.
const SHARED: usize = 256;

/// Compares the descriptors of a process.
pub fn compare(
    image: &Image,
    process: &ProcessRecord,
    table: Option<&DescriptorTableRecord>,
    host: Pid,
    differences: &mut Differences,
) -> Result<(), ProcError> {
    let whose = || Process(process.pid);
    let wanted = table.map_or(&[][..], |table| &table.descriptors);
    // Listing them takes longer than all else here, so it is done where their count differs. Each that is wanted is looked
    // at below.
    if procfs::descriptor_count(host)? != wanted.len() as u64 {
        let numbers: Vec<i32> = wanted.iter().map(|descriptor| descriptor.number).collect();
        differences.note(whose(), "list of descriptors", &procfs::descriptors(host)?, &numbers);
    }
    let (others, own) = wanted.split_at(if wanted.len() < SHARED { 0 } else { wanted.len() / 2 });
    let [others, own] = std::thread::scope(|scope| {
        let others = (!others.is_empty()).then(|| scope.spawn(|| compare_each(image, process, others, host)));
        let own = compare_each(image, process, own, host);
        let others = others.map_or(Ok(Ok(Differences::default())), std::thread::ScopedJoinHandle::join);
        [others.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), own]
    });
    differences.append(others?);
    differences.append(own?);
    Ok(())
}

fn compare_each(
    image: &Image,
    process: &ProcessRecord,
    wanted: &[DescriptorRecord],
    host: Pid,
) -> Result<Differences, ProcError> {
    let whose = || Process(process.pid);
    let mut differences = Differences::default();
    let failed = |action: &str, error: Errno| ProcError::Read {
        path: format!("descriptors of process {host}: {action}"),
        source: error.into(),
    };
    let pidfd = pidfd_of_task(host).map_err(|error| failed("open a pidfd", error))?;
    for descriptor in wanted {
        let Some(file) = image.open_files().get(descriptor.file as usize) else {
            continue;
        };
        let own = match pidfd_getfd(pidfd.as_fd(), descriptor.number) {
            Ok(own) => own,
            Err(Errno::EBADF) => {
                differences.add(format!("{:?}: descriptor {} is missing", whose(), descriptor.number));
                continue;
            }
            Err(error) => return Err(failed("fetch one", error)),
        };
        let flags = fcntl(&own, FcntlArg::F_GETFL).map_err(|error| failed("read flags", error))?;
        // One that the user gave is where it is, and was opened as it was.
        let is_given = is_external(file);
        let position = match lseek(&own, 0, Whence::SeekCur) {
            _ if is_given => file.position as i64,
            Ok(position) => position,
            Err(Errno::ESPIPE) => 0,
            // One of O_PATH has none.
            Err(Errno::EBADF) if flags & libc::O_PATH != 0 => 0,
            Err(error) => return Err(failed("read a position", error)),
        };
        let known = match is_given {
            true => GIVEN_FLAGS,
            // The one that was opened by its master (TIOCGPTPEER) has not this one.
            false if file.kind == ConsoleTerminal.name() => FLAGS & !(O_LARGEFILE as i32),
            false => FLAGS,
        };
        // It appends where the given one did, whatever the tree's did.
        let more = if is_given {
            libc::O_APPEND & !(file.flags as i32)
        } else {
            0
        };
        let seen = (position, flags & known & !more);
        let should = (file.position as i64, file.flags as i32 & known);
        if seen != should {
            let what = format!("position and flags of descriptor {} ({})", descriptor.number, file.kind);
            differences.note(whose(), &what, &seen, &should);
        }
    }
    Ok(differences)
}
