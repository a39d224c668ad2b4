//! What is set in /proc/sys/net: ip-sysctl.rst of the kernel. Of a network namespace it shows what is its own, and a few
//! things that are the host's and can't be written.

use super::NetworkError;
use floe_image::record::NetworkSetting;
use floe_sys::descriptor::open_in_root;
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, fstat},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const FOLDER: &str = "/proc/sys/net";
/// The kernel gives all at once or not at all.
const ENOUGH: usize = 4096;
const MOST: usize = 256 << 10;
/// Some change others, at most so often one after the other.
const ROUNDS: usize = 4;

/// Values, by path from the folder.
pub(super) type Settings = BTreeMap<Vec<u8>, Vec<u8>>;

/// All that can be read and written in the calling thread's network namespace.
pub(super) fn read() -> io::Result<Settings> {
    let mut found = Settings::new();
    read_folder(
        open(FOLDER, DIRECTORY, Mode::empty())?,
        &mut Vec::new(),
        &mut (vec![0; ENOUGH], &mut found),
    )?;
    Ok(found)
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Reads what is in a folder, which is at `path`. The buffer is used for all.
fn read_folder(folder: OwnedFd, path: &mut Vec<u8>, all: &mut (Vec<u8>, &mut Settings)) -> io::Result<()> {
    let mut folder = Dir::from_fd(folder)?;
    let entries: Vec<_> = folder.iter().collect::<Result<_, _>>()?;
    for entry in entries {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let above = path.len();
        if above > 0 {
            path.push(b'/');
        }
        path.extend(name.to_bytes());
        if entry.file_type() == Some(Type::Directory) {
            read_folder(openat(&folder, name, DIRECTORY, Mode::empty())?, path, all)?;
        } else if !is_set_otherwise(path)
            && let Some(value) = value_of(&folder, name, &mut all.0)?
        {
            all.1.insert(path.clone(), value);
        }
        path.truncate(above);
    }
    Ok(())
}

/// Of a device: writing it makes addresses, so it is set with the device.
fn is_set_otherwise(path: &[u8]) -> bool {
    path.ends_with(b"/addr_gen_mode") && device(path).is_some()
}

/// What is in a file; `None` where it can't be read and written, or nothing was ever written to it.
fn value_of(folder: &Dir, name: &CStr, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        let mut file = match openat(folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => File::from(file),
            // One that can only be written, as ipv4/route/flush.
            Err(Errno::EACCES) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if fstat(&file)?.st_mode & 0o200 == 0 {
            return Ok(None);
        }
        let length = match file.read(buffer) {
            Ok(length) => length,
            // A secret that there is not, as ipv6/conf/lo/stable_secret.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
            Err(error) => return Err(error),
        };
        if length < buffer.len() || length >= MOST {
            return Ok(Some(buffer[..length].trim_ascii_end().to_vec()));
        }
        buffer.resize(MOST, 0);
    }
}

/// The device that a setting is of.
pub(super) fn device(path: &[u8]) -> Option<&[u8]> {
    let mut steps = path.split(|byte| *byte == b'/');
    let (_, what, whose) = (steps.next()?, steps.next()?, steps.next()?);
    (matches!(what, b"conf" | b"neigh") && !matches!(whose, b"all" | b"default")).then_some(whose)
}

/// Whether a device has it so because new devices of its network namespace have it so.
pub(super) fn is_as_by_default(path: &[u8], value: &[u8], own: &Settings) -> bool {
    like_device(path, b"default")
        .and_then(|path| own.get(&path))
        .is_some_and(|usual| usual == value)
}

/// Whether a new network namespace had it so; what devices know of neighbours is alike in all.
pub(super) fn is_usual(path: &[u8], value: &[u8], fresh: &Settings) -> bool {
    let usual = fresh.get(path).or_else(|| fresh.get(&like_device(path, b"lo")?));
    usual.is_some_and(|usual| usual == value)
}

/// The same setting of another device, or of what is in the place of one.
fn like_device(path: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let whose = device(path)?;
    let steps = path.split(|byte| *byte == b'/');
    let like: Vec<&[u8]> = steps.map(|step| if step == whose { other } else { step }).collect();
    Some(like.join(&b'/'))
}

/// Makes them what a record says, but those of the devices in `later`, which are not there yet. Whether any was another way.
pub(super) fn write(wanted: &[NetworkSetting], later: &BTreeSet<Vec<u8>>) -> Result<bool, NetworkError> {
    if wanted.is_empty() {
        return Ok(false);
    }
    let failed = |source: io::Error| NetworkError {
        object: FOLDER.to_owned(),
        action: "read".to_owned(),
        source,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(FOLDER, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let mut wanted: Vec<&NetworkSetting> = wanted
        .iter()
        .filter(|setting| device(&setting.path).is_none_or(|device| !later.contains(device)))
        .collect();
    // Those of all devices change those of each.
    wanted.sort_by_key(|setting| rank(&setting.path));
    for round in 0..ROUNDS {
        let differing = differing(&wanted).map_err(failed)?;
        if differing.is_empty() {
            return Ok(round > 0);
        }
        let refused: Vec<NetworkError> = differing
            .into_iter()
            .filter_map(|setting| write_one(&folder, setting).err())
            .collect();
        if let Some(error) = refused.into_iter().next() {
            return Err(error);
        }
    }
    match differing(&wanted).map_err(failed)?.first() {
        Some(setting) => Err(NetworkError::new("keep", title(&setting.path), Errno::EINVAL)),
        None => Ok(true),
    }
}

/// Those that are another way now. What is not there, and was nothing special, is not missed.
fn differing<'a>(wanted: &[&'a NetworkSetting]) -> io::Result<Vec<&'a NetworkSetting>> {
    let present = read()?;
    let differs = |setting: &&&NetworkSetting| match present.get(&setting.path) {
        Some(value) => *value != setting.value && !(setting.usual && is_told_by_groups(&setting.path)),
        None => !setting.usual || is_unset(&setting.path),
    };
    Ok(wanted.iter().filter(differs).copied().collect())
}

/// Whether it tells groups: new network namespaces have the same ones everywhere, but each user namespace has other numbers for
/// them, and none for those that it does not know.
fn is_told_by_groups(path: &[u8]) -> bool {
    path == b"ipv4/ping_group_range"
}

/// Whether it is one of those that tell nothing until they are written.
fn is_unset(path: &[u8]) -> bool {
    path.ends_with(b"/stable_secret")
}

fn rank(path: &[u8]) -> u8 {
    let has = |step: &[u8]| path.split(|byte| *byte == b'/').any(|own| own == step);
    match (has(b"conf") || has(b"neigh"), has(b"all"), has(b"default")) {
        (false, ..) => 0,
        (true, true, _) => 1,
        (true, _, true) => 2,
        _ => 3,
    }
}

fn write_one(folder: &OwnedFd, setting: &NetworkSetting) -> Result<(), NetworkError> {
    let path = Path::new(OsStr::from_bytes(&setting.path));
    let set = || -> io::Result<()> {
        let mut file = File::from(open_in_root(folder.as_fd(), path, libc::O_WRONLY, 0)?);
        file.write_all(&[&setting.value[..], b"\n"].concat())
    };
    set().map_err(|source| NetworkError {
        object: title(&setting.path),
        action: format!("write {:?} to", String::from_utf8_lossy(&setting.value)),
        source,
    })
}

fn title(path: &[u8]) -> String {
    format!("{FOLDER}/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::{Settings, device, is_as_by_default, is_usual, rank};

    #[test]
    fn settings_of_devices_are_told_from_others() {
        assert_eq!(device(b"ipv4/conf/eth0/rp_filter"), Some(&b"eth0"[..]));
        assert_eq!(device(b"ipv6/neigh/lo/locktime"), Some(&b"lo"[..]));
        assert_eq!(device(b"ipv4/conf/all/rp_filter"), None);
        assert_eq!(device(b"ipv4/ip_forward"), None);
        let paths: [&[u8]; 4] = [
            b"ipv4/ip_forward",
            b"ipv4/conf/all/x",
            b"ipv4/conf/default/x",
            b"ipv4/conf/e/x",
        ];
        assert_eq!(paths.map(rank), [0, 1, 2, 3]);
    }

    #[test]
    fn what_a_new_device_would_have_is_told_from_the_rest() {
        let all = |path: &[u8]| Settings::from([(path.to_vec(), b"1".to_vec())]);
        let own = all(b"ipv4/conf/default/x");
        assert!(is_as_by_default(b"ipv4/conf/e/x", b"1", &own));
        assert!(!is_as_by_default(b"ipv4/conf/e/x", b"2", &own));
        assert!(!is_as_by_default(b"ipv4/ip_forward", b"1", &own));
        let fresh = all(b"ipv4/neigh/lo/x");
        assert!(is_usual(b"ipv4/neigh/e/x", b"1", &fresh));
        assert!(!is_usual(b"ipv4/neigh/e/x", b"2", &fresh));
        assert!(is_usual(b"ipv4/ip_forward", b"1", &all(b"ipv4/ip_forward")));
        assert!(!is_usual(b"ipv4/other", b"1", &fresh));
    }
}
