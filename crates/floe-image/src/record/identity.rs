//! Which image this is, and which one its pages are partly in.

use serde::{Deserialize, Serialize};
use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt};

/// The name of an image among all images: bytes drawn by lot when it was made, so that no two have the same. A copy of the file has the
/// same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageId(pub [u8; 16]);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which image this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Its own id.
    pub id: ImageId,
    /// The image that it is based on, where there is one.
    pub base: Option<BaseRecord>,
}

impl IdentityRecord {
    /// The number of the first page that this image stores itself; those before are in its base, and in the bases of that.
    #[must_use]
    pub fn first_page(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| base.pages)
    }
}

/// The image that another one is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Its id.
    pub id: ImageId,
    /// The name of its file, without a directory: it is looked for beside the image that is based on it.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// How many pages it and its own bases store.
    pub pages: u64,
}

impl BaseRecord {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// The name of its file, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}
