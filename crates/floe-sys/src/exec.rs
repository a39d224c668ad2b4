//! execve(2) with a search along PATH, as execvp(3) does, for a child that has just been forked.

use nix::errno::Errno;
use std::ffi::CString;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes `program`; without a slash in it, the first that is found in `path`. Returns only if it failed: ENOENT where
/// there is none, else what the last attempt said.
#[must_use]
pub fn search_and_execute(
    program: &[u8],
    path: Option<&[u8]>,
    arguments: &[CString],
    environment: &[CString],
) -> Errno {
    let attempt = |file: Vec<u8>| match CString::new(file) {
        Ok(file) => {
            nix::unistd::execve(&file, arguments, environment).map_or_else(|error| error, |never| match never {})
        }
        Err(_) => Errno::EINVAL,
    };
    if program.contains(&b'/') {
        return attempt(program.to_vec());
    }
    let mut last = Errno::ENOENT;
    for directory in path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        match attempt([directory, b"/", program].concat()) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            error => last = error,
        }
    }
    last
}
