//! POSIX message queues: what waits in them by priority, sizes, owners; opened several times and in two processes; without a
//! name, or with a name that two have had; open in no process; who is told of messages; a receiver that waits; and epoll.

use std::{
    ffi::CString,
    fs::File,
    io,
    mem::{ManuallyDrop, MaybeUninit},
    os::{
        fd::{FromRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    ptr,
};
use victims::{Findings, Seen, Stage, call, pattern, play, stage::fork};

/// Priority and text.
type Message = (u32, Vec<u8>);
type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(contents(stage)),
            Box::new(names()),
            Box::new(nobody()),
            Box::new(told()),
            Box::new(told_nothing(stage)),
            Box::new(waited_for()),
        ];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

fn open(name: &str, flags: i32, size: Option<(i64, i64)>) -> RawFd {
    let name = CString::new(format!("/{name}")).expect("no NUL");
    // SAFETY: zeros are valid numbers.
    let mut attributes: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    let flags = flags
        | if size.is_some() {
            libc::O_CREAT | libc::O_EXCL
        } else {
            0
        };
    (attributes.mq_maxmsg, attributes.mq_msgsize) = size.unwrap_or_default();
    // SAFETY: a name that ends with a NUL, and a structure.
    let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o620, &raw const attributes) };
    call::checked(queue.into()).unwrap_or_else(|error| panic!("mq_open {name:?}: {error}")) as RawFd
}

fn unlink(name: &str) {
    let name = CString::new(format!("/{name}")).expect("no NUL");
    // SAFETY: a name that ends with a NUL.
    call::checked(unsafe { libc::mq_unlink(name.as_ptr()) }.into()).expect("mq_unlink");
}

fn send(queue: RawFd, (priority, text): &Message) {
    // SAFETY: the text is valid for its length.
    let status = unsafe { libc::mq_send(queue, text.as_ptr().cast(), text.len(), *priority) };
    call::checked(status.into()).expect("mq_send");
}

fn receive(queue: RawFd) -> io::Result<Message> {
    let mut text = vec![0_u8; 8192];
    let mut priority = 0;
    // SAFETY: room for the longest message.
    let got = unsafe { libc::mq_receive(queue, text.as_mut_ptr().cast(), text.len(), &raw mut priority) };
    let got = call::checked(got as i64)?;
    text.truncate(got as usize);
    Ok((priority, text))
}

/// Messages at once, bytes of one, messages that wait, flags.
fn attributes(queue: RawFd) -> [i64; 4] {
    // SAFETY: zeros are valid numbers.
    let mut found: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: room for the structure.
    unsafe { libc::mq_getattr(queue, &raw mut found) };
    [found.mq_maxmsg, found.mq_msgsize, found.mq_curmsgs, found.mq_flags]
}

/// Two with priorities among them of one; those of one stay in order.
fn some_messages() -> Vec<Message> {
    vec![
        (3, b"first of three".to_vec()),
        (0, Vec::new()),
        (32_767, b"most urgent".to_vec()),
        (3, pattern::bytes(8192, 5)),
        (0, b"last".to_vec()),
        (3, b"third of three".to_vec()),
    ]
}

fn in_order(mut messages: Vec<Message>) -> Vec<Message> {
    messages.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    messages
}

/// One queue, opened for reading, for writing and for both, which a child has too.
fn contents(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let queue = open("contents", libc::O_RDWR | libc::O_NONBLOCK, Some((9, 8192)));
    let reader = open("contents", libc::O_RDONLY | libc::O_NONBLOCK, None);
    let writer = open("contents", libc::O_WRONLY, None);
    // Reading the descriptor tells of the queue, and moves its position.
    let file = ManuallyDrop::new(
        // SAFETY: it is the victim's own, and is not closed by this.
        unsafe { File::from_raw_fd(reader) },
    );
    // SAFETY: plain numbers.
    call::checked(unsafe { libc::fchown(queue, 12, 34) }.into()).expect("fchown");
    // SAFETY: as above.
    call::checked(unsafe { libc::fchmod(queue, 0o1646) }.into()).expect("fchmod");
    call::read(reader, 10).expect("read");
    let [told, tell] = call::pipe(0);
    stage.child("with a queue", move |_| {
        std::thread::spawn(move || {
            loop {
                call::read(told, 1).expect("a request");
                send(queue, &(1, b"from a child".to_vec()));
            }
        });
        move |findings: &mut Findings| findings.same("the child's queue", &9, &attributes(queue)[0])
    });
    some_messages().iter().for_each(|message| send(writer, message));
    let seen = [queue, reader, writer].map(Seen::of);
    let known = attributes(queue);
    move |findings| {
        if findings.sabotage() {
            let _lost = receive(reader);
        }
        for (fd, mut seen) in [queue, reader, writer].into_iter().zip(seen) {
            seen.modified = Seen::of(fd).modified;
            seen.compare(findings, "a queue", fd);
        }
        let metadata = file.metadata().expect("fstat");
        let owner = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        findings.same("owner of a queue", &(0o1646, 12, 34), &owner);
        findings.same("attributes", &known, &attributes(queue));
        for wanted in in_order(some_messages()) {
            findings.same("message", &Some(wanted), &receive(reader).ok());
        }
        let rest = receive(reader).map_err(|error| error.kind());
        findings.same("no more messages", &Err(io::ErrorKind::WouldBlock), &rest);
        call::write(tell, b"?").expect("a request");
        let mut got = None;
        victims::wait_until(|| {
            got = receive(queue).ok();
            got.is_some()
        });
        findings.same("a child's message", &Some((1, b"from a child".to_vec())), &got);
        some_messages().iter().for_each(|message| send(writer, message));
    }
}

/// Three of one name, of which the first two have lost it.
fn names() -> impl FnMut(&mut Findings) {
    let queues = [1, 2, 3].map(|number| {
        let queue = open("name", libc::O_RDWR | libc::O_NONBLOCK, Some((number, 100)));
        send(queue, &(7, vec![number as u8]));
        if number < 3 {
            unlink("name");
        }
        queue
    });
    move |findings| {
        for (number, queue) in (1..).zip(queues) {
            findings.same("attributes by name", &number, &attributes(queue)[0]);
            let message = (7, vec![number as u8]);
            findings.same("message by name", &Some(&message), &receive(queue).ok().as_ref());
            send(queue, &message);
            let link = std::fs::read_link(format!("/proc/self/fd/{queue}")).expect("a link");
            let wanted = if number < 3 { "/name (deleted)" } else { "/name" };
            findings.same("link", &wanted, &link.to_str().unwrap_or_default());
        }
        let again = open("name", libc::O_RDWR | libc::O_NONBLOCK, None);
        findings.same("the one with the name", &3, &attributes(again)[0]);
        call::close(again);
    }
}

/// It has a name and nobody has it open.
fn nobody() -> impl FnMut(&mut Findings) {
    let message = || (9, b"for whoever comes".to_vec());
    let queue = open("nobody", libc::O_RDWR, Some((4, 50)));
    send(queue, &message());
    call::close(queue);
    move |findings| {
        let queue = open("nobody", libc::O_RDWR | libc::O_NONBLOCK, None);
        findings.same("size", &[4, 50][..], &attributes(queue)[..2]);
        findings.same("message in an unopened queue", &Some(message()), &receive(queue).ok());
        send(queue, &message());
        call::close(queue);
    }
}

fn notify(queue: RawFd, how: i32, signal: i32, value: usize) -> io::Result<()> {
    // SAFETY: zeros are a valid structure.
    let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
    (event.sigev_notify, event.sigev_signo) = (how, signal);
    event.sigev_value.sival_ptr = ptr::without_provenance_mut(value);
    // SAFETY: a structure that is read.
    call::checked(unsafe { libc::mq_notify(queue, &raw const event) }.into()).map(drop)
}

/// A blocked signal: from whom, why, with what.
fn pending(signal: i32) -> Option<(i32, i32, usize)> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: room for the set.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    };
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut about = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: valid for the call; a siginfo_t of zeros is one.
    unsafe {
        (libc::sigtimedwait(&raw const set, about.as_mut_ptr(), &raw const soon) == signal).then(|| {
            let about = about.assume_init();
            (about.si_pid(), about.si_code, about.si_value().sival_ptr.addr())
        })
    }
}

/// By a signal that is blocked, with a value.
fn told() -> impl FnMut(&mut Findings) {
    const SIGNAL: i32 = 41;
    const VALUE: usize = 0x1234_5678_9abc;
    let mask: u64 = 1 << (SIGNAL - 1);
    let how = [libc::SIG_BLOCK as usize, &raw const mask as usize, 0, 8];
    // SAFETY: eight bytes are read.
    unsafe { call::raw(libc::SYS_rt_sigprocmask, &how) }.expect("rt_sigprocmask");
    let empty = open("told", libc::O_RDWR | libc::O_NONBLOCK, Some((4, 50)));
    // It is told of once this is empty, and gets one more.
    let full = open("told later", libc::O_RDWR | libc::O_NONBLOCK, Some((4, 50)));
    let message = || (1, b"new".to_vec());
    send(full, &message());
    for queue in [empty, full] {
        notify(queue, libc::SIGEV_SIGNAL, SIGNAL, VALUE).expect("mq_notify");
    }
    move |findings| {
        findings.same("told too early", &None, &pending(SIGNAL));
        for (what, queue) in [("empty", empty), ("full", full)] {
            if queue == full {
                findings.same("message before", &Some(message()), &receive(queue).ok());
            }
            let again = notify(queue, libc::SIGEV_NONE, 0, 0).map_err(|error| error.raw_os_error());
            findings.same(format!("{what}: told twice"), &Err(Some(libc::EBUSY)), &again);
            send(queue, &message());
            let own = std::process::id() as i32;
            let wanted = Some((own, libc::SI_MESGQ, VALUE));
            findings.same(format!("{what}: told"), &wanted, &pending(SIGNAL));
            let got = receive(queue).ok();
            findings.same(format!("{what}: message"), &Some(message()), &got);
        }
        send(full, &message());
        for queue in [empty, full] {
            notify(queue, libc::SIGEV_SIGNAL, SIGNAL, VALUE).expect("mq_notify");
        }
    }
}

/// A child holds the place, so that nobody else is told.
fn told_nothing(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let queue = open("told nothing", libc::O_RDWR | libc::O_NONBLOCK, Some((4, 50)));
    stage.child("told nothing", move |_| {
        notify(queue, libc::SIGEV_NONE, 0, 5).expect("mq_notify");
        |_: &mut Findings| {}
    });
    move |findings| {
        let taken = notify(queue, libc::SIGEV_NONE, 0, 0).map_err(|error| error.raw_os_error());
        findings.same("a place that is taken", &Err(Some(libc::EBUSY)), &taken);
    }
}

/// A child waits for messages, and answers; the parent sees that by epoll.
fn waited_for() -> impl FnMut(&mut Findings) {
    let asks = open("asks", libc::O_RDWR, Some((4, 8192)));
    let answers = open("answers", libc::O_RDWR, Some((4, 8192)));
    fork(move || {
        loop {
            let (priority, text) = receive(asks).expect("a message");
            send(answers, &(priority + 1, text));
        }
    });
    // SAFETY: a number.
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 3,
    };
    // SAFETY: the structure outlives the call.
    call::checked(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, answers, &raw mut event) }.into())
        .expect("epoll_ctl");
    let ready = move |timeout| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        let count = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, timeout) };
        (count, event.u64)
    };
    let mut round = 0;
    move |findings| {
        round += 1;
        findings.same("no answer yet", &(0, 0), &ready(0));
        send(asks, &(5, vec![round]));
        findings.same("an answer", &(1, 3), &ready(20_000));
        findings.same("the answer", &Some((6, vec![round])), &receive(answers).ok());
    }
}
