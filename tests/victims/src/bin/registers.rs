//! Every register of a thread that spins in user mode, and of one that sleeps in the kernel: general, x87, MXCSR, SSE,
//! AVX, AVX-512 with its masks, the direction flag, the base of GS.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};
use victims::{Findings, arch, arch::Block, pattern, play};

struct Holder {
    start: Sender<()>,
    done: Receiver<(Box<Block>, u64)>,
    loaded: Box<Block>,
    name: &'static str,
}

fn main() {
    play(|stage| {
        let spin = stage.arg(0) != Some("no-spin");
        let holders: Vec<Holder> = [(arch::Mode::Spin, "spinning"), (arch::Mode::Sleep, "sleeping")]
            .into_iter()
            .filter(|(mode, _)| spin || *mode == arch::Mode::Sleep)
            .map(|(mode, name)| Holder::new(mode, name))
            .collect();
        let go = |holders: &[Holder]| {
            arch::release(false);
            holders
                .iter()
                .for_each(|holder| holder.start.send(()).expect("the holder waits"));
            std::thread::sleep(Duration::from_millis(20));
        };
        go(&holders);
        move |findings: &mut Findings| {
            arch::release(true);
            for holder in &holders {
                holder.check(findings);
            }
            go(&holders);
        }
    })
}

impl Holder {
    fn new(mode: arch::Mode, name: &'static str) -> Self {
        let (start, started) = channel();
        let (found, done) = channel();
        let loaded = contents(mode);
        let load = loaded.clone();
        std::thread::spawn(move || {
            let base = if mode == arch::Mode::Spin {
                0x1234_5678_9000
            } else {
                0x7ead_beef_0000
            };
            arch::set_gs_base(base);
            while started.recv().is_ok() {
                let mut stored = Block::zeroed();
                // SAFETY: `contents` made a valid block for this CPU's level.
                unsafe { arch::hold(&raw const *load, &raw mut *stored, arch::level(), mode) };
                let moved = arch::gs_base() ^ base;
                found.send((stored, moved)).expect("the check waits");
            }
        });
        Self {
            start,
            done,
            loaded,
            name,
        }
    }

    fn check(&self, findings: &mut Findings) {
        let Ok((mut stored, moved)) = self.done.recv_timeout(Duration::from_secs(60)) else {
            findings.add(format!("{}: does not come back", self.name));
            return;
        };
        if findings.sabotage() {
            stored.general[14] ^= 1;
            stored.vector[7][33] ^= 1;
            stored.mask[5] ^= 1;
        }
        let name = self.name;
        findings.same(format!("{name}: GS base"), &0, &moved);
        findings.that(
            stored.general[15] & arch::DIRECTION != 0,
            format!("{name}: the direction flag is lost"),
        );
        let sleeping = name == "sleeping";
        for (number, register) in REGISTERS.iter().enumerate() {
            // The call itself clobbers rax (0 on success), rcx and r11.
            if !(sleeping && matches!(*register, "rax" | "rcx" | "r11")) {
                findings.same(
                    format!("{name}: {register}"),
                    &self.loaded.general[number],
                    &stored.general[number],
                );
            }
        }
        findings.that(
            !sleeping || stored.general[0] == 0,
            format!("{name}: nanosleep said {}", stored.general[0] as i64),
        );
        findings.same(format!("{name}: x87 control"), &self.loaded.fx[0..2], &stored.fx[0..2]);
        findings.same(
            format!("{name}: x87 status and tags"),
            &self.loaded.fx[2..5],
            &stored.fx[2..5],
        );
        findings.same(format!("{name}: MXCSR"), &self.loaded.fx[24..28], &stored.fx[24..28]);
        for number in 0..8 {
            let range = 32 + 16 * number..42 + 16 * number;
            findings.same(
                format!("{name}: st{number}"),
                &self.loaded.fx[range.clone()],
                &stored.fx[range],
            );
        }
        self.check_vectors(findings, &stored);
    }

    fn check_vectors(&self, findings: &mut Findings, stored: &Block) {
        let (count, width) = [(16, 16), (16, 32), (32, 64)][arch::level() as usize];
        for number in 0..count {
            let (before, now) = if arch::level() == 0 {
                let range = 160 + 16 * number..176 + 16 * number;
                (&self.loaded.fx[range.clone()], &stored.fx[range])
            } else {
                (&self.loaded.vector[number][..width], &stored.vector[number][..width])
            };
            findings.same(format!("{}: vector {number}", self.name), &before, &now);
        }
        if arch::level() == 2 {
            findings.same(format!("{}: masks", self.name), &self.loaded.mask, &stored.mask);
        }
    }
}

const REGISTERS: [&str; 15] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];

fn contents(mode: arch::Mode) -> Box<Block> {
    let mut block = Block::zeroed();
    let mut sequence = pattern::Sequence(0x5eed + mode as u64);
    block.general.iter_mut().for_each(|word| *word = sequence.next_word());
    if mode == arch::Mode::Sleep {
        let time: &'static libc::timespec = Box::leak(Box::new(libc::timespec {
            tv_sec: 0,
            tv_nsec: 30_000_000,
        }));
        block.general[5] = &raw const *time as u64;
        block.general[4] = 0;
    }
    block
        .vector
        .iter_mut()
        .for_each(|vector| pattern::fill(vector, sequence.next_word()));
    block.mask.iter_mut().for_each(|mask| *mask = sequence.next_word());
    // Rounding down, extended precision, all exceptions masked.
    block.fx[0..2].copy_from_slice(&0x077f_u16.to_le_bytes());
    // Top of stack 3, all eight registers in use.
    block.fx[2..4].copy_from_slice(&(3_u16 << 11).to_le_bytes());
    block.fx[4] = 0xff;
    // Rounding up, flush to zero, all exceptions masked.
    block.fx[24..28].copy_from_slice(&0xdf80_u32.to_le_bytes());
    for number in 0..8_usize {
        // Normal numbers: the top bit of the significand set.
        block.fx[32 + 16 * number..40 + 16 * number].copy_from_slice(&(sequence.next_word() | 1 << 63).to_le_bytes());
        block.fx[40 + 16 * number..42 + 16 * number].copy_from_slice(&(0x3fff_u16 + number as u16).to_le_bytes());
    }
    block.fx[160..416]
        .iter_mut()
        .for_each(|byte| *byte = sequence.next_word() as u8);
    block
}
