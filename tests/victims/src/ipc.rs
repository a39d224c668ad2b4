//! Objects of all kinds in the IPC namespace of the caller, the same in each but for what they hold.

use crate::{
    Findings, call,
    memory::{Mapping, PAGE},
    stage::fork,
    wait_until,
};
use std::{ffi::CString, fs, io, mem::MaybeUninit, os::fd::RawFd, ptr};

/// What all objects of System V are found by.
pub const KEY: i32 = 0x5eed;
/// Pages of the segment.
pub const PAGES: usize = 3;
/// The page of the segment that is free for others.
pub const FREE: usize = 2;
const GETALL: i32 = 13;
const SETALL: i32 = 17;
const LIMIT: &str = "/proc/sys/kernel/msgmax";

/// The objects of a namespace, and those whose contents are checked.
#[derive(Debug)]
pub struct Objects {
    tag: u8,
    /// The segment, as it is attached.
    pub memory: Mapping,
    /// Its identifier.
    pub segment: i32,
    spare: i32,
    set: i32,
    queue: i32,
    /// The queue of the name `/jobs`.
    pub jobs: RawFd,
    nameless: RawFd,
    /// A process that takes back what it did to the semaphores.
    adjuster: Option<i32>,
}

fn plain(result: i32, what: &str) -> i32 {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

/// Attaches a segment.
///
/// # Panics
/// Where that fails.
#[must_use]
pub fn attach(id: i32, pages: usize) -> Mapping {
    // SAFETY: the kernel chooses the address.
    let address = unsafe { libc::shmat(id, ptr::null(), 0) } as usize;
    assert!(address != usize::MAX, "shmat: {}", io::Error::last_os_error());
    Mapping {
        address,
        len: pages * PAGE,
    }
}

/// Detaches one.
///
/// # Panics
/// Where that fails.
pub fn detach(mapping: Mapping) {
    // SAFETY: attached by the victim, which uses it no more.
    plain(unsafe { libc::shmdt(mapping.address as *const _) }, "shmdt");
}

/// Detaches what a parent had attached.
fn detach_all() {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    for line in maps.lines().filter(|line| line.contains("/SYSV")) {
        let start = line.split('-').next().expect("an address");
        let address = usize::from_str_radix(start, 16).expect("hex");
        detach(Mapping { address, len: 0 });
    }
}

/// How often a segment is attached.
///
/// # Panics
/// Where it is not there.
#[must_use]
pub fn attached(id: i32) -> u64 {
    let mut structure = MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: room for the structure.
    plain(
        unsafe { libc::shmctl(id, libc::IPC_STAT, structure.as_mut_ptr()) },
        "IPC_STAT",
    );
    // SAFETY: the kernel has filled it.
    unsafe { structure.assume_init() }.shm_nattch
}

/// Adds to semaphores what is undone at the end.
///
/// # Panics
/// Where that fails.
pub fn change(set: i32, operations: &[(u16, i16)]) {
    let operation = |(number, value): &(u16, i16)| libc::sembuf {
        sem_num: *number,
        sem_op: *value,
        sem_flg: libc::SEM_UNDO as i16,
    };
    let mut all: Vec<libc::sembuf> = operations.iter().map(operation).collect();
    // SAFETY: as many operations as are said.
    plain(unsafe { libc::semop(set, all.as_mut_ptr(), all.len()) }, "semop");
}

/// Opens a POSIX queue; with a number of messages it is made.
///
/// # Errors
/// Those of mq_open(3).
///
/// # Panics
/// Never: names have no NUL.
pub fn open(name: &str, most: Option<i64>) -> io::Result<RawFd> {
    let name = CString::new(name).expect("no NUL");
    // SAFETY: zeros are valid numbers.
    let mut attributes: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    (attributes.mq_maxmsg, attributes.mq_msgsize) = (most.unwrap_or_default(), 64);
    let flags = libc::O_RDWR | libc::O_NONBLOCK | most.map_or(0, |_| libc::O_CREAT | libc::O_EXCL);
    // SAFETY: a name that ends with a NUL, and a structure.
    let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, &raw const attributes) };
    call::checked(queue.into()).map(|queue| queue as RawFd)
}

/// How many messages a POSIX queue takes.
#[must_use]
pub fn most_messages(queue: RawFd) -> i64 {
    // SAFETY: zeros are valid numbers.
    let mut found: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: room for the structure.
    unsafe { libc::mq_getattr(queue, &raw mut found) };
    found.mq_maxmsg
}

impl Objects {
    /// Makes all of them; with a process that has adjusted semaphores, too.
    ///
    /// # Panics
    /// Where that fails.
    #[must_use]
    pub fn make(tag: u8, with_adjuster: bool) -> Self {
        fs::write(LIMIT, (9000 + i32::from(tag)).to_string()).expect("a limit");
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
        // SAFETY: numbers.
        let segment = plain(unsafe { libc::shmget(KEY, PAGES * PAGE, flags) }, "shmget");
        // SAFETY: numbers.
        let spare = plain(unsafe { libc::shmget(libc::IPC_PRIVATE, PAGE, flags) }, "shmget");
        let memory = attach(segment, PAGES);
        memory.mark(0, u64::from(tag));
        let once = attach(spare, 1);
        once.mark(0, 100 + u64::from(tag));
        detach(once);
        // SAFETY: numbers.
        let set = plain(unsafe { libc::semget(KEY, 2, flags) }, "semget");
        // SAFETY: as many values as semaphores.
        plain(
            unsafe { libc::semctl(set, 0, SETALL, [100 + u16::from(tag), 3].as_ptr()) },
            "SETALL",
        );
        change(set, &[(0, -2)]);
        // SAFETY: numbers.
        let queue = plain(unsafe { libc::msgget(KEY, flags) }, "msgget");
        let [jobs, nameless] = ["/jobs", "/gone"].map(|name| open(name, Some(3 + i64::from(tag))).expect("mq_open"));
        // SAFETY: a name that ends with a NUL.
        plain(unsafe { libc::mq_unlink(c"/gone".as_ptr()) }, "mq_unlink");
        let mut all = Self {
            tag,
            memory,
            segment,
            spare,
            set,
            queue,
            jobs,
            nameless,
            adjuster: None,
        };
        all.send();
        if with_adjuster {
            all.start_adjuster();
        }
        all
    }

    /// Identifiers.
    #[must_use]
    pub fn ids(&self) -> [i32; 4] {
        [self.segment, self.spare, self.set, self.queue]
    }

    /// Damages something.
    ///
    /// # Panics
    /// Where that fails.
    pub fn damage(&self) {
        change(self.set, &[(1, 1)]);
    }

    fn text(&self) -> Vec<u8> {
        format!("of namespace {}", self.tag).into_bytes()
    }

    fn send(&self) {
        let text = self.text();
        let message = [&7_i64.to_ne_bytes(), text.as_slice()].concat();
        // SAFETY: a type and so many bytes.
        plain(
            unsafe { libc::msgsnd(self.queue, message.as_ptr().cast(), text.len(), 0) },
            "msgsnd",
        );
        for queue in [self.jobs, self.nameless] {
            // SAFETY: the text is valid for its length.
            let sent = unsafe { libc::mq_send(queue, text.as_ptr().cast(), text.len(), self.tag.into()) };
            plain(sent, "mq_send");
        }
    }

    fn start_adjuster(&mut self) {
        let [told, tell] = call::pipe(0);
        let set = self.set;
        self.adjuster = Some(fork(move || {
            detach_all();
            change(set, &[(0, -1), (1, 2)]);
            call::write(tell, b".").expect("tell");
            loop {
                // SAFETY: no arguments.
                unsafe { libc::pause() };
            }
        }));
        call::read(told, 1).expect("ready");
        [told, tell].into_iter().for_each(call::close);
    }

    /// The values of the semaphores.
    #[must_use]
    pub fn values(&self) -> [u16; 2] {
        let mut values = [0; 2];
        // SAFETY: room for the values.
        unsafe { libc::semctl(self.set, 0, GETALL, values.as_mut_ptr()) };
        values
    }

    /// Does what the caller did to the semaphores again, where that was undone.
    pub fn adjust_again(&self) {
        change(self.set, &[(0, -2)]);
    }

    /// The values, when the caller is the one alone that is to undo something, and has done so, or not.
    #[must_use]
    pub fn own_values(&self, undone: bool) -> [u16; 2] {
        [98 + u16::from(self.tag) + if undone { 2 } else { 0 }, 3]
    }

    /// Looks at everything, by a task that is in the namespace and has made it.
    pub fn check(&mut self, findings: &mut Findings, attachments: u64) {
        let at = |what: &str| format!("{what} of namespace {}", self.tag);
        let limit = fs::read_to_string(LIMIT).unwrap_or_default();
        findings.same(
            at("the limit"),
            &(9000 + i32::from(self.tag)).to_string(),
            &limit.trim().to_owned(),
        );
        // SAFETY: numbers.
        let found = unsafe { [libc::shmget(KEY, 0, 0), libc::semget(KEY, 0, 0), libc::msgget(KEY, 0)] };
        findings.same(at("what the key finds"), &[self.segment, self.set, self.queue], &found);
        // Others' children have it for a moment, too.
        let counted = wait_until(|| attached(self.segment) == attachments);
        findings.that(counted, at(&format!("not {attachments} attachments")));
        self.memory.compare(findings, &at("the segment"), 0, self.tag.into());
        let once = attach(self.spare, 1);
        once.compare(findings, &at("the other segment"), 0, 100 + u64::from(self.tag));
        detach(once);
        self.check_messages(findings);
        let named = open("/jobs", None);
        findings.same(
            at("the named queue takes"),
            &Some(3 + i64::from(self.tag)),
            &named.as_ref().ok().map(|q| most_messages(*q)),
        );
        named.into_iter().for_each(call::close);
        findings.that(open("/gone", None).is_err(), at("there is again a name"));
        if let Some(adjuster) = self.adjuster {
            findings.same(at("values"), &[97 + u16::from(self.tag), 5], &self.values());
            call::kill(adjuster, libc::SIGKILL).expect("kill");
            // SAFETY: no status is wanted.
            unsafe { libc::waitpid(adjuster, ptr::null_mut(), 0) };
            findings.same(at("values after one's end"), &self.own_values(false), &self.values());
            self.start_adjuster();
        }
    }

    /// Receives what waits, and sends it again.
    fn check_messages(&self, findings: &mut Findings) {
        let (at, wanted) = (
            |what: &str| format!("{what} of namespace {}", self.tag),
            Some(self.text()),
        );
        let mut room = [0_u8; 72];
        // SAFETY: room for a type and so many bytes.
        let got = unsafe { libc::msgrcv(self.queue, room.as_mut_ptr().cast(), 64, 0, libc::IPC_NOWAIT) };
        let text = usize::try_from(got).ok().map(|bytes| room[8..8 + bytes].to_vec());
        findings.same(at("a message"), &wanted, &text);
        for (what, queue) in [
            ("a message of the named queue", self.jobs),
            ("a message of the nameless queue", self.nameless),
        ] {
            let (mut text, mut priority) = ([0_u8; 64], 0);
            // SAFETY: room for the longest message.
            let got = unsafe { libc::mq_receive(queue, text.as_mut_ptr().cast(), text.len(), &raw mut priority) };
            let text = usize::try_from(got).ok().map(|bytes| text[..bytes].to_vec());
            findings.same(at(what), &(wanted.clone(), u32::from(self.tag)), &(text, priority));
        }
        self.send();
    }
}
