//! Machine code that a thread runs only where its tracer dies between two steps that belong together.

/// Code that stores `value` at `address` and goes on at `instruction`, a `syscall`, as call `number`. It uses what a
/// system call overwrites anyway: rax and rcx.
#[must_use]
pub fn store_and_call(address: u64, value: u32, number: u32, instruction: u64) -> Vec<u8> {
    const MOV_RCX: [u8; 2] = [0x48, 0xb9];
    const MOV_DWORD_AT_RCX: [u8; 2] = [0xc7, 0x01];
    const MOV_EAX: [u8; 1] = [0xb8];
    const JMP_RCX: [u8; 2] = [0xff, 0xe1];
    let parts: [&[u8]; 9] = [
        &MOV_RCX,
        &address.to_le_bytes(),
        &MOV_DWORD_AT_RCX,
        &value.to_le_bytes(),
        &MOV_EAX,
        &number.to_le_bytes(),
        &MOV_RCX,
        &instruction.to_le_bytes(),
        &JMP_RCX,
    ];
    parts.concat()
}
