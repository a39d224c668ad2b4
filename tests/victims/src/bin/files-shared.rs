//! Which descriptors share an open file: after dup and fork a move through one moves the others, also in another
//! process; files opened twice move apart, also where all else is equal.

use std::fs;
use victims::{
    Findings, Peer, call,
    descriptor::{open, place, seek},
    pattern, play,
};

fn main() {
    play(|stage| {
        let path = stage.path("shared");
        fs::write(&path, pattern::bytes(50_000, 1)).expect("write");
        let first = open(&path, libc::O_RDWR);
        let second = open(&path, libc::O_RDWR);
        let duplicate = call::fcntl(first, libc::F_DUPFD_CLOEXEC, 200).expect("duplicate");
        place(second, 150, 0);
        let peers: Vec<Peer> = (0..2)
            .map(|_| Peer::start(|fd| seek(fd as i32, 0, libc::SEEK_CUR).unwrap_or(-1)))
            .collect();
        // The parent's own, made after the fork.
        let third = open(&path, libc::O_RDWR);
        let mut place_of = [0, 0, 0];
        move |findings: &mut Findings| {
            let groups: [&[i32]; 3] = [&[first, duplicate], &[second, 150], &[third]];
            for group in 0..3 {
                for mover in groups[group] {
                    place_of[group] += 1 + group as i64;
                    seek(*mover, 1 + group as i64, libc::SEEK_CUR).expect("seek");
                    if findings.sabotage() && group == 1 {
                        seek(first, 1, libc::SEEK_CUR).expect("seek");
                    }
                    for (other, expected) in groups.iter().zip(place_of) {
                        for fd in *other {
                            let now = seek(*fd, 0, libc::SEEK_CUR).unwrap_or(-1);
                            findings.same(format!("position of {fd} after a move of {mover}"), &expected, &now);
                        }
                    }
                    for (peer, (other, expected)) in peers
                        .iter()
                        .flat_map(|peer| groups.iter().take(2).zip(place_of).map(move |g| (peer, g)))
                    {
                        for fd in *other {
                            let told = findings.take("ask the other process", peer.ask(i64::from(*fd)));
                            let what = format!("position of {fd} in process {} after a move of {mover}", peer.pid);
                            findings.same(what, &Some(expected), &told);
                        }
                    }
                }
            }
            let flag = call::fcntl(duplicate, libc::F_GETFD, 0);
            findings.that(
                flag.is_ok_and(|flag| flag == libc::FD_CLOEXEC),
                "the duplicate lost close-on-exec",
            );
            let flag = call::fcntl(first, libc::F_GETFD, 0);
            findings.that(flag.is_ok_and(|flag| flag == 0), "the first got close-on-exec");
        }
    })
}
