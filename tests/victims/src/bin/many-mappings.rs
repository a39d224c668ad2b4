//! So many mappings as its argument says: each page has another protection than its neighbours, and some hold something.

use victims::{
    Findings,
    memory::{Mapping, PAGE},
    own, play,
};

/// Every so many pages one holds something.
const MARKED: usize = 16;

fn main() {
    play(|stage| {
        let count: usize = stage.arg(0).unwrap_or("500").parse().expect("a number");
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let area = Mapping::anonymous(count * PAGE, libc::PROT_NONE, flags);
        for page in (0..count).step_by(2) {
            area.protect(page, 1, libc::PROT_READ | libc::PROT_WRITE);
        }
        for page in (0..count).step_by(MARKED) {
            area.write(page * PAGE, &page.to_ne_bytes());
        }
        move |findings: &mut Findings| {
            if findings.sabotage() {
                area.protect(1, 1, libc::PROT_READ);
                area.write(0, b"!");
            }
            for page in (0..count).step_by(MARKED) {
                let holds = area.read(page * PAGE, size_of::<usize>());
                findings.same(format!("page {page}"), &page.to_ne_bytes().to_vec(), &holds);
            }
            let end = area.address + area.len;
            let inside = own::maps()
                .into_iter()
                .filter(|(start, _, _)| (area.address..end).contains(start));
            let wrong = inside.clone().find(|(start, _, rest)| {
                let wanted = if ((start - area.address) / PAGE).is_multiple_of(2) {
                    "rw-p"
                } else {
                    "---p"
                };
                !rest.starts_with(wanted)
            });
            findings.same("mapping with another protection", &None, &wrong);
            findings.same("number of mappings", &count, &inside.count());
        }
    })
}
