//! The golden holds one open file of each kind; each kind still reads the body that it wrote then.

use floe_image::Image;
use floe_resources::file::{KINDS, kind_of};
use std::{collections::BTreeSet, fs::File};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/v1.floe");
const RULE: &str =
    "a shape that has shipped never changes: a new one is a new version beside it, with a golden of its own";

#[test]
fn every_kind_reads_what_version_1_wrote() {
    let image = Image::open(File::open(GOLDEN).expect("open the golden")).expect("read the golden");
    let described = image.open_files().iter().map(|record| {
        let kind = kind_of(record).unwrap_or_else(|error| panic!("{RULE}: {error}"));
        let text = kind.describe(record).unwrap_or_else(|error| panic!("{RULE}: {error}"));
        format!("{} {text}", kind.name())
    });
    let wanted = [
        "regular /var/log/job",
        "regular /tmp/\u{fffd} gone (deleted, content in the image)",
        "directory /srv",
        "device /dev/null",
        "pipe read end of pipe 0",
        "pipe write end of pipe 0",
        "fifo fifo /tmp/fifo",
        "console-terminal the sandbox's terminal /dev/pts/0",
        "controlling-terminal /dev/tty",
        "console-pipe the sandbox's standard output",
        "eventfd at 5",
        "signalfd of signals 10",
        "timerfd of CLOCK_MONOTONIC, armed",
        "inotify watches /srv, 2 events wait",
        "pidfd process 1",
        "epoll watches 1 files",
        "unix-socket 71 /run/job, listens, 1 connections wait",
        "unix-socket 72, connected with 73, 11 bytes wait",
        "inet-socket tcp 127.0.0.1:80, listens, 1 connections wait",
        "inet-socket udp [::]:53, sends to [909:909:909:909:909:909:909:909]:5353, 1 datagrams wait, one is being gathered, 1 errors wait",
        "tcp-connection 127.0.0.1:80 to 127.0.0.1:45678, outside of the tree, 5 bytes wait",
        "message-queue queue 0 of namespace 4",
        "path-only /srv/link (symbolic link, by O_PATH)",
        "proc /proc/1/limits",
        "proc /proc/12/task/13/comm (the task has ended)",
        "namespace net namespace 6",
        "namespace uts namespace 3",
        "cgroup /sys/fs/cgroup/floe/job/cgroup.procs (of the tree's own cgroup)",
        "terminal-master master of terminal 0",
        "terminal-slave slave of terminal 0",
        "external a pipe that is given as \"log\"",
        "raw-socket echoes, 1 packets wait",
        "fanotify watches /srv, the filesystem at /home",
        "bpf-map map 0",
        "tun /dev/net/tun, network device 0",
    ];
    assert_eq!(described.collect::<Vec<_>>(), wanted, "{RULE}");
}

#[test]
fn the_golden_has_every_kind() {
    let image = Image::open(File::open(GOLDEN).expect("open the golden")).expect("read the golden");
    let there: BTreeSet<&str> = image.open_files().iter().map(|record| record.kind.as_str()).collect();
    let known: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name()).collect();
    let new: Vec<_> = known.difference(&there).collect();
    assert!(new.is_empty(), "{new:?}: a new kind of file needs a golden of its own");
}
