//! The heap: its end, its contents, and that brk goes on from where it was; and many blocks from the allocator.

use victims::{Findings, call, pattern, play};

const PIECE: usize = 5 * 4096 + 123;

fn main() {
    play(|_| {
        let blocks: Vec<Vec<u8>> = (0..500).map(|n| pattern::bytes(n * 17 % 5000, n as u64)).collect();
        let start = grow();
        put(start, &pattern::bytes(PIECE, 3));
        move |findings: &mut Findings| {
            if findings.sabotage() {
                put(start + 999, b"!");
            }
            // The C library remembers where the kernel's end of the heap was; its allocator may have moved both.
            // SAFETY: asks, and moves nothing.
            let remembered = unsafe { libc::sbrk(0) } as usize;
            findings.same("end of the heap", &remembered, &current());
            let differs = pattern::difference(&get(start, PIECE), &pattern::bytes(PIECE, 3));
            findings.same("contents of the heap", &None, &differs);
            let grown = grow();
            let end = grown + PIECE;
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

/// Moves the end of the heap by a piece; where it was.
fn grow() -> usize {
    // SAFETY: what lies behind the end of the heap belongs to nobody, and the piece is never given back.
    let old = unsafe { libc::sbrk(PIECE as isize) } as usize;
    assert_ne!(old, usize::MAX, "sbrk: {}", std::io::Error::last_os_error());
    old
}

/// The end of the heap, from the kernel.
fn current() -> usize {
    // SAFETY: 0 is no possible end, so nothing moves.
    unsafe { call::raw(libc::SYS_brk, &[0]) }.expect("brk returns an address") as usize
}

fn put(address: usize, bytes: &[u8]) {
    // SAFETY: within a piece that `grow` gave.
    unsafe { std::ptr::copy(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

fn get(address: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: within a piece that `grow` gave.
    unsafe { std::ptr::copy(address as *const u8, bytes.as_mut_ptr(), len) };
    bytes
}
