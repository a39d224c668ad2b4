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

#[cfg(test)]
mod tests {
    use super::vdso_tail;

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
