//! A program in a sandbox that has one end of TCP connections, whose other ends are the test's own, and does what it is told.

use crate::{Host, PID_METHODS, enter_own_network, until};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

/// The program in the sandbox, which does what it is told.
pub struct Talker<'a> {
    host: &'a Host,
    /// The sandbox's name.
    pub sandbox: String,
    folder: PathBuf,
    answers: usize,
}

impl<'a> Talker<'a> {
    /// Starts it, in a network namespace of this thread's own.
    ///
    /// # Panics
    /// Where that fails.
    pub fn start(host: &'a Host) -> Self {
        enter_own_network();
        let sandbox = host.name("talker");
        let folder = host.path("talker");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("commands"), "").expect("write");
        fs::write(folder.join("answers"), "").expect("write");
        let place = folder.display().to_string();
        let line = [
            "run", "-d", "--name", &sandbox, "-w", &place, "--", "python3", "-c", TALKER,
        ];
        host.done(&line);
        Self {
            host,
            sandbox,
            folder,
            answers: 0,
        }
    }

    /// What comes of a command.
    pub fn ask(&mut self, command: &str) -> String {
        let question = self.begin(command);
        self.end(question)
    }

    /// Says a command; the number of the answer to come.
    ///
    /// # Panics
    /// Where it can't be said.
    pub fn begin(&mut self, command: &str) -> usize {
        let path = self.folder.join("commands");
        let mut file = fs::OpenOptions::new().append(true).open(path).expect("open");
        writeln!(file, "{command}").expect("write");
        self.answers += 1;
        self.answers - 1
    }

    /// The answer of a number, if it is there.
    ///
    /// # Panics
    /// Where answers can't be read.
    pub fn answer(&self, question: usize) -> Option<String> {
        let all = fs::read_to_string(self.folder.join("answers")).expect("read");
        let complete = all.ends_with('\n') || all.is_empty();
        all.lines().nth(question).filter(|_| complete).map(str::to_owned)
    }

    /// Waits for the answer of a number.
    ///
    /// # Panics
    /// Where none comes.
    pub fn end(&self, question: usize) -> String {
        let mut answer = None;
        until(&format!("answer {question}"), || {
            answer = self.answer(question);
            answer.is_some()
        });
        answer.expect("it came")
    }

    /// Says a command of which nothing comes.
    ///
    /// # Panics
    /// Where something does.
    pub fn done(&mut self, command: &str) {
        assert_eq!(self.ask(command), "done", "{command}");
    }

    /// Where its image is.
    #[must_use]
    pub fn image(&self) -> String {
        self.host.path("talker.floe").display().to_string()
    }

    /// Saves it.
    pub fn checkpoint(&self, options: &[&str]) {
        let image = self.image();
        self.host
            .done(&[&["checkpoint", &self.sandbox, "-o", &image], options].concat());
    }

    /// Brings it back.
    pub fn restore(&self, options: &[&str]) {
        self.host.done(&[&["restore", "-d", &self.image()], options].concat());
    }

    /// Both, with each way of choosing PIDs.
    pub fn round_trips(&self) {
        for method in PID_METHODS {
            self.checkpoint(&["--tcp", "established"]);
            self.restore(&["--pid-method", method]);
        }
    }

    /// One of each way, by name.
    pub fn one_each(&mut self) -> Vec<(String, TcpStream)> {
        let names = (0..WAYS.len()).map(|number| format!("c{number}"));
        names
            .zip(WAYS)
            .map(|(name, way)| (name.clone(), self.connection(&name, way)))
            .collect()
    }

    /// A connection with one end there, by the name, and one here.
    ///
    /// # Panics
    /// Where there is none.
    pub fn connection(&mut self, name: &str, way: Way) -> TcpStream {
        let here = match way {
            Way::In(address) => {
                let port: u16 = self
                    .ask(&format!("listen {name}-listener {address}"))
                    .parse()
                    .expect("a port");
                let end = TcpStream::connect((address, port)).expect("connect");
                self.done(&format!("accept {name} {name}-listener"));
                end
            }
            Way::Out(address) => {
                let listener = TcpListener::bind((address, 0)).expect("bind");
                let port = listener.local_addr().expect("an address").port();
                self.done(&format!("connect {name} {address} {port}"));
                listener.accept().expect("accept").0
            }
        };
        here.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out");
        here
    }
}

const TALKER: &str = include_str!("../../programs/talker.py");

/// Who connects, and to which address.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// This process does.
    In(&'static str),
    /// The talker does.
    Out(&'static str),
}

/// All of them.
pub const WAYS: [Way; 4] = [
    Way::In("127.0.0.1"),
    Way::Out("127.0.0.1"),
    Way::In("::1"),
    Way::Out("::1"),
];

/// Bytes as the talker's, of a seed.
#[must_use]
pub fn pattern(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| (seed + i * 7 + (i >> 8)) as u8).collect()
}

/// Expects such bytes.
///
/// # Panics
/// Where others come.
pub fn receive(end: &mut TcpStream, count: usize, seed: usize, when: &str) {
    let mut got = vec![0; count];
    end.read_exact(&mut got)
        .unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(got == pattern(count, seed), "{when}: other bytes came");
}

/// Expects the end.
///
/// # Panics
/// Where something else comes.
pub fn expect_end(end: &mut TcpStream, when: &str) {
    assert_eq!(
        end.read(&mut [0]).unwrap_or_else(|error| panic!("{when}: {error}")),
        0,
        "{when}"
    );
}

/// Both ways still work, whatever was said before.
///
/// # Panics
/// Where they don't.
pub fn expect_alive(talker: &mut Talker<'_>, name: &str, end: &mut TcpStream) {
    end.write_all(&pattern(3000, 5)).expect("write");
    assert_eq!(talker.ask(&format!("receive {name} 3000 5")), "3000 True", "{name}");
    talker.done(&format!("send {name} 4000 6"));
    receive(end, 4000, 6, name);
}
