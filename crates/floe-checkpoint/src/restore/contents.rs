//! Makes what several tasks share before any task needs it: shared memory, deleted files, files to be mapped.

use super::{RestoreError, nameless, namespaces::Namespaces, tree::World};
use floe_image::{
    Image,
    record::{ContentOwner, DirectoryRecord, GhostKind, GhostRecord, MappedFileRecord, PageRun, ShmemRecord},
};
use floe_resources::{
    file::reopen,
    ipc::{self, SegmentFile},
    mm::{Filler, Sources},
    ns::{Roots, sysctl},
};
use floe_sys::{
    descriptor::{adopt, open_in_root, set_extended_attribute},
    memfd::{self, F_SEAL_EXEC, MFD_EXEC, MFD_NOEXEC_SEAL},
    memory::{HUGETLBFS, huge_page_bits},
};
use floe_tracee::Script;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    sys::{statfs::fstatfs, time::TimeSpec},
};
use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// What was made.
pub struct MadeContents {
    /// What mappings map.
    pub sources: Sources,
    /// Deleted files, by number.
    pub ghosts: HashMap<u32, OwnedFd>,
}

impl MadeContents {
    /// Makes and fills everything.
    pub fn make(image: &Image, world: &mut World<'_>, roots: &Roots) -> Result<Self, RestoreError> {
        let filler = Filler::new(image);
        let mut made = Self {
            sources: Sources::default(),
            ghosts: HashMap::new(),
        };
        for record in image.shmems() {
            let file = make_shmem(world, record)?;
            let content = runs(image, ContentOwner::Shmem(record.id));
            fill(world, &filler, (&file, record.size, record.huge_page), content)?;
            made.sources.shmems.insert(record.id, file.into());
        }
        for (record, file) in nameless::make(roots, image.ghosts())? {
            let file = File::from(file);
            if record.kind == GhostKind::Directory {
                set_attributes(&file, record)?;
            }
            made.ghosts.insert(record.id, file.into());
        }
        for record in image.ghosts().iter().filter(|record| record.has_content()) {
            let file = make_ghost(roots.of(record.mount_namespace), record)?;
            let huge_page = huge_page(&file)?;
            let content = runs(image, ContentOwner::Ghost(record.id));
            fill(world, &filler, (&file, record.size, huge_page), content)?;
            set_attributes(&file, record)?;
            if !mapped_for_writing(image, record.id) {
                seal(file.as_fd(), record)?;
            }
            made.ghosts.insert(record.id, file.into());
        }
        for (namespace, record) in image.sandbox().ipc_namespaces() {
            let space = world.namespaces.ipc(namespace)?;
            sysctl::raise(&image.sandbox().sysctls, (namespace, space))
                .map_err(system(format!("raise the limits of IPC namespace {namespace}")))?;
            for SegmentFile {
                id,
                size,
                huge_page,
                file,
            } in ipc::make(space, record)?
            {
                let content = runs(image, ContentOwner::Segment { namespace, id });
                fill(world, &filler, (&file, size, huge_page), content)?;
                let known = (size, huge_page.max(4096));
                made.sources.segments.insert((namespace, id), known);
            }
        }
        for record in image.mapped_files() {
            let file = open_mapped(roots.of(record.mount_namespace), record, &made.ghosts)?;
            made.sources.files.insert(record.id, file);
        }
        // A program that is open for writing can't be executed, so ghosts that are executed are kept read-only.
        for (id, ghost) in &mut made.ghosts {
            let has_content = image.ghosts().get(*id as usize).is_some_and(GhostRecord::has_content);
            if has_content && !mapped_for_writing(image, *id) {
                *ghost = reopen(ghost.as_fd(), libc::O_RDONLY)?;
            }
        }
        Ok(made)
    }

    /// A directory that a process is in.
    pub fn directory(&self, roots: &Roots, record: &DirectoryRecord) -> Result<OwnedFd, Errno> {
        match record.ghost {
            Some(id) => {
                let ghost = self.ghosts.get(&id).ok_or(Errno::ENOENT)?;
                fcntl(ghost, FcntlArg::F_DUPFD_CLOEXEC(0)).map(adopt)
            }
            None => {
                let path = Path::new(OsStr::from_bytes(&record.path));
                open_in_root(
                    roots.of(record.mount_namespace),
                    path,
                    libc::O_PATH | libc::O_DIRECTORY,
                    0,
                )
            }
        }
    }

    /// Does what would have kept mappings from being made; all of them are by now.
    pub fn finish(&self, image: &Image, namespaces: &Namespaces) -> Result<(), RestoreError> {
        for (number, record) in image.sandbox().ipc_namespaces() {
            ipc::remove_segments(namespaces.ipc(number)?, record)?;
        }
        let late = image
            .ghosts()
            .iter()
            .filter(|record| mapped_for_writing(image, record.id));
        for record in late {
            if let Some(file) = self.ghosts.get(&record.id) {
                seal(file.as_fd(), record)?;
            }
        }
        Ok(())
    }
}

fn mapped_for_writing(image: &Image, ghost: u32) -> bool {
    let mut mapped = image.mapped_files().iter();
    mapped.any(|record| record.writable && record.ghost == Some(ghost))
}

pub(super) fn runs(image: &Image, owner: ContentOwner) -> &[PageRun] {
    image
        .page_maps()
        .iter()
        .find(|map| map.owner == owner)
        .map_or(&[], |map| &map.runs)
}

fn system(action: String) -> impl FnOnce(std::io::Error) -> RestoreError {
    move |source| RestoreError::System { action, source }
}

/// Shared anonymous memory is made by the seed and reached through /proc/PID/map_files, so that it looks like what it
/// was.
fn make_shmem(world: &mut World<'_>, record: &ShmemRecord) -> Result<File, RestoreError> {
    let seed = world.seed()?;
    let bytes = record.size.next_multiple_of(4096);
    let mut batch = seed.batch();
    let mut flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
    if record.huge_page != 0 {
        flags |= libc::MAP_HUGETLB as u64 | u64::from(huge_page_bits(record.huge_page));
    }
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let call = batch.call(
        "map shared memory",
        libc::SYS_mmap,
        &[0, bytes, prot, flags, u64::MAX, 0],
    );
    seed.run(&mut batch)?;
    let address = batch.result(call) as u64;
    let path = format!("/proc/{}/map_files/{:x}-{:x}", seed.tid(), address, address + bytes);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && record.huge_page == 0 => substitute(bytes),
        opened => opened,
    };
    let file = file.map_err(system("open shared memory".to_owned()))?;
    let mut batch = seed.batch();
    batch.call("unmap shared memory", libc::SYS_munmap, &[address, bytes]);
    seed.run(&mut batch)?;
    Ok(file)
}

/// What an ordinary user has in the place of shared anonymous memory, of which only the host's root is given a descriptor. A
/// checkpoint knows it by its name.
fn substitute(bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(c"floe-shared", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Fills a file of so many bytes, with pages of so many bytes. What lies on hugetlbfs (page size not 0) can't be written
/// to, only mapped: the seed does that.
fn fill(
    world: &World<'_>,
    filler: &Filler<'_>,
    (file, size, huge_page): (&File, u64, u64),
    runs: &[PageRun],
) -> Result<(), RestoreError> {
    if huge_page == 0 {
        return Ok(filler.file(file, size, runs)?);
    }
    if runs.is_empty() {
        return Ok(());
    }
    let seed = world.seed()?;
    let mut script = Script::new(seed);
    let number = world.channel.give(&mut script, &[file.as_fd()])?[0] as u64;
    let mut batch = seed.batch();
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let arguments = [0, size, prot as u64, flags as u64, number, 0];
    let map = batch.call("map huge pages", libc::SYS_mmap, &arguments);
    batch.call("close huge pages", libc::SYS_close, &[number]);
    seed.run(&mut batch)?;
    let address = batch.result(map) as u64;
    let moved: Vec<PageRun> = runs
        .iter()
        .map(|run| PageRun {
            start: address + run.start,
            ..*run
        })
        .collect();
    let range = address..address + size;
    filler.process(seed.tid(), &moved, vec![range])?;
    script.call("unmap huge pages", libc::SYS_munmap, &[address, size])?;
    script.run()?;
    Ok(())
}

/// Bytes of a page of a file of hugetlbfs; 0 for others.
fn huge_page(file: &File) -> Result<u64, RestoreError> {
    let action = "look at the filesystem of a deleted file".to_owned();
    let found = fstatfs(file).map_err(RestoreError::system(action))?;
    let huge = found.filesystem_type().0 == HUGETLBFS;
    Ok(if huge { found.block_size() as u64 } else { 0 })
}

fn make_ghost(root: BorrowedFd<'_>, record: &GhostRecord) -> Result<File, RestoreError> {
    let name = String::from_utf8_lossy(&record.path).into_owned();
    let fd = match &record.kind {
        GhostKind::Memfd(memfd) => {
            let name = CString::new(memfd.name.as_slice())
                .map_err(|_| RestoreError::Inconsistent("a memfd's name holds a NUL".to_owned()))?;
            // Where executable ones are forbidden (vm.memfd_noexec), this one may be none.
            let never_executed = memfd.seals & F_SEAL_EXEC != 0 && record.mode & 0o111 == 0;
            let kind = if never_executed { MFD_NOEXEC_SEAL } else { MFD_EXEC };
            let huge = match memfd.huge_page {
                0 => 0,
                bytes => libc::MFD_HUGETLB | huge_page_bits(bytes),
            };
            memfd::create(&name, kind | huge | libc::MFD_ALLOW_SEALING)
        }
        GhostKind::File | GhostKind::Directory | GhostKind::Linked { .. } => unnamed_file(root, &record.path),
    };
    let file = File::from(fd.map_err(RestoreError::system(format!("make the deleted file {name} again")))?);
    file.set_len(record.size)
        .map_err(system(format!("set the length of the deleted file {name}")))?;
    Ok(file)
}

/// A file without a name on the filesystem where the deleted one was.
fn unnamed_file(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = PathBuf::from(OsStr::from_bytes(path));
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let mut directory = path.parent().unwrap_or(Path::new("/"));
    loop {
        match open_in_root(root, directory, flags, 0o600) {
            // The directory may be gone as well; its filesystem is what matters.
            Err(Errno::ENOENT) => match directory.parent() {
                Some(parent) => directory = parent,
                None => return Err(Errno::ENOENT),
            },
            result => return result,
        }
    }
}

fn set_attributes(file: &File, record: &GhostRecord) -> Result<(), RestoreError> {
    let name = String::from_utf8_lossy(&record.path);
    let action = || format!("set the attributes of the deleted file {name}");
    std::os::unix::fs::fchown(file, Some(record.uid), Some(record.gid)).map_err(system(action()))?;
    file.set_permissions(std::fs::Permissions::from_mode(record.mode))
        .map_err(system(action()))?;
    for attribute in &record.attributes {
        set_extended_attribute(file.as_fd(), &attribute.name, &attribute.value)
            .map_err(RestoreError::system(action()))?;
    }
    let [accessed, modified] = record
        .times
        .map(|nanos| TimeSpec::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000)));
    nix::sys::stat::futimens(file.as_fd(), &accessed, &modified).map_err(RestoreError::system(action()))?;
    Ok(())
}

/// Puts the seals on a memfd. Behind F_SEAL_FUTURE_WRITE nothing can be mapped for writing, so memfds that are mapped so
/// get theirs when all mappings are made; all others at once, because one that is executed can't be opened for that any
/// more.
fn seal(file: BorrowedFd<'_>, record: &GhostRecord) -> Result<(), RestoreError> {
    let GhostKind::Memfd(memfd) = &record.kind else {
        return Ok(());
    };
    let seals = SealFlag::from_bits_retain(memfd.seals as i32);
    let name = String::from_utf8_lossy(&memfd.name);
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))
        .map(drop)
        .map_err(RestoreError::system(format!("seal the memfd {name}")))
}

fn open_mapped(
    root: BorrowedFd<'_>,
    record: &MappedFileRecord,
    ghosts: &HashMap<u32, OwnedFd>,
) -> Result<OwnedFd, RestoreError> {
    let flags = if record.writable { libc::O_RDWR } else { libc::O_RDONLY };
    match record.ghost {
        Some(id) => {
            let lacking = || RestoreError::Inconsistent(format!("the image lacks deleted file {id}"));
            Ok(reopen(ghosts.get(&id).ok_or_else(lacking)?.as_fd(), flags)?)
        }
        None => {
            let path = Path::new(OsStr::from_bytes(&record.path));
            let action = format!("open mapped file {}", path.display());
            open_in_root(root, path, flags, 0).map_err(RestoreError::system(action))
        }
    }
}
