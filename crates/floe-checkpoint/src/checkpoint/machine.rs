//! What an image says of the machine it was made on.

use super::{InspectError, Target, seize::HeldTree};
use floe_image::record::{ComponentRecord, HeaderRecord, MachineRecord, VdsoRecord};
use floe_sandbox::ProcessorState;
use floe_sys::{
    Pid,
    memory::MemoryFile,
    processor::{self, Component},
    procfs::Mapping,
};
use floe_tracee::{Stopped, vdso_tail, xfeatures};
use std::time::{SystemTime, UNIX_EPOCH};

/// The header, and the vDSO's ELF file.
pub fn header(held: &HeldTree) -> Result<(HeaderRecord, Vec<u8>), InspectError> {
    let extended = held.threads.values().next().map_or(Ok(Vec::new()), Stopped::extended)?;
    let uname = nix::sys::utsname::uname().map_err(|source| InspectError::Read {
        what: "the kernel's name",
        pid: Pid::new(0),
        source: source.into(),
    })?;
    let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
    let (vdso, elf) = match held.mappings.iter().next() {
        Some((pid, mappings)) => read_vdso(*pid, mappings)?,
        None => (
            VdsoRecord {
                mappings: Vec::new(),
                checksum: 0,
            },
            Vec::new(),
        ),
    };
    let header = HeaderRecord {
        floe_version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: text(uname.machine()),
        kernel: text(uname.release()),
        host: text(uname.nodename()),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        page_size: 4096,
        xstate_size: extended.len() as u32,
        xfeatures: xfeatures(&extended),
        vdso,
    };
    Ok((header, elf))
}

/// What its programs depend on.
pub fn machine(target: &Target, vdso: Vec<u8>) -> MachineRecord {
    let ProcessorState { level, features } = target.processor().here();
    let record = |component: Component| ComponentRecord {
        number: component.number,
        offset: component.offset,
        bytes: component.bytes,
    };
    MachineRecord {
        level,
        features,
        components: processor::components().into_iter().map(record).collect(),
        vdso,
    }
}

/// The vDSO of a process: the kernel's mappings in it and the checksum of its text, and its ELF file.
pub(crate) fn read_vdso(pid: Pid, mappings: &[Mapping]) -> Result<(VdsoRecord, Vec<u8>), InspectError> {
    let special: Vec<_> = mappings
        .iter()
        .filter(|m| m.path.starts_with(b"[v") && m.path != b"[vsyscall]")
        .collect();
    let mut elf = Vec::new();
    if let Some(text) = special.iter().find(|m| m.path == b"[vdso]") {
        let wrap = |source| InspectError::Read {
            what: "the vDSO",
            pid,
            source,
        };
        elf.resize(text.len() as usize, 0);
        MemoryFile::open(pid)
            .and_then(|memory| memory.read(text.start, &mut elf))
            .map_err(wrap)?;
        elf.truncate(vdso_tail(&elf).unwrap_or(elf.len()));
    }
    let name = |m: &Mapping| (String::from_utf8_lossy(&m.path).into_owned(), m.len());
    let record = VdsoRecord {
        mappings: special.into_iter().map(name).collect(),
        checksum: if elf.is_empty() { 0 } else { crc32c::crc32c(&elf) },
    };
    Ok((record, elf))
}
