//! A child process that answers questions: what one process does to something shared, another one must see.

use crate::{call, stage};
use std::{io, process};

/// Such a child. It has all descriptors that its parent had when it was made.
#[derive(Debug)]
pub struct Peer {
    questions: i32,
    answers: i32,
    /// Its process id.
    pub pid: i32,
}

impl Peer {
    /// Makes one that answers with `answer`; it ends when the parent ends. It has closed what it does not need when this
    /// returns.
    ///
    /// # Panics
    /// Where it ends at once.
    #[must_use]
    pub fn start(mut answer: impl FnMut(i64) -> i64) -> Self {
        let [question_read, question_write] = call::pipe(0);
        let [answer_read, answer_write] = call::pipe(0);
        let pid = stage::fork(|| {
            call::close(question_write);
            call::close(answer_read);
            if call::write(answer_write, &0_i64.to_le_bytes()).is_err() {
                process::exit(0);
            }
            loop {
                let Ok(number) = receive(question_read) else {
                    process::exit(0)
                };
                if call::write(answer_write, &answer(number).to_le_bytes()).is_err() {
                    process::exit(0);
                }
            }
        });
        call::close(question_read);
        call::close(answer_write);
        receive(answer_read).expect("a child that has begun");
        Self {
            questions: question_write,
            answers: answer_read,
            pid,
        }
    }

    /// What it answers.
    ///
    /// # Errors
    /// Those of the pipes to it.
    pub fn ask(&self, number: i64) -> io::Result<i64> {
        call::write(self.questions, &number.to_le_bytes())?;
        receive(self.answers)
    }
}

fn receive(fd: i32) -> io::Result<i64> {
    let bytes = call::read(fd, 8)?;
    let bytes: [u8; 8] = bytes
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(i64::from_le_bytes(bytes))
}
