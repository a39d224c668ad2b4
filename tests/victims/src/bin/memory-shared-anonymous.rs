//! Shared anonymous memory of parent and child: one object, seen through both; mapped in part only; pages that one of
//! them touched; an area that only the child still maps.

use victims::{
    Findings,
    memory::{Mapping, PAGE},
    play,
};

const PAGES: usize = 32;

fn main() {
    play(|stage| {
        let shared = Mapping::anonymous(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let lonely = Mapping::anonymous(8 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let mail = Mapping::anonymous(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        (0..8).for_each(|page| shared.mark(page, page as u64));
        lonely.mark(3, 33);
        stage.child("child", |_| {
            // Pages 8–15 only the child touched; 24–31 it does not map; 4–7 it can't write.
            (8..16).for_each(|page| shared.mark(page, page as u64));
            shared.unmap(24, 8);
            shared.protect(4, 4, libc::PROT_READ);
            let mut round = 0_u8;
            move |findings: &mut Findings| {
                round += 1;
                (0..16).for_each(|page| shared.compare(findings, "shared", page, page as u64));
                lonely.compare(findings, "area of the child", 3, 33);
                // The child waits for the parent's word, then answers.
                let heard = victims::wait_until(|| mail.read(0, 1) == [round]);
                findings.that(heard, "the parent's write is not seen");
                mail.write(1, &[round]);
            }
        });
        (16..20).for_each(|page| shared.mark(page, page as u64));
        (24..28).for_each(|page| shared.mark(page, page as u64));
        lonely.unmap(0, 8);
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                shared.write(17 * PAGE, b"!");
            }
            for page in (0..20).chain(24..28) {
                shared.compare(findings, "shared", page, page as u64);
            }
            for page in (20..24).chain(28..32) {
                shared.compare_zero(findings, "shared", page);
            }
            mail.write(0, &[round]);
            findings.that(
                victims::wait_until(|| mail.read(1, 1) == [round]),
                "the child's answer is not seen",
            );
        }
    })
}
