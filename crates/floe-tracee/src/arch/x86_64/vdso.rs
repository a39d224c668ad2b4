//! The vDSO's unused tail. The kernel maps whole pages; behind the ELF image, up to the page's end, there are zeros.

/// Where the ELF image in `image` ends, rounded up to 16: the stub may stand from there to the end of `image`. `None`
/// where `image` is no 64-bit ELF file or its tables lie outside of it.
#[must_use]
pub fn vdso_tail(image: &[u8]) -> Option<usize> {
    let word = |at: usize, bytes: usize| -> Option<usize> {
        let slice = image.get(at..at.checked_add(bytes)?)?;
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(slice);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    if image.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table_end = |offset, size, count| -> Option<usize> {
        word(offset, 8)?.checked_add(word(size, 2)?.checked_mul(word(count, 2)?)?)
    };
    let segments = table_end(32, 54, 56)?;
    let sections = table_end(40, 58, 60)?;
    let mut end = segments.max(sections);
    for index in 0..word(60, 2)? {
        let header = word(40, 8)?.checked_add(index.checked_mul(word(58, 2)?)?)?;
        const NOBITS: usize = 8;
        if word(header + 4, 4)? != NOBITS {
            end = end.max(word(header + 24, 8)?.checked_add(word(header + 32, 8)?)?);
        }
    }
    for index in 0..word(56, 2)? {
        let header = word(32, 8)?.checked_add(index.checked_mul(word(54, 2)?)?)?;
        end = end.max(word(header + 8, 8)?.checked_add(word(header + 32, 8)?)?);
    }
    let tail = end.checked_add(15)? & !15;
    (tail <= image.len()).then_some(tail)
}

/// Where an instruction that makes a system call stands in machine code.
#[must_use]
pub fn call_instruction(text: &[u8]) -> Option<usize> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    text.windows(2).position(|pair| pair == SYSCALL)
}

/// A function of a vDSO: its name, where it stands in the ELF file, and its bytes.
struct Function<'a> {
    name: &'a [u8],
    at: usize,
    bytes: usize,
}

/// The functions that the dynamic symbol table of an ELF file tells of, elf(5); `None` where it has none, or is damaged.
fn functions(image: &[u8]) -> Option<Vec<Function<'_>>> {
    const DYNAMIC_SYMBOLS: usize = 11;
    const SYMBOL_BYTES: usize = 24;
    const FUNCTION: usize = 2;
    let word = |at: usize, bytes: usize| -> Option<usize> {
        let slice = image.get(at..at.checked_add(bytes)?)?;
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(slice);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    vdso_tail(image)?;
    let section = |index: usize| word(40, 8)?.checked_add(index.checked_mul(word(58, 2)?)?);
    let sections = 0..word(60, 2)?;
    let header = sections
        .filter_map(section)
        .find(|header| word(header + 4, 4) == Some(DYNAMIC_SYMBOLS))?;
    let (table, size) = (word(header + 24, 8)?, word(header + 32, 8)?);
    let names = word(section(word(header + 40, 4)?)? + 24, 8)?;
    let end = table.checked_add(size)?;
    image.get(table..end)?;
    let mut found = Vec::new();
    for symbol in (table..end).step_by(SYMBOL_BYTES) {
        let (kind, place) = (word(symbol + 4, 1)? & 0xf, word(symbol + 6, 2)?);
        if kind != FUNCTION || place == 0 {
            continue;
        }
        let name = image.get(names.checked_add(word(symbol, 4)?)?..)?;
        let name = &name[..name.iter().position(|byte| *byte == 0)?];
        // Weak names of the same ones, clock_gettime beside __vdso_clock_gettime.
        if name.starts_with(b"__vdso_") {
            let (at, bytes) = (word(symbol + 8, 8)?, word(symbol + 16, 8)?);
            image.get(at..at.checked_add(bytes)?)?;
            found.push(Function { name, at, bytes });
        }
    }
    Some(found)
}

/// What does for functions of a vDSO that this kernel's does not have, by the kernel: their system calls take the same arguments.
fn by_the_kernel(name: &[u8]) -> Option<Vec<u8>> {
    const FAIL: [u8; 8] = [
        0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, //       mov rax, -ENOSYS
        0xc3, //                                           ret
    ];
    let number: u32 = match name {
        b"__vdso_gettimeofday" => 96,
        b"__vdso_time" => 201,
        b"__vdso_clock_gettime" => 228,
        b"__vdso_clock_getres" => 229,
        b"__vdso_getcpu" => 309,
        b"__vdso_getrandom" => 318,
        b"__vdso_sgx_enter_enclave" => return Some(FAIL.to_vec()),
        _ => return None,
    };
    let [a, b, c, d] = number.to_le_bytes();
    let call = [
        0xb8, a, b, c, d, //                               mov eax, number
        0x0f, 0x05, //                                     syscall
        0xc3, //                                           ret
    ];
    if name != b"__vdso_getrandom" {
        return Some(call.to_vec());
    }
    // Asked with a size of -1 for its state, it tells how large that is to be.
    let asked = [
        0x49,
        0x83,
        0xf8,
        0xff, //                         cmp r8, -1
        0x74,
        call.len() as u8, //                         je fail
    ];
    Some([&asked[..], &call, &FAIL].concat())
}

/// The vDSO of another kernel, `old`, for tasks that know its functions by address: each goes to the one of its name in `new`, the
/// vDSO of this kernel, which will be mapped at `base`, or where that has none, to the kernel. Random numbers always come from there:
/// what a task keeps for them is of its kernel's own shape.
///
/// # Errors
/// The name of a function for which there is nothing.
pub fn vdso_bridge(old: &[u8], new: &[u8], base: u64) -> Result<Vec<u8>, String> {
    let unreadable = |whose| format!("the functions of {whose} vDSO, which are not told");
    let targets = functions(new).ok_or_else(|| unreadable("this kernel's"))?;
    let mut bridge = old.to_vec();
    for function in functions(old).ok_or_else(|| unreadable("that"))? {
        let target = targets
            .iter()
            .find(|target| target.name == function.name && target.name != b"__vdso_getrandom");
        let code = match target {
            Some(target) => {
                let address = (base + target.at as u64).to_le_bytes();
                // mov rax, address; jmp rax
                Some([&[0x48, 0xb8], &address[..], &[0xff, 0xe0]].concat())
            }
            None => by_the_kernel(function.name),
        };
        let code = code.filter(|code| code.len() <= function.bytes);
        let code = code.ok_or_else(|| String::from_utf8_lossy(function.name).into_owned())?;
        bridge[function.at..function.at + code.len()].copy_from_slice(&code);
    }
    Ok(bridge)
}

#[cfg(test)]
mod tests {
    use super::{functions, vdso_bridge, vdso_tail};

    #[test]
    fn finds_the_tail_of_this_kernels_vdso() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("own maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vDSO");
        let (start, end) = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            .expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hexadecimal"));
        let mut image = vec![0; (end - start) as usize];
        let memory = std::fs::File::open("/proc/self/mem").expect("own memory");
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut image, start).expect("read the vDSO");
        let tail = vdso_tail(&image).expect("an ELF file");
        assert!(image[tail..].iter().all(|byte| *byte == 0));
        bridges_lead_to_the_functions_of_the_other(&image[..tail], start);
    }

    /// Of the vDSO that this program has at `place`.
    fn bridges_lead_to_the_functions_of_the_other(own: &[u8], place: u64) {
        let bridge = vdso_bridge(own, own, place).expect("all functions are known");
        assert_eq!(bridge.len(), own.len());
        let all = functions(own).expect("a symbol table");
        let names: Vec<_> = all.iter().map(|function| function.name).collect();
        assert!(names.contains(&&b"__vdso_clock_gettime"[..]) && names.contains(&&b"__vdso_getcpu"[..]));
        for function in all {
            let code = &bridge[function.at..][..12];
            let jump = [
                &[0x48, 0xb8],
                &(place + function.at as u64).to_le_bytes()[..],
                &[0xff, 0xe0],
            ]
            .concat();
            assert_eq!(code == jump, function.name != b"__vdso_getrandom");
        }
        // To one that has none of them the kernel does it all.
        let renamed: Vec<u8> = own
            .iter()
            .map(|byte| if *byte == b'_' { b'-' } else { *byte })
            .collect();
        let bridge = vdso_bridge(own, &renamed, place).expect("the kernel knows them all");
        let gettime = functions(own).expect("a symbol table");
        let gettime = gettime.iter().find(|function| function.name == b"__vdso_clock_gettime");
        let at = gettime.expect("it is there").at;
        assert_eq!(bridge[at..at + 8], [0xb8, 228, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert!(vdso_bridge(&own[..64], own, place).is_err() && functions(&own[..4]).is_none());
    }

    #[test]
    fn damage_is_no_panic() {
        assert_eq!(vdso_tail(b"\x7fELF\x02"), None);
        assert_eq!(vdso_tail(&[0xff; 128]), None);
        let mut image = vec![0xff; 4096];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        assert_eq!(vdso_tail(&image), None);
    }
}
