//! `refused DIR KIND…`: makes state that floe can't carry yet, of each KIND, and finds it unharmed afterwards. A kind that
//! this machine does not have is named in `DIR/skipped` with the reason.

#[path = "refused/descriptors.rs"]
mod descriptors;
#[path = "refused/memory.rs"]
mod memory;
#[path = "refused/sandbox.rs"]
mod sandbox;
#[path = "refused/sockets.rs"]
mod sockets;

use std::{fs, io};
use victims::{Findings, Seen, Stage, play};

/// What finds a state unharmed.
type Check = Box<dyn FnMut(&mut Findings)>;
/// What makes a state.
type Make = fn(&Stage) -> io::Result<Check>;

fn main() {
    play(|stage| {
        let mut kinds = Vec::new();
        let mut skipped = String::new();
        for name in (0..).map_while(|n| stage.arg(n)) {
            let make = find(name).unwrap_or_else(|| panic!("there is no kind {name}"));
            match make(stage) {
                Ok(check) => kinds.push((name.to_owned(), check)),
                Err(error) => skipped += &format!("{name}: {error}\n"),
            }
        }
        fs::write(stage.path("skipped"), skipped).expect("write");
        move |findings: &mut Findings| {
            for (name, check) in &mut kinds {
                let mut own = Findings::new(findings.sabotage());
                check(&mut own);
                let verdict = own.verdict();
                findings.that(verdict == "ok", format!("{name}: {verdict}"));
            }
            if findings.sabotage() {
                findings.add("there is nothing to damage");
            }
        }
    })
}

fn find(name: &str) -> Option<Make> {
    let all = [memory::KINDS, descriptors::KINDS, sockets::KINDS, sandbox::KINDS];
    all.into_iter()
        .flatten()
        .find_map(|(known, make)| (*known == name).then_some(*make))
}

/// A descriptor that must look as it did.
fn unchanged(fd: i32) -> Check {
    let seen = Seen::of(fd);
    Box::new(move |findings| seen.compare(findings, "the descriptor", fd))
}
