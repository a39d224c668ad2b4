//! From a mapping as /proc/PID/smaps shows it to its record, or to a refusal.

use super::{
    aio::FoundContexts,
    content::{ContentError, Contents},
};
use crate::{
    ns,
    refusal::Refusals,
    refusal::Subject,
    task::{HeldProcess, MemoryAnswers},
};
use floe_image::record::{AddressSpaceRecord, MmLayout, NamespaceOrigin, NsPid, VmaDetails, VmaRecord, VmaSource};
use floe_sys::{
    Pid,
    procfs::{self, Mapping, Stat},
};
use std::{collections::HashMap, os::unix::fs::MetadataExt};

/// Flags that restore sets again: MAP_GROWSDOWN, MAP_NORESERVE, MAP_DROPPABLE, mlock's, mseal's, madvise's, and that memory
/// is accounted for, which it is from the time on at which it could first be written.
pub(super) const CARRIED_FLAGS: [&[u8; 2]; 14] = [
    b"gd", b"nr", b"dp", b"lo", b"lf", b"sl", b"dc", b"dd", b"wf", b"hg", b"nh", b"rr", b"sr", b"ac",
];
/// How the names of System V segments begin.
const SYSV: &[u8] = b"/SYSV";
const AIO_RING: &[u8] = b"/[aio]";
const IO_URING: &str = "which requests are under way can't be read back; programs can be told to do without \
    (innodb_use_native_aio=0, UV_USE_IO_URING=0), and the kernel to have none (kernel.io_uring_disabled=2)";
const ANONYMOUS_HUGE: &[u8] = b"/anon_hugepage";
/// KSM.
const MERGEABLE: &[u8; 2] = b"mg";

const REFUSED_FLAGS: [(&[u8; 2], &str, &str); 7] = [
    (
        b"um",
        "userfaultfd (missing pages)",
        "another program serves this memory's faults",
    ),
    (
        b"uw",
        "userfaultfd (write protection)",
        "another program serves this memory's faults",
    ),
    (
        b"ui",
        "userfaultfd (minor faults)",
        "another program serves this memory's faults",
    ),
    (b"io", "device memory", "memory of a device can't be carried"),
    (
        b"pf",
        "pages without a struct page",
        "memory of a device can't be carried",
    ),
    (b"ss", "shadow stack", "shadow stacks are not carried yet"),
    (
        b"sf",
        "MAP_SYNC",
        "direct mappings of persistent memory are not carried yet",
    ),
];

/// Shared anonymous memory, and what an ordinary user's restore makes instead (`restore/contents.rs`).
const SHARED: &[u8] = b"/dev/zero (deleted)";
const SUBSTITUTE: &[u8] = b"/memfd:floe-shared (deleted)";

/// The address space of a held process, which has said `memory` of it. Guard regions are found by [`super::PageTables`].
///
/// # Errors
/// [`ContentError`].
pub fn address_space(
    held: &HeldProcess<'_>,
    memory: &MemoryAnswers,
    contents: &mut Contents,
    refusals: &mut Refusals,
) -> Result<AddressSpaceRecord, ContentError> {
    let pid = held.found.task();
    let subject = held.found.subject();
    let mut classifier = Classifier {
        pid,
        contexts: FoundContexts::default(),
        files: HashMap::new(),
        subject: &subject,
        contents,
        refusals,
    };
    let mut vmas = Vec::with_capacity(held.mappings.len());
    for mapping in held.mappings.iter().filter(|m| m.path != b"[vsyscall]") {
        if let Some(source) = classifier.source(mapping)? {
            let huge_page = if mapping.has(b"ht") && !mapping.shared {
                let Some(magic) = classifier.magic(mapping)? else {
                    continue;
                };
                classifier.contents.huge_page(&magic)?
            } else {
                0
            };
            vmas.push(VmaRecord {
                start: mapping.start,
                end: mapping.end,
                prot: mapping.prot,
                flags: carried_flags(mapping),
                name: anonymous_name(mapping),
                source,
                details: VmaDetails {
                    guards: Vec::new(),
                    policy: memory.policies.get(&mapping.start).cloned(),
                    huge_page,
                },
            });
        }
    }
    let exe = classifier.exe()?;
    let path = format!("/proc/{pid}/auxv");
    let auxv = procfs::read(&path).map_err(|error| ContentError {
        action: "read",
        path,
        source: std::io::Error::other(error),
    })?;
    // That of the process may be of a first thread that has ended, which has no memory any more.
    let stat = &held.found.threads[0].stat;
    Ok(AddressSpaceRecord {
        pid: NsPid(held.found.ns_pid),
        vmas,
        layout: layout(stat, memory.brk),
        auxv,
        exe: exe.unwrap_or(u32::MAX),
        lock_future: memory.lock_future,
    })
}

fn layout(stat: &Stat, brk: u64) -> MmLayout {
    MmLayout {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk,
        start_stack: stat.startstack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
    }
}

fn carried_flags(mapping: &Mapping) -> Vec<[u8; 2]> {
    let known = |flag: &&[u8; 2]| CARRIED_FLAGS.contains(flag) || **flag == *MERGEABLE;
    mapping.flags.iter().filter(known).copied().collect()
}

fn anonymous_name(mapping: &Mapping) -> Option<Vec<u8>> {
    mapping
        .path
        .strip_prefix(b"[anon:")
        .and_then(|rest| rest.strip_suffix(b"]"))
        .map(<[u8]>::to_vec)
}

/// What maps say of a file, and whether its mapping may be written to.
type FileOfMaps<'a> = (&'a [u8], (u32, u32), u64, bool);

struct Classifier<'a> {
    pid: Pid,
    contexts: FoundContexts,
    /// Numbers of files that are mapped elsewhere in the same process, as programs and libraries are in several pieces.
    files: HashMap<FileOfMaps<'a>, u32>,
    subject: &'a Subject,
    contents: &'a mut Contents,
    refusals: &'a mut Refusals,
}

impl<'a> Classifier<'a> {
    fn refuse(&mut self, mapping: &Mapping, what: &str, reason: &str) {
        self.refusals.add(
            Some(self.subject),
            title(mapping, what),
            reason,
            "unmap it, or run the program without it",
        );
    }

    /// The link in /proc that opens what is mapped, an empty one for shared memory that is read where it is mapped; `None`
    /// where it was refused, as there is none for floe.
    fn magic(&mut self, mapping: &Mapping) -> Result<Option<String>, ContentError> {
        let spaces = &self.contents.spaces;
        let root = spaces.root(spaces.of_task(self.pid));
        let found = self.contents.links.of(self.pid, mapping, root)?;
        if found.is_none() && mapping.shared && (mapping.path == SHARED || mapping.path == SUBSTITUTE) {
            return Ok(Some(String::new()));
        }
        if found.is_none() {
            self.refuse(
                mapping,
                "not found by name",
                "only the host's root may look at mapped files that have no name and that no descriptor of the process leads to, and at files of an overlay of several filesystems, which maps tell another device of",
            );
        }
        Ok(found)
    }

    fn source(&mut self, mapping: &'a Mapping) -> Result<Option<VmaSource>, ContentError> {
        let path = mapping.path.as_slice();
        if matches!(path, b"[vdso]" | b"[vvar]" | b"[vvar_vclock]") {
            return Ok(Some(VmaSource::Special {
                name: String::from_utf8_lossy(path).into_owned(),
            }));
        }
        if path.starts_with(AIO_RING) {
            return Ok(self.aio_ring(mapping));
        }
        // By name first: the flags would call a perf buffer a device.
        if let Some((what, reason)) = refused_file(mapping) {
            self.refuse(mapping, what, reason);
            return Ok(None);
        }
        let has_file = mapping.inode != 0 || path.starts_with(SYSV);
        let magic = if has_file {
            self.magic(mapping)?
        } else {
            Some(String::new())
        };
        let Some(magic) = magic else { return Ok(None) };
        let segment = self.segment_of(mapping, &magic)?;
        let bad: Vec<_> = REFUSED_FLAGS
            .into_iter()
            .filter(|(flag, ..)| mapping.has(flag))
            .collect();
        if !bad.is_empty() {
            for (_, what, reason) in bad {
                self.refuse(mapping, what, reason);
            }
            return Ok(None);
        }
        // The kernel itself takes a key for memory that can only be executed, and does so again.
        if mapping.protection_key != 0 && mapping.prot != libc::PROT_EXEC as u32 {
            let what = format!("protection key {}", mapping.protection_key);
            self.refuse(mapping, &what, "protection keys are not carried yet");
            return Ok(None);
        }
        if let Some((namespace, id)) = segment {
            return self.segment(namespace, id, mapping);
        }
        if mapping.has(b"ht") && path.starts_with(ANONYMOUS_HUGE) {
            return self.anonymous_huge(mapping, &magic).map(Some);
        }
        // The first segment of a namespace has inode number 0 too.
        if mapping.inode == 0 {
            return Ok(self.anonymous(mapping));
        }
        if mapping.shared && (path == SHARED || magic.is_empty()) {
            let object = match magic.as_str() {
                "" => self.contents.shmem_in_memory(self.pid, mapping),
                magic => self.contents.shmem(magic)?,
            };
            return Ok(Some(VmaSource::Shmem {
                object,
                offset: mapping.offset,
            }));
        }
        Ok(self.file(mapping, &magic)?.map(|file| VmaSource::File {
            file,
            offset: mapping.offset,
            shared: mapping.shared,
        }))
    }

    fn file(&mut self, mapping: &'a Mapping, magic: &str) -> Result<Option<u32>, ContentError> {
        let writable = mapping.shared && mapping.has(b"mw");
        let known = (mapping.path.as_slice(), mapping.device, mapping.inode, writable);
        if let Some(file) = self.files.get(&known) {
            return Ok(Some(*file));
        }
        let findings = (self.subject, &mut *self.refusals);
        let file = self.contents.mapped_file((self.pid, magic), writable, findings)?;
        // With several, the same words may mean two mounts.
        if let Some(file) = file.filter(|_| self.contents.spaces.is_one()) {
            self.files.insert(known, file);
        }
        Ok(file)
    }

    /// Counts a mapping of a System V segment; returns its namespace, where that is one of the tree's, and the identifier, which
    /// is the inode number. Other files of such names lie on filesystems that are mounted somewhere.
    fn segment_of(&mut self, mapping: &Mapping, magic: &str) -> Result<Option<(Option<u32>, i32)>, ContentError> {
        if !mapping.path.starts_with(SYSV) || !mapping.shared {
            return Ok(None);
        }
        let wrap = |source| ContentError {
            action: "look at the filesystem of",
            path: magic.to_owned(),
            source,
        };
        let device = std::fs::metadata(magic).map_err(wrap)?.dev();
        if !mapping.has(b"ht") && device != self.contents.kernel_tmpfs().map_err(wrap)? {
            return Ok(None);
        }
        let id = mapping.inode as i32;
        let namespace = self.contents.ipc.of_segment(self.pid, id, magic);
        let namespace = namespace.map_err(|source| ContentError {
            action: "find the IPC namespace of",
            path: magic.to_owned(),
            source,
        })?;
        if let Some(namespace) = namespace {
            self.contents.segment((namespace, id), magic);
        }
        Ok(Some((namespace, id)))
    }

    /// Memory of MAP_HUGETLB, which is a file that has no name anywhere.
    fn anonymous_huge(&mut self, mapping: &Mapping, magic: &str) -> Result<VmaSource, ContentError> {
        if !mapping.shared {
            return Ok(VmaSource::Anonymous);
        }
        let object = self.contents.shmem(magic)?;
        Ok(VmaSource::Shmem {
            object,
            offset: mapping.offset,
        })
    }

    fn aio_ring(&mut self, mapping: &Mapping) -> Option<VmaSource> {
        match self.contexts.ring(self.pid, mapping.start, mapping.end) {
            Ok(ring) => Some(VmaSource::AioRing(ring)),
            Err((reason, advice)) => {
                let title = title(mapping, "AIO ring");
                self.refusals.add(Some(self.subject), title, reason, advice);
                None
            }
        }
    }

    fn segment(
        &mut self,
        namespace: Option<u32>,
        id: i32,
        mapping: &Mapping,
    ) -> Result<Option<VmaSource>, ContentError> {
        if let Some(namespace) = namespace {
            return Ok(Some(VmaSource::Segment {
                namespace,
                id,
                offset: mapping.offset,
                writable: mapping.has(b"mw"),
            }));
        }
        let origin = ns::origin(self.pid, "ipc").map_err(|error| ContentError {
            action: "look at the IPC namespace of process",
            path: self.pid.to_string(),
            source: std::io::Error::other(error),
        })?;
        let title = title(mapping, "System V shared memory");
        let (reason, advice) = match origin {
            NamespaceOrigin::Host => (
                "it belongs to the host's IPC namespace, and may be in use there",
                "start the workload by floe run, or in an IPC namespace of its own",
            ),
            NamespaceOrigin::Own => (
                "it belongs to an IPC namespace that no task of the tree is in",
                "detach it (shmdt)",
            ),
        };
        self.refusals.add(Some(self.subject), title, reason, advice);
        Ok(None)
    }

    fn anonymous(&mut self, mapping: &Mapping) -> Option<VmaSource> {
        if mapping.shared {
            self.refuse(
                mapping,
                "shared memory of an unknown kind",
                "floe can't tell what backs it",
            );
            return None;
        }
        Some(VmaSource::Anonymous)
    }

    fn exe(&mut self) -> Result<Option<u32>, ContentError> {
        let magic = format!("/proc/{}/exe", self.pid);
        let findings = (self.subject, &mut *self.refusals);
        self.contents.mapped_file((self.pid, &magic), false, findings)
    }
}

fn title(mapping: &Mapping, what: &str) -> String {
    let path = String::from_utf8_lossy(&mapping.path);
    format!("mapping {:x}-{:x} {path} ({what})", mapping.start, mapping.end)
}

fn refused_file(mapping: &Mapping) -> Option<(&'static str, &'static str)> {
    let path = mapping.path.as_slice();
    if path.starts_with(b"anon_inode:[io_uring]") {
        Some(("ring of io_uring", IO_URING))
    } else if path.starts_with(b"anon_inode:") {
        Some(("memory of an anonymous inode", "perf and its like are not carried yet"))
    } else if path.starts_with(b"/secretmem") {
        Some(("memfd_secret", "the kernel lets nobody else read it"))
    } else {
        None
    }
}
