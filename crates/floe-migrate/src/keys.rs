//! Keys: this host's own, and those of others that the user has pinned. There are no authorities: who is pinned is let in,
//! and nobody else.
//!
//! A folder that nobody else may read (mode 0700), with `own.pem`, a key and its certificate, and `peers`, a line
//! `NAME FINGERPRINT` for each other host (both 0600). A fingerprint is the SHA-256 of a certificate.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

const OWN: &str = "own.pem";
const PEERS: &str = "peers";
/// Bytes of either file at most.
const MOST: u64 = 1 << 20;

/// Keys that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file.
    #[error("{action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Others may read or write it.
    #[error(
        "{path} is open to others (its mode is {mode:03o}): nobody but you may read or write it (chmod go= {path})"
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another user may write it.
    #[error("{path} belongs to user {owner}, who is neither you nor root")]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Not what floe wrote.
    #[error("{path} does not hold {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What it should.
        what: &'static str,
    },
    /// Making a key.
    #[error("make a key")]
    Make(#[source] rcgen::Error),
    /// A name that can't be one.
    #[error("{0:?} is no name for a host: letters, digits, dots, dashes and underscores, at most 64")]
    Name(String),
    /// A name that is there already.
    #[error("{0} is pinned already, to another key; unpin it first")]
    Taken(String),
    /// A key that is there already.
    #[error("that key is pinned already, as {0}; unpin that first")]
    Known(String),
    /// A name that is not there.
    #[error("no host named {0} is pinned")]
    Unknown(String),
}

fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::File { action, path, source }
}

/// What a certificate is known by.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", crate::hex(&self.0))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fingerprint: sha256: and 64 hexadecimal digits, as floe keys prints them on the other host")]
pub struct FingerprintError(String);

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || FingerprintError(text.to_owned());
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, which the user gave it.
    pub name: String,
    /// Its certificate.
    pub fingerprint: Fingerprint,
}

/// A folder with keys.
#[derive(Debug)]
pub struct Keys {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    peers: Vec<Peer>,
    folder: PathBuf,
}

impl Keys {
    /// Those of a folder; what is not there yet is made.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open(folder: &Path) -> Result<Self, KeysError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(folder).map_err(wrap("make", folder))?;
        refuse_open(folder, &fs::metadata(folder).map_err(wrap("look at", folder))?)?;
        let own = folder.join(OWN);
        let pem = match read(&own)? {
            Some(pem) => pem,
            None => {
                write(&own, &make()?)?;
                // Another floe may have been faster.
                read(&own)?.ok_or(KeysError::Malformed {
                    path: own.clone(),
                    what: "a key and its certificate",
                })?
            }
        };
        let malformed = |what| KeysError::Malformed {
            path: own.clone(),
            what,
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed("a certificate"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed("a key"))?;
        Ok(Self {
            certificate,
            key: key.into(),
            peers: read_peers(&folder.join(PEERS))?,
            folder: folder.to_owned(),
        })
    }

    /// As they are now.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn again(&self) -> Result<Self, KeysError> {
        Self::open(&self.folder)
    }

    /// This host's own.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Other hosts.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The one with a certificate.
    #[must_use]
    pub fn peer(&self, certificate: &CertificateDer<'_>) -> Option<&Peer> {
        let fingerprint = Fingerprint::of(certificate);
        self.peers.iter().find(|peer| peer.fingerprint == fingerprint)
    }

    /// The certificate of the one with a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Fingerprint> {
        let peer = self.peers.iter().find(|peer| peer.name == name)?;
        Some(peer.fingerprint)
    }

    pub(crate) fn identity(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (self.certificate.clone(), self.key.clone_key())
    }

    /// Pins another host.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn pin(&mut self, name: &str, fingerprint: Fingerprint) -> Result<(), KeysError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(KeysError::Name(name.to_owned()));
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.name == name) {
            return match peer.fingerprint == fingerprint {
                true => Ok(()),
                false => Err(KeysError::Taken(name.to_owned())),
            };
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.fingerprint == fingerprint) {
            return Err(KeysError::Known(peer.name.clone()));
        }
        let name = name.to_owned();
        self.peers.push(Peer { name, fingerprint });
        self.write_peers()
    }

    /// Forgets another host.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn unpin(&mut self, name: &str) -> Result<(), KeysError> {
        let before = self.peers.len();
        self.peers.retain(|peer| peer.name != name);
        if self.peers.len() == before {
            return Err(KeysError::Unknown(name.to_owned()));
        }
        self.write_peers()
    }

    fn write_peers(&self) -> Result<(), KeysError> {
        let lines = self
            .peers
            .iter()
            .map(|peer| format!("{} {}\n", peer.name, peer.fingerprint));
        let (path, beside) = (self.folder.join(PEERS), self.folder.join("peers.new"));
        drop(fs::remove_file(&beside));
        write(&beside, &lines.collect::<String>())?;
        fs::rename(&beside, &path).map_err(wrap("replace", &path))
    }
}

fn make() -> Result<String, KeysError> {
    let key = KeyPair::generate().map_err(KeysError::Make)?;
    let certificate = CertificateParams::new(vec!["floe".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .map_err(KeysError::Make)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Writes a new file whole, or not at all; one that is there already stays.
fn write(path: &Path, text: &str) -> Result<(), KeysError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let draft = folder.join(format!(".draft-{}", std::process::id()));
    let written = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    };
    let result = written().map_err(wrap("write", path));
    drop(fs::remove_file(&draft));
    result
}

/// Refuses what another user owns, or may read or write.
fn refuse_open(path: &Path, found: &fs::Metadata) -> Result<(), KeysError> {
    if found.uid() != 0 && found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeysError::Owner {
            path: path.to_owned(),
            owner: found.uid(),
        });
    }
    match found.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(KeysError::Open {
            path: path.to_owned(),
            mode: found.mode() & 0o777,
        }),
    }
}

/// The text of a file that only its user may read.
fn read(path: &Path) -> Result<Option<String>, KeysError> {
    use io::Read;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrap("open", path)(error)),
    };
    refuse_open(path, &file.metadata().map_err(wrap("look at", path))?)?;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(wrap("read", path))?;
    Ok(Some(text))
}

fn read_peers(path: &Path) -> Result<Vec<Peer>, KeysError> {
    let malformed = || KeysError::Malformed {
        path: path.to_owned(),
        what: "lines of a name and a fingerprint",
    };
    let text = read(path)?.unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let peers = lines.map(|line| {
        let (name, fingerprint) = line.split_once(' ')?;
        Some(Peer {
            name: name.to_owned(),
            fingerprint: fingerprint.trim().parse().ok()?,
        })
    });
    let peers = peers.collect::<Option<Vec<_>>>().ok_or_else(malformed)?;
    let twice = |(at, peer): (usize, &Peer)| {
        let mut before = peers[..at].iter();
        before.any(|other| other.name == peer.name || other.fingerprint == peer.fingerprint)
    };
    match peers.iter().enumerate().any(twice) {
        true => Err(KeysError::Malformed {
            path: path.to_owned(),
            what: "each name and each fingerprint once",
        }),
        false => Ok(peers),
    }
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, Keys, KeysError};
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn keys_are_made_once_and_closed_to_others() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("a/keys");
        let first = Keys::open(&folder).expect("keys");
        let again = Keys::open(&folder).expect("keys");
        assert_eq!(first.fingerprint(), again.fingerprint());
        let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("own.pem"))), (0o700, 0o600));
        assert_eq!(
            first.fingerprint().to_string().parse::<Fingerprint>(),
            Ok(first.fingerprint())
        );
        fs::set_permissions(folder.join("own.pem"), fs::Permissions::from_mode(0o640)).expect("opened");
        assert!(matches!(Keys::open(&folder), Err(KeysError::Open { mode: 0o640, .. })));
    }

    #[test]
    fn hosts_are_pinned_and_forgotten() {
        let place = tempfile::tempdir().expect("a folder");
        let mut keys = Keys::open(place.path().join("keys").as_path()).expect("keys");
        let (one, other) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        keys.pin("a", one).expect("pinned");
        keys.pin("a", one).expect("pinned already");
        assert!(matches!(keys.pin("a", other), Err(KeysError::Taken(_))));
        assert!(matches!(keys.pin("a b", other), Err(KeysError::Name(_))));
        assert!(matches!(keys.pin("b", one), Err(KeysError::Known(name)) if name == "a"));
        keys.pin("b", other).expect("pinned");
        let mut again = Keys::open(place.path().join("keys").as_path()).expect("keys");
        assert_eq!(again.peers().len(), 2);
        again.unpin("a").expect("forgotten");
        assert!(matches!(again.unpin("a"), Err(KeysError::Unknown(_))));
        assert_eq!(again.peers().len(), 1);
        assert_eq!(keys.again().expect("keys").peers(), again.peers());
        let twice = format!("a {one}\nb {one}\n");
        fs::write(place.path().join("keys/peers"), twice).expect("written");
        assert!(matches!(keys.again(), Err(KeysError::Malformed { .. })));
    }

    #[test]
    fn what_another_user_owns_is_not_used() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("keys");
        Keys::open(&folder).expect("keys");
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(folder.join("own.pem"), Some(65534), None).expect("given away");
        assert!(matches!(
            Keys::open(&folder),
            Err(KeysError::Owner { owner: 65534, .. })
        ));
    }
}
