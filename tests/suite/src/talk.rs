//! Questions to a program that answers each.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// Sends a question; what comes back at once, up to 100 bytes.
///
/// # Panics
/// Where nothing comes within 20 seconds.
pub fn ask(socket: &mut UnixStream, question: &str) -> String {
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("SO_RCVTIMEO");
    socket.write_all(question.as_bytes()).expect("write");
    let mut answer = [0; 100];
    let count = socket.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..count]).into_owned()
}
