//! System V message queues: what waits in them, in its order; how much they take; a process that waits for a message.

use std::{io, mem::MaybeUninit, ptr};
use victims::{Findings, call, pattern, play, stage::fork, sysv::Permission};

const KEY: i32 = 0x7175;

fn main() {
    play(|_| {
        remove(make(libc::IPC_PRIVATE, 0o600));
        let queue = make(KEY, 0o640);
        let messages: [(i64, Vec<u8>); 4] = [
            (3, b"first".to_vec()),
            (1, pattern::bytes(5_000, 9)),
            (i64::MAX, Vec::new()),
            (3, b"last".to_vec()),
        ];
        messages.iter().for_each(|(kind, text)| send(queue, *kind, text));
        // It holds more than it takes by now.
        let mut structure = stat(queue);
        (structure.msg_perm.uid, structure.msg_perm.gid, structure.msg_qbytes) = (12, 34, 100);
        // SAFETY: IPC_SET reads such a structure.
        call::checked(unsafe { libc::msgctl(queue, libc::IPC_SET, &raw mut structure) }.into()).expect("IPC_SET");
        let turns = make(libc::IPC_PRIVATE, 0o600);
        // It waits in msgrcv between the checks, also while it is checkpointed.
        fork(move || {
            loop {
                let (_, text) = receive(turns, 5);
                send(turns, 6, &text);
            }
        });
        let known = Known::of(queue);
        let mut round = 0;
        move |findings: &mut Findings| {
            round += 1;
            if findings.sabotage() {
                receive(queue, 1);
            }
            findings.same("the queue", &known, &Known::of(queue));
            // SAFETY: plain numbers.
            findings.same("the key's queue", &queue, &unsafe { libc::msgget(KEY, 0) });
            for (index, message) in messages.iter().enumerate() {
                findings.same(format!("message {index}"), &Some(message), &peek(queue, index).as_ref());
            }
            send(turns, 5, &[round]);
            findings.same("the answer", &vec![round], &receive(turns, 6).1);
        }
    })
}

fn make(key: i32, mode: i32) -> i32 {
    // SAFETY: plain numbers.
    let id = unsafe { libc::msgget(key, libc::IPC_CREAT | libc::IPC_EXCL | mode) };
    assert!(id >= 0, "msgget: {}", io::Error::last_os_error());
    id
}

fn remove(id: i32) {
    // SAFETY: IPC_RMID takes no structure.
    call::checked(unsafe { libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()) }.into()).expect("IPC_RMID");
}

fn send(queue: i32, kind: i64, text: &[u8]) {
    let message = [&kind.to_ne_bytes(), text].concat();
    // SAFETY: a type and so many bytes.
    let status = unsafe { libc::msgsnd(queue, message.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) };
    assert_eq!(status, 0, "msgsnd: {}", io::Error::last_os_error());
}

fn receive(queue: i32, kind: i64) -> (i64, Vec<u8>) {
    take(queue, kind, 0).unwrap_or_default()
}

fn peek(queue: i32, index: usize) -> Option<(i64, Vec<u8>)> {
    const MSG_COPY: i32 = 0o40_000;
    take(queue, index as i64, MSG_COPY | libc::IPC_NOWAIT)
}

fn take(queue: i32, kind: i64, flags: i32) -> Option<(i64, Vec<u8>)> {
    let mut message = vec![0u8; 8 + 8192];
    // SAFETY: room for a type and so many bytes.
    let got = unsafe { libc::msgrcv(queue, message.as_mut_ptr().cast(), 8192, kind, flags) };
    let got = usize::try_from(got).ok()?;
    let found = i64::from_ne_bytes(message[..8].try_into().expect("8 bytes"));
    Some((found, message[8..8 + got].to_vec()))
}

fn stat(queue: i32) -> libc::msqid_ds {
    let mut structure = MaybeUninit::zeroed();
    // SAFETY: room for the structure.
    call::checked(unsafe { libc::msgctl(queue, libc::IPC_STAT, structure.as_mut_ptr()) }.into()).expect("IPC_STAT");
    // SAFETY: the kernel has filled it.
    unsafe { structure.assume_init() }
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    permission: Permission,
    held: u64,
    capacity: u64,
}

impl Known {
    fn of(id: i32) -> Self {
        let found = stat(id);
        Self {
            permission: Permission::of(&found.msg_perm),
            held: found.msg_qnum,
            capacity: found.msg_qbytes,
        }
    }
}
