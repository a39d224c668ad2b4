//! What of an image comes when its tree runs already. The process that brings memory to the tree waits for it; the
//! connection's own puts it where it belongs.
//!
//! ```text
//! source ── pieces ──► session ── file, states (shared memory) ──► page server ──► tree
//!        ◄── fetch ───         ◄──────── a byte: look ────────────
//! ```
//! Each sees the other's end by a socket: a page server without a session ends the sandbox, as nothing comes any more.

use crate::link::message::Part;
use floe_image::Coming;
use floe_sys::shared::SharedNumbers;
use nix::{
    errno::Errno,
    fcntl::posix_fallocate,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{MsgFlags, recv, send},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A part has not come.
const ABSENT: u32 = 0;
/// And somebody waits for it.
const WANTED: u32 = 1;
/// It has.
const THERE: u32 = 2;
/// How often who waits looks whether somebody is there still, and whether it is to go on.
const GLANCE: Duration = Duration::from_millis(100);
/// The same of one that may have other things to do, at first and at most.
const BRIEF: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];

/// What can't be the rest of an image.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// Not a part that was announced, or not where that goes on.
    #[error("the source sent something that is no part of the memory that is still to come")]
    Place,
    /// The file.
    #[error("write memory that has come into a temporary file")]
    Write(#[from] io::Error),
}

/// Parts of a file that are still to come, as the process of the connection has them.
#[derive(Debug)]
pub struct Rest {
    file: File,
    parts: Arc<[Part]>,
    states: Arc<SharedNumbers>,
    /// How many bytes of each have come.
    came: Vec<u64>,
    /// Which the source was asked for.
    asked: Vec<bool>,
    left: usize,
    near: UnixStream,
    /// For who waits, until that has it.
    waiting: Option<Arc<Waiting>>,
}

/// The same, as those have them who wait.
#[derive(Debug)]
struct Waiting {
    parts: Arc<[Part]>,
    states: Arc<SharedNumbers>,
    far: UnixStream,
    /// Of who builds the tree.
    interrupted: &'static AtomicBool,
}

impl Rest {
    /// These parts of a file, lowest first and apart from each other, for which there is room from now on.
    ///
    /// # Errors
    /// Those of posix_fallocate(3), dup(2), mmap(2) and socketpair(2).
    pub fn new(file: &File, parts: Vec<Part>, interrupted: &'static AtomicBool) -> io::Result<Self> {
        for (offset, bytes) in &parts {
            let (offset, bytes) = (offset.cast_signed(), bytes.cast_signed());
            posix_fallocate(file, offset, bytes)?;
        }
        let (near, far) = UnixStream::pair()?;
        let parts: Arc<[Part]> = parts.into();
        let states = Arc::new(SharedNumbers::new(parts.len())?);
        Ok(Self {
            file: file.try_clone()?,
            came: vec![0; parts.len()],
            asked: vec![false; parts.len()],
            left: parts.len(),
            near,
            waiting: Some(Arc::new(Waiting {
                parts: Arc::clone(&parts),
                states: Arc::clone(&states),
                far,
                interrupted,
            })),
            parts,
            states,
        })
    }

    /// For who reads the file, in a process that is made from this one.
    pub fn coming(&self) -> Option<Arc<dyn Coming>> {
        self.waiting.clone().map(|waiting| waiting as Arc<dyn Coming>)
    }

    /// That is made now: its end is to be noticed here.
    pub fn is_handed_over(&mut self) {
        self.waiting = None;
    }

    /// Readable when somebody wants something, or nobody waits any more.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }

    /// Which parts somebody waits for, that were not asked for yet; `None` where nobody reads the file any more.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn wanted(&mut self) -> io::Result<Option<Vec<Part>>> {
        let mut bytes = [0; 64];
        let mut has_news = false;
        loop {
            match recv(self.near.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok(_) => has_news = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if !has_news {
            return Ok(Some(Vec::new()));
        }
        // Who wants something has said so before it wrote a byte.
        let is_new = |index: &usize| !self.asked[*index] && self.state(*index) == WANTED;
        let new: Vec<usize> = (0..self.parts.len()).filter(is_new).collect();
        new.iter().for_each(|index| self.asked[*index] = true);
        Ok(Some(new.into_iter().map(|index| self.parts[index]).collect()))
    }

    fn state(&self, index: usize) -> u32 {
        self.states[index].load(Ordering::Acquire) as u32
    }

    /// Takes a piece: each part comes from its beginning on.
    ///
    /// # Errors
    /// [`RestError`].
    pub fn take(&mut self, offset: u64, piece: &[u8]) -> Result<(), RestError> {
        let index = self.parts.partition_point(|part| part.0 <= offset).checked_sub(1);
        let index = index.ok_or(RestError::Place)?;
        let ((start, bytes), came) = (self.parts[index], self.came[index]);
        let got = piece.len() as u64;
        if offset != start + came || got > bytes - came || piece.is_empty() {
            return Err(RestError::Place);
        }
        self.file.write_all_at(piece, offset)?;
        self.came[index] += got;
        if self.came[index] == bytes {
            self.left -= 1;
            self.states[index].store(u64::from(THERE), Ordering::Release);
            self.states.wake(index);
        }
        Ok(())
    }

    /// Whether all have come.
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// All of it, as what somebody waits for.
    pub fn ask_for_all(&mut self) -> Vec<Part> {
        self.asked.fill(true);
        self.parts.to_vec()
    }

    /// What another connection is to bring, what is wanted first: nothing of a part that has not come whole counts.
    pub fn begin_anew(&mut self) -> Vec<Part> {
        // Others change them meanwhile.
        let states: Vec<u32> = (0..self.parts.len()).map(|index| self.state(index)).collect();
        let mut left: Vec<usize> = (0..states.len()).filter(|index| states[*index] != THERE).collect();
        left.iter().for_each(|index| self.came[*index] = 0);
        left.sort_by_key(|index| states[*index] != WANTED);
        left.iter()
            .for_each(|index| self.asked[*index] = states[*index] == WANTED);
        left.into_iter().map(|index| self.parts[index]).collect()
    }
}

impl Waiting {
    fn is_alone(&self) -> bool {
        let mut asked = [PollFd::new(self.far.as_fd(), PollFlags::empty())];
        poll(&mut asked, 0_u8).is_ok()
            && asked[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

impl Coming for Waiting {
    fn wait(&self, offset: u64, urgent: bool, goes_on: Option<&dyn Fn() -> bool>) -> io::Result<bool> {
        let Ok(index) = self.parts.binary_search_by_key(&offset, |part| part.0) else {
            return Ok(true);
        };
        let state = &self.states[index];
        let wanted = u64::from(WANTED);
        if urgent
            && state
                .compare_exchange(u64::from(ABSENT), wanted, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            // Where there is no room, there is something that has the other side look.
            match send(self.far.as_raw_fd(), b"w", flags) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Who has nothing else to do is woken.
        let mut moment = BRIEF[0];
        loop {
            match state.load(Ordering::Acquire) as u32 {
                THERE => return Ok(true),
                now => {
                    if self.is_alone() {
                        return Err(io::Error::other("who brings what is still to come has ended"));
                    }
                    self.states.wait_while(index, now, moment);
                }
            }
            match goes_on {
                Some(goes_on) if !goes_on() => return Ok(state.load(Ordering::Acquire) as u32 == THERE),
                None if self.interrupted.load(Ordering::Relaxed) => return Err(io::Error::other("told to stop")),
                Some(_) => moment = (moment * 2).min(BRIEF[1]),
                None => moment = GLANCE,
            }
        }
    }

    fn file(&self) -> BorrowedFd<'_> {
        self.far.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{Rest, RestError};
    use std::{
        fs::File,
        os::unix::fs::FileExt,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    static STOP: AtomicBool = AtomicBool::new(false);
    const PARTS: [(u64, u64); 3] = [(10, 5), (20, 4), (24, 6)];

    fn rest() -> (File, Rest) {
        let file = tempfile::tempfile().expect("a file");
        let rest = Rest::new(&file, PARTS.to_vec(), &STOP).expect("a rest");
        (file, rest)
    }

    #[test]
    fn parts_come_from_their_beginning_on_in_any_order() {
        let (file, mut rest) = rest();
        for (offset, piece) in [
            (9, &b"x"[..]),
            (11, b"x"),
            (10, b"xxxxxx"),
            (20, b""),
            (30, b"x"),
            (u64::MAX, b"x"),
        ] {
            assert!(
                matches!(rest.take(offset, piece), Err(RestError::Place)),
                "{offset} {piece:?}"
            );
        }
        for (offset, piece) in [(20, &b"ab"[..]), (24, b"efghij"), (10, b"01234"), (22, b"cd")] {
            assert!(!rest.is_whole());
            rest.take(offset, piece).expect("a part of it");
        }
        assert!(rest.is_whole());
        assert!(rest.take(22, b"cd").is_err(), "twice");
        let mut all = [0; 20];
        file.read_exact_at(&mut all, 10).expect("written");
        assert_eq!(&all, b"01234\0\0\0\0\0abcdefghij");
    }

    #[test]
    fn who_waits_is_heard_once_and_woken() {
        let (_file, mut rest) = rest();
        let coming = rest.coming().expect("for who waits");
        rest.is_handed_over();
        assert!(
            coming.wait(11, true, Some(&|| false)).expect("nobody brings it"),
            "what is there is not waited for"
        );
        assert!(!coming.wait(10, false, Some(&|| false)).expect("not yet"));
        assert_eq!(rest.wanted().expect("news"), Some(Vec::new()), "nobody was in a hurry");
        let waiting = {
            let coming = coming.clone();
            thread::spawn(move || coming.wait(20, true, None))
        };
        let mut asked = Vec::new();
        while asked.is_empty() {
            asked = rest.wanted().expect("news").expect("somebody is there");
        }
        assert_eq!(asked, [(20, 4)]);
        assert_eq!(rest.wanted().expect("news"), Some(Vec::new()), "it was asked for");
        rest.take(20, b"ab").expect("a part of it");
        // A connection broke meanwhile: the part comes from its beginning on, and before others.
        assert_eq!(rest.begin_anew(), [(20, 4), (10, 5), (24, 6)]);
        rest.take(20, b"abcd").expect("a part of it");
        assert!(waiting.join().expect("no panic").expect("it came"));
        drop(coming);
        assert_eq!(rest.wanted().expect("news"), None);
    }

    #[test]
    fn who_waits_for_nobody_hears_that() {
        let (_file, mut rest) = rest();
        let coming = rest.coming().expect("for who waits");
        rest.is_handed_over();
        static GOES_ON: AtomicBool = AtomicBool::new(true);
        let waiting = {
            let coming = coming.clone();
            thread::spawn(move || {
                coming
                    .wait(24, true, Some(&|| GOES_ON.load(Ordering::Relaxed)))
                    .expect("somebody is there")
            })
        };
        GOES_ON.store(false, Ordering::Relaxed);
        assert!(!waiting.join().expect("no panic"));
        drop(rest);
        assert!(coming.wait(24, false, None).is_err());
    }
}
