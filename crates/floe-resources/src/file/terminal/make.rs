//! Makes the terminals of an image. A devpts gives the lowest number that is free, so those below a wanted one are taken
//! meanwhile.

use super::{
    super::{FileError, decode, open_flags},
    Body, MASTER_KIND, MULTIPLEXERS, MasterRecord, OBJECT_KIND, Pair, decode_pair,
    fill::{close, fill},
    path_of,
    state::check,
};
use floe_image::{
    Image,
    record::{ConsoleRecord, TerminalRecord},
};
use floe_sys::{
    descriptor::open_in_root,
    terminal::{command, lock, numbered, open_slave},
};
use nix::errno::Errno;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// include/uapi/asm-generic/ioctls.h.
const TCXONC: libc::c_ulong = 0x540A;

/// A terminal that was made.
pub(in crate::file) struct Made {
    pub(super) pair: Pair,
    /// `None` where it is to be closed.
    pub(super) master: Option<OwnedFd>,
    /// The same, until it is closed.
    hangs_up: Option<OwnedFd>,
    /// floe's own, by which it is filled, and which its session's leader is handed.
    slave: OwnedFd,
}

impl Made {
    pub fn any_master(&self) -> BorrowedFd<'_> {
        let master = self.master.as_ref().or(self.hangs_up.as_ref());
        master.unwrap_or(&self.slave).as_fd()
    }
}

/// The terminals made.
pub struct MadeTerminals {
    pairs: HashMap<u32, Made>,
    console: OwnedFd,
    /// What the sandbox's own is like, where it has one.
    own: Option<TerminalRecord>,
}

impl MadeTerminals {
    /// Makes those of an image, in the devpts below `root`, and sets up the sandbox's own, whose slave is `console`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn make(image: &Image, root: BorrowedFd<'_>, console: &OwnedFd) -> Result<Self, FileError> {
        let own = match &image.sandbox().console {
            ConsoleRecord::Terminal(record) => Some(record.clone()),
            ConsoleRecord::None | ConsoleRecord::Pipes { .. } => None,
        };
        if let Some(record) = &own {
            check(record).map_err(|what| FileError::Unknown { id: 0, what })?;
            fill(console.as_fd(), record, None).map_err(failed("set up", record))?;
        }
        let mut wanted = Vec::new();
        for object in image.objects().iter().filter(|object| object.kind == OBJECT_KIND) {
            wanted.push((object.id, decode_pair(object)?));
        }
        wanted.sort_by_key(|(_, pair)| pair.terminal.index);
        let mut flags = HashMap::new();
        for record in image.open_files().iter().filter(|record| record.kind == MASTER_KIND) {
            let Body { pair } = decode(record)?;
            flags.insert(pair, open_flags(record));
        }
        let mut placeholders = Vec::new();
        let mut pairs = HashMap::new();
        for (id, pair) in wanted {
            let flags = flags.get(&id).copied().unwrap_or(libc::O_RDWR);
            pairs.insert(id, Made::make(pair, flags, root, &mut placeholders)?);
        }
        let console = console.try_clone().map_err(|source| FileError::System {
            action: "duplicate",
            object: "the sandbox's standard input".to_owned(),
            source,
        })?;
        Ok(Self { pairs, console, own })
    }

    /// One of them, for the open file `file`.
    pub(in crate::file) fn get(&self, file: u32, id: u32) -> Result<&Made, FileError> {
        self.pairs.get(&id).ok_or_else(|| FileError::Unknown {
            id: file,
            what: format!("the image lacks terminal {id}"),
        })
    }

    /// The slave of one, for the leader of its session; of the sandbox's own where `None`.
    ///
    /// # Errors
    /// [`FileError::Unknown`].
    pub fn slave(&self, id: Option<u32>) -> Result<BorrowedFd<'_>, FileError> {
        match id {
            Some(id) => self.get(id, id).map(|made| made.slave.as_fd()),
            None => Ok(self.console.as_fd()),
        }
    }

    /// What comes last, when all of the tree's files are open.
    ///
    /// # Errors
    /// [`FileError`].
    pub(in crate::file) fn finish(self) -> Result<(), FileError> {
        if let Some(record) = &self.own {
            close(self.console.as_fd(), record).map_err(failed("complete", record))?;
        }
        for made in self.pairs.into_values() {
            let failed = failed("complete", &made.pair.terminal);
            made.finish().map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(action: &'static str, record: &TerminalRecord) -> impl Fn(io::Error) -> FileError + use<> {
    let object = format!("terminal {}", path_of(record.index));
    move |source| FileError::System {
        action,
        object: object.clone(),
        source,
    }
}

impl Made {
    fn make(pair: Pair, flags: i32, root: BorrowedFd<'_>, placeholders: &mut Vec<OwnedFd>) -> Result<Self, FileError> {
        let master = allocate(&pair, flags | libc::O_NONBLOCK | libc::O_NOCTTY, root, placeholders)?;
        let failed = |action| failed(action, &pair.terminal);
        let slave = lock(master.as_fd(), false)
            .and_then(|()| open_slave(master.as_fd(), libc::O_RDWR | libc::O_NONBLOCK))
            .map_err(|error| failed("open the slave of")(error.into()))?;
        let (mut kept, mut hangs_up) = (None, None);
        if let Some(record) = &pair.master {
            let both = Some((master.as_fd(), record));
            fill(slave.as_fd(), &pair.terminal, both).map_err(failed("fill"))?;
            kept = Some(master);
        } else {
            hangs_up = Some(master);
        }
        Ok(Self {
            pair,
            master: kept,
            hangs_up,
            slave,
        })
    }

    fn finish(self) -> io::Result<()> {
        let (Some(master), Some(record)) = (&self.master, &self.pair.master) else {
            // The slave hangs up.
            return Ok(());
        };
        close(self.slave.as_fd(), &self.pair.terminal)?;
        let MasterRecord {
            exclusive,
            stopped,
            locked,
            opened,
            ..
        } = *record;
        if exclusive {
            command(master.as_fd(), libc::TIOCEXCL, 0)?;
        }
        if stopped {
            command(master.as_fd(), TCXONC, 0)?;
        }
        if !opened {
            // A slave that refused to be opened is closed without a trace: its master does not hang up.
            lock(master.as_fd(), true)?;
            match open_slave(master.as_fd(), libc::O_RDWR) {
                Err(Errno::EIO) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(Errno::EBUSY.into()),
            }
            drop(self.slave);
        }
        Ok(lock(master.as_fd(), locked)?)
    }
}

/// A master with the right number.
fn allocate(
    pair: &Pair,
    flags: i32,
    root: BorrowedFd<'_>,
    placeholders: &mut Vec<OwnedFd>,
) -> Result<OwnedFd, FileError> {
    let multiplexer = pair.master.as_ref().map_or(0, |master| master.multiplexer);
    let path = Path::new(MULTIPLEXERS[usize::from(multiplexer)]);
    let open = || open_in_root(root, path, flags, 0);
    let wanted = pair.terminal.index;
    numbered(wanted, placeholders, open).map_err(FileError::system("make terminal", pair.path()))
}
