//! /proc/PID/mountinfo, proc_pid_mountinfo(5).

use super::{ProcError, read};
use crate::mount::attributes;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountInfo {
    /// Its number, as long as it is there.
    pub id: u32,
    /// That of the mount it is mounted on.
    pub parent: u32,
    /// Device number of its filesystem, 20 bits for the minor part.
    pub device: u32,
    /// What of the filesystem is mounted: a path in it, or for nsfs the text of a namespace's link.
    pub root: Vec<u8>,
    /// Where it is, as its process has it.
    pub path: Vec<u8>,
    /// What it allows, see [`attributes`].
    pub attributes: u32,
    /// Whether it shows other owners than its filesystem has.
    pub is_mapped: bool,
    /// The group that it shares mounts with; 0 for none.
    pub shared: u32,
    /// The group whose mounts come to it, too; 0 for none.
    pub master: u32,
    /// MS_UNBINDABLE.
    pub unbindable: bool,
    /// Type of its filesystem.
    pub kind: Vec<u8>,
    /// What its filesystem was made of, such as a device.
    pub source: Vec<u8>,
    /// Options of its filesystem, as the kernel writes them, `rw` and `ro` among them: key, and value where it has one.
    pub options: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl MountInfo {
    /// Whether nobody can write to its filesystem.
    #[must_use]
    pub fn filesystem_is_read_only(&self) -> bool {
        self.options.iter().any(|(key, _)| key == b"ro")
    }
}

/// The mounts that the process with this folder of /proc sees.
///
/// # Errors
/// [`ProcError`].
pub fn mount_points(folder: &str) -> Result<Vec<MountInfo>, ProcError> {
    Ok(mounts_in(&read(&format!("{folder}/mountinfo"))?))
}

/// Those of a text of mountinfo.
#[must_use]
pub fn mounts_in(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<MountInfo> {
    let mut words = line.split(|byte| *byte == b' ');
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u32>().ok();
    let (id, parent) = (number(words.next()?)?, number(words.next()?)?);
    let device = std::str::from_utf8(words.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mut found = MountInfo {
        id,
        parent,
        device: major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?,
        root: unescaped(words.next()?),
        path: unescaped(words.next()?),
        ..MountInfo::default()
    };
    allowed(words.next()?, &mut found);
    for word in words.by_ref().take_while(|word| *word != b"-") {
        let mut parts = word.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next()?, parts.next().and_then(number).unwrap_or_default());
        match name {
            b"shared" => found.shared = value,
            b"master" => found.master = value,
            b"unbindable" => found.unbindable = true,
            // propagate_from: of a master that is out of sight, whose number it has besides.
            _ => {}
        }
    }
    found.kind = unescaped(words.next()?);
    found.source = unescaped(words.next()?);
    found.options = words.next()?.split(|byte| *byte == b',').map(option).collect();
    Some(found)
}

/// show_mnt_opts of fs/proc_namespace.c: of those for the time of access the usual one is none.
fn allowed(options: &[u8], found: &mut MountInfo) {
    found.attributes = attributes::STRICTATIME;
    for option in options.split(|byte| *byte == b',') {
        let bits = match option {
            b"ro" => attributes::RDONLY,
            b"nosuid" => attributes::NOSUID,
            b"nodev" => attributes::NODEV,
            b"noexec" => attributes::NOEXEC,
            b"nodiratime" => attributes::NODIRATIME,
            b"nosymfollow" => attributes::NOSYMFOLLOW,
            b"noatime" | b"relatime" => {
                found.attributes &= !attributes::STRICTATIME;
                if option == b"noatime" { attributes::NOATIME } else { 0 }
            }
            b"idmapped" => {
                found.is_mapped = true;
                0
            }
            _ => 0,
        };
        found.attributes |= bits;
    }
}

fn option(word: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    match word.iter().position(|byte| *byte == b'=') {
        Some(at) => (unescaped(&word[..at]), Some(unescaped(&word[at + 1..]))),
        None => (unescaped(word), None),
    }
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
    use super::{MountInfo, mounts_in, parse, unescaped};
    use crate::mount::attributes::{NOATIME, NODEV, NOSUID, NOSYMFOLLOW, RDONLY, STRICTATIME};

    #[test]
    fn lines_are_read() {
        let line = b"36 35 254:3 /sub /srv/a\\040b rw,noatime shared:7 master:1 - ext4 /dev/root rw,size=4k";
        let pair = |key: &str, value: Option<&str>| (key.as_bytes().to_vec(), value.map(|v| v.as_bytes().to_vec()));
        let wanted = MountInfo {
            id: 36,
            parent: 35,
            device: 254 << 20 | 3,
            root: b"/sub".to_vec(),
            path: b"/srv/a b".to_vec(),
            attributes: NOATIME,
            shared: 7,
            master: 1,
            kind: b"ext4".to_vec(),
            source: b"/dev/root".to_vec(),
            options: vec![pair("rw", None), pair("size", Some("4k"))],
            ..MountInfo::default()
        };
        assert_eq!(parse(line), Some(wanted));
        assert_eq!(parse(b""), None);
    }

    /// Captured on Linux 6.18.
    #[test]
    fn what_a_mount_allows_is_read() {
        let text = b"24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334460k,nr_inodes=3083615,mode=755\n\
            61 27 0:44 / /mnt/a ro,nosuid,nodev,nosymfollow shared:3 - tmpfs a\\040b ro,size=4k,mode=755\n\
            62 61 0:45 / /mnt/a/b rw unbindable - proc proc rw,hidepid=invisible\n";
        let found = mounts_in(text);
        let allowed: Vec<u32> = found.iter().map(|mount| mount.attributes).collect();
        assert_eq!(
            allowed,
            [0, RDONLY | NOSUID | NODEV | NOSYMFOLLOW | STRICTATIME, STRICTATIME]
        );
        let read_only: Vec<bool> = found.iter().map(MountInfo::filesystem_is_read_only).collect();
        assert_eq!(read_only, [false, true, false]);
        assert!(found[2].unbindable && found[2].kind == b"proc" && found[1].source == b"a b");
    }

    #[test]
    fn blanks_are_plain_again() {
        assert_eq!(unescaped(br"/a\040b\134"), b"/a b\\");
        assert_eq!(unescaped(br"/a\04"), br"/a\04");
    }
}
