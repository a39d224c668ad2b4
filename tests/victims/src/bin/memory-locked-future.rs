//! mlockall: all that is mapped, and all that will be, at once or once it is touched; a process that has locked nothing.

use victims::{
    Findings, call,
    memory::{Mapping, PAGE, locks_at},
    play,
};

const MCL_ONFAULT: i32 = 4;

fn main() {
    play(|stage| {
        let area = Mapping::private(16 * PAGE);
        area.mark(3, 3);
        let _never = Mapping::anonymous(16 * PAGE, libc::PROT_NONE, libc::MAP_PRIVATE);
        let kinds = [
            ("everything", libc::MCL_CURRENT | libc::MCL_FUTURE),
            ("what comes, once touched", libc::MCL_FUTURE | MCL_ONFAULT),
            ("nothing", 0),
        ];
        for (what, flags) in kinds {
            stage.child(what, move |_| part(what, flags, area));
        }
        kinds.iter().for_each(|(what, _)| stage.wait_for_part(what));
        part("what there is", libc::MCL_CURRENT, area)
    })
}

fn part(what: &'static str, flags: i32, area: Mapping) -> impl FnMut(&mut Findings) {
    if flags != 0 {
        // SAFETY: plain numbers.
        call::checked(unsafe { libc::mlockall(flags) }.into()).expect("mlockall");
    }
    let seen = (locks_at(area.address), fresh());
    move |findings: &mut Findings| {
        if findings.sabotage() {
            // SAFETY: no arguments.
            unsafe { libc::munlockall() };
        }
        area.compare(findings, what, 3, 3);
        findings.same(format!("locks of {what}"), &seen, &(locks_at(area.address), fresh()));
    }
}

/// How new memory is locked.
fn fresh() -> Vec<String> {
    let mapping = Mapping::anonymous(4 * PAGE, libc::PROT_READ, libc::MAP_SHARED);
    let locks = locks_at(mapping.address);
    mapping.unmap(0, 4);
    locks
}
