//! Private mappings of a memfd that is closed: name, content, permissions, seals; pages of its own; nothing else has it.

use std::{
    fs::{self, Permissions},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
};
use victims::{
    Findings, call,
    descriptor::borrowed,
    memory::{Mapping, PAGE},
    pattern, play,
};

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

fn main() {
    play(|_| {
        let sealed = Private::make(c"sealed", libc::MFD_ALLOW_SEALING, SEALS, 1);
        let open_to_seals = Private::make(c"open to seals (deleted)", libc::MFD_ALLOW_SEALING, 0, 2);
        let plain = Private::make(c"plain", 0, 0, 3);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                plain.mapping.write(3 * PAGE, b"!");
            }
            [&sealed, &open_to_seals, &plain]
                .iter()
                .for_each(|memory| memory.check(findings));
        }
    })
}

struct Private {
    mapping: Mapping,
    link: String,
    seals: i32,
    seed: u64,
}

impl Private {
    fn make(name: &std::ffi::CStr, flags: u32, seals: i32, seed: u64) -> Self {
        // SAFETY: the name ends with a NUL.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        assert!(fd >= 0, "memfd_create");
        call::write(fd, &pattern::bytes(8 * PAGE, seed)).expect("write");
        let file = borrowed(fd);
        file.set_permissions(Permissions::from_mode(0o750)).expect("chmod");
        if seals != 0 {
            call::fcntl(fd, libc::F_ADD_SEALS, seals).expect("F_ADD_SEALS");
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = Mapping::new(8 * PAGE, protection, libc::MAP_PRIVATE, fd, 0);
        mapping.mark(3, 300 + seed);
        let link = format!(
            "/proc/self/map_files/{:x}-{:x}",
            mapping.address,
            mapping.address + mapping.len
        );
        let private = Self {
            seals: call::fcntl(fd, libc::F_GET_SEALS, 0).expect("F_GET_SEALS"),
            mapping,
            link: fs::read_link(&link).expect("the link").display().to_string(),
            seed,
        };
        call::close(fd);
        private
    }

    fn check(&self, findings: &mut Findings) {
        let what = &self.link;
        let original = pattern::bytes(8 * PAGE, self.seed);
        self.mapping.compare(findings, what, 3, 300 + self.seed);
        findings.that(
            self.mapping.read(0, PAGE) == original[..PAGE],
            format!("{what}: page 0 differs"),
        );
        let magic = format!(
            "/proc/self/map_files/{:x}-{:x}",
            self.mapping.address,
            self.mapping.address + self.mapping.len
        );
        findings.same(
            "the link",
            what,
            &fs::read_link(&magic).unwrap_or_default().display().to_string(),
        );
        let Some(file) = findings.take(what, fs::File::open(&magic)) else {
            return;
        };
        let seals = call::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0).unwrap_or(-1);
        findings.same(format!("seals of {what}"), &self.seals, &seals);
        let mode = file.metadata().map_or(0, |metadata| metadata.mode() & 0o7777);
        findings.same(format!("permissions of {what}"), &0o750, &mode);
        findings.that(
            fs::read(&magic).is_ok_and(|now| now == original),
            format!("{what}: the file differs"),
        );
    }
}
