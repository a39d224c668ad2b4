//! Devices that remember nothing: null, zero, full, random, urandom.

use std::path::Path;
use victims::{Findings, Seen, call, descriptor::open, play};

fn main() {
    play(|_| {
        let flags = [
            libc::O_RDWR,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC,
        ];
        let open_all = |name: &str| flags.map(|flags| open(&Path::new("/dev").join(name), flags));
        let all = ["null", "zero", "full", "random", "urandom"].map(|name| (name, open_all(name)));
        let seen: Vec<(String, i32, Seen)> = all
            .iter()
            .flat_map(|(name, fds)| fds.iter().map(move |fd| ((*name).to_owned(), *fd, Seen::of(*fd))))
            .collect();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                call::close(all[1].1[0]);
            }
            for (name, fd, seen) in &seen {
                seen.compare(findings, name, *fd);
            }
            for (name, [both, _, read_only]) in &all {
                let read = call::read(*read_only, 16);
                let (wanted_read, wanted_write) = match *name {
                    "null" => (0, Ok(1)),
                    "full" => (16, Err(Some(libc::ENOSPC))),
                    _ => (16, Ok(1)),
                };
                findings.same(
                    format!("bytes read from {name}"),
                    &Some(wanted_read),
                    &read.ok().map(|b| b.len()),
                );
                let wrote = call::write(*both, b"x").map_err(|error| error.raw_os_error());
                findings.same(format!("a write to {name}"), &wanted_write, &wrote);
            }
        }
    })
}
