//! Mounts of the kernel's own filesystems: processes (hidepid, subset, in the place of the usual one and elsewhere, a part of
//! it), devices, message queues, terminals; and directories that lie one over the other.

use nix::mount::MsFlags;
use std::{fs, io::Write, path::Path};
use victims::{
    Findings, Seen,
    descriptor::{compare_content, open},
    mounts::{below, bind, change, filesystem, unmount},
    pattern, play,
};

fn main() {
    play(|stage| {
        let mount =
            |kind: &str, name: &str, options: &str| filesystem(kind, stage.path(name), MsFlags::MS_NOSUID, options);
        let processes = mount("proc", "processes", "hidepid=2,gid=7");
        let few = mount("proc", "few", "subset=pid");
        mount("sysfs", "devices", "");
        mount("mqueue", "queues", "");
        let terminals = mount("devpts", "terminals", "newinstance,ptmxmode=0600,mode=0640");
        unmount(Path::new("/proc"));
        filesystem("proc", "/proc".into(), MsFlags::MS_NOEXEC, "hidepid=1");
        let kernel = stage.path("kernel");
        fs::create_dir(&kernel).expect("a folder");
        bind(&processes.join("sys/kernel"), &kernel, MsFlags::empty());
        change(&kernel, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        let memory = mount("tmpfs", "memory", "size=4m");
        for name in ["upper", "work"] {
            fs::create_dir(memory.join(name)).expect("a folder");
        }
        for (name, seed) in [("first:one", 1), ("second", 2)] {
            fs::create_dir(stage.path(name)).expect("a folder");
            fs::write(stage.path(name).join("same"), pattern::bytes(5_000, seed)).expect("write");
            fs::write(stage.path(name).join(format!("own {seed}")), b"own").expect("write");
        }
        let at = |name: &str| stage.path(name).display().to_string();
        let layers = format!("lowerdir={}:{}", at("first:one").replace(':', "\\:"), at("second"));
        let options = format!("{layers},upperdir={},workdir={}", at("memory/upper"), at("memory/work"));
        let over = mount("overlay", "over", &options);
        fs::write(over.join("new"), b"new").expect("write");
        fs::remove_file(over.join("own 2")).expect("remove");
        let files = [
            open(&over.join("same"), libc::O_RDONLY),
            open(&over.join("new"), libc::O_WRONLY),
        ];
        let seen = files.map(Seen::of);
        let tops = [stage.dir().to_owned(), "/proc".into()];
        let mounts = tops.clone().map(|top| below(&top)).map(without_layers);
        move |findings: &mut Findings| {
            if findings.sabotage() {
                unmount(&few);
            }
            let now = tops.clone().map(|top| below(&top)).map(without_layers);
            findings.same("mounts", &mounts, &now);
            for (seen, file) in seen.iter().zip(files) {
                seen.compare(findings, "a file of an overlay", file);
            }
            compare_content(findings, "a file of an overlay", files[0], 0, 5_000, 1);
            let mut names: Vec<_> = fs::read_dir(&over)
                .expect("list")
                .map(|entry| entry.expect("list").file_name())
                .collect();
            names.sort();
            findings.same("an overlay", &["new", "own 1", "same"].map(Into::into).to_vec(), &names);
            let pid = std::process::id().to_string();
            findings.that(processes.join(&pid).join("status").exists(), "another PID namespace");
            findings.that(
                !few.join("version").exists() && few.join(&pid).exists(),
                "all of proc is there",
            );
            findings.that(terminals.join("ptmx").exists(), "no terminals");
            let kept = fs::OpenOptions::new()
                .write(true)
                .open(kernel.join("hostname"))
                .map(|mut file| file.write(b""));
            findings.that(kept.is_err(), "a part of proc can be written");
        }
    })
}

/// The kernel names layers in the way in which they were given.
fn without_layers(lines: Vec<String>) -> Vec<String> {
    let cut = |line: String| match line.split_once(",lowerdir") {
        Some((front, back)) => format!("{front} {}", back.split_once(",upperdir").unwrap_or_default().1),
        None => line,
    };
    lines.into_iter().map(cut).collect()
}
