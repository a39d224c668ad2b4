//! What a sandbox has mounted, as arguments: podman's and docker's.

use clap::Args;
use floe_sandbox::{Mount, Mounts, RootDirectory, Shown};
use floe_sys::mount::attributes::{NOEXEC, RDONLY};
use std::path::{Path, PathBuf};

/// A root directory, and what is mounted.
#[derive(Debug, Clone, Args)]
pub struct MountArguments {
    /// Have this directory as root, with the files of a system in it. The sandbox gets a /proc, a /dev and, as root or with
    /// --net none, a read-only /sys; mount points that DIR lacks are made in it. The command and --workdir are paths in it.
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Let nobody write to the directory of --rootfs.
    #[arg(long, requires = "rootfs")]
    read_only: bool,
    /// Show a file or directory of the host at a path in the sandbox, with :ro read-only. May be given several times.
    #[arg(short, long, value_name = "SRC:DST[:ro]", value_parser = volume)]
    volume: Vec<Mount>,
    /// Mount an empty tmpfs at a path in the sandbox. Options, with commas between: size, nr_inodes, mode, uid, gid as tmpfs(5)
    /// has them; ro; noexec. May be given several times.
    #[arg(long, value_name = "DST[:OPTIONS]", value_parser = tmpfs)]
    tmpfs: Vec<Mount>,
}

impl MountArguments {
    /// As the sandbox is told.
    ///
    /// # Errors
    /// In words, where something is not there.
    pub fn mounts(&self) -> anyhow::Result<Mounts> {
        let mut mounts = Mounts {
            root: None,
            all: self.volume.iter().chain(&self.tmpfs).cloned().collect(),
        };
        if let Some(path) = &self.rootfs {
            mounts.root = Some(RootDirectory {
                path: std::path::absolute(path)?,
                read_only: self.read_only,
            });
        }
        mounts.check()?;
        Ok(mounts)
    }

    /// Whether paths of the caller are none of the sandbox.
    pub fn has_root(&self) -> bool {
        self.rootfs.is_some()
    }
}

fn volume(text: &str) -> Result<Mount, String> {
    let wrong = || format!("{text:?} is not SRC:DST[:ro], e.g. /srv/data:/data:ro");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, point, read_only) = match parts[..] {
        [source, point] | [source, point, "rw"] => (source, point, false),
        [source, point, "ro"] => (source, point, true),
        _ => return Err(wrong()),
    };
    if source.is_empty() || !point.starts_with('/') {
        return Err(wrong());
    }
    Ok(Mount {
        point: plain(point),
        shows: Shown::Path {
            source: std::path::absolute(source).map_err(|error| error.to_string())?,
            read_only,
        },
    })
}

fn tmpfs(text: &str) -> Result<Mount, String> {
    let (point, rest) = text.split_once(':').unwrap_or((text, ""));
    if !point.starts_with('/') {
        return Err(format!(
            "{text:?} is not DST[:OPTIONS], e.g. /scratch:size=64m,mode=1777"
        ));
    }
    let (mut options, mut attributes) = (Vec::new(), 0);
    for option in rest.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            None if option == "ro" => attributes |= RDONLY,
            None if option == "noexec" => attributes |= NOEXEC,
            Some((key, value)) if fits(key, value) => options.push((key.to_owned(), value.to_owned())),
            _ => return Err(format!("a tmpfs has no option {option}")),
        }
    }
    Ok(Mount {
        point: plain(point),
        shows: Shown::Tmpfs { options, attributes },
    })
}

/// Whether it is an option of tmpfs(5), by its form.
fn fits(key: &str, value: &str) -> bool {
    let is_number = |text: &str, base| u64::from_str_radix(text, base).is_ok();
    let unit = |units: &[char]| value.strip_suffix(|last: char| units.contains(&last.to_ascii_lowercase()));
    match key {
        "size" => is_number(unit(&['k', 'm', 'g', '%']).unwrap_or(value), 10),
        "nr_inodes" => is_number(unit(&['k', 'm', 'g']).unwrap_or(value), 10),
        "mode" => is_number(value, 8),
        "uid" | "gid" => is_number(value, 10),
        _ => false,
    }
}

/// Without slashes that say nothing.
fn plain(point: &str) -> PathBuf {
    Path::new(point).components().collect()
}

#[cfg(test)]
mod tests {
    use super::{Shown, tmpfs, volume};

    #[test]
    fn volumes_are_read() {
        let found = volume("/srv/data:/data/:ro").expect("a volume");
        assert_eq!(found.point.as_os_str(), "/data");
        assert!(matches!(found.shows, Shown::Path { source, read_only: true } if source.as_os_str() == "/srv/data"));
        for wrong in ["/data", "/srv:data", ":/data", "/srv:/data:rx", "/srv:/data:ro:ro"] {
            assert!(
                volume(wrong).is_err_and(|error| error.contains("is not SRC:DST[:ro]")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn options_of_tmpfs_are_known() {
        let found = tmpfs("/run:size=64m,mode=1777,noexec").expect("a tmpfs");
        assert!(matches!(found.shows, Shown::Tmpfs { options, attributes: 8 } if options.len() == 2));
        for wrong in ["run", "/run:size=much", "/run:huge=always", "/run:mode=9", "/run:size"] {
            assert!(tmpfs(wrong).is_err(), "{wrong}");
        }
    }
}
