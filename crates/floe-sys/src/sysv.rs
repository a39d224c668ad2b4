//! System V IPC: shmget(2), semget(2), msgget(2) and their kin, of the calling thread's IPC namespace.
//!
//! Making an object with a chosen identifier takes a write to `/proc/sys/kernel/*_next_id`, which shows the namespace of
//! the thread that opens it and needs CAP_CHECKPOINT_RESTORE.

use crate::{Pid, capability::as_user, memory::huge_page_bits, procfs::Mapping};
use std::{fs, io, mem::MaybeUninit, ptr};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shared memory.
    Segment,
    /// Semaphore set.
    Semaphores,
    /// Message queue.
    Queue,
}

/// What every object has, `struct ipc_perm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// Its identifier.
    pub id: i32,
    /// The key it is found by; 0 for none.
    pub key: i32,
    /// Permission bits, and for a segment [`SHM_DEST`] and [`SHM_LOCKED`].
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Creator and group.
    pub creator: (u32, u32),
}

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Identifier, key, owners.
    pub permission: Permission,
    /// Bytes.
    pub size: u64,
    /// How many mappings of it there are.
    pub attached: u64,
}

/// A message queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Identifier, key, owners.
    pub permission: Permission,
    /// How many bytes may wait in it.
    pub capacity: u64,
    /// How many do.
    pub bytes: u64,
    /// In how many messages.
    pub messages: u64,
}

/// include/linux/shm.h: goes when it is attached no more.
pub const SHM_DEST: u32 = 0o1000;
/// The same: kept in memory.
pub const SHM_LOCKED: u32 = 0o2000;

/// include/uapi/linux/{shm,sem,msg,ipc}.h.
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;
const SHM_LOCK: i32 = 11;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const GETALL: i32 = 13;
const SETALL: i32 = 17;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const MSG_COPY: i32 = 0o40_000;

/// Room for what an *_INFO call writes, which is longer for none of them.
const INFO_BYTES: usize = 128;

fn checked(result: i64) -> io::Result<i64> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn permission(id: i64, found: &libc::ipc_perm) -> Permission {
    Permission {
        id: id as i32,
        key: found.__key,
        mode: u32::from(found.mode),
        owner: (found.uid, found.gid),
        creator: (found.cuid, found.cgid),
    }
}

/// The *ctl call of a kind: `control(kind, id or index, command, structure)`.
///
/// # Safety
/// `structure` must be what `command` reads or writes.
unsafe fn control(kind: Kind, id: i32, command: i32, structure: *mut libc::c_void) -> io::Result<i64> {
    let (id, command, structure) = (i64::from(id), i64::from(command), structure as i64);
    let (number, arguments) = match kind {
        Kind::Segment => (libc::SYS_shmctl, [id, command, structure, 0]),
        Kind::Semaphores => (libc::SYS_semctl, [id, 0, command, structure]),
        Kind::Queue => (libc::SYS_msgctl, [id, command, structure, 0]),
    };
    let [first, second, third, fourth] = arguments;
    // SAFETY: handed on to the caller.
    checked(unsafe { libc::syscall(number, first, second, third, fourth) })
}

/// The objects of a kind: what `stat` says of each, and its identifier.
fn list<T>(kind: Kind, info: i32, stat: i32) -> io::Result<Vec<(i64, T)>> {
    let mut room = [0u8; INFO_BYTES];
    // SAFETY: the structure is not longer than the room.
    let highest = match unsafe { control(kind, 0, info, room.as_mut_ptr().cast()) } {
        // A kernel without System V IPC.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(Vec::new()),
        result => result?,
    };
    let mut found = Vec::new();
    for index in 0..=highest as i32 {
        let mut structure = MaybeUninit::<T>::zeroed();
        // SAFETY: `T` is the structure of this kind.
        match unsafe { control(kind, index, stat, structure.as_mut_ptr().cast()) } {
            // SAFETY: the kernel has filled it.
            Ok(id) => found.push((id, unsafe { structure.assume_init() })),
            // Nothing has this index.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// All segments.
///
/// # Errors
/// Those of shmctl(2).
pub fn segments() -> io::Result<Vec<Segment>> {
    let all: Vec<(i64, libc::shmid_ds)> = list(Kind::Segment, SHM_INFO, SHM_STAT_ANY)?;
    let segment = |(id, found): &(i64, libc::shmid_ds)| Segment {
        permission: permission(*id, &found.shm_perm),
        size: found.shm_segsz as u64,
        attached: found.shm_nattch,
    };
    Ok(all.iter().map(segment).collect())
}

/// All semaphore sets, with the values of their semaphores.
///
/// # Errors
/// Those of semctl(2).
pub fn semaphore_sets() -> io::Result<Vec<(Permission, Vec<u16>)>> {
    let all: Vec<(i64, libc::semid_ds)> = list(Kind::Semaphores, SEM_INFO, SEM_STAT_ANY)?;
    let mut sets = Vec::with_capacity(all.len());
    for (id, found) in &all {
        let mut values = vec![0u16; found.sem_nsems as usize];
        // SAFETY: there is room for the value of each semaphore.
        unsafe { control(Kind::Semaphores, *id as i32, GETALL, values.as_mut_ptr().cast()) }?;
        sets.push((permission(*id, &found.sem_perm), values));
    }
    Ok(sets)
}

/// All message queues.
///
/// # Errors
/// Those of msgctl(2).
pub fn queues() -> io::Result<Vec<Queue>> {
    let all: Vec<(i64, libc::msqid_ds)> = list(Kind::Queue, MSG_INFO, MSG_STAT_ANY)?;
    let queue = |(id, found): &(i64, libc::msqid_ds)| Queue {
        permission: permission(*id, &found.msg_perm),
        capacity: found.msg_qbytes,
        bytes: found.__msg_cbytes,
        messages: found.msg_qnum,
    };
    Ok(all.iter().map(queue).collect())
}

/// Type and text of a queue's message, counted from 0, which stays where it is. `room` bytes must do for the text.
///
/// # Errors
/// ENOMSG where there are not so many, E2BIG, ENOSYS of a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn peek(queue: i32, index: u64, room: usize) -> io::Result<(i64, Vec<u8>)> {
    let mut message = vec![0u8; 8 + room];
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: there is room for the type and `room` bytes of text.
    let got = unsafe { libc::msgrcv(queue, message.as_mut_ptr().cast(), room, index as i64, flags) };
    let got = checked(got as i64)?;
    message.truncate(8 + got as usize);
    let text = message.split_off(8);
    let kind = i64::from_ne_bytes(message.try_into().expect("8 bytes"));
    Ok((kind, text))
}

/// Makes an object with the identifier, key and owners of `wanted`, and removes it again where it can't have them.
///
/// # Errors
/// EEXIST where the identifier is taken, EPERM without CAP_CHECKPOINT_RESTORE, those of shmget(2) and its kin.
fn make(kind: Kind, wanted: &Permission, get: impl Fn(i32) -> i64) -> io::Result<()> {
    let file = match kind {
        Kind::Segment => "/proc/sys/kernel/shm_next_id",
        Kind::Semaphores => "/proc/sys/kernel/sem_next_id",
        Kind::Queue => "/proc/sys/kernel/msg_next_id",
    };
    fs::write(file, wanted.id.to_string())?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (wanted.mode & 0o777) as i32;
    let id = as_user(wanted.creator, || checked(get(flags)))??;
    if id != i64::from(wanted.id) {
        remove(kind, id as i32)?;
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(())
}

/// Makes a segment of `size` bytes, of huge pages of so many bytes where that is not 0.
///
/// # Errors
/// EEXIST where its identifier or key is taken; EPERM, ENOMEM, ENOSPC; EINVAL above a limit of the namespace.
pub fn make_segment(wanted: &Permission, size: u64, huge_page: u64) -> io::Result<()> {
    let pages = match huge_page {
        0 => 0,
        bytes => libc::SHM_HUGETLB | huge_page_bits(bytes) as i32,
    };
    make(Kind::Segment, wanted, |flags| {
        let flags = flags | pages;
        // SAFETY: all arguments are numbers.
        i64::from(unsafe { libc::shmget(wanted.key, size as usize, flags) })
    })?;
    change::<libc::shmid_ds>(Kind::Segment, wanted.id, |found| own(&mut found.shm_perm, wanted))
}

/// Makes a set of semaphores with these values.
///
/// # Errors
/// As [`make_segment`].
pub fn make_semaphores(wanted: &Permission, values: &[u16]) -> io::Result<()> {
    make(Kind::Semaphores, wanted, |flags| {
        // SAFETY: all arguments are numbers.
        i64::from(unsafe { libc::semget(wanted.key, values.len() as i32, flags) })
    })?;
    // SAFETY: SETALL reads the value of each semaphore, and there are as many.
    unsafe { control(Kind::Semaphores, wanted.id, SETALL, values.as_ptr().cast_mut().cast()) }?;
    change::<libc::semid_ds>(Kind::Semaphores, wanted.id, |found| own(&mut found.sem_perm, wanted))
}

/// Makes an empty message queue.
///
/// # Errors
/// As [`make_segment`].
pub fn make_queue(wanted: &Permission) -> io::Result<()> {
    make(Kind::Queue, wanted, |flags| {
        // SAFETY: all arguments are numbers.
        i64::from(unsafe { libc::msgget(wanted.key, flags) })
    })?;
    change::<libc::msqid_ds>(Kind::Queue, wanted.id, |found| own(&mut found.msg_perm, wanted))
}

/// Says how many bytes may wait in a queue.
///
/// # Errors
/// EPERM above the namespace's limit (kernel.msgmnb) without CAP_SYS_RESOURCE.
pub fn set_capacity(queue: i32, bytes: u64) -> io::Result<()> {
    change::<libc::msqid_ds>(Kind::Queue, queue, |found| found.msg_qbytes = bytes)
}

/// Puts a message into a queue.
///
/// # Errors
/// EAGAIN where it is full, EINVAL for a text above the namespace's limit (kernel.msgmax).
pub fn send(queue: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let message = [&kind.to_ne_bytes(), text].concat();
    // SAFETY: the message is its type and `text.len()` bytes.
    let result = unsafe { libc::msgsnd(queue, message.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) };
    checked(i64::from(result)).map(drop)
}

/// Removes an object; a segment goes when it is attached no more.
///
/// # Errors
/// EINVAL, EPERM.
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no structure.
    unsafe { control(kind, id, libc::IPC_RMID, ptr::null_mut()) }.map(drop)
}

/// Keeps a segment in memory.
///
/// # Errors
/// EPERM, ENOMEM.
pub fn lock(segment: i32) -> io::Result<()> {
    // SAFETY: SHM_LOCK takes no structure.
    unsafe { control(Kind::Segment, segment, SHM_LOCK, ptr::null_mut()) }.map(drop)
}

fn own(found: &mut libc::ipc_perm, wanted: &Permission) {
    (found.uid, found.gid) = wanted.owner;
    found.mode = (wanted.mode & 0o777) as u16;
}

/// Reads the structure of an object, `T` for its kind, and writes it back another way.
fn change<T>(kind: Kind, id: i32, alter: impl FnOnce(&mut T)) -> io::Result<()> {
    let mut structure = MaybeUninit::<T>::zeroed();
    // SAFETY: `T` is the structure of this kind.
    unsafe { control(kind, id, libc::IPC_STAT, structure.as_mut_ptr().cast()) }?;
    // SAFETY: the kernel has filled it.
    let mut structure = unsafe { structure.assume_init() };
    alter(&mut structure);
    // SAFETY: `T` is the structure of this kind.
    unsafe { control(kind, id, libc::IPC_SET, (&raw mut structure).cast()) }.map(drop)
}

/// A segment that is attached to floe itself, for reading or writing its content through [`Attachment::link`].
#[derive(Debug)]
pub struct Attachment {
    address: usize,
    /// First byte behind it.
    end: u64,
}

impl Attachment {
    /// Attaches it, wherever there is room.
    ///
    /// # Errors
    /// EINVAL, EACCES, ENOMEM.
    pub fn new(segment: &Segment) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no mapping is replaced.
        let address = unsafe { libc::shmat(segment.permission.id, ptr::null(), 0) };
        checked(address as i64)?;
        let mut attachment = Self {
            address: address as usize,
            end: 0,
        };
        // Nothing but this tells whether its pages are huge ones, to which its size is rounded up.
        let own = Mapping::read_all_without_flags(Pid::new(std::process::id() as i32)).map_err(io::Error::other)?;
        let mapping = own.iter().find(|mapping| mapping.start == address as u64);
        attachment.end = mapping.ok_or(io::ErrorKind::NotFound)?.end;
        Ok(attachment)
    }

    /// The link in /proc that opens its memory as a file.
    #[must_use]
    pub fn link(&self) -> String {
        format!("/proc/self/map_files/{:x}-{:x}", self.address, self.end)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: it was attached here, and no reference into it is ever made.
        unsafe { libc::shmdt(self.address as *const libc::c_void) };
    }
}
