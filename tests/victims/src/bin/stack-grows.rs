//! A stack that has grown, and grows on afterwards: the main thread's own.

use std::hint::black_box;
use victims::{Findings, pattern, play};

fn main() {
    play(|_| {
        // Deep, then back: the stack keeps its size below the pointer.
        assert_eq!(descend(20, 1), 20);
        let mut local = [0_u8; 9000];
        pattern::fill(&mut local, 5);
        let mut depth = 40;
        move |findings: &mut Findings| {
            if findings.sabotage() {
                local[4000] = !pattern::bytes(9000, 5)[4000];
            }
            depth += 10;
            findings.same(
                "contents of the stack",
                &None,
                &pattern::difference(&local, &pattern::bytes(9000, 5)),
            );
            // Each level takes 64 KiB: more than the stack ever had, less than its limit.
            findings.same("depth that was reached", &depth, &descend(depth, 7));
            let stack = victims::own::maps().into_iter().any(|(start, end, rest)| {
                let here = &raw const local as usize;
                rest.contains("[stack]") && start <= here && here < end
            });
            findings.that(stack, "the stack is not [stack] any more");
        }
    })
}

#[inline(never)]
fn descend(depth: u64, seed: u64) -> u64 {
    let mut frame = [0_u8; 65536];
    pattern::fill(black_box(&mut frame), seed + depth);
    let below = if depth == 1 { 0 } else { descend(depth - 1, seed) };
    let intact = pattern::difference(black_box(&frame), &pattern::bytes(65536, seed + depth)).is_none();
    below + u64::from(intact)
}
