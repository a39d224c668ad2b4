//! Shared mappings of a file: contents, writes that reach the file afterwards, two mappings of one file, a read-only one.

use std::{fs, os::fd::AsRawFd};
use victims::{
    Findings,
    memory::{Mapping, PAGE},
    pattern, play,
};

fn main() {
    play(|stage| {
        let path = stage.path("shared");
        fs::write(&path, pattern::bytes(16 * PAGE, 21)).expect("write the file");
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open the file");
        let map = |len, protection, offset| Mapping::new(len, protection, libc::MAP_SHARED, file.as_raw_fd(), offset);
        let whole = map(16 * PAGE, libc::PROT_READ | libc::PROT_WRITE, 0);
        let middle = map(4 * PAGE, libc::PROT_READ, 8 * PAGE as i64);
        drop(file);
        whole.mark(9, 99);
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                whole.write(9 * PAGE, b"!");
            }
            middle.compare(findings, "the second mapping", 1, 99);
            let now = fs::read(&path).unwrap_or_default();
            findings.that(
                now.get(9 * PAGE..10 * PAGE) == Some(&pattern::bytes(PAGE, 99)[..]),
                "the file lacks the page written before",
            );
            whole.mark(10, 1000 + round);
            middle.compare(findings, "a write seen through the second mapping", 2, 1000 + round);
            let now = fs::read(&path).unwrap_or_default();
            let same = now.get(10 * PAGE..11 * PAGE) == Some(&pattern::bytes(PAGE, 1000 + round)[..]);
            findings.that(same, "a write through the mapping does not reach the file");
        }
    })
}
