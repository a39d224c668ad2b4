//! `floe migrate --streams`: images go over several connections at once; whichever of them breaks, stalls or says nonsense, one
//! copy runs and nothing is left of another.

use floe_suite::{
    Counting, Host, PID_METHODS, TwoNetworks, Victim,
    migration::{Point, Receiver, Way, children, expect_one, kill_all, pin_each_other},
    run, spawn, until, wait,
};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Duration,
};

fn hosts() -> [Host; 2] {
    [Host::new(), Host::new()]
}

#[test]
fn a_tree_goes_there_and_back_over_several_connections() {
    let name = "memory-in-motion";
    let [here, there] = hosts();
    let mut victim = Victim::start(&here, name, &[], &[]);
    for (method, streams, rounds) in [(PID_METHODS[0], "2", "8"), (PID_METHODS[1], "16", "0")] {
        for (from, to) in [(&here, &there), (&there, &here)] {
            let socket = format!("unix:{}", to.path(&format!("{method}.sock")).display());
            let receiver = Receiver::start_with(to, &socket, &["--pid-method", method], |_| {});
            let line = [
                "migrate",
                name,
                receiver.address(),
                "--json",
                "--streams",
                streams,
                "--rounds",
                rounds,
            ];
            let summary = floe_suite::json(&from.done(&line));
            assert_eq!(summary["streams"].to_string(), streams, "{summary}");
            expect_one([from, to], name, "moved");
        }
        victim.check("after it went there and back");
    }
}

#[test]
fn over_tls_all_of_them_agree_on_keys() {
    let networks = TwoNetworks::new();
    let hosts = networks.hosts();
    let [here, there] = &hosts;
    let [own, other] = pin_each_other([here, there]);
    let job = here.name("job");
    let tree = Counting::start(here, &job, &["--net", "none"]);
    let receiver = Receiver::start_with(there, "10.9.0.2:0", &["--keys", &other], |_| {});
    let line = [
        "migrate",
        &job,
        receiver.address(),
        "--keys",
        &own,
        "--streams",
        "3",
        "--rounds",
        "2",
    ];
    here.done(&line);
    expect_one([here, there], &job, "moved");
    tree.expect_alive("moved");
}

/// A migration, as a source of one's own speaks it.
struct Talker(UnixStream);

impl Talker {
    fn call(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        let mut talker = Self(stream);
        talker.say(r#"{"type":"hello","version":3,"floe":"0"}"#);
        assert!(talker.hear().contains("hello"));
        talker
    }

    fn frame(&mut self, kind: u8, body: &[u8]) {
        let head = [&[kind][..], &(body.len() as u32).to_le_bytes()].concat();
        // Who is not listened to any more finds out when it listens.
        drop(self.0.write_all(&[&head, body].concat()));
    }

    fn say(&mut self, message: &str) {
        self.frame(b'm', message.as_bytes());
    }

    fn piece(&mut self, image: u32, offset: u64, bytes: &[u8]) {
        self.frame(b'p', &[&image.to_le_bytes()[..], &offset.to_le_bytes(), bytes].concat());
    }

    /// The next message; nothing where the connection has ended.
    fn hear(&mut self) -> String {
        loop {
            let mut head = [0; 5];
            if self.0.read_exact(&mut head).is_err() {
                return String::new();
            }
            let mut body = vec![0; u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize];
            self.0.read_exact(&mut body).expect("a body");
            let text = String::from_utf8(body).expect("text");
            if head[0] == b'm' && !text.contains("\"stage\"") {
                return text;
            }
        }
    }
}

/// The image of a small tree without its memory, as a source sends it first.
fn offered(host: &Host) -> Vec<u8> {
    let (name, socket) = (host.name("offered"), host.path("offered.sock"));
    host.done(&["run", "-d", "--name", &name, "--", "sleep", "1000"]);
    let listener = UnixListener::bind(&socket).expect("a socket");
    let child = spawn(&mut host.command(&["migrate", &name, &format!("unix:{}", socket.display())]));
    let mut stream = listener.accept().expect("a source").0;
    let mut image = Vec::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).expect("a frame");
        let mut body = vec![0; u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize];
        stream.read_exact(&mut body).expect("its body");
        match head[0] {
            b'd' => image.extend(body),
            b'm' if String::from_utf8_lossy(&body).contains("\"hello\"") => {
                let said = br#"{"type":"hello","version":3,"floe":"0"}"#;
                let head = [&b"m"[..], &(said.len() as u32).to_le_bytes()].concat();
                stream.write_all(&[&head[..], said].concat()).expect("said");
            }
            b'm' if String::from_utf8_lossy(&body).contains("\"end\"") => break,
            _ => {}
        }
    }
    drop(stream);
    assert_ne!(wait(child), 0);
    host.done(&["rm", "-f", &name]);
    image
}

/// Nothing that comes by several connections harms the receiver, or is taken for an image where it is none.
#[test]
fn what_is_no_image_in_pieces_is_refused() {
    let [here, there] = hosts();
    let records = offered(&here);
    let brief = there.path("brief.sock");
    let _brief = Receiver::start_with(
        &there,
        &format!("unix:{}", brief.display()),
        &["--timeout", "5"],
        |_| {},
    );
    let receiver = Receiver::start(&there);
    let path = &there.path("receive.sock");
    let offer = |path: &Path, id: &str, streams: u16| {
        let mut first = Talker::call(path);
        first.say(&format!(
            r#"{{"type":"offer","id":"{id}","name":"offered","streams":{streams},"files":false}}"#
        ));
        first.frame(b'd', &records);
        first.say(&format!(r#"{{"type":"end","bytes":{}}}"#, records.len()));
        first
    };
    let join = |path: &Path, id: &str, stream: u16| {
        let mut other = Talker::call(path);
        other.say(&format!(r#"{{"type":"join","id":"{id}","stream":{stream}}}"#));
        let answer = other.hear();
        (other, answer)
    };
    // A stranger's, and too many.
    assert!(join(path, &"a".repeat(32), 0).1.contains("no migration waits"));
    assert!(
        offer(path, &"b".repeat(32), 17)
            .hear()
            .contains("16 connections at most")
    );
    // One that never comes.
    let mut lonely = offer(&brief, &"c".repeat(32), 2);
    assert!(lonely.hear().contains("accepted"));

    let begin = |path: &Path, digit: char| {
        let id = digit.to_string().repeat(32);
        let mut first = offer(path, &id, 2);
        let answer = first.hear();
        assert!(answer.contains("accepted"), "{answer}");
        assert!(join(path, &id, 2).1.contains("it has all connections"), "no third one");
        let ((one, said), (two, also)) = (join(path, &id, 0), join(path, &id, 1));
        assert!(said.contains("joined") && also.contains("joined"), "{said} {also}");
        first.say(r#"{"type":"round"}"#);
        (first, [one, two])
    };
    type Act = fn(&mut Talker, &mut [Talker; 2]);
    let wrong: [(&str, Act); 9] = [
        ("twice", |_, [one, two]| {
            one.piece(0, 0, &[1; 100]);
            two.piece(0, 99, &[2; 100]);
        }),
        ("has not come", |first, [one, two]| {
            one.piece(0, 0, &[1; 100]);
            two.piece(0, 101, &[2; 100]);
            one.say(r#"{"type":"end","bytes":100}"#);
            two.say(r#"{"type":"end","bytes":100}"#);
            first.say(r#"{"type":"end","bytes":201}"#);
        }),
        ("has not come", |first, [one, two]| {
            one.say(r#"{"type":"end","bytes":0}"#);
            two.say(r#"{"type":"end","bytes":0}"#);
            first.say(r#"{"type":"end","bytes":1}"#);
        }),
        ("too long", |_, [one, _]| one.piece(0, u64::MAX - 5, &[1; 100])),
        ("out of turn", |_, [one, _]| one.piece(1, 0, &[1; 100])),
        ("out of turn", |_, [one, _]| {
            one.piece(0, 0, &[1; 100]);
            one.say(r#"{"type":"end","bytes":99}"#);
        }),
        ("out of turn", |first, _| first.frame(b'd', &[1; 100])),
        ("too long", |_, [one, _]| one.frame(b'p', &vec![1; (1 << 18) + 13])),
        ("no place there", |_, [one, _]| one.say(r#"{"type":"prepared"}"#)),
    ];
    for (digit, (expected, act)) in ('0'..).zip(wrong) {
        let (mut first, mut streams) = begin(path, digit);
        act(&mut first, &mut streams);
        let answer = first.hear();
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
    // One that ends, and one that shows no sign of life.
    let (mut first, [one, _two]) = begin(path, 'd');
    drop(one);
    let answer = first.hear();
    assert!(answer.contains("the connection ended"), "{answer}");
    let (mut first, [mut one, mut two]) = begin(&brief, 'e');
    let silent = std::thread::spawn(move || {
        // The others live, and this one has begun a frame that it does not end.
        drop(two.0.write_all(b"p\xff\0\0\0xx"));
        for _ in 0..400 {
            one.frame(b'a', &[]);
            std::thread::sleep(Duration::from_millis(20));
        }
        two
    });
    let mut lives = first.0.try_clone().expect("a copy");
    std::thread::spawn(move || {
        while lives.write_all(b"a\0\0\0\0").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let answer = first.hear();
    assert!(answer.contains("silent for 5 s"), "{answer}");
    let answer = lonely.hear();
    assert!(answer.contains("not all connections"), "{answer}");
    drop(silent.join());
    until("nothing is left", || !there.path("state/.migrations").exists());
    assert_eq!(there.state("offered"), "none");
    // It still receives.
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    here.done(&["migrate", &job, receiver.address(), "--streams", "2"]);
    expect_one([&here, &there], &job, "moved at last");
    tree.expect_alive("moved at last");
}

/// What happens to one of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Cut,
    /// The process that has it at the target is killed.
    Killed,
}

#[test]
fn one_of_several_connections_breaks() {
    let all = hosts();
    let here = &all[0];
    let job = here.name("job");
    let tree = Counting::start(here, &job, &[]);
    let mut at = 0;
    for fate in [Fate::Cut, Fate::Killed] {
        // While they join, in a round, and in the last image.
        for (frame, number) in [
            ("join", 2),
            ("joined", 1),
            ("piece", 1),
            ("piece", 4),
            ("end", 3),
            ("end", 6),
        ] {
            let when = format!("{fate:?} at {frame} {number}");
            let (from, to) = (&all[at], &all[1 - at]);
            let receiver = Receiver::start(to);
            let socket = to.path("receive.sock");
            let pid = receiver.pid();
            let kill = move || {
                if fate == Fate::Killed {
                    // The first one that came is not one of several.
                    kill_all(&children(pid)[1..2]);
                }
            };
            let point = Point {
                frame,
                number,
                passes: fate == Fate::Killed,
            };
            let path = from.path("way.sock");
            let way = match fate {
                Fate::Cut => Way::make(path, &socket, point, Box::new(kill)),
                Fate::Killed => Way::watch(path, &socket, point, Box::new(kill)),
            };
            let line = [
                "migrate",
                &job,
                &way.address(),
                "--timeout",
                "5",
                "--rounds",
                "1",
                "--streams",
                "2",
            ];
            let outcome = run(&mut from.command(&line));
            // Behind its last piece a connection may break.
            let is_late = (frame, number) == ("end", 6);
            assert!(
                outcome.status == 1 || is_late && outcome.status == 0,
                "{when}: {}",
                outcome.err
            );
            if outcome.status == 1 {
                assert!(
                    outcome.err.contains("runs on here") || frame.starts_with("join"),
                    "{when}: {}",
                    outcome.err
                );
            }
            let now = expect_one([from, to], &job, &when);
            assert_eq!(now, usize::from(outcome.status == 0), "{when}");
            at = if now == 1 { 1 - at } else { at };
            tree.expect_alive(&when);
        }
    }
    let (from, to) = (&all[at], &all[1 - at]);
    let receiver = Receiver::start(to);
    from.done(&["migrate", &job, receiver.address(), "--streams", "4"]);
    tree.expect_alive("moved at last");
}

#[test]
fn one_of_several_connections_stalls() {
    let [here, there] = hosts();
    let (job, place) = (here.name("job"), here.folder("big"));
    let script = "import os,time\nm=os.urandom(24<<20)\nn=0\nwhile True:\n n+=1; open('count','w').write(str(n)); time.sleep(.02)";
    let folder = place.display().to_string();
    here.done(&[
        "run", "-d", "--name", &job, "-w", &folder, "--", "python3", "-c", script,
    ]);
    let count = || fs::read_to_string(place.join("count")).unwrap_or_default();
    let goes_on = |when: &str| {
        let before = count();
        until(&format!("{when}: it counts on"), || {
            !count().is_empty() && count() != before
        });
    };
    goes_on("at the start");
    let receiver = Receiver::start(&there);
    let socket = there.path("receive.sock");
    for rounds in ["0", "1"] {
        let point = Point {
            frame: "piece",
            number: 5,
            passes: true,
        };
        // Whatever comes next by this one waits; the others go on.
        let stall = || std::thread::sleep(Duration::from_secs(8));
        let way = Way::watch(here.path("way.sock"), &socket, point, Box::new(stall));
        let line = [
            "migrate",
            &job,
            &way.address(),
            "--timeout",
            "2",
            "--rounds",
            rounds,
            "--streams",
            "3",
        ];
        let outcome = run(&mut here.command(&line));
        assert_eq!(outcome.status, 1, "{}", outcome.err);
        assert!(outcome.err.contains("silent for 2 s"), "{}", outcome.err);
        expect_one([&here, &there], &job, "stalled");
        goes_on("stalled");
    }
    here.done(&["migrate", &job, receiver.address(), "--streams", "3"]);
    goes_on("moved");
    there.done(&["rm", "-f", &job]);
}

#[test]
fn ssh_carries_one_connection() {
    let here = Host::new();
    let job = here.name("job");
    let tree = Counting::start(&here, &job, &[]);
    let error = here
        .floe(&["migrate", &job, "ssh://oak", "--streams", "2"])
        .expect_failed();
    assert!(error.contains("ssh://oak carries one connection"), "{error}");
    assert_eq!(here.floe(&["migrate", &job, "unix:/x", "--streams", "17"]).status, 2);
    assert_eq!(here.floe(&["migrate", &job, "unix:/x", "--level", "23"]).status, 2);
    tree.expect_alive("refused");
}

/// Nothing that is told of parts of an image that are to come later harms the receiver, or lets it take for an image what is none.
#[test]
fn what_is_no_rest_of_an_image_is_refused() {
    let [here, there] = hosts();
    let records = offered(&here);
    let _receiver = Receiver::start(&there);
    let path = &there.path("receive.sock");
    let mut stranger = Talker::call(path);
    stranger.say(&format!(r#"{{"type":"resume","id":"{}"}}"#, "a".repeat(32)));
    assert!(stranger.hear().contains("whole"), "somebody waits");
    let image = r#"{"type":"image","lazy":true}"#;
    let missing = |parts: &str| format!(r#"{{"type":"missing","parts":{parts},"last":true}}"#);
    let end = |bytes: u64| format!(r#"{{"type":"end","bytes":{bytes}}}"#);
    let many: Vec<String> = (0..20_000).map(|number| format!("[{},1]", 2 * number)).collect();
    let many = missing(&format!("[{}]", many.join(",")));
    let cases: [(&str, Vec<String>); 8] = [
        (
            "told wrongly",
            vec![image.into(), missing("[[100,5],[102,5]]"), end(107)],
        ),
        ("told wrongly", vec![image.into(), missing("[[99,5]]"), end(104)]),
        (
            "told wrongly",
            vec![image.into(), missing("[[105,5],[100,5]]"), end(110)],
        ),
        ("told wrongly", vec![image.into(), missing("[[100,0]]"), end(100)]),
        (
            "told wrongly",
            vec![image.into(), missing("[[100,18446744073709551615]]"), end(101)],
        ),
        (
            "too many parts",
            vec![image.into(), many.clone(), many.clone(), many.clone(), many],
        ),
        (
            "out of turn",
            vec![r#"{"type":"round"}"#.into(), missing("[[100,5]]"), end(105)],
        ),
        ("not a floe image", vec![image.into(), missing("[[100,500]]"), end(600)]),
    ];
    for (digit, (expected, said)) in ('0'..).zip(cases) {
        let id = digit.to_string().repeat(32);
        let mut first = Talker::call(path);
        first.say(&format!(
            r#"{{"type":"offer","id":"{id}","name":"offered","streams":0,"files":false}}"#
        ));
        first.frame(b'd', &records);
        first.say(&end(records.len() as u64));
        let answer = first.hear();
        assert!(answer.contains("accepted"), "{answer}");
        let (last, before) = said.split_last().expect("some");
        before.iter().for_each(|message| first.say(message));
        first.piece(0, 0, &[1; 100]);
        first.say(last);
        let answer = first.hear();
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
    assert!(!there.path("state").join(".migrations").exists());
}
