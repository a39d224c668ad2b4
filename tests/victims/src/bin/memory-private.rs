//! Private anonymous memory: patterns, holes without access, read-only and executable pages, pages shared
//! copy-on-write between relatives, zero pages.

use victims::{Findings, arch, memory::Mapping, play};

struct Areas {
    data: Mapping,
    code: Mapping,
    relatives: Mapping,
}

fn main() {
    play(|stage| {
        let areas = Areas {
            data: Mapping::private(64 * 4096),
            code: Mapping::private(2 * 4096),
            relatives: Mapping::private(32 * 4096),
        };
        let areas: &'static Areas = Box::leak(Box::new(areas));
        areas.make();
        stage.child("child", |_| {
            (0..8).for_each(|page| areas.relatives.mark(page, 700 + page as u64));
            move |findings| areas.check(findings, 8)
        });
        move |findings: &mut Findings| areas.check(findings, 0)
    })
}

impl Areas {
    fn make(&self) {
        // Pages 0–15 patterns, 16–19 without access over a pattern, 20–23 read-only, 24–31 never touched, 32–39 zeros
        // that were written, 40–47 zeros that were read only, 48 every byte but one zero, the rest every second page.
        (0..24).for_each(|page| self.data.mark(page, page as u64));
        self.data.protect(16, 4, libc::PROT_NONE);
        self.data.protect(20, 4, libc::PROT_READ);
        (32..40).for_each(|page| self.data.write(page * 4096, &[0; 4096]));
        (40..48).for_each(|page| assert_eq!(self.data.read(page * 4096, 1), [0]));
        self.data.write(48 * 4096 + 4095, &[1]);
        (50..64).step_by(2).for_each(|page| self.data.mark(page, page as u64));
        self.code.write(0, &arch::returning(42));
        self.code.write(4096, &arch::returning(77));
        self.code.protect(0, 2, libc::PROT_READ | libc::PROT_EXEC);
        (0..32).for_each(|page| self.relatives.mark(page, 600 + page as u64));
    }

    fn check(&self, findings: &mut Findings, changed: usize) {
        if findings.sabotage() {
            self.data.write(5 * 4096 + 77, b"!");
        }
        self.data.protect(16, 4, libc::PROT_READ);
        (0..24).for_each(|page| self.data.compare(findings, "data", page, page as u64));
        self.data.protect(16, 4, libc::PROT_NONE);
        (24..48).for_each(|page| self.data.compare_zero(findings, "data", page));
        let mut lonely = [0; 4096];
        lonely[4095] = 1;
        findings.that(
            self.data.read(48 * 4096, 4096) == lonely,
            "the page of one byte differs",
        );
        for page in 50..64 {
            if page % 2 == 0 {
                self.data.compare(findings, "data", page, page as u64);
            } else {
                self.data.compare_zero(findings, "data", page);
            }
        }
        for (page, value) in [(0, 42), (1, 77)] {
            // SAFETY: the page holds a function of this type, made above.
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(self.code.address + page * 4096) };
            findings.same("result of the code in the page", &value, &function());
        }
        for page in 0..32 {
            let seed = if page < changed { 700 } else { 600 };
            self.relatives
                .compare(findings, "pages shared copy-on-write", page, seed + page as u64);
        }
        // Still writable, and still private: the relative would see it otherwise.
        self.relatives.write(31 * 4096, &self.relatives.read(31 * 4096, 4096));
    }
}
