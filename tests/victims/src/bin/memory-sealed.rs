//! Sealed memory (mseal): what it holds, and that nothing can unmap, protect or drop it any more; that of a child which
//! was made before its parent sealed something, and of one that was made later.

use victims::{
    Findings, call,
    memory::{Mapping, PAGE},
    play,
};

const MSEAL: i64 = 462;

fn main() {
    play(|stage| {
        let writable = Mapping::private(4 * PAGE);
        let readable = Mapping::private(4 * PAGE);
        [writable, readable].iter().for_each(|area| area.mark(1, 11));
        readable.protect(0, 4, libc::PROT_READ);
        stage.child("before", move |_| {
            let own = Mapping::private(2 * PAGE);
            own.mark(0, 7);
            seal(own);
            move |findings: &mut Findings| {
                own.compare(findings, "sealed by the child", 0, 7);
                check(findings, "sealed by the child", own, true);
                check(findings, "sealed by the parent alone", writable, false);
            }
        });
        [writable, readable].into_iter().for_each(seal);
        stage.child("after", move |_| {
            writable.mark(2, 22);
            move |findings: &mut Findings| {
                writable.compare(findings, "sealed before the fork", 2, 22);
                check(findings, "sealed before the fork", writable, true);
            }
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                writable.write(PAGE, b"!");
            }
            for (what, area) in [("sealed and writable", writable), ("sealed", readable)] {
                area.compare(findings, what, 1, 11);
                check(findings, what, area, true);
            }
            writable.compare_zero(findings, "sealed and writable", 2);
        }
    })
}

fn seal(area: Mapping) {
    // SAFETY: a mapping that stays until the victim ends.
    unsafe { call::raw(MSEAL, &[area.address, area.len, 0]) }.expect("mseal");
}

/// Sealed memory can't be given the protection that it has.
fn check(findings: &mut Findings, what: &str, area: Mapping, sealed: bool) {
    // SAFETY: the last page is not used.
    let status = unsafe { libc::mprotect((area.address + area.len - PAGE) as *mut _, PAGE, libc::PROT_READ) };
    findings.same(format!("{what}: can't be protected"), &sealed, &(status != 0));
}
