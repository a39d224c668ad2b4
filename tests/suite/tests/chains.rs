//! Images that are based on others: each restores what was there in its instant, alone they are refused, merged they need
//! nobody, and whatever fails leaves nothing half done.

use floe_suite::{Host, PID_METHODS, Victim, is_followed, json, run, times};
use std::fs;

const VICTIM: &str = "memory-changes";

/// Images of a chain.
fn images() -> usize {
    times(9)
}

fn path(host: &Host, number: usize) -> String {
    host.path(&format!("{number}.floe")).display().to_string()
}

fn bytes(path: &str) -> u64 {
    fs::metadata(path).expect("an image").len()
}

/// A chain of images of a tree that changes meanwhile, each with the `options`.
fn save_chain(host: &Host, victim: &mut Victim<'_>, options: &[&str]) {
    for number in 0..images() {
        let (image, base) = (path(host, number), path(host, number.saturating_sub(1)));
        let mut line = vec!["checkpoint", VICTIM, "--leave-running", "-o", &image];
        line.extend(options);
        if number > 0 {
            line.extend(["--base", &base]);
        }
        host.done(&line);
        victim.check(&format!("after checkpoint {number}"));
    }
}

fn restores_each_instant(host: &Host, options: &[&str]) {
    let mut victim = Victim::start(host, VICTIM, &[], &[]);
    save_chain(host, &mut victim, options);
    for number in 0..images() {
        host.done(&["verify", &path(host, number)]);
        host.done(&["rm", "-f", VICTIM]);
        host.done(&[
            "restore",
            "-d",
            "--pid-method",
            PID_METHODS[number % 2],
            &path(host, number),
        ]);
        victim.check(&format!("restored from image {number}"));
    }
    // What was restored is saved on the base of what it was restored from.
    let (last, next) = (path(host, images() - 1), path(host, images()));
    host.done(&["checkpoint", VICTIM, "--base", &last, "-o", &next]);
    host.done(&["restore", "-d", &next]);
    victim.check("restored from an image on the base of the one it came from");
    let merged = host.path("merged.floe").display().to_string();
    host.done(&["image", "merge", &next, "-o", &merged]);
    for number in 0..=images() {
        fs::remove_file(path(host, number)).expect("an image");
    }
    host.done(&["verify", &merged]);
    host.done(&["rm", "-f", VICTIM]);
    host.done(&["restore", "-d", &merged]);
    victim.check("restored from the merged image");
}

#[test]
fn each_image_restores_its_instant() {
    restores_each_instant(&Host::new(), &[]);
}

#[test]
fn each_image_restores_its_instant_of_an_ordinary_user() {
    restores_each_instant(&Host::of_ordinary_user(), &[]);
}

#[test]
fn each_image_restores_its_instant_saved_in_the_background() {
    restores_each_instant(&Host::new(), &["--background"]);
}

#[test]
fn each_image_restores_its_instant_where_writes_are_followed() {
    restores_each_instant(&Host::new(), &["--track"]);
}

#[test]
fn each_image_restores_its_instant_where_writes_are_followed_in_the_background() {
    restores_each_instant(&Host::new(), &["--track", "--background"]);
}

#[test]
fn each_image_restores_its_instant_where_writes_of_an_ordinary_user_are_followed() {
    restores_each_instant(&Host::of_ordinary_user(), &["--track"]);
}

/// A program with 16 MiB of random memory that does not change.
const HOLDER: &str = "import os,signal;b=os.urandom(16<<20);open('held','w').close();signal.pause()";

fn holder(host: &Host) -> String {
    holder_by(host, HOLDER)
}

fn holder_by(host: &Host, program: &str) -> String {
    let name = host.name("holder");
    let place = host.path("").display().to_string();
    host.done(&[
        "run", "-d", "--name", &name, "-w", &place, "--", "python3", "-c", program,
    ]);
    floe_suite::until("the memory", || host.path("held").exists());
    name
}

fn chain_of_three(host: &Host) -> String {
    let name = holder(host);
    for number in 0..3 {
        let (image, base) = (path(host, number), path(host, number.max(1) - 1));
        let mut line = vec!["checkpoint", &name, "--leave-running", "-o", &image];
        if number > 0 {
            line.extend(["--base", &base]);
        }
        host.done(&line);
    }
    name
}

#[test]
fn what_did_not_change_is_not_stored_again() {
    let host = Host::new();
    let name = chain_of_three(&host);
    assert!(bytes(&path(&host, 0)) > 16 << 20);
    for number in 1..3 {
        let size = bytes(&path(&host, number));
        assert!(size < 1 << 20, "image {number} has {size} bytes");
    }
    let told = json(&host.done(&["inspect", "--json", &path(&host, 2)]));
    assert_eq!(
        (&told["header"]["base"]["name"], &told["header"]["base"]["chain"]),
        (&"1.floe".into(), &2.into())
    );
    assert!(
        host.done(&["inspect", &path(&host, 2)])
            .contains("based on 1.floe (id ")
    );
    assert!(host.done(&["verify", &path(&host, 2)]).contains("in 2 bases"));
    host.done(&["rm", "-f", &name]);
    host.done(&["restore", "--dry-run", &path(&host, 2)]);
    host.done(&["check", "--image", &path(&host, 2)]);
    // What was restored from an image is not stored again either.
    host.done(&["restore", "-d", &path(&host, 2)]);
    host.done(&["checkpoint", &name, "--base", &path(&host, 2), "-o", &path(&host, 3)]);
    let size = bytes(&path(&host, 3));
    assert!(size < 1 << 20, "the image after a restore has {size} bytes");
}

#[test]
fn a_chain_that_is_none_is_refused_before_anything_is_made() {
    let host = Host::new();
    let name = chain_of_three(&host);
    host.done(&["rm", "-f", &name]);
    let (first, second, third) = (path(&host, 0), path(&host, 1), path(&host, 2));
    let moved = host.path("elsewhere").display().to_string();
    let refused = |arguments: &[&str], why: &str| {
        for verb in [
            &["restore", "-d"][..],
            &["restore", "--dry-run"],
            &["verify"],
            &["inspect"],
            &["check", "--image"],
        ] {
            let line: Vec<&str> = verb.iter().chain(arguments).copied().collect();
            let error = host.floe(&line).expect_failed();
            assert!(error.contains(why), "{line:?}: {error}");
        }
        let merged = host.path("merged.floe");
        let line: Vec<&str> = ["image", "merge", "-o", merged.to_str().expect("plain")]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        assert!(host.floe(&line).expect_failed().contains(why), "{line:?}");
        assert!(!merged.exists() && host.sandboxes().is_empty());
    };
    fs::rename(&first, &moved).expect("move the first");
    refused(&[&third], "needs the image 0.floe");
    host.done(&["verify", "--base", &moved, &third]);
    host.done(&["restore", "-d", "--base", &moved, &third]);
    host.done(&["rm", "-f", &name]);
    let stream = fs::File::open(&third).expect("open");
    let error = run(host.command(&["verify", "-"]).stdin(stream)).expect_failed();
    assert!(error.contains("the image needs the image 1.floe"), "{error}");
    let stream = fs::File::open(&third).expect("open");
    let line = ["verify", "-", "--base", &second, "--base", &moved];
    assert!(run(host.command(&line).stdin(stream)).expect_done().contains("whole"));
    // Another image under that name.
    fs::copy(&second, &first).expect("copy");
    refused(&[&third], "is another one, of id");
    // Damaged in its pages, which only those who read them see.
    let mut content = fs::read(&moved).expect("read");
    let middle = content.len() / 2;
    content[middle] ^= 0x40;
    fs::write(&first, &content).expect("write");
    for line in [&["verify", &third][..], &["restore", "-d", &third]] {
        let error = host.floe(line).expect_failed();
        assert!(error.contains("0.floe") && error.contains("damaged"), "{error}");
    }
    assert!(host.sandboxes().is_empty());
    content.truncate(middle);
    fs::write(&first, &content).expect("write");
    refused(&[&third], "cut short");
}

#[test]
fn an_image_does_not_replace_one_that_it_is_based_on() {
    let host = Host::new();
    let name = chain_of_three(&host);
    for output in 0..3 {
        let line = [
            "checkpoint",
            &name,
            "--leave-running",
            "--base",
            &path(&host, 2),
            "-o",
            &path(&host, output),
        ];
        let error = host.floe(&line).expect_failed();
        assert!(
            error.contains("is an image that the new one would be based on"),
            "{error}"
        );
    }
    let line = [
        "checkpoint",
        &name,
        "--leave-running",
        "--base",
        &path(&host, 7),
        "-o",
        &path(&host, 8),
    ];
    assert!(host.floe(&line).expect_failed().contains("open"));
    // One of another tree is a base, too, of which nothing is of use.
    let other = host.path("other.floe").display().to_string();
    let sleeper = host.sleeper("other");
    host.done(&["checkpoint", &sleeper, "-o", &other]);
    host.done(&["checkpoint", &name, "--base", &other, "-o", &path(&host, 3)]);
    assert!(bytes(&path(&host, 3)) > 16 << 20);
    host.done(&["restore", "-d", &path(&host, 3)]);
    assert_eq!(host.state(&name), "running");
}

#[test]
fn a_merge_that_fails_leaves_what_was_there() {
    let host = Host::new();
    let name = chain_of_three(&host);
    let third = path(&host, 2);
    let before = fs::read(&third).expect("read");
    let there = || fs::read_dir(host.path("")).expect("list").count();
    let files = there();
    for stage in host.done(&["image", "merge", "--stages"]).lines() {
        for how in [stage.to_owned(), format!("{stage}:panic")] {
            let mut merge = host.command(&["image", "merge", &third, "-o", &third]);
            let error = run(merge.env("FLOE_FAIL_AT", &how));
            assert!(error.status != 0, "{how}: {}", error.err);
            assert!(fs::read(&third).expect("read") == before, "{how}");
            assert_eq!(there(), files, "{how}");
        }
    }
    // In the place of the old one.
    host.done(&["image", "merge", &third, "-o", &third]);
    for number in 0..2 {
        fs::remove_file(path(&host, number)).expect("an image");
    }
    assert!(!host.done(&["verify", &third]).contains("base"));
    host.done(&["rm", "-f", &name]);
    host.done(&["restore", "-d", &third]);
    // Through a stream.
    let streamed = host.path("streamed.floe");
    let mut merge = host.command(&["image", "merge", &third, "-o", "-"]);
    let ended = merge.stdout(fs::File::create(&streamed).expect("create")).status();
    assert!(ended.expect("run floe").success());
    host.done(&["verify", streamed.to_str().expect("a plain path")]);
}

/// Damages a page of an image, so that whoever reads it notices.
fn damage(image: &str) {
    let mut content = fs::read(image).expect("read");
    let middle = content.len() / 2;
    content[middle] ^= 0x40;
    fs::write(image, &content).expect("write");
}

fn descriptors(process: i32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd"))
        .expect("descriptors")
        .count()
}

#[test]
fn what_is_known_to_be_unchanged_is_not_read_of_a_tree_that_stands_still() {
    what_is_known_to_be_unchanged_is_not_read("--leave-running");
}

#[test]
fn what_is_known_to_be_unchanged_is_not_read_in_the_background() {
    what_is_known_to_be_unchanged_is_not_read("--background");
}

/// The first thread ends when it has been followed for a while.
#[test]
fn what_a_process_without_its_first_thread_wrote_is_known() {
    const HOLDER: &str = "\
import os,signal,threading,time,ctypes
b=os.urandom(16<<20)
def rest():
    open('held','w').close()
    while True: signal.pause()
threading.Thread(target=rest).start()
while not os.path.exists('end'): time.sleep(0.001)
ctypes.CDLL(None).syscall(60,0)";
    for how in ["--leave-running", "--background"] {
        let host = Host::new();
        let name = holder_by(&host, HOLDER);
        let pid = host.pid1(&name);
        host.done(&["checkpoint", &name, how, "--track", "-o", &path(&host, 0)]);
        assert!(is_followed(pid));
        damage(&path(&host, 0));
        fs::write(host.path("end"), "").expect("end the first thread");
        let ended = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        floe_suite::until("the end of the first thread", ended);
        for number in 1..4 {
            let (image, base) = (path(&host, number), path(&host, number - 1));
            host.done(&["checkpoint", &name, how, "--track", "--base", &base, "-o", &image]);
            assert!(bytes(&image) < 1 << 20, "{how}: image {number} is large");
        }
    }
}

/// The base is damaged after it was made, so that it can't be compared with.
fn what_is_known_to_be_unchanged_is_not_read(leave: &str) {
    let host = Host::new();
    let name = holder(&host);
    let pid = host.pid1(&name);
    let open = descriptors(pid);
    host.done(&["checkpoint", &name, leave, "--track", "-o", &path(&host, 0)]);
    assert!(is_followed(pid) && descriptors(pid) == open);
    damage(&path(&host, 0));
    // Also where one of the same is made meanwhile, and where it is only asked for.
    host.done(&["checkpoint", &name, leave, "-o", &path(&host, 7)]);
    host.done(&["checkpoint", &name, "--dry-run"]);
    host.done(&[
        "checkpoint",
        &name,
        leave,
        "--base",
        &path(&host, 0),
        "-o",
        &path(&host, 1),
    ]);
    assert!(bytes(&path(&host, 1)) < 1 << 20);
    host.done(&[
        "checkpoint",
        &name,
        leave,
        "--track",
        "--base",
        &path(&host, 0),
        "-o",
        &path(&host, 2),
    ]);
    // Now another image is what is known of.
    let line = [
        "--verbose",
        "checkpoint",
        &name,
        leave,
        "--base",
        &path(&host, 0),
        "-o",
        &path(&host, 3),
    ];
    let error = host.floe(&line).expect_failed();
    assert!(
        error.contains("memory is compared with it") && error.contains("damaged"),
        "{error}"
    );
    host.done(&[
        "checkpoint",
        &name,
        leave,
        "--base",
        &path(&host, 2),
        "-o",
        &path(&host, 3),
    ]);
    assert!(is_followed(pid));
    floe_suite::signal(monitor(&host, &name), 9);
    floe_suite::until("the end of the monitor", || !is_followed(pid));
    host.done(&["rm", "-f", &name]);
}

#[test]
fn a_checkpoint_that_fails_while_writes_are_followed_changes_nothing() {
    let host = Host::new();
    let mut victim = Victim::start(&host, VICTIM, &[], &[]);
    for (turn, how) in ["--leave-running", "--background"].into_iter().enumerate() {
        host.done(&["checkpoint", VICTIM, how, "--track", "-o", &path(&host, 0)]);
        victim.check("after the first checkpoint");
        let stages = host.done(&["checkpoint", how, "--track", "--stages"]);
        let (last, seldom) = (stages.lines().count() - 1, 3 / times(3));
        for (number, stage) in stages.lines().enumerate() {
            let line = [
                "checkpoint",
                VICTIM,
                how,
                "--track",
                "--base",
                &path(&host, 0),
                "-o",
                &path(&host, 1),
            ];
            let failed = run(host.command(&line).env("FLOE_FAIL_AT", stage));
            assert!(
                failed.status != 0 && !host.path("1.floe").exists(),
                "{stage}: {}",
                failed.err
            );
            victim.check(&format!("after a failure at {stage}"));
            // One behind several failures says as much; behind which it is wrong, a thorough run says.
            if (number + turn) % seldom != 0 && number != last {
                continue;
            }
            // Whatever is known by now, it is not wrong.
            host.done(&[
                "checkpoint",
                VICTIM,
                how,
                "--track",
                "--base",
                &path(&host, 0),
                "-o",
                &path(&host, 2),
            ]);
            victim.check(&format!("after a checkpoint behind a failure at {stage}"));
        }
        host.done(&["rm", "-f", VICTIM]);
        host.done(&["restore", "-d", &path(&host, 2)]);
        victim.check("restored");
    }
}

#[test]
fn only_a_sandbox_that_runs_on_is_followed() {
    let host = Host::new();
    let name = host.sleeper("sleeper");
    for line in [
        &["checkpoint", &name, "--track", "-o", "x.floe"][..],
        &["checkpoint", "--pid", "1", "--leave-running", "--track", "-o", "x.floe"],
    ] {
        assert_eq!(host.floe(line).status, 2, "{line:?}");
    }
}

/// A userfaultfd goes on with the memory that it was opened for, not with the process.
#[test]
fn memory_that_outlives_the_process_that_was_followed_is_compared() {
    for how in ["--leave-running", "--background"] {
        let host = Host::new();
        let mut victim = Victim::start(&host, "memory-outlives", &[], &[]);
        let save = |number: usize| {
            let (image, base) = (path(&host, number), path(&host, number.saturating_sub(1)));
            let mut line = vec![
                "--verbose",
                "checkpoint",
                "memory-outlives",
                how,
                "--track",
                "-o",
                &image,
            ];
            if number > 0 {
                line.extend(["--base", &base]);
            }
            let outcome = host.floe(&line);
            assert_eq!(outcome.status, 0, "{how}: {}", outcome.err);
            outcome.err
        };
        save(0);
        victim.check("who made the memory ends");
        let told = save(1);
        assert!(told.contains("nobody knows by whom"), "{told}");
        victim.check("behind a checkpoint of what outlives");
        assert!(!save(2).contains("nobody knows by whom"));
        victim.check("behind one on the base of that");
        for number in [1, 2, 0] {
            host.done(&["rm", "-f", "memory-outlives"]);
            host.done(&["restore", "-d", &path(&host, number)]);
            victim.check(&format!("{how}: restored from image {number}"));
        }
    }
}

fn monitor(host: &Host, name: &str) -> i32 {
    let state = fs::read_to_string(host.path(&format!("state/{name}/state.json")));
    let number = json(&state.expect("its state"))["monitor"].as_i64();
    number.expect("its monitor") as i32
}

/// The soft limit of open files of a process.
fn open_files(process: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).expect("limits");
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let soft = line
        .and_then(|line| line.split_ascii_whitespace().nth(3))
        .expect("a limit");
    soft.parse().expect("a number")
}

const PROCESSES: usize = 90;

/// A sandbox of many processes, by a floe that may have few open files by its soft limit.
fn many(host: &Host) -> String {
    let name = host.name("many");
    let script = format!("for i in $(seq {PROCESSES}); do sleep 1000 & done; wait");
    let floe = host.command(&["run", "-d", "--name", &name, "--", "sh", "-c", &script]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -Sn 80; exec \"$@\"", "sh"]);
    limited.arg(floe.get_program()).args(floe.get_args());
    for (key, value) in floe.get_envs() {
        match value {
            Some(value) => limited.env(key, value),
            None => limited.env_remove(key),
        };
    }
    assert_eq!(run(&mut limited).status, 0);
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", host.pid1(&name)));
    let all = || children().is_ok_and(|text| text.split_ascii_whitespace().count() == PROCESSES);
    floe_suite::until("the children", all);
    name
}

#[test]
fn the_monitor_keeps_many_userfaultfds_whatever_the_soft_limit_is() {
    let host = Host::new();
    let name = many(&host);
    assert_eq!(
        open_files(host.pid1(&name)),
        80,
        "the workload has the limit of who called floe"
    );
    let save = |number: usize| {
        let (image, base) = (path(&host, number), path(&host, number.saturating_sub(1)));
        let mut line = vec![
            "--verbose",
            "checkpoint",
            &name,
            "--leave-running",
            "--track",
            "-o",
            &image,
        ];
        if number > 0 {
            line.extend(["--base", &base]);
        }
        let outcome = host.floe(&line);
        assert_eq!(outcome.status, 0, "{}", outcome.err);
        outcome.err
    };
    for number in 0..3 {
        let told = save(number);
        assert!(
            !told.contains("keeps no more") && !told.contains("nobody knows"),
            "{told}"
        );
    }
    // Where it has less room than processes, some are not followed, which is told, and all goes on.
    let monitor = monitor(&host, &name);
    let mut number = 3;
    for limit in [120, 70] {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: a number of a process that lives, and a limit that is read.
        let set = unsafe { libc::prlimit(monitor, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
        assert_eq!(set, 0, "prlimit");
        for _ in 0..2 {
            let told = save(number);
            assert!(told.contains("keeps no more"), "{told}");
            number += 1;
        }
        assert_eq!(host.state(&name), "running");
    }
    host.done(&["rm", "-f", &name]);
}
