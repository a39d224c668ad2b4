//! What a chain of seccomp filters would answer to a call: classic BPF over `struct seccomp_data`, as
//! Documentation/userspace-api/seccomp_filter.rst and linux/filter.h describe it.
//!
//! The kernel continues an interrupted sleep by restart_syscall(2), a call that the thread did not make and that its
//! filters see all the same. Where they do not let it through, being stopped would end the thread.

use crate::{
    Stopped, TraceError,
    arch::{AUDIT_ARCH, Registers},
};
use nix::errno::Errno;

/// Bytes of `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const DATA_BYTES: usize = 64;
const CELLS: usize = 16;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const ACTION: u32 = 0xffff_0000;

impl Stopped {
    /// Whether its filters do not let the kernel go on with a sleep in which the thread, with these registers, was
    /// stopped. False where floe may not read them.
    ///
    /// # Errors
    /// [`TraceError`].
    pub(crate) fn may_not_sleep_on(&self, registers: &Registers) -> Result<bool, TraceError> {
        let filters = match self.seccomp_filters() {
            Ok(filters) => filters,
            Err(TraceError::Request {
                source: Errno::EINVAL | Errno::EACCES | Errno::EIO,
                ..
            }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let data = call_data(libc::SYS_restart_syscall, registers);
        Ok(!filters.iter().all(|(program, _)| lets_through(program, &data)))
    }
}

fn call_data(number: i64, registers: &Registers) -> [u8; DATA_BYTES] {
    let mut data = [0; DATA_BYTES];
    data[..4].copy_from_slice(&(number as i32).to_ne_bytes());
    data[4..8].copy_from_slice(&AUDIT_ARCH.to_ne_bytes());
    let words = std::iter::once(registers.instruction()).chain(registers.arguments());
    for (place, word) in data[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    data
}

/// The chain's answer is the strictest of its filters', so each must let the call through.
fn lets_through(program: &[u8], data: &[u8; DATA_BYTES]) -> bool {
    matches!(answer(program, data).map(|answer| answer & ACTION), Some(ALLOW | LOG))
}

/// What a program answers; `None` for one that the kernel would not have taken.
fn answer(program: &[u8], data: &[u8; DATA_BYTES]) -> Option<u32> {
    let mut machine = Machine::default();
    let mut at = 0_usize;
    loop {
        let instruction: &[u8; 8] = program.get(at * 8..at * 8 + 8)?.try_into().ok()?;
        let code = u32::from(u16::from_ne_bytes([instruction[0], instruction[1]]));
        let (taken, not_taken) = (instruction[2], instruction[3]);
        let k = u32::from_ne_bytes(instruction[4..].try_into().ok()?);
        at += 1;
        match code & 7 {
            libc::BPF_LD => machine.a = machine.load(code, k, data)?,
            libc::BPF_LDX => machine.x = machine.load(code, k, data)?,
            libc::BPF_ST => *machine.cells.get_mut(k as usize)? = machine.a,
            libc::BPF_STX => *machine.cells.get_mut(k as usize)? = machine.x,
            libc::BPF_ALU => machine.a = machine.compute(code, k)?,
            // Jumps lead forward only, so this ends.
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at = at.checked_add(k as usize)?,
            libc::BPF_JMP => at += usize::from(if machine.compares(code, k)? { taken } else { not_taken }),
            libc::BPF_RET => return Some(if code & 0x18 == BPF_A { machine.a } else { k }),
            _ if code & 0xf8 == BPF_TXA => machine.a = machine.x,
            _ => machine.x = machine.a,
        }
    }
}

const BPF_A: u32 = 0x10;
const BPF_TXA: u32 = 0x80;

#[derive(Default)]
struct Machine {
    a: u32,
    x: u32,
    cells: [u32; CELLS],
}

impl Machine {
    fn load(&self, code: u32, k: u32, data: &[u8; DATA_BYTES]) -> Option<u32> {
        match code & 0xe0 {
            libc::BPF_IMM => Some(k),
            libc::BPF_ABS => {
                let bytes = data.get(k as usize..(k as usize).checked_add(4)?)?;
                Some(u32::from_ne_bytes(bytes.try_into().ok()?))
            }
            libc::BPF_MEM => self.cells.get(k as usize).copied(),
            libc::BPF_LEN => Some(DATA_BYTES as u32),
            _ => None,
        }
    }

    fn operand(&self, code: u32, k: u32) -> u32 {
        if code & libc::BPF_X == 0 { k } else { self.x }
    }

    fn compute(&self, code: u32, k: u32) -> Option<u32> {
        let (a, b) = (self.a, self.operand(code, k));
        Some(match code & 0xf0 {
            libc::BPF_ADD => a.wrapping_add(b),
            libc::BPF_SUB => a.wrapping_sub(b),
            libc::BPF_MUL => a.wrapping_mul(b),
            // The kernel ends a program that divides by zero with 0, which kills the thread.
            libc::BPF_DIV => a.checked_div(b)?,
            libc::BPF_AND => a & b,
            libc::BPF_OR => a | b,
            libc::BPF_XOR => a ^ b,
            libc::BPF_LSH => a.wrapping_shl(b),
            libc::BPF_RSH => a.wrapping_shr(b),
            libc::BPF_NEG => a.wrapping_neg(),
            _ => return None,
        })
    }

    fn compares(&self, code: u32, k: u32) -> Option<bool> {
        let (a, b) = (self.a, self.operand(code, k));
        match code & 0xf0 {
            libc::BPF_JEQ => Some(a == b),
            libc::BPF_JGT => Some(a > b),
            libc::BPF_JGE => Some(a >= b),
            libc::BPF_JSET => Some(a & b != 0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ALLOW, DATA_BYTES, LOG, answer, lets_through};

    type Instruction = (u32, u8, u8, u32);

    fn program(instructions: &[Instruction]) -> Vec<u8> {
        let bytes = |(code, taken, not_taken, k): &Instruction| {
            [
                &(*code as u16).to_ne_bytes()[..],
                &[*taken, *not_taken],
                &k.to_ne_bytes(),
            ]
            .concat()
        };
        instructions.iter().flat_map(bytes).collect()
    }

    fn data() -> [u8; DATA_BYTES] {
        let mut data = [0; DATA_BYTES];
        data[..4].copy_from_slice(&219_u32.to_ne_bytes());
        data[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        data
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ;
    const RET: u32 = libc::BPF_RET;
    const KILL: u32 = 0;

    #[test]
    fn lists_of_calls_are_followed() {
        let list = |number| {
            program(&[
                (LOAD, 0, 0, 0),
                (IS, 1, 0, number),
                (RET, 0, 0, KILL),
                (RET, 0, 0, ALLOW),
            ])
        };
        assert!(lets_through(&list(219), &data()));
        assert!(!lets_through(&list(35), &data()));
        assert!(lets_through(&program(&[(RET, 0, 0, LOG)]), &data()));
        assert!(!lets_through(&program(&[(RET, 0, 0, 0x0005_0001)]), &data()));
    }

    #[test]
    fn cells_arithmetic_and_jumps_are_those_of_the_kernel() {
        let text = program(&[
            (LOAD, 0, 0, 16),                                       // a = 7
            (libc::BPF_ST, 0, 0, 3),                                // cell 3
            (libc::BPF_LDX | libc::BPF_MEM, 0, 0, 3),               // x = 7
            (libc::BPF_ALU | libc::BPF_MUL | libc::BPF_X, 0, 0, 0), // a = 49
            (libc::BPF_ALU | libc::BPF_SUB, 0, 0, 9),               // a = 40
            (libc::BPF_ALU | libc::BPF_RSH, 0, 0, 2),               // a = 10
            (libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
            (RET, 0, 0, 1),
            (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_X, 0, 2, 0), // 10 > 7
            (libc::BPF_MISC, 0, 0, 0),                              // x = 10
            (RET | 0x10, 0, 0, 0),
            (RET, 0, 0, 2),
        ]);
        assert_eq!(answer(&text, &data()), Some(10));
    }

    #[test]
    fn what_is_no_program_has_no_answer() {
        assert_eq!(answer(&[], &data()), None);
        assert_eq!(answer(&program(&[(LOAD, 0, 0, 0)]), &data()), None);
        assert_eq!(answer(&program(&[(LOAD, 0, 0, 64), (RET, 0, 0, ALLOW)]), &data()), None);
        let zero = program(&[(libc::BPF_ALU | libc::BPF_DIV, 0, 0, 0), (RET, 0, 0, ALLOW)]);
        assert_eq!(answer(&zero, &data()), None);
    }
}
