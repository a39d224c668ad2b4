//! Files of the kernel's own: groups of fanotify, maps of bpf(2), network devices.

use super::kinds::Made;
use std::{
    ffi::CString,
    fs,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};
use victims::{
    Findings, Stage, call,
    descriptor::open,
    tun::{NO_INFORMATION, TAP, Tun},
};

/// One of each.
pub fn each(stage: &Stage) -> Vec<Made> {
    vec![fanotify(stage), map(), device(), no_device()]
}

fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: the callers have just made it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn information(file: &OwnedFd) -> String {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default()
}

fn fanotify(stage: &Stage) -> Made {
    let folder = stage.path("marked in flight");
    fs::create_dir(&folder).expect("a folder");
    // SAFETY: numbers.
    let group = unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK, 0) };
    let group = owned(call::checked(group.into()).expect("fanotify_init") as RawFd);
    let path = CString::new(folder.as_os_str().as_encoded_bytes()).expect("no NUL");
    let mask = libc::FAN_CLOSE_WRITE | libc::FAN_EVENT_ON_CHILD;
    // SAFETY: the path ends with a NUL.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD,
            mask,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    call::checked(marked.into()).expect("fanotify_mark");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        fs::write(folder.join("new"), "").expect("write");
        let event = call::read(file.as_raw_fd(), 4096).unwrap_or_default();
        findings.same("bytes of events", &24, &event.len());
        let opened = event
            .get(16..20)
            .map(|four| i32::from_ne_bytes(four.try_into().expect("4 bytes")));
        call::close(opened.unwrap_or(-1));
    };
    ("a fanotify group", group, Box::new(check))
}

/// An array of two words.
fn map() -> Made {
    let bpf = |command: i64, words: &[u64]| {
        // SAFETY: the attributes have the stated size; what they point to outlives the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
        call::checked(done)
    };
    // Type and bytes of a key; bytes of a value and entries.
    let map = owned(bpf(0, &[2 | 4 << 32, 8 | 2 << 32]).expect("a map") as RawFd);
    let (key, value) = (1_u32, 0x1234_5678_u64);
    let place = |word: &u64| std::ptr::from_ref(word) as u64;
    let words = |file: &OwnedFd, value: u64| [file.as_raw_fd() as u64, &raw const key as u64, value, 0];
    bpf(2, &words(&map, place(&value))).expect("an entry");
    let check = move |findings: &mut Findings, file: &OwnedFd| {
        let (key, mut found) = (1_u32, 0_u64);
        let words = [file.as_raw_fd() as u64, &raw const key as u64, &raw mut found as u64, 0];
        findings.take("look up", bpf(1, &words));
        findings.same("what it has", &value, &found);
    };
    ("a map", map, Box::new(check))
}

fn device() -> Made {
    let Tun { file, .. } = Tun::new(0, "flies", TAP | NO_INFORMATION);
    let check = |findings: &mut Findings, file: &OwnedFd| {
        let told = information(file);
        findings.that(told.contains("iff:\tflies\n"), told);
    };
    ("a network device", owned(file), Box::new(check))
}

fn no_device() -> Made {
    let file = owned(open(Path::new("/dev/net/tun"), libc::O_RDWR));
    let check = |findings: &mut Findings, file: &OwnedFd| {
        findings.same("a read without a device", &Some(libc::EBADFD), &error_of_read(file));
    };
    ("a file without a network device", file, Box::new(check))
}

fn error_of_read(file: &OwnedFd) -> Option<i32> {
    call::read(file.as_raw_fd(), 10)
        .err()
        .and_then(|error| error.raw_os_error())
}
