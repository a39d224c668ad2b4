//! The general registers: `struct user_regs_struct`, arch/x86/include/asm/user_64.h, as NT_PRSTATUS carries it.

/// Bytes of the NT_PRSTATUS set.
pub const GENERAL_BYTES: usize = 27 * 8;

/// The kernel's function that calls the system calls, as /proc/PID/wchan names it.
pub const CALL_ENTRY: &str = "do_syscall_64";

/// AUDIT_ARCH_X86_64, include/uapi/linux/audit.h: how seccomp filters know these registers.
pub const AUDIT_ARCH: u32 = 0xc000_003e;

const USER_CODE_SEGMENT: u64 = 0x33;

/// Positions in the block, in units of 8 bytes.
#[derive(Debug, Clone, Copy)]
enum Slot {
    R15 = 0,
    R14 = 1,
    R13 = 2,
    R12 = 3,
    Bp = 4,
    Bx = 5,
    R11 = 6,
    R10 = 7,
    R9 = 8,
    R8 = 9,
    Ax = 10,
    Cx = 11,
    Dx = 12,
    Si = 13,
    Di = 14,
    OrigAx = 15,
    Ip = 16,
    Cs = 17,
    Flags = 18,
    Sp = 19,
}

/// The general registers of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers([u64; 27]);

impl Registers {
    /// Takes the bytes of NT_PRSTATUS; `None` where there are not exactly [`GENERAL_BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; GENERAL_BYTES] = bytes.try_into().ok()?;
        let mut words = [0; 27];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().expect("chunks of 8"));
        }
        Some(Self(words))
    }

    /// The bytes of NT_PRSTATUS.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    const fn get(&self, slot: Slot) -> u64 {
        self.0[slot as usize]
    }

    fn set(&mut self, slot: Slot, value: u64) {
        self.0[slot as usize] = value;
    }

    /// Instruction pointer.
    #[must_use]
    pub const fn instruction(&self) -> u64 {
        self.get(Slot::Ip)
    }

    /// Sets the instruction pointer.
    pub fn set_instruction(&mut self, address: u64) {
        self.set(Slot::Ip, address);
    }

    /// Stack pointer.
    #[must_use]
    pub const fn stack(&self) -> u64 {
        self.get(Slot::Sp)
    }

    /// The number of the system call the thread is in, or `None` outside of any.
    #[must_use]
    pub fn call(&self) -> Option<u64> {
        let number = self.get(Slot::OrigAx);
        (number as i64 >= 0).then_some(number)
    }

    /// The result register: a value, or minus an errno.
    #[must_use]
    pub const fn result(&self) -> i64 {
        self.get(Slot::Ax) as i64
    }

    /// Sets the result register.
    pub fn set_result(&mut self, result: i64) {
        self.set(Slot::Ax, result as u64);
    }

    /// Sets the number of the system call the thread is in; the kernel restarts it under its own number all the same.
    pub fn set_call(&mut self, number: u64) {
        self.set(Slot::OrigAx, number);
    }

    /// The arguments of the system call the thread is in.
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        [Slot::Di, Slot::Si, Slot::Dx, Slot::R10, Slot::R8, Slot::R9].map(|slot| self.get(slot))
    }

    /// Marks the thread as outside of any call, so that the kernel restarts nothing.
    pub fn leave_call(&mut self) {
        self.set(Slot::OrigAx, u64::MAX);
    }

    /// Sets the registers so that the `syscall` instruction just before the instruction pointer is issued again as call
    /// `number`.
    pub fn reissue(&mut self, number: u64) {
        self.set(Slot::Ip, self.get(Slot::Ip).wrapping_sub(2));
        self.set(Slot::Ax, number);
        self.leave_call();
    }

    /// Sets the registers for call `number` issued by a `syscall` instruction at `address`.
    pub fn prepare_call(&mut self, address: u64, number: u64, arguments: [u64; 6]) {
        self.set(Slot::Ip, address);
        self.set(Slot::Ax, number);
        for (slot, value) in [Slot::Di, Slot::Si, Slot::Dx, Slot::R10, Slot::R8, Slot::R9]
            .into_iter()
            .zip(arguments)
        {
            self.set(slot, value);
        }
        self.leave_call();
    }

    /// How many calls of the batch it has yet to issue.
    #[must_use]
    pub const fn calls_left(&self) -> u64 {
        self.get(Slot::R12)
    }

    /// Sets the registers for the stub's batch loop at `address`: a table of `calls` entries, then
    /// `tgkill(process, thread, signal)`.
    pub fn prepare_batch(&mut self, address: u64, table: u64, calls: u64, end: (i32, i32, i32)) {
        self.set(Slot::Ip, address);
        self.set(Slot::Bx, table);
        self.set(Slot::R12, calls);
        self.set(Slot::R13, end.0 as u64);
        self.set(Slot::R14, end.1 as u64);
        self.set(Slot::R15, end.2 as u64);
        self.leave_call();
    }

    /// What the stub's way out loads: r15 to di without the call number, then ip, sp, flags.
    pub(super) fn exit_words(&self) -> [u64; 18] {
        let mut words = [0; 18];
        words[..15].copy_from_slice(&self.0[..15]);
        words[15] = self.get(Slot::Ip);
        words[16] = self.get(Slot::Sp);
        words[17] = self.get(Slot::Flags);
        words
    }
}

const _: () = assert!(Slot::Di as usize == 14 && Slot::Bp as usize == 4 && Slot::R11 as usize == 6);
const _: () = assert!(Slot::Cx as usize == 11);

/// Whether the thread runs 64-bit code.
#[must_use]
pub fn is_native(registers: &Registers) -> bool {
    registers.get(Slot::Cs) == USER_CODE_SEGMENT
}

/// The mask of xstate components (XCR0) as the XSAVE area of NT_X86_XSTATE carries it at byte 464.
#[must_use]
pub fn xfeatures(extended: &[u8]) -> u64 {
    extended
        .get(464..472)
        .map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().expect("8 bytes")))
}

#[cfg(test)]
mod tests {
    use super::{GENERAL_BYTES, Registers};

    #[test]
    fn reissues_the_call_before_the_instruction_pointer() {
        let mut registers = Registers::from_bytes(&[0; GENERAL_BYTES]).expect("right length");
        registers.set_instruction(0x1002);
        registers.set_result(-4);
        registers.reissue(232);
        assert_eq!(
            (registers.instruction(), registers.result(), registers.call()),
            (0x1000, 232, None)
        );
        assert_eq!(Registers::from_bytes(&registers.to_bytes()), Some(registers));
        assert_eq!(Registers::from_bytes(&[0; 8]), None);
    }
}
