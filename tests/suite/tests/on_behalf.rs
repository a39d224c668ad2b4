//! Root saves and restores what is in an ordinary user's user namespace: as that user, who gets nothing of root's, and with no
//! other users of the host than this host has given them.

pub mod tree;

use crate::rootless::{files_with_a_range, script_with_a_range};
use floe_suite::{Host, ORDINARY, PID_METHODS, Traces, Victim, has, json, run, skip, spawn, until, wait};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};
use tree::{Tree, UNSHARE, roots_folder, text};

macro_rules! victims {
    ($($test:ident $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            survives($name);
        })+
    };
}

fn survives(name: &str) {
    let host = Host::of_root_for_a_user();
    let mut victim = Victim::start_as(&host.name("victim"), &host, name, &[], &[]);
    for (into, method) in [("first", PID_METHODS[0]), ("second", PID_METHODS[1])] {
        victim.round_trip_unseen(&host.name(into), method);
    }
    victim.check("after two round trips by root");
}

victims! {
    fifos "fifos",
    files_locks "files-locks",
    many_tasks "many-tasks",
    memory_shared_anonymous "memory-shared-anonymous",
    pids_nested "pids-nested",
    pipes_contents "pipes-contents",
    threads "threads",
    zombies "zombies",
}

fn by_root(host: &Host, line: &[&str]) -> String {
    run(&mut host.command_of_root(line)).expect_done()
}

/// The image is in a folder of root's, and what is restored is the user's: by root, and by the user.
#[test]
fn an_image_that_its_user_may_not_read() {
    let host = Host::of_ordinary_user();
    let mut tree = Tree::start(&host, &[], &UNSHARE);
    let said = tree.goes_on("at first");
    let user = ORDINARY.to_string();
    assert_eq!(said, format!("1 0 deny bash 0 {user} 1 0 {user} 1"));
    let folder = roots_folder();
    let (path, name) = (folder.path().join("tree.floe"), host.name("tree"));
    let image = text(&path);
    by_root(
        &host,
        &["checkpoint", "--pid", &tree.pid(), "--leave-running", "-o", image],
    );
    tree.goes_on("behind a checkpoint that leaves it running");
    by_root(&host, &["checkpoint", "--pid", &tree.pid(), "--dry-run"]);
    by_root(&host, &["checkpoint", "--pid", &tree.pid(), "-o", image]);
    tree.root.wait().expect("it has ended");
    assert_eq!(
        fs::metadata(image).expect("an image").permissions().mode() & 0o777,
        0o600
    );
    let owner = format!("{user}:{user}");
    for method in PID_METHODS.iter().cycle().take(4) {
        by_root(&host, &["restore", "--dry-run", "--owner", &owner, image]);
        let line = [
            "restore",
            "-d",
            "--name",
            &name,
            "--owner",
            &owner,
            "--pid-method",
            method,
        ];
        by_root(&host, &[&line[..], &[image]].concat());
        assert_eq!(tree.goes_on("restored by root"), said);
        let tasks = json(&host.done(&["ps", &name, "--json"]));
        for task in tasks.as_array().expect("a list") {
            let status = fs::read_to_string(format!("/proc/{}/status", task["nspid"][0])).unwrap_or_default();
            let ids = format!("{user}\t{user}\t{user}\t{user}");
            let whole = format!("Uid:\t{ids}\nGid:\t{ids}\n");
            assert!(status.is_empty() || status.contains(&whole), "{status}");
        }
        by_root(&host, &["checkpoint", &name, "-o", image]);
    }
    // Its user does the same.
    let own = host.path("own.floe");
    fs::copy(image, &own).expect("copy it");
    std::os::unix::fs::chown(&own, Some(ORDINARY), None).expect("give it away");
    for method in PID_METHODS {
        host.done(&["restore", "-d", "--name", &name, "--pid-method", method, text(&own)]);
        assert_eq!(tree.goes_on("restored by its user"), said);
        host.done(&["checkpoint", &name, "-o", text(&own)]);
    }
}

/// By default it is the user whom the image names, with the ranges that this host has given them.
#[test]
fn a_user_of_whom_the_host_knows() {
    if !has("newuidmap") {
        skip("newuidmap is not installed");
        return;
    }
    let files = files_with_a_range();
    let script = script_with_a_range(&files);
    let prefix = ["unshare", "-m", "sh", "-c", &script, "sh"];
    let host = Host::ordinary_behind(&prefix);
    let known = |line: &[&str]| {
        let floe = host.command_of_root(line);
        let mut command = Command::new("unshare");
        command.args(&prefix[1..]).arg(floe.get_program()).args(floe.get_args());
        run(&mut command).expect_done()
    };
    let unshare = ["unshare", "-Ur", "--map-auto", "-pf", "--mount-proc"];
    let mut tree = Tree::start(&host, &prefix, &unshare);
    let said = tree.goes_on("at first");
    let user = ORDINARY.to_string();
    assert!(said.contains(&format!("0 {user} 1 1 700000 65535")), "{said}");
    let folder = roots_folder();
    let (path, name) = (folder.path().join("tree.floe"), host.name("range"));
    let image = text(&path);
    known(&["checkpoint", "--pid", &tree.pid(), "-o", image]);
    tree.root.wait().expect("it has ended");
    for method in PID_METHODS {
        known(&["restore", "-d", "--name", &name, "--pid-method", method, image]);
        assert_eq!(tree.goes_on("restored by root"), said);
        known(&["checkpoint", &name, "-o", image]);
    }
    // Another host has given that range to nobody, and knows nobody of that number.
    let refused =
        |owner: &str| run(&mut host.command_of_root(&["restore", "-d", "--owner", owner, image])).expect_failed();
    let error = refused(&format!("{user}:{user}"));
    assert!(
        error.contains("had 65535 users of the host from 700000 on, which user 54321 of group 54321 was not given"),
        "{error}"
    );
    let error = refused("image");
    assert!(
        error.contains("no user 54321 in its list of users; name their group, too: --owner 54321:GID"),
        "{error}"
    );
    assert!(host.sandboxes().is_empty());
}

#[test]
fn what_root_does_not_do_for_a_user() {
    let host = Host::of_ordinary_user();
    let tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    let path = folder.path().join("tree.floe");
    let image = text(&path);
    by_root(
        &host,
        &["checkpoint", "--pid", &tree.pid(), "--leave-running", "-o", image],
    );
    let owner = format!("{ORDINARY}:{ORDINARY}");
    let refused = |line: &[&str]| run(&mut host.command_of_root(line)).expect_failed();
    for (line, reason) in [
        (
            &["restore", "--owner", &owner, image][..],
            "don't get root's terminal: it runs in the background (-d)",
        ),
        (
            &["restore", "-d", "--owner", "0", image],
            "the image's user namespace is said to be root's",
        ),
        (
            &["restore", "-d", "--owner", "0:0", image],
            "the image's user namespace is said to be root's",
        ),
        (
            &["restore", "-d", "--owner", "4294967295:1", image],
            "4294967295 is no number of a user or group",
        ),
        (
            &["restore", "-d", "--owner", &owner, "--map-user", "5", image],
            "root says by --owner",
        ),
        (
            &["restore", "-d", "--owner", &owner, "--inherit-fd", "log=1", image],
            "who does not get root's standard streams",
        ),
        (
            &["restore", "-d", "--owner", &owner, "--inherit-fd", "log=3", image],
            "--inherit-fd log=3: EBADF",
        ),
    ] {
        let error = refused(line);
        assert!(error.contains(reason), "{line:?}: {error}");
    }
    // Whom the sandbox is to be of may not keep it there.
    let line = [
        "--state-dir",
        text(folder.path()),
        "restore",
        "-d",
        "--owner",
        &owner,
        image,
    ];
    let error = run(Command::new(host.command_of_root(&[]).get_program()).args(line)).expect_failed();
    assert!(error.contains("Permission denied"), "{error}");
    assert!(host.sandboxes().is_empty());
    tree.goes_on("at the end");
}

/// An image says whose its tree was: that counts where nobody else can have written it.
#[test]
fn what_an_image_says_counts_as_much_as_its_file() {
    let host = Host::of_ordinary_user();
    let tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    let path = folder.path().join("tree.floe");
    let image = text(&path);
    by_root(
        &host,
        &["checkpoint", "--pid", &tree.pid(), "--leave-running", "-o", image],
    );
    let is_by_itself = |image: &str, whose: Option<u32>, mode| {
        std::os::unix::fs::chown(image, whose, None).expect("give it away");
        fs::set_permissions(image, Permissions::from_mode(mode)).expect("open it");
        run(&mut host.command_of_root(&["restore", "-d", "--dry-run", image])).expect_failed()
    };
    // As far as this host knows nobody has that number, which is the next thing to be told.
    let counts = "has no user 54321 in its list of users";
    for (whose, mode, reason) in [
        (0, 0o600, counts),
        (ORDINARY, 0o644, counts),
        (
            ORDINARY + 1,
            0o600,
            "its file is user 54322's, who can have written that; say by --owner",
        ),
        (0, 0o620, "others than the user of its file can have written that"),
        (
            ORDINARY,
            0o602,
            "others than the user of its file can have written that",
        ),
    ] {
        let error = is_by_itself(image, Some(whose), mode);
        assert!(error.contains(reason), "{whose} {mode:o}: {error}");
    }
    let stdin = Stdio::from(fs::File::open(image).expect("open it"));
    let error = run(host.command_of_root(&["restore", "-d", "-"]).stdin(stdin)).expect_failed();
    assert!(
        error.contains("came by a pipe, from whom is not known; say by --owner"),
        "{error}"
    );
    // One that says nothing is root's, so its file must be.
    let roots = Host::new();
    let (name, path) = (roots.sleeper("roots"), roots.path("roots.floe"));
    roots.done(&["checkpoint", &name, "-o", text(&path)]);
    let error = is_by_itself(text(&path), Some(ORDINARY), 0o600);
    assert!(
        error.contains("does not say that its tree was an ordinary user's, and its file is user 54321's"),
        "{error}"
    );
    roots.done(&["restore", "-d", "--owner", "none", text(&path)]);
    assert!(host.sandboxes().is_empty());
    tree.goes_on("at the end");
}

/// What root is told of an image is what is there for its user, by whom root would restore it.
#[test]
fn what_is_there_for_a_user_is_told() {
    let host = Host::of_ordinary_user();
    let mut tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    let path = folder.path().join("tree.floe");
    let image = text(&path);
    by_root(&host, &["checkpoint", "--pid", &tree.pid(), "-o", image]);
    tree.root.wait().expect("it has ended");
    let owner = format!("{ORDINARY}:{ORDINARY}");
    let check = |options: &[&str]| {
        let line = [&["check", "--json", "--image", image], options].concat();
        let told = run(&mut host.command_of_root(&line));
        (told.status, json(&told.out))
    };
    let map_files = |told: &serde_json::Value| {
        let features = told["features"].as_array().expect("a list").clone();
        let found = features.into_iter().find(|feature| feature["name"] == "map_files");
        found.map(|found| found["here"] == "yes")
    };
    let as_user = check(&["--owner", &owner]);
    assert_eq!((as_user.0, &as_user.1["obstacles"]), (0, &serde_json::json!([])));
    assert_eq!(map_files(&as_user.1), Some(false), "{}", as_user.1);
    let as_root = check(&["--owner", "none"]);
    assert_eq!(map_files(&as_root.1), Some(true), "{}", as_root.1);
    // Nobody here has that number, and what an image says does not count by itself.
    let refused = |options: &[&str], reason: &str| {
        let (status, told) = check(options);
        let said = told["obstacles"].to_string();
        assert!(status == 1 && said.contains(reason), "{status}: {told}");
    };
    refused(&[], "no user 54321 in its list of users");
    std::os::unix::fs::chown(image, Some(ORDINARY + 1), None).expect("give it away");
    refused(&[], "its file is user 54322's, who can have written that");
    refused(&["--owner", "0"], "said to be root's");
    // What is missing is missing for the user.
    let moved = host.path("elsewhere");
    fs::rename(&tree.folder, &moved).expect("rename");
    refused(&["--owner", &owner], "by-hand");
    fs::rename(&moved, &tree.folder).expect("rename");
    assert!(host.sandboxes().is_empty());
    let name = host.name("tree");
    by_root(&host, &["restore", "-d", "--name", &name, "--owner", &owner, image]);
    tree.goes_on("restored");
    host.done(&["rm", "-f", &name]);
}

/// A folder that leads elsewhere, or was written by several, is not taken for root's nor for its user's.
#[test]
fn a_sandbox_that_is_not_one_users_alone() {
    let host = Host::of_ordinary_user();
    let name = host.sleeper("own");
    let folder = roots_folder();
    let (image, other) = (folder.path().join("tree.floe"), folder.path().join("job"));
    let forged = host.path("state").join("forged");
    let line = ["checkpoint", "forged", "--leave-running", "-o", text(&image)];
    let refused = |reason: &str| {
        let error = run(&mut host.command_of_root(&line)).expect_failed();
        assert!(error.contains(reason), "{error}");
        assert!(!image.exists());
    };
    let state = fs::read(host.path("state").join(&name).join("state.json")).expect("a state");
    fs::create_dir(&other).expect("a folder");
    fs::write(other.join("state.json"), &state).expect("a state");
    std::os::unix::fs::symlink(&other, &forged).expect("a link");
    refused("open ");
    fs::remove_file(&forged).expect("no link");
    fs::rename(&other, &forged).expect("move it");
    refused("are not one user's alone");
    std::os::unix::fs::chown(&forged, Some(ORDINARY), None).expect("give it away");
    refused("are not one user's alone");
    fs::rename(forged.join("state.json"), folder.path().join("state.json")).expect("move it");
    std::os::unix::fs::symlink(folder.path().join("state.json"), forged.join("state.json")).expect("a link");
    refused("open ");
    fs::remove_dir_all(&forged).expect("remove it");
    // From where root stands, too.
    let mut floe = Command::new(host.command_of_root(&[]).get_program());
    floe.args(["--state-dir", "state", "checkpoint", &name, "--leave-running", "-o"]);
    assert_eq!(wait(spawn(floe.arg(&image).current_dir(host.path(".")))), 0);
    by_root(&host, &["verify", text(&image)]);
    host.done(&["rm", "-f", &name]);
}

/// What a user has written of their sandbox does not have root end or freeze what is others'.
#[test]
fn a_state_that_names_others_processes_and_cgroups() {
    let host = Host::of_ordinary_user();
    let name = host.sleeper("own");
    let victim = spawn(Command::new("sleep").arg("1000"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", victim.id())).expect("its start");
    let started: u64 = (stat.rsplit(' ').nth(30).expect("a field").parse()).expect("a number");
    let path = host.path("state").join(&name).join("state.json");
    let own = fs::read(&path).expect("a state");
    let others = floe_suite::cgroups_of(std::process::id() as i32);
    let others = others
        .first()
        .map_or("/sys/fs/cgroup".to_owned(), |path| path.display().to_string());
    let forge = |names: &[(&str, serde_json::Value)]| {
        let mut state: serde_json::Value = serde_json::from_slice(&own).expect("JSON");
        for (name, value) in names {
            state[*name] = value.clone();
        }
        // Its file stays its user's.
        fs::write(&path, state.to_string()).expect("write");
    };
    let process = [("pid1", victim.id().into()), ("pid1_start", started.into())];
    let monitor = [("monitor", victim.id().into()), ("monitor_start", started.into())];
    let cgroup = [("cgroup", others.as_str().into())];
    let folder = [("further_cgroups", vec![host.path("state").display().to_string()].into())];
    for (forged, what) in [
        (&process[..], format!("process {}", victim.id())),
        (&monitor, format!("process {}", victim.id())),
        (&cgroup, format!("cgroup {others}")),
        (&folder, format!("cgroup {}", host.path("state").display())),
    ] {
        forge(forged);
        for line in [
            &["kill", &name][..],
            &["rm", "-f", &name],
            &["freeze", &name],
            &["exec", &name, "--", "true"],
            &["ps"],
        ] {
            let refused = run(&mut host.command_of_root(line));
            let told = format!("names {what}, which is not user {ORDINARY}'s");
            assert!(
                refused.status != 0 && refused.err.contains(&told),
                "{line:?}: {}",
                refused.err
            );
        }
    }
    fs::write(&path, &own).expect("write");
    let lives = fs::read_to_string(format!("/proc/{}/stat", victim.id())).is_ok_and(|stat| stat.contains(") S "));
    assert!(lives, "whom it named lives");
    by_root(&host, &["ps"]);
    by_root(&host, &["rm", "-f", &name]);
    assert!(host.sandboxes().is_empty());
    let mut victim = victim;
    victim.kill().and_then(|()| victim.wait()).expect("it ends");
}

/// The bases of an image that is handed to a user have to be theirs.
#[test]
fn a_base_that_is_not_its_users() {
    let roots = Host::new();
    let (name, base) = (roots.sleeper("roots"), roots.path("roots.floe"));
    roots.done(&["checkpoint", &name, "--leave-running", "-o", text(&base)]);
    let host = Host::of_ordinary_user();
    let mut tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    let [first, second] = ["first.floe", "second.floe"].map(|name| folder.path().join(name));
    let pid = tree.pid();
    let line = ["checkpoint", "--pid", &pid, "--base", text(&base), "-o", text(&second)];
    let error = run(&mut host.command_of_root(&line)).expect_failed();
    assert!(
        error.contains("--base: the image is of no tree of user 54321's"),
        "{error}"
    );
    assert!(!second.exists());
    let said = tree.goes_on("behind a base of root's");
    by_root(
        &host,
        &["checkpoint", "--pid", &pid, "--leave-running", "-o", text(&first)],
    );
    let line = ["checkpoint", "--pid", &pid, "--base", text(&first), "-o", text(&second)];
    by_root(&host, &line);
    tree.root.wait().expect("it has ended");
    let (name, owner) = (host.name("based"), format!("{ORDINARY}:{ORDINARY}"));
    // Whoever can write the base says what is in memory.
    std::os::unix::fs::chown(&first, Some(ORDINARY + 1), None).expect("give it away");
    let error = run(&mut host.command_of_root(&["restore", "-d", text(&second)])).expect_failed();
    assert!(
        error.contains("first.floe, which it is based on, is user 54322's"),
        "{error}"
    );
    std::os::unix::fs::chown(&first, Some(0), None).expect("take it back");
    by_root(
        &host,
        &["restore", "-d", "--name", &name, "--owner", &owner, text(&second)],
    );
    assert_eq!(tree.goes_on("restored from two images"), said);
    host.done(&["rm", "-f", &name]);
}

/// To standard output the image goes when all of it is there.
#[test]
fn an_image_on_standard_output() {
    let host = Host::of_ordinary_user();
    let tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    let path = folder.path().join("tree.floe");
    let file = fs::File::create(&path).expect("a file");
    let line = ["checkpoint", "--pid", &tree.pid(), "--leave-running", "-o", "-"];
    let floe = host.command_of_root(&line).stdout(file).spawn().expect("start floe");
    assert_eq!(wait(floe), 0);
    tree.goes_on("behind a checkpoint that leaves it running");
    by_root(&host, &["verify", text(&path)]);
}

/// A tree that was not in a user namespace is nobody's but root's.
#[test]
fn a_tree_of_roots_has_no_owner() {
    let host = Host::new();
    let (name, path) = (host.sleeper("roots"), host.path("roots.floe"));
    host.done(&["checkpoint", &name, "-o", text(&path)]);
    let error = host
        .floe(&["restore", "-d", "--owner", "5:5", text(&path)])
        .expect_failed();
    assert!(
        error.contains("the tree was in no ordinary user's user namespace"),
        "{error}"
    );
    host.done(&["restore", "-d", text(&path)]);
}

/// Root's own choice: the image of a user's sandbox makes one of root's.
#[test]
fn an_image_of_a_users_tree_makes_one_of_roots() {
    let user = Host::of_ordinary_user();
    let (name, path) = (user.name("theirs"), user.path("theirs.floe"));
    // Root of a test machine may lack what root of a user namespace has.
    let program = ["setpriv", "--bounding-set", "-sys_resource", "sleep", "1000"];
    user.done(&[&["run", "-d", "--name", &name, "--"], &program[..]].concat());
    until("the program", || {
        fs::read_to_string(format!("/proc/{}/comm", user.pid1(&name))).is_ok_and(|comm| comm == "sleep\n")
    });
    user.done(&["checkpoint", &name, "-o", text(&path)]);
    let host = Host::new();
    host.done(&["restore", "-d", "--owner", "none", text(&path)]);
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid1(&name))).expect("its status");
    assert!(status.contains("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0"), "{status}");
}

/// Root's floe is killed anywhere: the tree runs on, and no floe of the user's stays.
#[test]
fn a_floe_of_roots_that_is_killed_leaves_the_tree_running() {
    let host = Host::of_ordinary_user();
    let tree = Tree::start(&host, &[], &UNSHARE);
    let folder = roots_folder();
    for round in 0..12 {
        let path = folder.path().join(format!("{round}.floe"));
        let line = ["checkpoint", "--pid", &tree.pid(), "--leave-running", "-o", text(&path)];
        let mut floe = spawn(&mut host.command_of_root(&line));
        let children = format!("/proc/{0}/task/{0}/children", floe.id());
        let mut worker = String::new();
        until("the user's floe", || {
            worker = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            !worker.is_empty() || floe.try_wait().is_ok_and(|ended| ended.is_some())
        });
        std::thread::sleep(std::time::Duration::from_millis(4 * round));
        let _ = floe.kill();
        let _ = wait(floe);
        // Nobody may have taken note of its end.
        let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat"));
        let ended = |pid: &str| stat(pid).map_or(true, |stat| stat.contains(") Z "));
        until("the end of the user's floe", || worker.is_empty() || ended(&worker));
        until("the end of all floes of the user", || floes(&host).is_empty());
        tree.goes_on(&format!("in round {round}"));
        if path.exists() {
            by_root(&host, &["verify", text(&path)]);
        }
    }
}

/// Floes that work on the sandboxes of a host.
fn floes(host: &Host) -> Vec<String> {
    let state = host.path("state").display().to_string();
    let all = fs::read_dir("/proc").expect("processes").flatten();
    let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&state)).collect()
}

/// Root's floe is killed anywhere in a restore: the sandbox is there, or nothing of it is.
#[test]
fn a_floe_of_roots_that_is_killed_leaves_nothing_or_all() {
    let host = Host::of_ordinary_user();
    let mut tree = Tree::start(&host, &[], &UNSHARE);
    let said = tree.goes_on("at first");
    let folder = roots_folder();
    let (path, name) = (folder.path().join("tree.floe"), host.name("killed"));
    let image = text(&path);
    by_root(&host, &["checkpoint", "--pid", &tree.pid(), "-o", image]);
    tree.root.wait().expect("it has ended");
    let before = Traces::look(&host, &[&name], &[]);
    let owner = format!("{ORDINARY}:{ORDINARY}");
    for round in 0..12 {
        let when = format!("in round {round}");
        let mut floe = spawn(&mut host.command_of_root(&["restore", "-d", "--name", &name, "--owner", &owner, image]));
        std::thread::sleep(std::time::Duration::from_millis(6 * round));
        let _ = floe.kill();
        let _ = wait(floe);
        // The user's floe may have been past its last step.
        until("it is there, or nothing is", || {
            host.state(&name) == "running" || before == Traces::look(&host, &[&name], &[])
        });
        if host.state(&name) == "running" {
            assert_eq!(tree.goes_on(&when), said);
            host.done(&["rm", "-f", &name]);
        }
        before.expect_again(&host, &[&name], &[], &when);
    }
    by_root(&host, &["restore", "-d", "--name", &name, "--owner", &owner, image]);
    assert_eq!(tree.goes_on("at last"), said);
}

/// An interrupt, as by ctrl-c, is handed on.
#[test]
fn a_floe_of_roots_that_is_interrupted_leaves_the_tree_running() {
    let host = Host::of_ordinary_user();
    let tree = Tree::start(&host, &[], &UNSHARE);
    // Nobody reads: the image waits in the pipe.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = host.command_of_root(&["checkpoint", "--pid", &tree.pid(), "-o", "-"]);
    let floe = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start floe");
    let children = format!("/proc/{0}/task/{0}/children", floe.id());
    until("the user's floe holds it", || {
        let worker = fs::read_to_string(&children).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{}/status", tree.pid())).unwrap_or_default();
        !worker.is_empty() && status.contains(&format!("TracerPid:\t{}\n", worker.trim()))
    });
    floe_suite::signal(floe.id() as i32, libc::SIGINT);
    assert_ne!(wait(floe), 0);
    drop(reader);
    tree.goes_on("after an interrupt");
}
