//! The image that an ordinary user's floe sends. That user can write into it what they like; so they have an end of a pipe and
//! nothing of the file, and the file gets its place only when it is complete, and says that it is theirs.

use anyhow::Context as _;
use floe_checkpoint::checkpoint::OpenOutput;
use floe_image::ImageFiles;
use floe_sandbox::Owner;
use floe_sys::descriptor;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags},
};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::fchown,
    },
    sync::atomic::AtomicBool,
};

#[derive(Debug)]
pub struct Intake {
    from: File,
    is_open: bool,
    /// What has come so far. Where the image goes to a stream this is a file beside: what is in a stream can't be looked at.
    file: File,
    output: OpenOutput,
    /// Whose the image has to be.
    user: u32,
}

/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 16;

/// Fewer calls; what an ordinary user may have by default (fs.pipe-max-size), as this pipe is theirs.
const PIPE_BYTES: i32 = 1 << 20;

impl Intake {
    /// Itself, and the end that the user gets.
    pub fn new(output: OpenOutput, owner: &Owner) -> anyhow::Result<(Self, File)> {
        let (from, to) = io::pipe()?;
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Its writer opens it anew so that no write waits.
        fchown(&to, Some(owner.user), Some(owner.group)).context("give a pipe away")?;
        if let Err(error) = fcntl(&from, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
            tracing::debug!(%error, "the pipe keeps its size");
        }
        let file = match &output {
            OpenOutput::Unnamed { file, .. } => file.try_clone()?,
            OpenOutput::Stream(_) | OpenOutput::Handed(..) => {
                tempfile::tempfile().context("make a file to keep the image in until it is complete")?
            }
        };
        let intake = Self {
            from: from.into(),
            is_open: true,
            file,
            output,
            user: owner.user,
        };
        Ok((intake, to.into()))
    }

    pub fn is_streamed(&self) -> bool {
        matches!(self.output, OpenOutput::Stream(_))
    }

    pub fn polled(&self) -> Option<PollFd<'_>> {
        self.is_open.then(|| PollFd::new(self.from.as_fd(), PollFlags::POLLIN))
    }

    /// Takes what is there, at most as much as a pipe holds: there is more to do.
    pub fn take_in(&mut self) -> io::Result<()> {
        self.take_up_to(PIPE_BYTES as usize)
    }

    fn take_up_to(&mut self, mut bytes: usize) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.is_open && bytes > 0 {
            let wanted = bytes.min(CHUNK_BYTES);
            match self.from.read(&mut chunk[..wanted]) {
                Ok(0) => self.is_open = false,
                Ok(count) => {
                    self.file.write_all(&chunk[..count])?;
                    bytes -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the image its place: all of it was sent before this was asked for.
    pub fn publish(mut self, interrupted: &'static AtomicBool) -> anyhow::Result<()> {
        // Nobody can have more taken by going on to write.
        let left = descriptor::bytes_to_read(self.from.as_fd())?;
        self.take_up_to(usize::try_from(left)?).context("keep the image")?;
        drop(self.from);
        let record = ImageFiles::from(self.file.try_clone()?)
            .owner()
            .context("read the image")?;
        let maker = record.map(|record| record.namespace.maker.0);
        anyhow::ensure!(
            maker == Some(self.user),
            "the image does not say that the tree is user {}'s, so it is not kept",
            self.user
        );
        if let OpenOutput::Unnamed { .. } = self.output {
            self.output.sync()?;
        } else {
            self.file.rewind()?;
            let mut sink = self.output.sink(interrupted)?;
            io::copy(&mut BufReader::with_capacity(CHUNK_BYTES, self.file), &mut sink).context("pass the image on")?;
            sink.flush().context("pass the image on")?;
        }
        Ok(self.output.publish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::Intake;
    use floe_checkpoint::checkpoint::Output;
    use floe_image::ImageFiles;
    use floe_sandbox::Owner;
    use std::{
        fs::{self, File},
        io::Write,
        path::Path,
        sync::atomic::AtomicBool,
    };

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// What becomes of these bytes where an image of this user's is awaited.
    fn sent(bytes: &[u8], user: u32, path: &Path) -> Result<(), String> {
        let owner = Owner {
            user,
            group: user,
            groups: Vec::new(),
        };
        let output = Output::Path(path.to_owned()).open().expect("an output");
        let (mut intake, mut end) = Intake::new(output, &owner).expect("an intake");
        for part in bytes.chunks(4096) {
            end.write_all(part).expect("write it");
            intake.take_in().expect("take it in");
        }
        intake.publish(&NEVER).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_does_not_say_whose_it_is_gets_no_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sent.floe");
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/v1.floe");
        let image = fs::read(golden).expect("an image");
        let record = ImageFiles::from(File::open(golden).expect("an image")).owner();
        let record = record.expect("its records").expect("an owner");
        let maker = record.namespace.maker.0;
        for user in [0, maker + 1] {
            let error = sent(&image, user, &path).expect_err("refused");
            assert!(
                error.contains(&format!("does not say that the tree is user {user}'s")),
                "{error}"
            );
            assert!(!path.exists());
        }
        for bytes in [&b""[..], b"no image", &image[..image.len() - 1]] {
            assert!(sent(bytes, maker, &path).is_err());
            assert!(!path.exists());
        }
        sent(&image, maker, &path).expect("kept");
        assert!(fs::read(&path).expect("an image") == image);
    }
}
