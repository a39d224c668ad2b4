//! Real programs under load, taken through round trips at moments they know nothing of. Each says in the end by itself
//! whether anything was lost: a checksum, a count, an exit status.

use floe_suite::{Host, Program, has, until};
use std::{fs, path::Path, process::Command};

const ROUNDS: usize = 5;

/// What a shell says outside of any sandbox.
fn plain(script: &str, folder: &Path) -> String {
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(folder)
        .output()
        .expect("start bash");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn bash(host: &Host, base: &str, script: &str) {
    let program = Program::start(host, base, &["bash", "-c", script]);
    program.round_trips(ROUNDS);
    assert_eq!(program.result(), plain(script, &program.folder), "{base}");
}

#[test]
fn a_pipeline() {
    let script = "set -o pipefail; for n in 1 2 3; do seq 100000 | sort -R --random-source=<(yes) | \
                  awk '{ print $1 % 1000 }' | sort -n | uniq -c | cksum; done";
    // A process substitution keeps its end open in the shell, /dev/fd and all.
    bash(&Host::new(), "pipeline", script);
}

/// Bytes that go through it: more than sort keeps in memory.
const SORTED_BYTES: u64 = 64 << 20;

#[test]
fn a_large_input_that_is_sorted() {
    // Lines of 64 bytes, of which many are alike.
    let script = format!(
        "export LC_ALL=C; set -o pipefail; seq {} | awk '{{ n = (n * 48271 + 11) % 2147483647; \
         printf \"%08d%055d\\n\", n % 300007, 0 }}' | sort -S 16M -T . | uniq -c | sha256sum",
        SORTED_BYTES / 64
    );
    bash(&Host::new(), "sort", &script);
}

#[test]
fn compression_of_a_stream() {
    let host = Host::new();
    bash(&host, "gzip", "seq 4000000 | gzip -6 | gzip -d | cksum");
    if has("xz") {
        bash(&host, "xz", "seq 2600000 | xz -3 -T1 | xz -d | cksum");
    }
}

#[test]
fn a_shell_with_jobs_and_traps() {
    let host = Host::new();
    let script = r#"
        trap 'echo usr1 >> heard' USR1
        work() { local i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i > job$1; sleep 0.01; done; exit $1; }
        work 1 & a=$!; work 2 & b=$!
        touch ready
        status=0
        while :; do wait $a; status=$?; [ $status -gt 128 ] || break; done
        wait $b; echo "$status $?" "$(tail -n 1 heard)"
    "#;
    let program = Program::start(&host, "jobs", &["bash", "-c", script]);
    program.await_file("ready");
    let number = |file: &str| -> u64 {
        let text = fs::read_to_string(program.file(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    for _ in 0..2 {
        program.round_trips(ROUNDS);
        host.done(&["kill", "-s", "USR1", &program.name]);
        program.await_file("heard");
        for job in ["job1", "job2"] {
            let before = number(job);
            until("the job's next step", || number(job) > before);
        }
    }
    program.finish();
    assert_eq!(program.result(), "1 2 usr1\n");
}

#[test]
fn python_with_threads_a_queue_and_children() {
    let host = Host::new();
    let script = r#"
import hashlib, os, queue, subprocess, threading
jobs, results = queue.Queue(16), queue.Queue()
def work():
    while (n := jobs.get()) is not None:
        out = subprocess.run(["cat"], input=str(n).encode(), stdout=subprocess.PIPE).stdout if n % 20 == 0 else str(n).encode()
        with open("file-%d" % n, "wb") as file: file.write(out)
        results.put(n)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
open("ready", "w").close()
n = 0
while not os.path.exists("stop"):
    n += 1
    jobs.put(n)
    threading.Event().wait(0.001)
for _ in threads: jobs.put(None)
for thread in threads: thread.join()
done = sorted(results.get() for _ in range(n))
assert done == list(range(1, n + 1)), "a job was lost"
for i in done: assert open("file-%d" % i).read() == str(i), i
print("whole", n > 50)
"#;
    let program = Program::start(&host, "queue", &["python3", "-c", script]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    until("more work", || program.file("file-60").exists());
    program.finish();
    assert_eq!(program.result(), "whole True\n");
}

#[test]
fn a_database_between_transactions_and_within() {
    let host = Host::new();
    let script = r#"
import os, sqlite3
db = sqlite3.connect("bank.db", isolation_level=None)
db.execute("pragma synchronous = off")
db.execute("create table account (id integer primary key, money integer)")
db.executemany("insert into account values (?, ?)", [(i, 100) for i in range(100)])
open("ready", "w").close()
n = 0
while not os.path.exists("stop"):
    db.execute("begin immediate")
    db.execute("update account set money = money - 7 where id = ?", (n % 100,))
    db.execute("update account set money = money + 7 where id = ?", (n * 31 % 100,))
    db.execute("commit")
    n += 1
    if n == 300: open("worked", "w").close()
print(db.execute("select sum(money), count(*) from account").fetchone(), db.execute("pragma integrity_check").fetchone()[0])
"#;
    let program = Program::start(&host, "bank", &["python3", "-c", script]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    program.await_file("worked");
    program.finish();
    assert_eq!(program.result(), "(10000, 100) ok\n");
}

#[test]
fn interpreters_in_loops() {
    let host = Host::new();
    if has("perl") {
        bash(
            &host,
            "perl",
            "perl -e 'my ($a, %h) = (1); for (1..20000000) { $a = ($a * 1103515245 + 12345) % 2147483648; $h{$a % 1000}++ } print join(\",\", map { $h{$_} } sort keys %h), \"\\n\"' | cksum",
        );
    }
    bash(
        &host,
        "awk",
        "awk 'BEGIN { for (i = 0; i < 10000000; i++) { a = (a * 16807 + 7) % 2147483647; h[a % 512]++ } for (i = 0; i < 512; i++) print h[i] }' | cksum",
    );
}

#[test]
fn a_build_at_random_moments() {
    let host = Host::new();
    if !has("gcc") {
        return;
    }
    let script = r##"
        for n in 1 2 3 4 5 6 7 8; do
            { echo "#include <stdio.h>"; seq 1 300 | sed "s/.*/int f${n}_&(int x) { int i, s = x; for (i = 0; i < &; i++) s += i * x; return s; }/"; } > part$n.c
            gcc -O1 -c part$n.c -o part$n.o & [ $((n % 2)) = 1 ] || wait
        done
        wait
        echo 'int f3_17(int); int f8_300(int); int printf(const char *, ...); int main(void) { printf("%d %d\n", f3_17(2), f8_300(1)); return 0; }' > main.c
        gcc main.c part*.o -o built && ./built
    "##;
    bash(&host, "build", script);
}

#[test]
fn a_walk_through_folders() {
    let script = "for n in 1 2 3 4 5 6; do find /usr/share /usr/lib -xdev -type f 2>/dev/null | sort | wc -l; done | uniq | wc -l";
    bash(&Host::new(), "walk", script);
}

/// tail waits by inotify.
#[test]
fn a_log_that_is_followed() {
    let host = Host::new();
    let script = "touch log; tail -n +1 -f log > out & tail=$!; touch ready; n=0
        until [ -e stop ]; do echo $((++n)) >> log; sleep 0.005; done
        until cmp -s log out; do sleep 0.02; done
        kill $tail; wait $tail; echo same $((n > 50))";
    let program = Program::start(&host, "follow", &["bash", "-c", script]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    until("lines", || {
        std::fs::read_to_string(program.file("log")).is_ok_and(|log| log.lines().count() > 60)
    });
    program.finish();
    assert_eq!(program.result(), "same 1\n");
}

/// What a terminal multiplexer shows of a pane, all of it.
fn pane(program: &Program<'_>, pane: &str) -> String {
    let name = format!("shown-{pane}");
    let _gone = fs::remove_file(program.file(&name));
    let wanted = format!("{pane} {name}\n");
    fs::write(program.file("show.new"), wanted).expect("ask");
    fs::rename(program.file("show.new"), program.file("show")).expect("ask");
    program.await_file(&name);
    fs::read_to_string(program.file(&name)).expect("what is shown")
}

/// Two panes, in each a shell that is typed to while it prints; what is typed comes from a program beside them.
#[test]
fn a_terminal_multiplexer_with_two_panes() {
    if !has("tmux") {
        return;
    }
    let host = Host::new();
    let script = r#"
        t() { tmux -S "$PWD/socket" -f /dev/null "$@"; }
        export PS1='$ ' TERM=xterm
        reads='n=0; while read -r line; do n=$((n+1)); echo "$line is $n"; done'
        t new-session -d -x 60 -y 20 "bash -c '$reads'"
        t set-option -g history-limit 100000
        t split-window "bash -c '$reads'"
        t list-panes > panes
        touch ready
        n=0
        until [ -e stop ]; do
            n=$((n+1))
            for pane in 0 1; do t send-keys -t $pane -l "word$pane-$n" && t send-keys -t $pane Enter; done
            [ $n != 20 ] || touch worked
            sleep 0.01
            if [ -e show ]; then
                read -r pane name < show; rm show
                t capture-pane -p -S - -t "$pane" > "$name.new"; mv "$name.new" "$name"
            fi
        done
        echo $n > count
        until [ -e end ]; do
            if [ -e show ]; then
                read -r pane name < show; rm show
                t capture-pane -p -S - -t "$pane" > "$name.new"; mv "$name.new" "$name"
            fi
            sleep 0.02
        done
        t kill-server
        echo whole
    "#;
    let program = Program::start(&host, "tmux", &["bash", "-c", script]);
    program.await_file("ready");
    // Its clients hand it their descriptors; before it serves a pane it looks through its own.
    let passing = [
        "descriptors that wait in a socket",
        "a file of /proc",
        "wait to be accepted",
        "a connection that is not accepted yet",
        "this connection is closed",
    ];
    program.round_trips_between(ROUNDS, &passing);
    program.await_file("worked");
    program.finish();
    program.await_file("count");
    let count = fs::read_to_string(program.file("count")).expect("how many");
    let count: usize = count.trim().parse().expect("a number");
    assert!(count > 10, "{count}");
    for number in ["0", "1"] {
        let last = format!("word{number}-{count} is {count}");
        let mut shown = String::new();
        until(&last, || {
            shown = pane(&program, number);
            shown.lines().any(|line| line == last)
        });
        let answers: Vec<&str> = shown.lines().filter(|line| line.contains(" is ")).collect();
        let wanted: Vec<String> = (1..=count).map(|n| format!("word{number}-{n} is {n}")).collect();
        let first = wanted.len() - answers.len().min(wanted.len());
        assert_eq!(answers, wanted[first..], "pane {number}");
    }
    fs::write(program.file("end"), "").expect("tell it to end");
    assert_eq!(program.result(), "whole\n");
}

/// Each makes a pseudo-terminal for a shell and stands between: what goes through must be what came.
#[test]
fn programs_between_a_terminal_and_a_shell() {
    let host = Host::new();
    // As sshd has it: one side is a pipe, the other a terminal in raw mode.
    let sshd = r#"
import os, pty, select, hashlib, time
pid, master = pty.fork()
if pid == 0: os.execvp("bash", ["bash", "-c", "stty raw -echo; echo r; exec cat"])
while b"r" not in os.read(master, 1): pass
while b"\n" not in os.read(master, 1): pass
os.set_blocking(master, False)
open("ready", "w").close()
sent, got, n, rest = hashlib.sha256(), hashlib.sha256(), 0, b""
size = back = 0
while not (os.path.exists("stop") and not rest and size == back):
    if not rest and not os.path.exists("stop"):
        n += 1; rest = b"%d %s\n" % (n, os.urandom(n % 3000)); sent.update(rest); size += len(rest)
    r, w, _ = select.select([master], [master] if rest else [], [], 0.05)
    if w:
        try: rest = rest[os.write(master, rest):]
        except BlockingIOError: pass
    if r:
        try: piece = os.read(master, 2000)
        except BlockingIOError: continue
        got.update(piece); back += len(piece)
    time.sleep(0.0005)
print("same", sent.digest() == got.digest(), n > 20)
"#;
    let program = Program::start(&host, "sshd", &["python3", "-c", sshd]);
    program.await_file("ready");
    program.round_trips(ROUNDS);
    program.finish();
    assert_eq!(program.result(), "same True True\n");
    if has("script") {
        let inner = "n=0; until [ -e stop ]; do n=$((n+1)); echo line $n; sleep 0.002; done; echo lines $n";
        let program = Program::start(&host, "script", &["script", "-q", "-c", inner, "typescript"]);
        until("lines", || program.file("typescript").exists());
        program.round_trips(ROUNDS);
        program.finish();
        let log = program.result();
        let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
        let (last, lines) = lines.split_last().expect("lines");
        let wanted: Vec<String> = (1..=lines.len()).map(|n| format!("line {n}")).collect();
        assert_eq!(
            (*last, lines.len() > 30),
            (format!("lines {}", lines.len()).as_str(), true)
        );
        assert_eq!(lines, wanted);
    }
}
