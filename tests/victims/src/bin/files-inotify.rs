//! inotify instances: watches with gaps between their numbers, of directories and files, one that epoll watches, one that a
//! thread reads from, one that two processes share.

use std::{
    ffi::CString,
    fs,
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::mpsc::channel,
    time::Duration,
};
use victims::{
    Findings, Stage, call,
    notice::{events, instance, unwatch, watch},
    play,
    waiting::{spawn_into, waits_in},
};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(with_gaps(stage)),
            Box::new(files(stage)),
            Box::new(watched_by_epoll(stage)),
            Box::new(read_by_a_thread(stage)),
        ];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn remove(instance: RawFd, watch: i32) {
    unwatch(instance, watch);
    // That it was ignored.
    events(instance);
}

fn folder(stage: &Stage, name: &str) -> PathBuf {
    let path = stage.path(name);
    fs::create_dir(&path).expect("a folder");
    path
}

/// The watches, as the kernel lists them.
fn listed(instance: RawFd) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{instance}")).expect("fdinfo");
    let lines = text.lines().filter(|line| line.starts_with("inotify "));
    let mut all: Vec<String> = lines.map(str::to_owned).collect();
    all.sort();
    all
}

fn with_gaps(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (one, two, gone) = (folder(stage, "one"), folder(stage, "two"), folder(stage, "gone"));
    let instance = instance(libc::IN_CLOEXEC);
    let first = watch(instance, &one, libc::IN_CREATE | libc::IN_DELETE);
    for _ in 0..20 {
        let number = watch(instance, &gone, libc::IN_CREATE);
        remove(instance, number);
    }
    let second = watch(
        instance,
        &two,
        libc::IN_CREATE | libc::IN_EXCL_UNLINK | libc::IN_ONLYDIR,
    );
    let before = listed(instance);
    move |findings| {
        if findings.sabotage() {
            remove(instance, second);
        }
        findings.same("watches", &before, &listed(instance));
        for (path, number) in [(&one, first), (&two, second)] {
            let file = path.join("new");
            fs::write(&file, "").expect("make a file");
            let wanted = vec![(number, libc::IN_CREATE, "new".to_owned())];
            if !(findings.sabotage() && number == second) {
                findings.same("event of a folder", &wanted, &events(instance));
            }
            fs::remove_file(&file).expect("remove it");
            if number == first {
                let wanted = vec![(number, libc::IN_DELETE, "new".to_owned())];
                findings.same("event of a folder", &wanted, &events(instance));
            }
        }
    }
}

/// Two names of one file, one of them a symbolic link that is watched itself.
fn files(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = stage.path("watched file with blanks");
    fs::write(&path, "").expect("make a file");
    let link = stage.path("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let instance = instance(libc::IN_NONBLOCK);
    let plain = watch(instance, &path, libc::IN_MODIFY | libc::IN_ATTRIB);
    let itself = watch(instance, &link, libc::IN_DONT_FOLLOW | libc::IN_ATTRIB);
    let before = listed(instance);
    move |findings| {
        findings.same("watches", &before, &listed(instance));
        fs::write(&path, "more").expect("write");
        let told = events(instance);
        let all = told
            .iter()
            .all(|(number, mask, _)| (*number, *mask) == (plain, libc::IN_MODIFY));
        findings.that(all && !told.is_empty(), format!("events of a file: {told:?}"));
        let times = [libc::timespec { tv_sec: 1, tv_nsec: 0 }; 2];
        let link = CString::new(link.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: a path and two times.
        unsafe { libc::utimensat(libc::AT_FDCWD, link.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
        let wanted = vec![(itself, libc::IN_ATTRIB, String::new())];
        findings.same("event of a link", &wanted, &events(instance));
        let nothing = call::read(instance, 4096).map_err(|error| error.kind());
        findings.same("no more", &Err(std::io::ErrorKind::WouldBlock), &nothing);
    }
}

/// Shared with a child, which has nothing to do.
fn watched_by_epoll(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = folder(stage, "epoll");
    let instance = instance(0);
    let number = watch(instance, &path, libc::IN_CREATE);
    // SAFETY: a number.
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 9,
    };
    // SAFETY: the structure outlives the call.
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, instance, &raw mut event) };
    let ready = move || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) }
    };
    stage.child("with an instance", move |_| {
        move |findings: &mut Findings| findings.same("watches of the child", &1, &listed(instance).len())
    });
    let mut round = 0;
    move |findings| {
        findings.same("events before", &0, &ready());
        round += 1;
        fs::write(path.join(format!("{round}")), "").expect("make a file");
        findings.same("events", &1, &ready());
        let wanted = vec![(number, libc::IN_CREATE, round.to_string())];
        findings.same("event by epoll", &wanted, &events(instance));
        findings.same("events behind", &0, &ready());
    }
}

fn read_by_a_thread(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let path = folder(stage, "read");
    let instance = instance(0);
    watch(instance, &path, libc::IN_CREATE);
    let (tell, heard) = channel();
    let (tell_id, id) = channel();
    spawn_into(&[libc::SYS_read], move || {
        tell_id.send(call::gettid()).expect("the check lives");
        while tell.send(events(instance)).is_ok() {}
    });
    let tid = id.recv().expect("an id");
    let mut round = 0;
    move |findings| {
        findings.that(heard.try_recv().is_err(), "a read came back by itself");
        round += 1;
        fs::write(path.join(format!("{round}")), "").expect("make a file");
        let got = heard.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
        let names: Vec<&String> = got.iter().map(|(_, _, name)| name).collect();
        findings.same("event that was waited for", &vec![&round.to_string()], &names);
        let again = victims::wait_until(|| waits_in(tid, &[libc::SYS_read]));
        findings.that(again, "the thread does not wait again");
    }
}
