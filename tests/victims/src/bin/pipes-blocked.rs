//! A reader that waits for an empty pipe and a writer that waits for a full one: each goes on where it was, with all
//! bytes once and in order, and neither sees an error. A write may tell that it wrote only a part, as it does after
//! every stop (SIGSTOP, SIGCONT).

use std::{sync::mpsc, time::Duration};
use victims::{Findings, call, pattern, play, waiting::spawn_into};

const WAITING: Duration = Duration::from_millis(20);

fn main() {
    play(|_| {
        let (mut reader, mut writer) = (Reader::start(), Writer::start());
        move |findings: &mut Findings| {
            reader.check(findings);
            writer.check(findings);
        }
    })
}

/// A thread that reads from an empty pipe.
struct Reader {
    write: i32,
    round: u8,
    heard: mpsc::Receiver<Result<Vec<u8>, String>>,
}

/// It waits for a pipe.
const WAITS: [i64; 2] = [libc::SYS_read, libc::SYS_write];

fn start<T: Send + 'static>(work: impl FnOnce(mpsc::Sender<T>) + Send + 'static) -> mpsc::Receiver<T> {
    let (tell, hear) = mpsc::channel();
    spawn_into(&WAITS, move || work(tell));
    hear
}

impl Reader {
    fn start() -> Self {
        let [read, write] = call::pipe(0);
        let heard = start(move |tell| {
            loop {
                let got = call::read(read, 10).map_err(|error| error.to_string());
                if tell.send(got).is_err() {
                    return;
                }
            }
        });
        Self { write, round: 0, heard }
    }

    fn check(&mut self, findings: &mut Findings) {
        self.round += 1;
        let early = self.heard.recv_timeout(WAITING);
        findings.that(early.is_err(), format!("the reader came back by itself: {early:?}"));
        let sent = if findings.sabotage() { b'!' } else { self.round };
        call::write(self.write, &[sent]).expect("write");
        let heard = self.heard.recv_timeout(Duration::from_secs(10));
        findings.that(heard == Ok(Ok(vec![self.round])), format!("the reader got {heard:?}"));
    }
}

const SENT: usize = 300_000;

/// A thread that writes more than a pipe holds, again and again.
struct Writer {
    read: i32,
    trouble: mpsc::Receiver<String>,
    at: usize,
}

impl Writer {
    fn start() -> Self {
        let [read, write] = call::pipe(0);
        let trouble = start(move |tell| {
            let bytes = pattern::bytes(SENT, 9);
            let mut at = 0;
            loop {
                match call::write(write, &bytes[at..]) {
                    Ok(wrote @ 1..) => at = (at + wrote) % SENT,
                    other => return tell.send(format!("{other:?}")).unwrap_or_default(),
                }
            }
        });
        Self { read, trouble, at: 0 }
    }

    fn check(&mut self, findings: &mut Findings) {
        let bytes = pattern::bytes(SENT, 9);
        let mut left = 50_000;
        while left > 0 {
            let Ok(got) = call::read(self.read, left.min(SENT - self.at)) else {
                return findings.add("can't read what the writer wrote");
            };
            let same = got == bytes[self.at..self.at + got.len()];
            findings.that(same, format!("what the writer wrote differs behind byte {}", self.at));
            left -= got.len();
            self.at = (self.at + got.len()) % SENT;
        }
        for trouble in self.trouble.try_iter() {
            findings.add(format!("the writer ended with {trouble}"));
        }
    }
}
