//! A message for each kind of file.

use super::kinds::each;
use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixDatagram,
    },
};
use victims::{Findings, Seen, Stage, letter};

/// All of them wait in one socket, each in a message of its own; nobody else has them.
pub fn all(stage: &Stage) -> impl FnMut(&mut Findings) + use<> {
    let (near, far) = UnixDatagram::pair().expect("a pair");
    let made = each(stage);
    let mut checks = Vec::new();
    for (name, file, mut check) in made {
        let mut findings = Findings::new(false);
        check(&mut findings, &file);
        assert_eq!(findings.verdict(), "ok", "{name} before it is sent");
        let seen = Seen::of(file.as_raw_fd());
        letter::send(near.as_raw_fd(), name.as_bytes(), &[file.as_fd()]).expect("send");
        checks.push((name, seen, check));
    }
    move |findings| {
        for (name, seen, check) in &mut checks {
            let got = letter::receive(far.as_raw_fd(), 100, 0).expect("receive");
            let Some(got) = got else {
                return findings.add(format!("the message with {name} is gone"));
            };
            findings.same("message", &name.as_bytes(), &&got.bytes[..]);
            let Some(file) = got.files.first() else {
                return findings.add(format!("{name} is not with its message"));
            };
            if findings.sabotage() && *name == "regular" {
                File::from(file.try_clone().expect("dup"))
                    .read_exact(&mut [0; 3])
                    .expect("read");
            }
            let now = Seen::of(file.as_raw_fd());
            let same =
                (seen.flags, seen.position, seen.mode, seen.size) == (now.flags, now.position, now.mode, now.size);
            findings.that(same, format!("{name} was {seen:?}, is {now:?}"));
            let mut own = Findings::new(false);
            check(&mut own, file);
            findings.that(own.verdict() == "ok", format!("{name}: {}", own.verdict()));
            letter::send(near.as_raw_fd(), name.as_bytes(), &[file.as_fd()]).expect("send");
        }
    }
}
