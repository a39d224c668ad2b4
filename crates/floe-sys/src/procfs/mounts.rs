//! /proc/PID/mountinfo, proc_pid_mountinfo(5), as far as it says what is mounted where.

use super::{ProcError, read};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Its number, as long as it is there.
    pub id: u32,
    /// Device number of its filesystem, 20 bits for the minor part.
    pub device: u32,
    /// What of the filesystem is mounted: a path in it, or for nsfs the text of a namespace's link.
    pub root: Vec<u8>,
    /// Where it is, as its process has it.
    pub path: Vec<u8>,
}

/// The mounts that the process with this folder of /proc sees.
///
/// # Errors
/// [`ProcError`].
pub fn mount_points(folder: &str) -> Result<Vec<MountPoint>, ProcError> {
    let text = read(&format!("{folder}/mountinfo"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<MountPoint> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?;
    let device = std::str::from_utf8(words.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    Some(MountPoint {
        id: id.parse().ok()?,
        device: major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?,
        root: unescaped(words.next()?),
        path: unescaped(words.next()?),
    })
}

/// Of `\040` and its like, as mountinfo writes blanks.
pub(super) fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(behind.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{MountPoint, parse, unescaped};

    #[test]
    fn lines_are_read() {
        let line = b"36 35 254:3 / /srv/a\\040b rw,noatime master:1 - ext4 /dev/root rw";
        let wanted = MountPoint {
            id: 36,
            device: 254 << 20 | 3,
            root: b"/".to_vec(),
            path: b"/srv/a b".to_vec(),
        };
        assert_eq!(parse(line), Some(wanted));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn blanks_are_plain_again() {
        assert_eq!(unescaped(br"/a\040b\134"), b"/a b\\");
        assert_eq!(unescaped(br"/a\04"), br"/a\04");
    }
}
