//! Contexts of asynchronous I/O: new ones, some with events that wait, rings that began anew, threads that wait for
//! events, and another process with one of its own.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};
use victims::{
    Findings, Peer, call, play,
    waiting::{spawn_into, waits_in},
};

type Check = Box<dyn FnMut(&mut Findings)>;

const PREAD: u16 = 0;
/// struct io_event: data, obj, res, res2.
type Event = [i64; 4];

fn main() {
    play(|_| {
        let mut checks: Vec<Check> = vec![
            // First: a child inherits rings, but not what belongs to them.
            Box::new(of_a_child()),
            Box::new(untouched()),
            Box::new(events_wait(40, 5, 0)),
            // Most of a ring, and over its end.
            Box::new(events_wait(1, 20, 250)),
            Box::new(destroyed_and_made_anew()),
            Box::new(waited_for(0)),
            Box::new(waited_for(3600)),
            Box::new(waited_for_in_part(&[3])),
            Box::new(waited_for_in_part(&[5, 2])),
        ];
        move |findings: &mut Findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}

/// A context with a file to read from, whose bytes are their own offsets.
struct Context {
    id: usize,
    file: File,
    /// Requests point to it; it never moves.
    room: Box<[u8; 16]>,
}

impl Context {
    fn new(most: usize) -> Self {
        let mut id = 0_usize;
        // SAFETY: room for the id.
        unsafe { call::raw(libc::SYS_io_setup, &[most, &raw mut id as usize]) }.expect("io_setup");
        // SAFETY: flags only; the name is a C string.
        let file = unsafe { libc::memfd_create(c"bytes".as_ptr(), 0) };
        assert!(file >= 0, "memfd_create");
        // SAFETY: a new descriptor.
        let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(file) };
        file.write_all(&(0..=255).collect::<Vec<u8>>()).expect("write");
        let room = Box::new([0; 16]);
        Self { id, file, room }
    }

    /// Submits a read of `length` bytes, which ends at once.
    fn submit(&self, data: i64, length: i64) {
        let mut request = [0_u64; 8];
        request[0] = data as u64;
        request[2] = u64::from(PREAD) | (self.file.as_raw_fd() as u64) << 32;
        request[3] = self.room.as_ptr() as u64;
        request[4] = length as u64;
        request[5] = 64;
        let list = [request.as_ptr()];
        // SAFETY: one request, which reads into room that stays.
        let done = unsafe { call::raw(libc::SYS_io_submit, &[self.id, 1, list.as_ptr() as usize]) };
        assert_eq!(done.expect("io_submit"), 1);
    }

    /// Waits for so many events.
    fn events(&self, count: usize) -> Vec<Event> {
        let mut events: Vec<Event> = vec![[0; 4]; count];
        // SAFETY: room for as many.
        let got = unsafe {
            let arguments = [self.id, count, count, events.as_mut_ptr() as usize, 0];
            call::raw(libc::SYS_io_getevents, &arguments)
        };
        events.truncate(got.expect("io_getevents") as usize);
        events
    }

    /// What the header of the ring says: room, head, tail.
    fn header(&self) -> [u32; 3] {
        let ring = self.id as *const u32;
        // SAFETY: the ring is mapped, and begins with its header.
        [1, 2, 3].map(|word| unsafe { ring.add(word).read_volatile() })
    }

    fn works(&self, findings: &mut Findings, what: &str) {
        self.submit(77, 16);
        let got: Vec<_> = self.events(1).iter().map(|event| (event[0], event[2])).collect();
        findings.same(what, &vec![(77, 16)], &got);
        findings.same(what, &[64, 65, 66], &[self.room[0], self.room[1], self.room[2]]);
    }
}

fn untouched() -> impl FnMut(&mut Findings) {
    let context = Context::new(8);
    let before = context.header();
    let mut first = true;
    move |findings| {
        if std::mem::take(&mut first) {
            findings.same("header of a ring that was not used", &before, &context.header());
        }
        context.works(findings, "a context that was not used");
    }
}

/// `waiting` events that nobody has taken yet, behind `before` that somebody has.
fn events_wait(most: usize, waiting: i64, before: i64) -> impl FnMut(&mut Findings) {
    let context = Context::new(most);
    let mut round = 0;
    let add = move |context: &Context, round: i64| {
        for number in 0..waiting {
            context.submit(1000 * round + number, number % 16);
        }
    };
    for number in 0..before {
        context.submit(number, 1);
        context.events(1);
    }
    add(&context, round);
    let mut header = context.header();
    move |findings| {
        findings.same("header of a ring", &header, &context.header());
        if findings.sabotage() {
            context.events(1);
        }
        let place = |event: &Event| (event[0], event[2], event[3]);
        let wanted: Vec<_> = (0..waiting)
            .map(|number| (1000 * round + number, number % 16, 0))
            .collect();
        let left = if findings.sabotage() { waiting - 1 } else { waiting };
        let got: Vec<_> = context.events(left as usize).iter().map(place).collect();
        findings.same("events that waited", &wanted, &got);
        context.works(findings, "a context whose events were taken");
        round += 1;
        add(&context, round);
        header = context.header();
    }
}

fn destroyed_and_made_anew() -> impl FnMut(&mut Findings) {
    let mut context = Context::new(100);
    move |findings| {
        // SAFETY: an id.
        let done = unsafe { call::raw(libc::SYS_io_destroy, &[context.id]) };
        findings.same("io_destroy", &Some(0), &done.ok());
        context = Context::new(100);
        context.works(findings, "a new context");
    }
}

/// A thread waits for an event, for so many seconds or for ever.
fn waited_for(seconds: i64) -> impl FnMut(&mut Findings) {
    let context = Context::new(10);
    let (tell, heard) = channel();
    let (tell_id, id) = channel();
    let ring = context.id;
    spawn_into(&[libc::SYS_io_getevents], move || {
        tell_id.send(call::gettid()).expect("the check lives");
        let time = [seconds, 0];
        let time = if seconds == 0 { 0 } else { &raw const time as usize };
        loop {
            let mut event: Event = [0; 4];
            // SAFETY: room for one event; the time stays.
            let got = unsafe {
                let arguments = [ring, 1, 1, &raw mut event as usize, time];
                call::raw(libc::SYS_io_getevents, &arguments)
            };
            let told = got.map(|_| event[0]).map_err(|error| error.to_string());
            tell.send(told).expect("the check lives");
        }
    });
    let tid = id.recv().expect("an id");
    move |findings| {
        let heard: &Receiver<Result<i64, String>> = &heard;
        findings.that(heard.try_recv().is_err(), "io_getevents came back by itself");
        context.submit(5, 1);
        let got = heard.recv_timeout(Duration::from_secs(20));
        findings.same("event that was waited for", &Ok(Ok(5)), &got);
        let again = victims::wait_until(|| waits_in(tid, &[libc::SYS_io_getevents]));
        findings.that(again, "the thread does not wait again");
    }
}

/// Threads wait for ten events each, and have some of them already, so many as told; the others come when they are looked
/// at. What they have stands at both sides of the ring's end.
fn waited_for_in_part(parts: &'static [i64]) -> impl FnMut(&mut Findings) {
    const LEAST: usize = 10;
    let context = Context::new(30);
    for number in 0..i64::from(context.header()[0]) - 2 {
        context.submit(number, 1);
        context.events(1);
    }
    let (tell, heard) = channel();
    let begin: Vec<_> = parts
        .iter()
        .map(|_| wait_when_told(context.id, LEAST, tell.clone()))
        .collect();
    let mut next = 0;
    let mut submit = move |context: &Context, count: i64| {
        (0..count).for_each(|number| context.submit(next + number, 1));
        next += count;
    };
    let take_parts = move |submit: &mut dyn FnMut(&Context, i64), context: &Context| {
        for (part, (begin, tid)) in parts.iter().zip(&begin) {
            submit(context, *part);
            begin.send(()).expect("the thread lives");
            let waits = victims::wait_until(|| {
                let [_, head, tail] = context.header();
                head == tail && waits_in(*tid, &[libc::SYS_io_getevents])
            });
            assert!(waits, "the thread does not wait for the rest");
        }
    };
    take_parts(&mut submit, &context);
    let mut seen = 0;
    move |findings| {
        let early: Vec<Vec<i64>> = heard.try_iter().collect();
        findings.same("answers of io_getevents before there was enough", &Vec::new(), &early);
        let all = (LEAST * parts.len()) as i64;
        submit(&context, all - parts.iter().sum::<i64>());
        let mut got = Vec::new();
        while (got.len() as i64) < all
            && let Ok(some) = heard.recv_timeout(Duration::from_secs(20))
        {
            findings.same("events that were told at once", &LEAST, &some.len());
            got.extend(some);
        }
        got.sort_unstable();
        findings.same("events that were told", &(seen..seen + all).collect::<Vec<_>>(), &got);
        seen += all;
        take_parts(&mut submit, &context);
    }
}

/// A thread that waits for so many events of a ring, and tells their data, whenever it is told to; and its id.
fn wait_when_told(ring: usize, least: usize, tell: Sender<Vec<i64>>) -> (Sender<()>, i32) {
    let (begin, told) = channel();
    let (tell_id, id) = channel();
    spawn_into(&[libc::SYS_futex], move || {
        tell_id.send(call::gettid()).expect("its starter waits");
        for () in told {
            let mut events: Vec<Event> = vec![[0; 4]; least];
            // SAFETY: room for as many events.
            let got = unsafe {
                let arguments = [ring, least, least, events.as_mut_ptr() as usize, 0];
                call::raw(libc::SYS_io_getevents, &arguments)
            };
            events.truncate(got.expect("io_getevents") as usize);
            tell.send(events.iter().map(|event| event[0]).collect())
                .expect("the check lives");
        }
    });
    (begin, id.recv().expect("an id"))
}

fn of_a_child() -> impl FnMut(&mut Findings) {
    let mut context = None;
    let child = Peer::start(move |length| {
        let context = context.get_or_insert_with(|| {
            let context = Context::new(30);
            context.submit(1, 3);
            context
        });
        let got = context.events(1)[0][2];
        context.submit(length, length);
        got
    });
    // What it was asked last it answers the next time.
    let mut last = 9;
    child.ask(last).expect("ask");
    move |findings| {
        let wanted = last;
        last = 1 + wanted % 13;
        findings.same("event of the child", &Some(wanted), &child.ask(last).ok());
    }
}
