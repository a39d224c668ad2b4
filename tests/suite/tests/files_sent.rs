//! `floe migrate --files used`: programs and files that the target lacks come with the sandbox, and only these; nothing that is there
//! is changed, and nothing of them is left where nothing comes of it.

use floe_suite::{
    Elsewhere, Host, TwoNetworks, json,
    migration::{Point, Receiver, Way, children, expect_one, kill_all, pin_each_other, settle},
    run, spawn, until, wait,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    process::Command,
};

/// A sandbox whose program, and a file that it has open, are in a folder that is empty elsewhere.
struct Installed {
    here: Host,
    folder: PathBuf,
    name: String,
}

impl Installed {
    fn new(here: Host) -> Self {
        let folder = here.folder("installed");
        for (place, mode) in [("bin", 0o755), ("data", 0o750)] {
            fs::create_dir(folder.join(place)).expect("a folder");
            fs::set_permissions(folder.join(place), fs::Permissions::from_mode(mode)).expect("its mode");
        }
        let program = folder.join("bin/shell");
        fs::copy("/bin/bash", &program).expect("a program");
        let text = folder.join("data/text");
        fs::write(&text, "one\ntwo\nthree\n").expect("a file");
        chown(&text, Some(12), Some(34)).expect("its owner");
        fs::set_permissions(&text, fs::Permissions::from_mode(0o640)).expect("its mode");
        for path in [&text, &program] {
            let touched = run(Command::new("touch").args(["-d", "2001-02-03 04:05:06.789"]).arg(path));
            assert_eq!(touched.status, 0);
        }
        let name = here.name("installed");
        let count = here.folder("counts");
        let script = format!(
            "exec 3< {0}/data/text; cd {0}/data; read first <&3; n=0; while :; do n=$((n+1)); echo $n > {1}/count; \
             read -t 0.02 < <(:) || :; if [ -e {1}/go ]; then read next <&3; echo \"$next\" > {1}/next; rm {1}/go; fi; done",
            folder.display(),
            count.display()
        );
        let line = ["run", "-d", "--net", "none", "--name", &name, "--"];
        here.done(&[&line[..], &[program.to_str().expect("text"), "-c", &script]].concat());
        let installed = Self { here, folder, name };
        installed.goes_on("at the start");
        installed
    }

    fn counts(&self, file: &str) -> PathBuf {
        self.here.path("counts").join(file)
    }

    fn goes_on(&self, when: &str) {
        let count = || fs::read_to_string(self.counts("count")).unwrap_or_default();
        let before = count();
        until(&format!("{when}: it counts on"), || {
            !count().is_empty() && count() != before
        });
    }

    /// The next line of the file that it has open.
    fn next_line(&self) -> String {
        fs::write(self.counts("go"), "").expect("ask");
        until("its answer", || !self.counts("go").exists());
        fs::read_to_string(self.counts("next")).expect("a line")
    }
}

fn receive<'a>(host: &'a Host, options: &[&str]) -> Receiver<'a> {
    let socket = format!("unix:{}", host.path("receive.sock").display());
    Receiver::start_with(host, &socket, options, |_| {})
}

const DESCRIBE: &str = "find . -mindepth 1 | sort | xargs -r stat -c '%n %F %a %u %g'; find . -type f | sort | xargs -r stat -c '%y'; \
                        find . -type f | sort | xargs -r sha256sum";

#[test]
fn what_is_lacking_comes_with_it_and_only_that() {
    let installed = Installed::new(Host::new());
    let Installed { here, folder, name } = &installed;
    let elsewhere = Elsewhere::new(folder);
    let there = elsewhere.host();
    // Neither side does so unless it is told.
    let used = ["--files", "used"];
    {
        let receiver = receive(&there, &[]);
        let error = here.floe(&["migrate", name, receiver.address()]).expect_failed();
        assert!(error.contains("it can't be opened here"), "{error}");
        let error = here
            .floe(&[&["migrate", name, receiver.address()], &used[..]].concat())
            .expect_failed();
        assert!(error.contains("takes no files"), "{error}");
    }
    let receiver = receive(&there, &used);
    let error = here.floe(&["migrate", name, receiver.address()]).expect_failed();
    assert!(error.contains("it can't be opened here"), "{error}");
    let look = format!("cd {}; {DESCRIBE}", folder.display());
    here.done(&[&["migrate", name, receiver.address(), "--dry-run"], &used[..]].concat());
    assert_eq!(elsewhere.shell(&look), "", "by a dry run");
    installed.goes_on("refused");
    let summary = json(&here.done(&[&["migrate", name, receiver.address(), "--json"], &used[..]].concat()));
    assert_eq!(summary["files"], 2, "{summary}");
    expect_one([here, &there], name, "moved");
    installed.goes_on("moved");
    assert_eq!(installed.next_line(), "two\n");
    let outcome = run(Command::new("sh").args(["-ec", &look]));
    assert_eq!(elsewhere.shell(&look), outcome.out);
    assert!(
        outcome.out.contains("./data/text regular file 640 12 34"),
        "{}",
        outcome.out
    );
    // What is there already is not sent.
    let back = receive(here, &used);
    let line = ["migrate", name, back.address(), "--json", "--streams", "2"];
    let summary = json(&there.done(&[&line[..], &used[..]].concat()));
    assert_eq!(summary["files"], 0, "{summary}");
    installed.goes_on("back");
    assert_eq!(installed.next_line(), "three\n");
    expect_one([here, &there], name, "back");
    assert_ne!(elsewhere.shell(&look), "", "it was its own program there");
}

#[test]
fn what_is_there_is_not_changed() {
    let installed = Installed::new(Host::new());
    let Installed { here, folder, name } = &installed;
    let elsewhere = Elsewhere::new(folder);
    let there = elsewhere.host();
    let receiver = receive(&there, &["--files", "used"]);
    let place = folder.display();
    for (make, expected) in [
        ("mkdir data; echo one > data/text", "it has another content here"),
        (
            "mkdir data; printf '1ne\\ntwo\\nthree\\n' > data/text",
            "it has another content here",
        ),
        ("mkdir -p other/text; ln -s other data", "a symbolic link is on the way"),
        ("mkdir data; ln -s /etc/passwd data/text", "something else here"),
        ("mkdir -p data/text", "it is a regular file at the source"),
        ("mkfifo data", "it is a directory at the source"),
        ("echo x > bin", "it is a directory at the source"),
    ] {
        elsewhere.shell(&format!("cd {place}; {make}"));
        let describe = format!("cd {place}; {DESCRIBE}");
        let before = elsewhere.shell(&describe);
        let line = ["migrate", name, receiver.address(), "--files", "used"];
        let error = here.floe(&line).expect_failed();
        assert!(error.contains(expected), "{make}: {error}");
        assert_eq!(elsewhere.shell(&describe), before, "{make}");
        elsewhere.shell(&format!("cd {place}; rm -rf bin data other"));
        installed.goes_on(make);
    }
    expect_one([here, &there], name, "refused");
}

#[test]
fn nothing_of_them_is_left_where_nothing_comes_of_it() {
    let installed = Installed::new(Host::new());
    let Installed { here, folder, name } = &installed;
    let elsewhere = Elsewhere::new(folder);
    let there = elsewhere.host();
    let used = ["--files", "used", "--rounds", "0"];
    let list = format!("find {} -mindepth 1", folder.display());
    for stage in ["open", "tree", "verify"] {
        let socket = format!("unix:{}", there.path("receive.sock").display());
        let receiver = Receiver::start_with(&there, &socket, &["--files", "used"], |command| {
            command.env("FLOE_FAIL_AT", stage);
        });
        let error = here
            .floe(&[&["migrate", name, receiver.address()], &used[..]].concat())
            .expect_failed();
        assert!(error.contains("runs on here"), "{stage}: {error}");
        assert_eq!(elsewhere.shell(&list), "", "{stage}");
        expect_one([here, &there], name, stage);
        installed.goes_on(stage);
    }
    // The process that has put them in place is killed, before and behind the moment from which the tree is held, or the source.
    // In the end somebody decides by hand.
    for (frame, number, kills_source, by_hand) in [
        ("stage", 6, false, false),
        ("prepared", 1, false, false),
        ("prepared", 1, true, false),
        ("prepared", 1, true, true),
    ] {
        let when = format!("{frame} {number}, source {kills_source}, by hand {by_hand}");
        let receiver = receive(&there, &["--files", "used"]);
        let socket = there.path("receive.sock");
        let point = Point {
            frame,
            number,
            passes: false,
        };
        let (pid, source) = (
            receiver.pid(),
            std::sync::Arc::new(std::sync::atomic::AtomicI32::new(0)),
        );
        let known = std::sync::Arc::clone(&source);
        let kill = move || {
            until("the source is known", || {
                known.load(std::sync::atomic::Ordering::SeqCst) != 0
            });
            match kills_source {
                true => kill_all(&[known.load(std::sync::atomic::Ordering::SeqCst)]),
                false => kill_all(&children(pid)),
            }
        };
        let way = Way::make(here.path("way.sock"), &socket, point, Box::new(kill));
        let line = ["migrate", name, &way.address(), "--timeout", "5"];
        let child = spawn(&mut here.command(&[&line[..], &used[..]].concat()));
        source.store(child.id() as i32, std::sync::atomic::Ordering::SeqCst);
        assert_ne!(wait(child), 0, "{when}");
        if by_hand {
            until("it is held", || there.state(name) == "held");
            assert_ne!(elsewhere.shell(&list), "", "{when}");
            there.done(&["receive", "--abort", name]);
            assert_eq!(elsewhere.shell(&list), "", "{when}");
        }
        assert_eq!(settle(here).status, 0, "{when}");
        expect_one([here, &there], name, &when);
        assert_eq!(elsewhere.shell(&list), "", "{when}");
        installed.goes_on(&when);
    }
    let receiver = receive(&there, &["--files", "used"]);
    here.done(&[&["migrate", name, receiver.address()], &used[..]].concat());
    expect_one([here, &there], name, "moved at last");
    installed.goes_on("moved at last");
}

#[test]
fn what_changes_while_it_goes_over_stands_in_the_way() {
    let installed = Installed::new(Host::new());
    let Installed { here, folder, name } = &installed;
    let elsewhere = Elsewhere::new(folder);
    let there = elsewhere.host();
    let _receiver = receive(&there, &["--files", "used"]);
    let text = folder.join("data/text");
    let change = move || fs::write(&text, "one\nTWO\nthree\n").expect("write");
    let point = Point {
        frame: "image",
        number: 1,
        passes: true,
    };
    let way = Way::watch(
        here.path("way.sock"),
        &there.path("receive.sock"),
        point,
        Box::new(change),
    );
    let line = ["migrate", name, &way.address(), "--files", "used"];
    let error = here.floe(&line).expect_failed();
    assert!(error.contains("it was changed since it was sent"), "{error}");
    assert_eq!(elsewhere.shell(&format!("find {} -mindepth 1", folder.display())), "");
    expect_one([here, &there], name, "changed");
    installed.goes_on("changed");
}

#[test]
fn over_tls_between_two_networks() {
    let networks = TwoNetworks::new();
    let [here, other] = networks.hosts();
    let installed = Installed::new(here);
    let Installed { here, folder, name } = &installed;
    let elsewhere = Elsewhere::new(folder);
    let enter = elsewhere.enter();
    let mut prefix = vec![enter[0].as_str(), enter[1].as_str()];
    let net = networks.enter(1);
    prefix.push(&net);
    let there = Host::behind(&prefix);
    drop(other);
    let [own, its] = pin_each_other([here, &there]);
    let receiver = Receiver::start_with(&there, "10.9.0.2:0", &["--keys", &its, "--files", "used"], |_| {});
    let line = [
        "migrate",
        name,
        receiver.address(),
        "--keys",
        &own,
        "--files",
        "used",
        "--streams",
        "3",
    ];
    here.done(&line);
    expect_one([here, &there], name, "moved");
    installed.goes_on("moved");
    assert_eq!(installed.next_line(), "two\n");
}
