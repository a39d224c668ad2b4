//! Machine code that a thread runs only where its tracer dies between two steps that belong together.

/// A word of memory that is to change, and the call that is issued when it has.
#[derive(Debug, Clone, Copy)]
pub struct StoreAndCall {
    /// Where the word is.
    pub address: u64,
    /// What it is before.
    pub before: u32,
    /// What it is to be.
    pub after: u32,
    /// The number of the call.
    pub call: u32,
    /// The `syscall` instruction.
    pub instruction: u64,
    /// What the call answers that is not issued again, where somebody else has changed the word.
    pub answer: u32,
}

impl StoreAndCall {
    /// The code. It uses what a system call overwrites anyway (rax, rcx, r11) and the flags.
    #[must_use]
    pub fn code(&self) -> Vec<u8> {
        const MOV_EAX: [u8; 1] = [0xb8];
        const MOV_R11D: [u8; 2] = [0x41, 0xbb];
        const MOV_RCX: [u8; 2] = [0x48, 0xb9];
        const LOCK_CMPXCHG_AT_RCX_R11D: [u8; 5] = [0xf0, 0x44, 0x0f, 0xb1, 0x19];
        /// Over what compares.
        const JE_7: [u8; 2] = [0x74, 7];
        const CMP_EAX: [u8; 1] = [0x3d];
        const JNE: u8 = 0x75;
        const JMP_RCX: [u8; 2] = [0xff, 0xe1];
        let go_to = |value: u32, place: u64| {
            let parts: [&[u8]; 5] = [&MOV_EAX, &value.to_le_bytes(), &MOV_RCX, &place.to_le_bytes(), &JMP_RCX];
            parts.concat()
        };
        let again = go_to(self.call, self.instruction);
        let answered = go_to(self.answer, self.instruction + 2);
        let parts: [&[u8]; 13] = [
            &MOV_EAX,
            &self.before.to_le_bytes(),
            &MOV_R11D,
            &self.after.to_le_bytes(),
            &MOV_RCX,
            &self.address.to_le_bytes(),
            &LOCK_CMPXCHG_AT_RCX_R11D,
            &JE_7,
            // Where the tracer has changed it already, that is what eax holds now.
            &CMP_EAX,
            &self.after.to_le_bytes(),
            &[JNE, again.len() as u8],
            &again,
            &answered,
        ];
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::StoreAndCall;
    use std::ptr::null_mut;

    /// Runs the code on a word that is `now`, with returns at the places where it goes on: what is in eax, and the word.
    fn run(now: u32) -> (u32, u32) {
        const CALL: usize = 256;
        const WORD: usize = 512;
        const EXECUTABLE: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(null_mut(), 4096, EXECUTABLE, FLAGS, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "mmap");
        let page = page.cast::<u8>();
        let store = StoreAndCall {
            address: page as u64 + WORD as u64,
            before: 7,
            after: 4,
            call: 208,
            instruction: page as u64 + CALL as u64,
            answer: 3,
        };
        const RET: u8 = 0xc3;
        // SAFETY: the whole new mapping, which nobody else has.
        let bytes = unsafe { std::slice::from_raw_parts_mut(page, 4096) };
        for (place, part) in [
            (0, &store.code()[..]),
            (CALL, &[RET, 0, RET]),
            (WORD, &now.to_le_bytes()),
        ] {
            bytes[place..place + part.len()].copy_from_slice(part);
        }
        // SAFETY: the code changes rax, rcx, r11 and the flags, which a function may, and comes to a return.
        let code = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> u32>(page) };
        let result = code();
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(page, 4096) };
        let word = u32::from_le_bytes(bytes[WORD..WORD + 4].try_into().expect("4 bytes"));
        // SAFETY: the mapping that was made above, of which nothing is used any more.
        unsafe { libc::munmap(page.cast(), 4096) };
        (result, word)
    }

    #[test]
    fn the_word_is_changed_once_and_only_where_nobody_else_has() {
        assert_eq!(run(7), (208, 4), "as it was: the call is issued");
        assert_eq!(run(4), (208, 4), "changed already");
        assert_eq!(run(9), (3, 9), "changed by another: the call has its answer");
    }
}
