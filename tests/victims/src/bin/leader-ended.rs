//! Processes whose first thread has ended while others live: the victim itself, and children of it.

use std::{os::unix::fs::FileExt, sync::mpsc, time::Duration};
use victims::{
    Findings, Stage, call,
    memory::Mapping,
    own, play,
    stage::{fork, wait_until},
    waiting::spawn_into,
};

/// Status with which the first thread of each ended.
const STATUS: i32 = 7;

fn main() {
    block(libc::SIGUSR1);
    go_on_without_first(0, || {
        play(|stage| {
            part(stage, "child", |_| {
                // One more below it, whose parent is a process without a first thread. It starts no threads, which would
                // be given the stack of the one that has ended.
                let grandchild = fork(|| {
                    loop {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
                let threads: Vec<_> = (0..3).map(|_| thread()).collect();
                let mut own = check();
                move |findings: &mut Findings| {
                    own(findings);
                    let parent = own::status_of(&grandchild.to_string(), "PPid");
                    findings.same("parent of the grandchild", &std::process::id().to_string(), &parent);
                    for thread in &threads {
                        findings.take("ask a thread", thread.0.send(()));
                        findings.take("hear a thread", thread.1.recv());
                    }
                }
            });
            check()
        })
    })
}

/// A process of its own that plays a part without its first thread.
fn part<C: FnMut(&mut Findings)>(stage: &Stage, name: &str, build: impl FnOnce(&Stage) -> C) {
    stage.expect(name);
    fork(|| go_on_without_first(STATUS, || stage.act(name, build)));
    stage.wait_for_part(name);
}

/// Runs `rest` in another thread and ends this one alone.
fn go_on_without_first(status: i32, rest: impl FnOnce()) -> ! {
    let (began, begins) = mpsc::channel();
    std::thread::scope(|scope| {
        let rest = Carried(rest);
        scope.spawn(move || {
            let rest = rest;
            began.send(()).expect("the first thread waits");
            (rest.0)();
        });
        begins.recv().expect("the other thread begins");
        // SAFETY: ends this thread alone, which never leaves the scope whose data the other one has.
        unsafe { libc::syscall(libc::SYS_exit, status) };
    });
    unreachable!("the thread has ended")
}

/// What only one thread has at a time: the first one ends when it has given it away.
struct Carried<T>(T);
// SAFETY: as above.
unsafe impl<T> Send for Carried<T> {}

/// A thread that answers.
fn thread() -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    spawn_into(&[libc::SYS_futex], move || {
        let ended = asked.into_iter().try_for_each(|()| answer.send(()));
        ended.expect("the check lives");
    });
    (ask, answered)
}

/// What can be seen of the process: its family, name and end of its first thread, ids of its threads, descriptors.
#[derive(Debug, PartialEq)]
struct Seen {
    family: [i32; 4],
    name: String,
    state: char,
    threads: Vec<String>,
    descriptors: usize,
    directory: std::path::PathBuf,
}

impl Seen {
    fn now() -> Self {
        let pid = std::process::id().to_string();
        wait_until(|| own::state_of(&pid) == 'Z');
        let names = |path: &str| {
            let entries = std::fs::read_dir(path).expect("list");
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        };
        Self {
            family: own::family(),
            name: own::status("Name"),
            state: own::state_of(&pid),
            threads: names("/proc/self/task").collect(),
            descriptors: names("/proc/thread-self/fd").count(),
            directory: std::fs::read_link("/proc/thread-self/cwd").expect("the working directory"),
        }
    }
}

fn check() -> impl FnMut(&mut Findings) + use<> {
    let memory = Mapping::private(1 << 20);
    memory.mark(3, 5);
    let file = tempfile();
    // To the process, whose threads all have it blocked.
    call::kill(std::process::id() as i32, libc::SIGUSR1).expect("kill");
    let before = Seen::now();
    assert_eq!(before.state, 'Z');
    move |findings: &mut Findings| {
        if findings.sabotage() {
            memory.write(3 * 4096, &[0; 8]);
        }
        findings.same("process", &before, &Seen::now());
        memory.compare(findings, "memory", 3, 5);
        let mut bytes = [0; 5];
        findings.take("read", file.read_exact_at(&mut bytes, 0));
        findings.same("file", b"stays", &bytes);
        findings.same("pending", &"0000000000000200".to_owned(), &own::status("ShdPnd"));
    }
}

fn tempfile() -> std::fs::File {
    let path = format!("/tmp/leader-ended.{}.{}", std::process::id(), call::gettid());
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("make a file");
    file.write_all_at(b"stays", 0).expect("write");
    std::fs::remove_file(path).expect("remove it");
    file
}

fn block(signal: i32) {
    let mask = 1_u64 << (signal - 1);
    let args = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &args) }.expect("rt_sigprocmask");
}
