//! Another root than the host's, as container tools make it with pivot_root(2): of a part of a tmpfs, with the old root gone
//! (`memory`); or of a folder of the host's, that nobody may write to, with the old root kept (`folder`). Below it mounts of
//! what the host has, device files one by one, and one that was moved.

use nix::{
    mount::{MntFlags, MsFlags, umount2},
    unistd::{chdir, dup2_stdin, pivot_root},
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::Path,
};
use victims::{
    Findings, Seen, Stage,
    descriptor::{compare_content, open},
    mounts::{below, bind, change, files, filesystem, shift, unmount},
    pattern, play,
};

fn main() {
    play(|stage| {
        let of_memory = stage.arg(0) == Some("memory");
        let root = if of_memory {
            filesystem("tmpfs", stage.path("top"), MsFlags::empty(), "size=4m").join("inner/root")
        } else {
            stage.path("root")
        };
        fs::create_dir_all(&root).expect("a folder");
        bind(&root, &root, MsFlags::empty());
        furnish(stage, &root);
        enter(&root, of_memory);
        // Where it can be written in any case.
        let place = Path::new(if of_memory { "/place" } else { "/moved" });
        fs::create_dir_all(place.join("deep/er")).expect("a folder");
        std::env::set_current_dir(place.join("deep")).expect("a working directory");
        fs::write("er/file", pattern::bytes(20_000, 3)).expect("write");
        let file = open(&place.join("deep/er/file"), libc::O_RDWR);
        let null = open(Path::new("/dev/null"), libc::O_RDWR);
        let seen = [file, null].map(Seen::of);
        let listener = UnixListener::bind("/moved/socket").expect("bind");
        let near = UnixStream::connect("/moved/socket").expect("connect");
        let (far, _) = listener.accept().expect("accept");
        let (mounts, listed) = (below(Path::new("/")), root_files());
        move |findings: &mut Findings| {
            if findings.sabotage() {
                unmount(Path::new("/dev/zero"));
            }
            findings.same("mounts", &mounts, &below(Path::new("/")));
            findings.same("files of the root", &listed, &root_files());
            for (seen, file) in seen.iter().zip([file, null]) {
                seen.compare(findings, "an open file", file);
            }
            compare_content(findings, "an open file", file, 0, 20_000, 3);
            let identity = |path: &str| fs::metadata(path).map_or((0, 0), |about| (about.dev(), about.ino()));
            findings.same(
                "the working directory",
                &identity(&place.join("deep/er").display().to_string()),
                &identity("er"),
            );
            let sent = (&near).write_all(b"x").and_then(|()| (&far).read(&mut [0; 1]));
            findings.same("what came through a socket", &Some(1), &sent.ok());
            let again = UnixStream::connect("/moved/socket").and_then(|_| listener.accept());
            findings.that(again.is_ok(), "nobody listens at the socket's name");
            let written = File::create("/usr/new").map_err(|error| error.raw_os_error());
            findings.that(
                written.is_err_and(|error| error == Some(libc::EROFS)),
                "/usr can be written",
            );
            let written = fs::write("/new", b"").map_err(|error| error.raw_os_error());
            findings.same("writing to the root", &of_memory, &written.is_ok());
            if of_memory {
                fs::remove_file("/new").expect("remove it");
            }
            findings.that(fs::write("/dev/null", b"x").is_ok(), "/dev/null can't be written");
            findings.that(Path::new("/proc/self/exe").exists(), "/proc shows other processes");
            findings.same("the old root", &!of_memory, &Path::new("/old/etc/passwd").exists());
        }
    })
}

/// What is in the root, without what is mounted there.
fn root_files() -> Vec<String> {
    let place = Path::new("/place");
    let listed = fs::read_dir("/")
        .expect("list")
        .map(|entry| entry.expect("list").path());
    let named = listed.map(|path| format!("{} -> {:?}", path.display(), fs::read_link(&path).unwrap_or_default()));
    named
        .chain(place.exists().then(|| files(place)).into_iter().flatten())
        .collect()
}

/// Mounts what a program needs below what will be the root.
fn furnish(stage: &Stage, root: &Path) {
    let below_root = |path: &Path| root.join(path.strip_prefix("/").expect("an absolute path"));
    let shows = |path: &Path, flags: MsFlags| {
        let place = below_root(path);
        if path.is_dir() {
            fs::create_dir_all(&place).expect("a folder");
        } else {
            File::create(&place).expect("a file");
        }
        bind(path, &place, flags);
        place
    };
    let usr = shows(Path::new("/usr"), MsFlags::MS_REC);
    change(&usr, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    for name in ["lib", "lib64", "bin"] {
        symlink(Path::new("usr").join(name), root.join(name)).expect("a link");
    }
    let program = std::env::current_exe().expect("a program");
    shows(program.parent().expect("its folder"), MsFlags::empty());
    shows(stage.dir(), MsFlags::empty());
    filesystem("proc", root.join("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "");
    filesystem("tmpfs", root.join("dev"), MsFlags::MS_NOSUID, "mode=755");
    for name in ["null", "zero", "tty"] {
        shows(&Path::new("/dev").join(name), MsFlags::empty());
    }
    let terminals = root.join("dev/pts");
    filesystem(
        "devpts",
        terminals,
        MsFlags::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=620",
    );
    let moved = filesystem("tmpfs", stage.path("elsewhere"), MsFlags::MS_NODEV, "size=1m");
    fs::create_dir(root.join("moved")).expect("a folder");
    shift(&moved, &root.join("moved"));
    fs::create_dir(root.join("old")).expect("a folder");
}

/// Makes it the root.
fn enter(root: &Path, of_memory: bool) {
    if !of_memory {
        change(root, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    }
    pivot_root(root, &root.join("old")).expect("pivot_root");
    chdir("/").expect("chdir");
    // The sandbox's, and the host's below it, which shows processes that are none of the tree's.
    unmount(Path::new("/old/proc"));
    unmount(Path::new("/old/proc"));
    if of_memory {
        umount2("/old", MntFlags::MNT_DETACH).expect("unmount the old root");
        // What it had open was in that.
        let null = File::options().read(true).open("/dev/null").expect("open");
        dup2_stdin(&null).expect("dup2");
    }
}
