//! Mappings, the layout of code and data, the executable, and the directories of a process.

use super::{Differences, Process};
use crate::restore::contents::MadeContents;
use floe_image::record::{AddressSpaceRecord, DirectoryRecord, MmLayout, ProcessRecord};
use floe_resources::{mm, ns::Roots};
use floe_sys::{
    Pid,
    procfs::{self, Mapping, ProcError, Stat},
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

/// An address of the layout: its name, where it is, where it should be.
type Address = (&'static str, fn(&Stat) -> u64, fn(&MmLayout) -> u64);

const ADDRESSES: [Address; 10] = [
    ("start_code", |is| is.startcode, |should| should.start_code),
    ("end_code", |is| is.endcode, |should| should.end_code),
    ("start_data", |is| is.start_data, |should| should.start_data),
    ("end_data", |is| is.end_data, |should| should.end_data),
    ("start_brk", |is| is.start_brk, |should| should.start_brk),
    ("start_stack", |is| is.startstack, |should| should.start_stack),
    ("arg_start", |is| is.arg_start, |should| should.arg_start),
    ("arg_end", |is| is.arg_end, |should| should.arg_end),
    ("env_start", |is| is.env_start, |should| should.env_start),
    ("env_end", |is| is.env_end, |should| should.env_end),
];

/// Compares an address space.
pub fn compare(
    space: &AddressSpaceRecord,
    made: &MadeContents,
    host: Pid,
    differences: &mut Differences,
) -> Result<(), ProcError> {
    let whose = || Process(space.pid);
    let stat = Stat::of(host)?;
    for (what, is, should) in ADDRESSES {
        differences.note(whose(), what, &is(&stat), &should(&space.layout));
    }
    let mappings = if mm::has_flags(space) {
        Mapping::read_all(host)?
    } else {
        Mapping::read_all_without_flags(host)?
    };
    for difference in mm::same_layout(&mappings, space) {
        differences.add(format!("{:?}: {difference}", whose()));
    }
    let vector = procfs::read(&format!("/proc/{host}/auxv"))?;
    if without_zeros(&vector) != without_zeros(&space.auxv) {
        differences.add(format!("{:?}: the auxiliary vector is another one", whose()));
    }
    let wanted = made
        .sources
        .files
        .get(&space.exe)
        .map(|file| file.as_fd().try_clone_to_owned());
    if let Some(wanted) = wanted {
        let wanted = wanted
            .and_then(|fd| File::from(fd).metadata())
            .map(|found| (found.dev(), found.ino()));
        same_place(
            &whose(),
            "executable",
            &identity(&format!("/proc/{host}/exe")),
            &wanted,
            differences,
        );
    }
    Ok(())
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Device and inode number.
type Identity = io::Result<(u64, u64)>;

fn identity(path: &str) -> Identity {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn same_place(whose: &Process, what: &str, is: &Identity, should: &Identity, differences: &mut Differences) {
    match (is, should) {
        (Ok(is), Ok(should)) => differences.note(whose, what, is, should),
        (Err(error), _) | (_, Err(error)) => differences.add(format!("{whose:?}: {what}: {error}")),
    }
}

/// Working and root directories; most processes have the same ones.
#[derive(Default)]
pub struct Directories<'a>(HashMap<&'a DirectoryRecord, Identity>);

impl<'a> Directories<'a> {
    /// Compares those of a process.
    pub fn compare(
        &mut self,
        record: &'a ProcessRecord,
        (made, roots): (&MadeContents, &Roots),
        host: Pid,
        differences: &mut Differences,
    ) {
        for (name, directory) in [("cwd", &record.cwd), ("root", &record.root)] {
            let wanted = self.0.entry(directory).or_insert_with(|| {
                let opened = made.directory(roots, directory)?;
                File::from(opened).metadata().map(|found| (found.dev(), found.ino()))
            });
            let is = identity(&format!("/proc/{host}/{name}"));
            same_place(&Process(record.pid), name, &is, wanted, differences);
        }
    }
}
