//! Images that are based on others: which hold the pages that did not change, so that an image has only what did.
//!
//! ```text
//! third.floe ──► second.floe ──► first.floe          pages 0..90 | 90..97 | 97..110
//! ```
//! Pages are numbered through, from those of the oldest on, so that whatever refers to one need not know which file it is
//! in. Each image tells the id of its base, and by which name it is found beside it.

use super::{Coming, Image, ReadError, load};
use crate::record::{BaseRecord, Chunk, IdentityRecord, ImageId, OwnerRecord};
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// On how many images another may be based, one on the other.
pub const MAX_BASES: usize = 64;

/// Images that do not make a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Not there.
    #[error("{image} needs the image {name} (id {id}), which it is based on; name it by --base")]
    Missing {
        /// Who needs it.
        image: String,
        /// The name of its file.
        name: String,
        /// Its id.
        id: ImageId,
        /// Why it is not found beside it.
        #[source]
        source: io::Error,
    },
    /// A stream has nothing beside it.
    #[error("{image} needs the image {name} (id {id}), which it is based on; name it by --base")]
    Unnamed {
        /// Who needs it.
        image: String,
        /// The name of its file.
        name: String,
        /// Its id.
        id: ImageId,
    },
    /// Another image.
    #[error("{image} is based on the image {name} of id {wanted}; {found} is another one, of id {got}")]
    Wrong {
        /// Who needs it.
        image: String,
        /// The name of its file.
        name: String,
        /// Its id.
        wanted: ImageId,
        /// What is there instead.
        found: String,
        /// The id of that.
        got: ImageId,
    },
    /// A circle.
    #[error("the image is based on itself: id {0} comes twice among its bases")]
    Circle(ImageId),
    /// Too long a chain.
    #[error(
        "the image is based on more than {MAX_BASES} images, one on the other; make one of them by floe image merge"
    )]
    TooLong,
    /// Pages that are not there.
    #[error("{image} counts {wanted} pages in its base {name}, which has {got}")]
    Pages {
        /// Who counts.
        image: String,
        /// The name of the base's file.
        name: String,
        /// How many.
        wanted: u64,
        /// How many there are.
        got: u64,
    },
}

/// The files that make up an image: its own, and those of its bases.
#[derive(Debug)]
pub struct ImageFiles {
    own: File,
    /// Each with the name that it was found by, the image's own base first.
    bases: Vec<(String, File)>,
    /// Who brings what its own file has not got yet.
    coming: Option<Arc<dyn Coming>>,
}

impl From<File> for ImageFiles {
    /// An image that is based on none.
    fn from(own: File) -> Self {
        Self::chained(own, Vec::new())
    }
}

impl ImageFiles {
    /// Finds the bases of an image: among those `given`, else beside the image that is based on it; `path` is where the
    /// image is itself, where it has a name.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn find(own: File, path: Option<&Path>, given: &[PathBuf]) -> Result<Self, ReadError> {
        let mut files = Self::from(own);
        let mut identity = load::identity(&files.own)?;
        let mut seen = vec![identity.id];
        let mut at = path.map(Path::to_owned);
        let given = Given::open(given)?;
        while let Some(base) = identity.base.take() {
            let image = files.last_name(path);
            let (found, file, next) = given.find(&base, image, at.as_deref())?;
            if seen.contains(&next.id) {
                return Err(ChainError::Circle(next.id).into());
            }
            if files.bases.len() == MAX_BASES {
                return Err(ChainError::TooLong.into());
            }
            seen.push(next.id);
            files.bases.push((found.display().to_string(), file));
            at = Some(found);
            identity = next;
        }
        Ok(files)
    }

    /// An image with its bases, its own base first, each with a name for people.
    #[must_use]
    pub fn chained(own: File, bases: Vec<(String, File)>) -> Self {
        Self {
            own,
            bases,
            coming: None,
        }
    }

    /// Some of its own chunks come while it is read: they are waited for.
    #[must_use]
    pub fn awaiting(mut self, coming: Arc<dyn Coming>) -> Self {
        self.coming = Some(coming);
        self
    }

    /// Whether this file is one of them.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn include(&self, file: &Metadata) -> io::Result<bool> {
        for known in std::iter::once(&self.own).chain(self.bases.iter().map(|(_, file)| file)) {
            let known = known.metadata()?;
            if (known.dev(), known.ino()) == (file.dev(), file.ino()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whose user namespace the tree was in, without a look at the rest.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn owner(&self) -> Result<Option<OwnerRecord>, ReadError> {
        load::owner(&self.own)
    }

    /// The same of all that it is based on, each with the name that it was found by.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn owners_of_bases(&self) -> impl Iterator<Item = Result<(&str, Option<OwnerRecord>), ReadError>> {
        self.bases
            .iter()
            .map(|(name, file)| Ok((name.as_str(), load::owner(file)?)))
    }

    /// What there is to know of its own file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.own.metadata()
    }

    /// The same of those that it is based on, each with the name that it was found by.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn metadata_of_bases(&self) -> impl Iterator<Item = io::Result<(&str, Metadata)>> {
        let all = self.bases.iter();
        all.map(|(name, file)| Ok((name.as_str(), file.metadata()?)))
    }

    /// The files themselves, the image's own first, for [`ImageFiles::handed`].
    pub fn into_files(self) -> impl Iterator<Item = File> {
        std::iter::once(self.own).chain(self.bases.into_iter().map(|(_, file)| file))
    }

    /// Files that somebody else has found.
    #[must_use]
    pub fn handed(own: File, bases: impl IntoIterator<Item = File>) -> Self {
        let bases = (1..).zip(bases).map(|(number, file)| (format!("base {number}"), file));
        Self::chained(own, bases.collect())
    }

    /// Another handle on the same files.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |(name, file): &(String, File)| Ok((name.clone(), file.try_clone()?));
        Ok(Self {
            own: self.own.try_clone()?,
            bases: self.bases.iter().map(again).collect::<io::Result<_>>()?,
            coming: self.coming.clone(),
        })
    }

    fn last_name(&self, path: Option<&Path>) -> String {
        match (self.bases.last(), path) {
            (Some((name, _)), _) => name.clone(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "the image".to_owned(),
        }
    }
}

/// Images that may be bases.
struct Given(Vec<(PathBuf, File, IdentityRecord)>);

impl Given {
    fn open(paths: &[PathBuf]) -> Result<Self, ReadError> {
        let open = |path: &PathBuf| {
            let wrap = |source: ReadError| ReadError::Base {
                name: path.display().to_string(),
                source: Box::new(source),
            };
            let file = File::open(path).map_err(|source| wrap(ReadError::Open(source)))?;
            let identity = load::identity(&file).map_err(wrap)?;
            Ok((path.clone(), file, identity))
        };
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The base of `image`, which is at `at`.
    fn find(
        &self,
        base: &BaseRecord,
        image: String,
        at: Option<&Path>,
    ) -> Result<(PathBuf, File, IdentityRecord), ReadError> {
        let is_it = |(_, _, identity): &&(PathBuf, File, IdentityRecord)| identity.id == base.id;
        if let Some((path, file, identity)) = self.0.iter().find(is_it) {
            let file = file.try_clone().map_err(ReadError::Open)?;
            return Ok((path.clone(), file, identity.clone()));
        }
        let (name, id) = (base.shown(), base.id);
        let Some(at) = at else {
            return Err(ChainError::Unnamed { image, name, id }.into());
        };
        let beside = at.with_file_name(base.file_name());
        // What is no regular file may wait for somebody, or be a device, when it is opened.
        let opened = match std::fs::metadata(&beside) {
            Ok(found) if !found.is_file() => Err(std::io::Error::other("it is no regular file")),
            _ => File::open(&beside),
        };
        let file = match opened {
            Ok(file) => file,
            Err(source) => {
                return Err(ChainError::Missing {
                    image,
                    name,
                    id,
                    source,
                }
                .into());
            }
        };
        let found = beside.display().to_string();
        let identity = load::identity(&file).map_err(|source| ReadError::Base {
            name: found.clone(),
            source: Box::new(source),
        })?;
        if identity.id != id {
            return Err(ChainError::Wrong {
                image,
                name,
                wanted: id,
                found,
                got: identity.id,
            }
            .into());
        }
        Ok((beside, file, identity))
    }
}

/// One file of an image.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) file: File,
    /// The name of a base.
    name: Option<String>,
    /// Its first page.
    first: u64,
}

impl Layer {
    /// The image's own.
    pub(super) fn own(file: File) -> Self {
        Self {
            file,
            name: None,
            first: 0,
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_base(&self) -> bool {
        self.name.is_some()
    }

    /// What is wrong with a part of it.
    pub(super) fn blamed(&self, source: ReadError) -> ReadError {
        match self.name.clone() {
            None => source,
            Some(name) => ReadError::Base {
                name,
                source: Box::new(source),
            },
        }
    }
}

impl Image {
    /// The file that holds a chunk.
    pub(super) fn layer_of(&self, chunk: &Chunk) -> &Layer {
        let behind = self.layers.partition_point(|layer| layer.first <= chunk.first.0);
        &self.layers[behind.saturating_sub(1)]
    }
}

/// Reads an image with all its bases.
pub(super) fn open(files: ImageFiles) -> Result<Image, ReadError> {
    let mut image = load::load(files.own)?;
    let own = std::mem::take(&mut image.chunks);
    let mut layer = image.layers.pop().expect("it was loaded with its own file");
    layer.first = image.identity.first_page();
    let (mut layers, mut chunks) = (vec![layer], vec![own]);
    let mut wanted = image.identity.base.clone();
    let mut user = "the image".to_owned();
    let mut seen = vec![image.identity.id];
    for (name, file) in files.bases {
        let Some(base) = wanted.take() else { break };
        let loaded = load::load(file).map_err(|source| ReadError::Base {
            name: name.clone(),
            source: Box::new(source),
        })?;
        check_base(&base, &loaded, (&user, &name))?;
        if seen.contains(&base.id) {
            return Err(ChainError::Circle(base.id).into());
        }
        seen.push(base.id);
        wanted = loaded.identity.base.clone();
        let first = loaded.identity.first_page();
        chunks.push(loaded.chunks);
        let file = loaded
            .layers
            .into_iter()
            .next_back()
            .expect("it was loaded with its own file")
            .file;
        user.clone_from(&name);
        layers.push(Layer {
            file,
            name: Some(name),
            first,
        });
    }
    if let Some(base) = wanted {
        return Err(ChainError::Unnamed {
            image: user,
            name: base.shown(),
            id: base.id,
        }
        .into());
    }
    layers.reverse();
    image.layers = layers;
    let own = chunks[0].len();
    image.chunks = chunks.into_iter().rev().flatten().collect();
    image.own_chunks = image.chunks.len() - own;
    image.coming = files.coming;
    Ok(image)
}

fn check_base(base: &BaseRecord, loaded: &Image, (user, name): (&str, &str)) -> Result<(), ChainError> {
    if loaded.identity.id != base.id {
        return Err(ChainError::Wrong {
            image: user.to_owned(),
            name: base.shown(),
            wanted: base.id,
            found: name.to_owned(),
            got: loaded.identity.id,
        });
    }
    if loaded.stored_pages() != base.pages {
        return Err(ChainError::Pages {
            image: user.to_owned(),
            name: name.to_owned(),
            wanted: base.pages,
            got: loaded.stored_pages(),
        });
    }
    Ok(())
}
