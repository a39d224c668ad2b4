//! A tmpfs that the program has mounted: its options; files with content, holes, owners, modes, times, attributes and
//! several names; folders, links, fifos, devices, names of sockets; files of it that are open, mapped, deleted, or have lost a name, a
//! socket that listens, and a folder
//! that is somebody's working directory; one that is hidden below another one, and one that nobody can write to.

use nix::{
    mount::MsFlags,
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use std::{
    fs::{self, File, FileTimes, Permissions},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};
use victims::{
    Findings, Seen, Stage,
    descriptor::{borrowed, compare_content, open, seek},
    memory::{Mapping, PAGE},
    mounts::{below, change, files, filesystem, shift},
    pattern, play,
};

const ATTRIBUTE: &std::ffi::CStr = c"trusted.mine";

fn main() {
    play(|stage| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let top = filesystem("tmpfs", stage.path("top"), flags, "size=64m,nr_inodes=3000,mode=0751");
        fill(&top);
        let hidden = Hidden::make(stage);
        let read_only = read_only(stage);
        let file = open(&top.join("deep/er/large"), libc::O_RDWR | libc::O_APPEND);
        seek(file, 77, libc::SEEK_SET).expect("seek");
        let deleted = deleted(&top);
        let memory = filesystem("tmpfs", stage.path("memory"), MsFlags::empty(), "size=1m");
        let mapped = mapped(&memory);
        let lost = lost_name(stage);
        let listening = Listening::make(stage);
        std::env::set_current_dir(top.join("deep")).expect("a working directory");
        let mounts = below(stage.dir());
        let (listed, seen) = (files(&top), [Seen::of(file), Seen::of(deleted)]);
        let room = room(&top);
        let top_of_victim = stage.dir().to_owned();
        move |findings: &mut Findings| {
            if findings.sabotage() {
                fs::write("er/small", b"another").expect("write");
            }
            findings.same("mounts", &mounts, &below(&top_of_victim));
            findings.same("files", &listed, &files(&top));
            findings.same("room", &room, &self::room(&top));
            seen[0].compare(findings, "an open file", file);
            seen[1].compare(findings, "a deleted file", deleted);
            compare_content(findings, "an open file", file, 0, 300_000, 1);
            compare_content(findings, "a deleted file", deleted, 0, 9_000, 2);
            check_contents(findings, &top);
            mapped.0.compare(findings, "shared memory of a file", 1, 31);
            mapped.1.compare(findings, "private memory of a file", 2, 32);
            // What is written to one is the other's.
            mapped.0.write(0, b"written through memory");
            let text = fs::read(memory.join("mapped")).unwrap_or_default();
            findings.that(
                text.starts_with(b"written through memory"),
                "a mapped file is another one",
            );
            hidden.check(findings);
            listening.check(findings);
            let inodes =
                [borrowed(lost.0).metadata(), fs::metadata(&lost.1)].map(|about| about.map_or(0, |about| about.ino()));
            findings.same("a file that lost a name", &inodes[0], &inodes[1]);
            compare_content(findings, "a file that lost a name", lost.0, 0, 600, 4);
            let refused = File::create(read_only.join("new")).map_err(|error| error.raw_os_error());
            findings.that(
                refused.is_err_and(|error| error == Some(libc::EROFS)),
                "it can be written",
            );
            findings.same(
                "content that nobody can write",
                &b"for ever".to_vec(),
                &read(&read_only.join("file")),
            );
        }
    })
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| error.to_string().into_bytes())
}

/// How many bytes and files it may have.
fn room(top: &Path) -> (u64, u64) {
    let found = nix::sys::statvfs::statvfs(top).expect("statvfs");
    (found.blocks(), found.files())
}

fn fill(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::create_dir_all(at("deep/er")).expect("folders");
    fs::write(at("deep/er/large"), pattern::bytes(300_000, 1)).expect("write");
    fs::write(at("deep/er/small"), b"small").expect("write");
    fs::write(at("nothing"), b"").expect("write");
    let sparse = File::create(at("sparse")).expect("create");
    sparse.set_len(10 << 30).expect("10 GiB of nothing");
    sparse.write_all_at(b"in the middle", (5 << 30) + 3).expect("write");
    fs::hard_link(at("deep/er/small"), at("another name")).expect("link");
    symlink("deep/er/small", at("link")).expect("a link");
    symlink("/nowhere/at all", at("dangling")).expect("a link");
    let (private, none) = (Mode::S_IRUSR | Mode::S_IWUSR, 0);
    mknod(&at("fifo"), SFlag::S_IFIFO, private, none).expect("a fifo");
    mknod(&at("null"), SFlag::S_IFCHR, private, makedev(1, 3)).expect("a device");
    drop(UnixListener::bind(at("socket")).expect("a socket"));
    for index in 0..40 {
        fs::write(at(&format!("deep/{index}")), format!("content of {index}")).expect("write");
    }
    fs::remove_file(at("deep/17")).expect("remove");
    let marked = File::create(at("marked")).expect("create");
    // SAFETY: the name ends with a NUL, the value has the stated length.
    let status = unsafe { libc::fsetxattr(marked.as_raw_fd(), ATTRIBUTE.as_ptr(), b"value".as_ptr().cast(), 5, 0) };
    assert_eq!(status, 0, "an attribute: {}", std::io::Error::last_os_error());
    chown(at("marked"), Some(1234), Some(5678)).expect("chown");
    std::os::unix::fs::lchown(at("link"), Some(12), Some(34)).expect("chown");
    marked.set_permissions(Permissions::from_mode(0o4711)).expect("chmod");
    let time = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
    let times = FileTimes::new().set_modified(time(1_234_567_890_123_456_789));
    marked
        .set_times(times.set_accessed(time(987_654_321_987_654_321)))
        .expect("set times");
    fs::set_permissions(at("deep"), Permissions::from_mode(0o2770)).expect("chmod");
    let times = FileTimes::new().set_modified(time(1_000_000_000_000_000_001));
    File::open(at("deep"))
        .expect("open")
        .set_times(times)
        .expect("set times");
}

fn check_contents(findings: &mut Findings, top: &Path) {
    let small = top.join("deep/er/small");
    findings.same("small", &b"small".to_vec(), &read(&small));
    let inodes = [small, top.join("another name")].map(|path| fs::metadata(path).map_or(0, |about| about.ino()));
    findings.same("a file with two names", &inodes[0], &inodes[1]);
    findings.same("one of many", &b"content of 39".to_vec(), &read(&top.join("deep/39")));
    let sparse = File::open(top.join("sparse")).expect("open");
    let mut bytes = [0; 13];
    let got = sparse.read_exact_at(&mut bytes, (5 << 30) + 3);
    findings.that(got.is_ok() && &bytes == b"in the middle", "sparse: its bytes are gone");
    let blocks = sparse.metadata().map_or(u64::MAX, |about| about.blocks());
    findings.that(blocks < 100, format!("sparse: takes {blocks} blocks"));
    let marked = File::open(top.join("marked")).expect("open");
    let mut value = [0_u8; 16];
    // SAFETY: the name ends with a NUL, there is room for the stated length.
    let got = unsafe {
        libc::fgetxattr(
            marked.as_raw_fd(),
            ATTRIBUTE.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    findings.that(
        got == 5 && value.starts_with(b"value"),
        format!("the attribute has {got} bytes"),
    );
    let about = marked.metadata().expect("stat");
    findings.same(
        "when it was read",
        &(987_654_321, 987_654_321),
        &(about.atime(), about.atime_nsec()),
    );
}

fn deleted(top: &Path) -> RawFd {
    let path = top.join("deep/er/gone");
    fs::write(&path, pattern::bytes(9_000, 2)).expect("write");
    let file = open(&path, libc::O_RDONLY);
    fs::remove_file(&path).expect("remove");
    file
}

/// One mapping that is shared, and one that is private. Where they are, the time of change is not looked at: the kernel sets it
/// whenever a page is written to first.
fn mapped(top: &Path) -> (Mapping, Mapping) {
    let path = top.join("mapped");
    fs::write(&path, pattern::bytes(4 * PAGE, 3)).expect("write");
    let file = File::options().read(true).write(true).open(&path).expect("open");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let map = |flags| Mapping::new(4 * PAGE, protection, flags, file.as_raw_fd(), 0);
    let mapped = (map(libc::MAP_SHARED), map(libc::MAP_PRIVATE));
    mapped.0.write(0, b"written through memory");
    mapped.0.mark(1, 31);
    mapped.1.mark(2, 32);
    mapped
}

/// A tmpfs of which another one hides all.
struct Hidden {
    place: PathBuf,
    aside: PathBuf,
}

impl Hidden {
    fn make(stage: &Stage) -> Self {
        let place = filesystem("tmpfs", stage.path("hidden"), MsFlags::empty(), "size=1m");
        fs::write(place.join("file"), b"below").expect("write");
        filesystem("tmpfs", place.join("folder"), MsFlags::MS_NOEXEC, "size=2m");
        fs::write(place.join("folder/file"), b"deep below").expect("write");
        filesystem("tmpfs", place.clone(), MsFlags::empty(), "size=3m");
        fs::write(place.join("file"), b"above").expect("write");
        let aside = stage.path("aside");
        fs::create_dir(&aside).expect("a folder");
        Self { place, aside }
    }

    fn check(&self, findings: &mut Findings) {
        findings.same("above", &b"above".to_vec(), &read(&self.place.join("file")));
        shift(&self.place, &self.aside);
        findings.same("below", &b"below".to_vec(), &read(&self.place.join("file")));
        findings.same(
            "deep below",
            &b"deep below".to_vec(),
            &read(&self.place.join("folder/file")),
        );
        shift(&self.aside, &self.place);
    }
}

/// An open file, and the name that it still has, far from the one that it has lost.
fn lost_name(stage: &Stage) -> (RawFd, PathBuf) {
    let place = filesystem("tmpfs", stage.path("linked"), MsFlags::empty(), "size=1m");
    fs::create_dir_all(place.join("far/away/from")).expect("folders");
    let (lost, other) = (place.join("lost"), place.join("far/away/from/it"));
    fs::write(&lost, pattern::bytes(600, 4)).expect("write");
    fs::hard_link(&lost, &other).expect("link");
    let file = open(&lost, libc::O_RDONLY);
    fs::remove_file(&lost).expect("remove");
    (file, other)
}

/// A socket that has its name in a tmpfs.
struct Listening {
    socket: UnixListener,
    name: PathBuf,
}

impl Listening {
    fn make(stage: &Stage) -> Self {
        let place = filesystem("tmpfs", stage.path("sockets"), MsFlags::empty(), "size=1m");
        let name = place.join("name");
        let socket = UnixListener::bind(&name).expect("a socket");
        fs::set_permissions(&name, Permissions::from_mode(0o700)).expect("chmod");
        Self { socket, name }
    }

    fn check(&self, findings: &mut Findings) {
        let near = findings.take("connect by a name in a tmpfs", UnixStream::connect(&self.name));
        findings.that(near.is_none() || self.socket.accept().is_ok(), "nobody comes");
        let mode = fs::metadata(&self.name).map_or(0, |about| about.mode() & 0o777);
        findings.same("mode of a socket's name", &0o700, &mode);
    }
}

fn read_only(stage: &Stage) -> PathBuf {
    let place = filesystem("tmpfs", stage.path("read-only"), MsFlags::empty(), "size=1m");
    fs::write(place.join("file"), b"for ever").expect("write");
    change(&place, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    place
}
