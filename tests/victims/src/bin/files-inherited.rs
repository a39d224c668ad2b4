//! One open file in a hundred processes: whoever moves it moves it for all.

use std::fs;
use victims::{
    Findings, Peer,
    descriptor::{open, seek},
    play,
};

const PROCESSES: usize = 100;

fn main() {
    play(|stage| {
        let path = stage.path("inherited");
        fs::write(&path, [0; 5_000]).expect("write");
        let fd = open(&path, libc::O_RDWR);
        let peers: Vec<Peer> = (0..PROCESSES)
            .map(|_| Peer::start(move |step| seek(fd, step, libc::SEEK_CUR).unwrap_or(-1)))
            .collect();
        let mut expected = 0;
        move |findings: &mut Findings| {
            if findings.sabotage() {
                seek(fd, 1, libc::SEEK_CUR).expect("seek");
            }
            for (number, peer) in peers.iter().enumerate() {
                expected += 1 + number as i64;
                let told = peer.ask(1 + number as i64).ok();
                findings.same(format!("position after process {}", peer.pid), &Some(expected), &told);
            }
            findings.same("position here", &Some(expected), &seek(fd, 0, libc::SEEK_CUR).ok());
        }
    })
}
