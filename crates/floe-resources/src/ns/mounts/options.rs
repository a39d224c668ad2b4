//! Options of filesystems: as mountinfo shows them, and as they are set again.

use super::shape::Refused;
use floe_image::record::{FilesystemKind, FilesystemOption};
use floe_sys::procfs::{ProcError, read_text};

/// The users and groups that floe's user namespace has: first one there, first one of the host's, how many.
#[derive(Debug, Default)]
pub(super) struct Ids([Vec<[u32; 3]>; 2]);

impl Ids {
    /// Reads them.
    pub(super) fn read() -> Result<Self, ProcError> {
        let map = |name| {
            Ok(read_text(&format!("/proc/self/{name}"))?
                .lines()
                .filter_map(range)
                .collect())
        };
        Ok(Self([map("uid_map")?, map("gid_map")?]))
    }

    /// The number there of one that mountinfo shows, which are always the host's.
    fn inside(&self, key: &str, shown: &[u8]) -> Option<Vec<u8>> {
        let number: u32 = std::str::from_utf8(shown).ok()?.parse().ok()?;
        let map = &self.0[usize::from(key == "gid")];
        let found = map.iter().find_map(|[inner, outer, count]| {
            let at = number.checked_sub(*outer).filter(|at| at < count)?;
            inner.checked_add(at)
        });
        found.map(|id| id.to_string().into_bytes())
    }
}

fn range(line: &str) -> Option<[u32; 3]> {
    let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().ok()
}

/// Options by which a filesystem of a type is made again, of those that mountinfo shows.
pub(super) fn options(
    kind: FilesystemKind,
    shown: &[(Vec<u8>, Option<Vec<u8>>)],
    ids: &Ids,
) -> Result<Vec<FilesystemOption>, Refused> {
    let mut found = Vec::new();
    for (key, value) in shown {
        match key.as_slice() {
            // The filesystem's own; and that SELinux labels its files, which an attribute of each tells.
            b"rw" | b"ro" | b"seclabel" => {}
            b"lowerdir" if kind == FilesystemKind::Overlay => {
                found.extend(layers(value.as_deref().unwrap_or_default()));
            }
            key => {
                let key = String::from_utf8_lossy(key).into_owned();
                let fits = value.as_ref().is_none_or(|value| value.len() < 256) || kind == FilesystemKind::Overlay;
                if !kind.knows(&key) || !fits {
                    let reason = format!("its option {key} is not carried");
                    return Err((reason, "mount it without"));
                }
                let value = match (key.as_str(), value) {
                    ("uid" | "gid", Some(value)) => {
                        let unknown = || {
                            (
                                format!("its option {key} names who is not known here"),
                                "mount it without",
                            )
                        };
                        Some(ids.inside(&key, value).ok_or_else(unknown)?)
                    }
                    (_, value) => value.clone(),
                };
                found.push(FilesystemOption { key, value });
            }
        }
    }
    let mut layers = found.iter().filter(|option| option.is_layer());
    let absolute = |option: &FilesystemOption| option.value.as_ref().is_some_and(|path| path.starts_with(b"/"));
    if !layers.all(absolute) {
        let reason = "a layer of it was named by a relative path";
        return Err((reason.to_owned(), "name its layers by absolute paths"));
    }
    Ok(found)
}

/// Those of `lowerdir=`, Documentation/filesystems/overlayfs.rst: `:` stands between layers, `::` before layers that hold
/// data alone, and a backslash before a colon that is neither.
fn layers(value: &[u8]) -> Vec<FilesystemOption> {
    let (mut found, mut path, mut data) = (Vec::new(), Vec::new(), false);
    let mut push = |path: &mut Vec<u8>, data: bool| {
        let key = if data { "datadir+" } else { "lowerdir+" };
        found.push(FilesystemOption {
            key: key.to_owned(),
            value: Some(std::mem::take(path)),
        });
    };
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => path.extend(bytes.next()),
            b':' => {
                push(&mut path, data);
                data |= bytes.next_if_eq(&b':').is_some();
            }
            other => path.push(other),
        }
    }
    push(&mut path, data);
    found
}

#[cfg(test)]
mod tests {
    use super::{Ids, options};
    use floe_image::record::FilesystemKind;
    use floe_sys::procfs::mounts_in;

    fn found(kind: FilesystemKind, shown: &str) -> Result<Vec<String>, String> {
        let line = format!("1 0 0:1 / / rw - any none {shown}");
        let ids = Ids([vec![[0, 1000, 1], [7, 2000, 10]], vec![[0, 0, u32::MAX]]]);
        let options = options(kind, &mounts_in(line.as_bytes())[0].options, &ids).map_err(|(reason, _)| reason)?;
        let text = |value: &[u8]| format!("={}", String::from_utf8_lossy(value));
        let shown = options.iter();
        Ok(shown
            .map(|option| option.key.clone() + &option.value.as_deref().map(text).unwrap_or_default())
            .collect())
    }

    #[test]
    fn layers_are_told_apart() {
        let shown = r"rw,lowerdir=/a:/b\134:c::/d,upperdir=/u,workdir=/w,volatile";
        let wanted = [
            "lowerdir+=/a",
            "lowerdir+=/b:c",
            "datadir+=/d",
            "upperdir=/u",
            "workdir=/w",
            "volatile",
        ];
        assert_eq!(
            found(FilesystemKind::Overlay, shown),
            Ok(wanted.map(str::to_owned).to_vec())
        );
        assert!(found(FilesystemKind::Overlay, "rw,lowerdir=a").is_err());
    }

    #[test]
    fn users_are_those_of_the_namespace() {
        let shown = found(FilesystemKind::Tmpfs, "rw,uid=2003,gid=5");
        assert_eq!(shown, Ok(vec!["uid=10".to_owned(), "gid=5".to_owned()]));
        assert_eq!(
            found(FilesystemKind::Tmpfs, "rw,uid=1000"),
            Ok(vec!["uid=0".to_owned()])
        );
        assert!(found(FilesystemKind::Tmpfs, "rw,uid=1001").is_err_and(|reason| reason.contains("not known")));
    }

    #[test]
    fn others_than_those_that_are_known_are_refused() {
        assert_eq!(
            found(FilesystemKind::Tmpfs, "ro,size=4k"),
            Ok(vec!["size=4k".to_owned()])
        );
        assert!(found(FilesystemKind::Tmpfs, "rw,usrquota").is_err_and(|reason| reason.contains("usrquota")));
    }
}
