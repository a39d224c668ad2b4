//! One file of each kind, which two processes share: each of them finds it as it was, and it is one file.

#[path = "flight/kernel.rs"]
mod kernel;
#[path = "flight/kinds.rs"]
mod kinds;
#[path = "flight/views.rs"]
mod views;

use std::{cell::RefCell, fs, os::fd::AsRawFd, rc::Rc};
use victims::{Findings, Peer, Seen, play};

fn main() {
    play(|stage| {
        let made = Rc::new(RefCell::new(kinds::each(stage)));
        let seen: Vec<Seen> = made
            .borrow()
            .iter()
            .map(|(_, file, _)| Seen::of(file.as_raw_fd()))
            .collect();
        let told = stage.path("what the child finds");
        let child = {
            let (made, told) = (Rc::clone(&made), told.clone());
            Peer::start(move |index| {
                let verdict = verdict_of(&mut made.borrow_mut()[index as usize]);
                fs::write(&told, &verdict).expect("write");
                i64::from(verdict != "ok")
            })
        };
        move |findings: &mut Findings| {
            if findings.sabotage() {
                let file = made.borrow()[0].1.as_raw_fd();
                victims::descriptor::seek(file, 0, libc::SEEK_SET).expect("seek");
            }
            let own = std::process::id();
            for (index, before) in seen.iter().enumerate() {
                let (name, number) = (made.borrow()[index].0, made.borrow()[index].1.as_raw_fd());
                let now = Seen {
                    modified: before.modified,
                    ..Seen::of(number)
                };
                findings.that(*before == now, format!("{name} was {before:?}, is {now:?}"));
                // SAFETY: numbers.
                let order = unsafe { libc::syscall(libc::SYS_kcmp, own, child.pid, 0, number, number) };
                findings.same(format!("whether the child has the same {name}"), &0, &order);
                let verdict = verdict_of(&mut made.borrow_mut()[index]);
                findings.that(verdict == "ok", format!("{name}: {verdict}"));
                if findings.take("ask the child", child.ask(index as i64)) != Some(0) {
                    let text = fs::read_to_string(&told).unwrap_or_default();
                    findings.add(format!("{name} in the child: {text}"));
                }
            }
        }
    })
}

fn verdict_of((_, file, check): &mut kinds::Made) -> String {
    let mut findings = Findings::new(false);
    check(&mut findings, file);
    findings.verdict()
}
