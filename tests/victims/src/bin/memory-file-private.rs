//! Private mappings of a file: clean pages come from the file, dirty ones from the image; pages beyond the file's end;
//! a dirty page of the program's own code.

use std::{fs, os::fd::AsRawFd};
use victims::{
    Findings,
    memory::{Mapping, PAGE},
    pattern, play,
};

/// Bytes among the program's code, as good as any for a debugger's breakpoint.
#[unsafe(link_section = ".text.spot")]
static SPOT: [u8; 64] = [0x90; 64];

fn main() {
    play(|stage| {
        let path = stage.path("mapped");
        fs::write(&path, pattern::bytes(20 * PAGE + 100, 9)).expect("write the file");
        let file = fs::File::open(&path).expect("open the file");
        let flags = libc::MAP_PRIVATE;
        let written = Mapping::new(
            24 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file.as_raw_fd(),
            0,
        );
        [3, 4, 5, 11, 19, 20]
            .into_iter()
            .for_each(|page| written.mark(page, 300 + page as u64));
        // Written, then made read-only: dirty all the same. And one from the middle of the file.
        let sealed = Mapping::new(
            8 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file.as_raw_fd(),
            4 * PAGE as i64,
        );
        sealed.mark(2, 402);
        sealed.protect(0, 8, libc::PROT_READ);
        drop(file);
        let code = own_code();
        // Executable all the while: the code that writes may lie in the same page.
        code.protect(0, 1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        code.write(&raw const SPOT as usize & (PAGE - 1), &[0xcc]);
        code.protect(0, 1, libc::PROT_READ | libc::PROT_EXEC);
        let page = code.read(0, PAGE);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                written.write(4 * PAGE + 9, b"!");
            }
            let file = pattern::bytes(20 * PAGE + 100, 9);
            for number in 0..20 {
                if [3, 4, 5, 11, 19].contains(&number) {
                    written.compare(findings, "dirty", number, 300 + number as u64);
                } else {
                    let same = written.read(number * PAGE, PAGE) == file[number * PAGE..][..PAGE];
                    findings.that(same, format!("clean page {number} is not the file's"));
                }
            }
            written.compare(findings, "dirty last page", 20, 320);
            sealed.compare(findings, "sealed", 2, 402);
            findings.that(
                sealed.read(0, PAGE) == file[4 * PAGE..5 * PAGE],
                "sealed page 0 is not the file's",
            );
            findings.that(
                fs::read(&path).is_ok_and(|now| now == file),
                "the file itself was changed",
            );
            findings.that(code.read(0, PAGE) == page, "the dirty page of code differs");
        }
    })
}

fn own_code() -> Mapping {
    Mapping {
        address: &raw const SPOT as usize & !(PAGE - 1),
        len: PAGE,
    }
}
