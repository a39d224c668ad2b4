//! An ordinary user takes the place of the floe that root's has started as them: root's gives it nothing that is not theirs, keeps nothing
//! that is not theirs, does not wait for it for ever, and does not take its word that all is done.

use crate::on_behalf::tree::{Tree, UNSHARE, roots_folder, text};
use floe_suite::{Host, ORDINARY, Outcome, json, run};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const IMPOSTOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/impostor/impostor.py");

/// A tree of an ordinary user's, and where root keeps images of it.
struct Place {
    host: Host,
    tree: Tree,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let host = Host::of_ordinary_user();
        let tree = Tree::start(&host, &[], &UNSHARE);
        let folder = roots_folder();
        Self { host, tree, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A true image of it.
    fn image(&self) -> PathBuf {
        let path = self.path("true.floe");
        let line = [
            "checkpoint",
            "--pid",
            &self.tree.pid(),
            "--leave-running",
            "-o",
            text(&path),
        ];
        let _ = run(&mut self.host.command_of_root(&line)).expect_done();
        path
    }

    /// What comes of a command of root's: behind `prefix`, with this in the place of the user's floe.
    fn impostor(&self, (scenario, argument): (&str, &str), prefix: &[&str], line: &[&str]) -> (Value, Outcome) {
        let floe = self.host.command_of_root(line);
        let mut command = Command::new("timeout");
        command.args(["50", "python3", IMPOSTOR, scenario, argument]);
        command.args(prefix).arg(floe.get_program()).args(floe.get_args());
        let outcome = run(command.stdin(Stdio::null()));
        let last = outcome.out.lines().last().unwrap_or_default().to_owned();
        assert_eq!(outcome.status, 0, "{}", outcome.err);
        (json(&last), outcome)
    }

    /// The same of a checkpoint into a file.
    fn checkpoint(&self, scenario: (&str, &str)) -> (Value, Outcome, PathBuf) {
        let path = self.path("forged.floe");
        let line = [
            "checkpoint",
            "--pid",
            &self.tree.pid(),
            "--leave-running",
            "-o",
            text(&path),
        ];
        let (told, outcome) = self.impostor(scenario, &[], &line);
        (told, outcome, path)
    }
}

/// Behind a root that has more of all than others.
#[test]
fn it_gets_nothing_of_roots() {
    let place = Place::new();
    let image = place.image();
    let prefix = [
        "ionice", "-c1", "chrt", "-r", "10", "nice", "-n", "-5", "env", "SECRET=1",
    ];
    let stream = format!("exec \"$@\" < {}", text(&image));
    let shell = [&prefix[..], &["sh", "-c", &stream, "sh"]].concat();
    let user = format!("{ORDINARY}:{ORDINARY}");
    let path = place.path("forged.floe");
    let pid = place.tree.pid();
    let save = ["checkpoint", "--pid", &pid, "--leave-running", "-o", text(&path)];
    let bring = ["restore", "--dry-run", "--owner", &user, text(&image)];
    let piped = ["restore", "--dry-run", "--owner", &user, "-"];
    for (line, prefix, handed) in [
        (&save[..], &prefix[..], json!(["pipe", 1])),
        (&bring, &prefix, json!([text(&image), 0])),
        (&piped, &shell, json!(["", 0])),
    ] {
        let (mut told, _) = place.impostor(("looks", ""), prefix, line);
        let mut files = told["files"].as_array().expect("a list").clone();
        for file in &mut files {
            let is_unnamed = file[0].as_str().is_some_and(|path| path.ends_with(" (deleted)"));
            file[0] = if is_unnamed { json!("") } else { file[0].clone() };
        }
        let mut expected = vec![
            json!(["/dev/null", 0]),
            json!(["pipe", 1]),
            json!(["pipe", 1]),
            json!(["socket", 2]),
            handed,
        ];
        for list in [&mut files, &mut expected] {
            list.sort_by_key(Value::to_string);
        }
        assert_eq!(files, expected, "{line:?}");
        let ids = [
            ORDINARY.to_string(),
            ORDINARY.to_string(),
            ORDINARY.to_string(),
            ORDINARY.to_string(),
        ];
        let none = json!(["0000000000000000"]);
        let status = told["process"].take();
        assert_eq!((&status["Uid"], &status["Gid"]), (&json!(ids), &json!(ids)));
        assert_eq!((&status["Groups"], &status["Umask"]), (&json!([]), &json!(["0022"])));
        for name in ["SigBlk", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(status[name], none, "{name}");
        }
        assert_eq!(
            (&told["nice"], &told["policy"], &told["oom"]),
            (&json!(0), &json!(0), &json!(0)),
            "{told}"
        );
        assert!(told["io"].as_i64() != Some(1), "{told}");
        assert_eq!(told["limits"], json!([["0", "0"], ["0", "0"]]));
        let environment = told["environment"].as_array().expect("a list");
        assert!(
            !environment.contains(&json!("SECRET")) && !environment.contains(&json!("HOME")),
            "{told}"
        );
        assert_eq!((&told["directory"], &told["session"]), (&json!("/"), &json!(true)));
        // It has ended as if all were done.
        assert_ne!(told["status"], json!(0), "{line:?}");
    }
}

#[test]
fn nothing_of_what_it_sends_is_kept_that_is_not_its_own() {
    let place = Place::new();
    let image = place.image();
    let roots = Host::new();
    let (name, silent) = (roots.sleeper("roots"), roots.path("roots.floe"));
    roots.done(&["checkpoint", &name, "-o", text(&silent)]);
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/v1.floe"));
    let cut = place.path("cut.floe");
    let bytes = fs::read(&image).expect("an image");
    fs::write(&cut, &bytes[..bytes.len() / 2]).expect("write");
    let other = place.path("other");
    fs::write(&other, vec![b'x'; 3 << 20]).expect("write");
    for forged in [silent.as_path(), golden, &cut, &other, Path::new("/dev/null")] {
        let (told, outcome, path) = place.checkpoint(("sends", text(forged)));
        let answer = told["answers"][0].as_str().unwrap_or_default();
        assert!(!answer.is_empty(), "{forged:?}: {told}");
        assert_ne!(told["status"], json!(0), "{forged:?}: {told}");
        assert!(outcome.err.contains("there is no image"), "{}", outcome.err);
        assert!(!path.exists(), "{forged:?}");
    }
    // One of that user's is, once.
    let (told, outcome, path) = place.checkpoint(("asks again", text(&image)));
    assert_eq!(told, json!({ "answers": ["", null], "status": 0 }), "{}", outcome.err);
    assert!(fs::read(&path).expect("an image") == bytes);
    let found = fs::metadata(&path).expect("an image");
    assert_eq!((found.uid(), found.permissions().mode() & 0o777), (0, 0o600));
    let left = fs::read_dir(place.folder.path()).expect("a folder").count();
    assert_eq!(left, 4, "true, cut, other and forged alone");
}

/// What is not to be had is not given.
#[test]
fn it_asks_for_more() {
    let place = Place::new();
    let (told, _, path) = place.checkpoint(("asks for more", "m"));
    assert_eq!(told["answers"], json!([null]));
    assert!(told["status"] != json!(0) && !path.exists());
    let (told, _, path) = place.checkpoint(("asks for more", "x"));
    assert_eq!(told["answers"], json!([null]));
    assert!(told["status"] != json!(0) && !path.exists());
    // It is in no user namespace that it has made.
    let image = place.image();
    let user = format!("{ORDINARY}:{ORDINARY}");
    let line = ["restore", "-d", "--owner", &user, text(&image)];
    let (told, outcome) = place.impostor(("asks for more", "m,m,p"), &[], &line);
    let answers = told["answers"].as_array().expect("a list");
    assert!(
        answers[0]
            .as_str()
            .is_some_and(|answer| answer.contains("not permitted")),
        "{told}"
    );
    assert_eq!(answers[1..], [json!(null), json!(null)]);
    assert_ne!(told["status"], json!(0));
    assert!(outcome.err.contains("as if all were done"), "{}", outcome.err);
    assert!(place.host.sandboxes().is_empty());
}

#[test]
fn root_does_not_wait_for_it_for_ever() {
    let place = Place::new();
    let (told, _, path) = place.checkpoint(("ends", ""));
    assert!(told["status"] != json!(0) && !path.exists());
    let (told, _, path) = place.checkpoint(("is killed", ""));
    assert!(told["status"] == json!(137) && !path.exists(), "{told}");
    let (told, _, path) = place.checkpoint(("says nothing", ""));
    assert!(told["status"] == json!(137) && !path.exists(), "{told}");
    place.tree.goes_on("after all");
    place.image();
}
