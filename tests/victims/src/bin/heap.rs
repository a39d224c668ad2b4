//! The heap: its end, its contents, and that brk goes on from where it was; and many blocks from the allocator.

use victims::{Findings, call, pattern, play};

const PIECE: usize = 5 * 4096 + 123;

fn main() {
    play(|_| {
        let blocks: Vec<Vec<u8>> = (0..500).map(|n| pattern::bytes(n * 17 % 5000, n as u64)).collect();
        let start = brk(0);
        let mut end = brk(start + PIECE);
        assert_eq!(end, start + PIECE, "brk");
        put(start, &pattern::bytes(PIECE, 3));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                put(start + 999, b"!");
            }
            findings.same("end of the heap", &end, &brk(0));
            let differs = pattern::difference(&get(start, PIECE), &pattern::bytes(PIECE, 3));
            findings.same("contents of the heap", &None, &differs);
            end = brk(end + PIECE);
            let grown = end - PIECE;
            put(grown, &pattern::bytes(PIECE, 4));
            findings.that(get(grown, PIECE) == pattern::bytes(PIECE, 4), "the heap does not grow");
            for (n, block) in blocks.iter().enumerate() {
                findings.that(
                    *block == pattern::bytes(n * 17 % 5000, n as u64),
                    format!("block {n} differs"),
                );
            }
            let named = victims::own::maps()
                .iter()
                .any(|(from, to, rest)| rest.contains("[heap]") && *from < start && *to >= end);
            findings.that(named, "the heap is not [heap] any more");
        }
    })
}

fn brk(end: usize) -> usize {
    // SAFETY: glibc's allocator falls back to mmap when somebody else moved the break; nothing is ever freed by brk.
    unsafe { call::raw(libc::SYS_brk, &[end]) }.expect("brk returns an address") as usize
}

fn put(address: usize, bytes: &[u8]) {
    // SAFETY: within what `brk` gave.
    unsafe { std::ptr::copy(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

fn get(address: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: within what `brk` gave.
    unsafe { std::ptr::copy(address as *const u8, bytes.as_mut_ptr(), len) };
    bytes
}
