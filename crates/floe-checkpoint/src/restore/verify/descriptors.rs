//! Descriptors: which there are, and flags and position of each.

use super::{Differences, Process};
use floe_image::{
    Image,
    record::{DescriptorRecord, DescriptorTableRecord, ProcessRecord},
};
use floe_sys::{
    Pid,
    descriptor::O_LARGEFILE,
    procfs::{self, FdInfos, ProcError},
};

/// Flags that every kind of file puts back as they were.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_SYNC
    | O_LARGEFILE as i32;

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
    let mut infos = FdInfos::open(host)?;
    for descriptor in wanted {
        let Some(file) = image.open_files().get(descriptor.file as usize) else {
            continue;
        };
        let info = match infos.read(descriptor.number) {
            Ok(info) => info,
            Err(error) if error.is_gone() => {
                differences.add(format!("{:?}: descriptor {} is missing", whose(), descriptor.number));
                continue;
            }
            Err(error) => return Err(error),
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
        let what = || {
            let number = descriptor.number;
            format!(
                "position, flags and close-on-exec of descriptor {number} ({})",
                file.kind
            )
        };
        if seen != wanted {
            differences.note(whose(), &what(), &seen, &wanted);
        }
    }
    Ok(differences)
}
