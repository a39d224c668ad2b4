//! Opening: header, trailer, index, then all records. Nothing is allocated before it is known to lie inside the file.

use super::{ChainError, Fault, Image, Place, Records, ahead::Ahead, chain::Layer};
use crate::{
    check::{self, Contradiction},
    chunk::{CHUNK_BYTES, CHUNK_PAGES, PREFIX_BYTES},
    codec::{self, DecodeError},
    envelope::{ENVELOPE_BYTES, Envelope, is_intact},
    frame::{FrameError, HEADER_BYTES, INDEX_VERSION, RECORDS_LIMIT, TRAILER_BYTES, check_header, check_trailer},
    record::{
        HeaderRecord, IdentityRecord, IndexRecord, MachineRecord, OwnerRecord, Record, RecordEntry, RecordKind,
        SandboxRecord,
    },
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// An image that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("read {bytes} bytes at byte {offset} of the image")]
    Io {
        /// How many.
        bytes: usize,
        /// Where.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file of a base.
    #[error("open it")]
    Open(#[source] io::Error),
    /// The length of the file.
    #[error("find out how long the image is")]
    Length(#[source] io::Error),
    /// The memory for unpacking.
    #[error("start zstd")]
    Unpacker(#[source] io::Error),
    /// The threads that check pages.
    #[error("start a thread that checks pages")]
    Threads(#[source] io::Error),
    /// The ends of the file.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A part of the file.
    #[error("{place} is damaged: {fault}")]
    Damaged {
        /// Which.
        place: Place,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A chunk that was to come.
    #[error("{place} has not come")]
    Awaited {
        /// Which.
        place: Place,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A part of a later floe.
    #[error("{place} has version {version}, which this floe does not read (it reads {known})")]
    Version {
        /// Which.
        place: Place,
        /// Its version.
        version: u16,
        /// The one that is known.
        known: u16,
    },
    /// A body that is intact but not what it should be.
    #[error("{place} can't be decoded")]
    Body {
        /// Whose.
        place: Place,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// The index.
    #[error("the index contradicts the file: {0}")]
    Index(&'static str),
    /// The parts do not fit together.
    #[error("the image contradicts itself")]
    Contradiction(#[from] Contradiction),
    /// The images that this one is based on.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An image that this one is based on.
    #[error("its base {name}")]
    Base {
        /// The name that it is known by.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Box<ReadError>,
    },
}

/// Reads one file of an image; the pages of its bases are missing still.
pub(super) fn load(file: File) -> Result<Image, ReadError> {
    let (index, bytes, end) = index(&file)?;
    let image = read_records(file, bytes, end, index)?;
    if image
        .chunks
        .first()
        .is_some_and(|chunk| chunk.first.0 != image.identity.first_page())
    {
        return Err(ReadError::Index(
            "its first page is not the one behind those of the image's base",
        ));
    }
    check::check(&image)?;
    Ok(image)
}

/// The index, how long the file is, and where the index begins.
fn index(file: &File) -> Result<(IndexRecord, u64, u64), ReadError> {
    let bytes = file.metadata().map_err(ReadError::Length)?.len();
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(FrameError::TooShort(bytes).into());
    }
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0)?;
    check_header(&header)?;
    let mut trailer = [0; TRAILER_BYTES];
    let end = bytes - TRAILER_BYTES as u64;
    read_at(file, &mut trailer, end)?;
    let at = check_trailer(&trailer, bytes)?;
    let index = read_index(&mut Ahead::new(file), at, end)?;
    check_index(&index, at)?;
    Ok((index, bytes, at))
}

/// Which image a file is, without a look at the rest.
pub(super) fn identity(file: &File) -> Result<IdentityRecord, ReadError> {
    let identity: IdentityRecord = only(all(file)?, "identity")?;
    // Its base is looked for by this name, before anything else is read.
    check::identity(&identity)?;
    Ok(identity)
}

/// Whose user namespace the tree of an image was in, without a look at the rest.
pub(super) fn owner(file: &File) -> Result<Option<OwnerRecord>, ReadError> {
    let owner = at_most_one(all(file)?, "owner")?;
    owner.iter().try_for_each(check::owner)?;
    Ok(owner)
}

/// The records of a kind.
fn all<R: Record>(file: &File) -> Result<Vec<R>, ReadError> {
    let (index, _, end) = index(file)?;
    let mut found = Vec::new();
    let mut ahead = Ahead::new(file);
    for (position, entry) in index.records.iter().enumerate() {
        if entry.kind == R::KIND {
            let place = Place::of(position, entry);
            push(&mut found, place, entry, &read_record(&mut ahead, place, entry, end)?)?;
        }
    }
    Ok(found)
}

/// The body of a record.
pub(super) fn body(image: &Image, position: usize) -> Result<Vec<u8>, ReadError> {
    let entry = &image.index.records[position];
    let end = image.bytes - TRAILER_BYTES as u64;
    read_record(&mut Ahead::new(image.file()), Place::of(position, entry), entry, end)
}

pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), ReadError> {
    let bytes = buffer.len();
    file.read_exact_at(buffer, offset)
        .map_err(|source| ReadError::Io { bytes, offset, source })
}

fn read_index(file: &mut Ahead<'_>, offset: u64, end: u64) -> Result<IndexRecord, ReadError> {
    let place = Place::Index { offset };
    let (envelope, body) = read_body(file, place, end)?;
    if offset + ENVELOPE_BYTES as u64 + envelope.length != end {
        return Err(ReadError::Index("it does not reach to the trailer"));
    }
    check_version(place, envelope.version, INDEX_VERSION)?;
    codec::decode(&body).map_err(|source| ReadError::Body { place, source })
}

/// The envelope and the body at a place, which must not reach beyond `end`.
fn read_body(file: &mut Ahead<'_>, place: Place, end: u64) -> Result<(Envelope, Vec<u8>), ReadError> {
    let damaged = |fault| ReadError::Damaged { place, fault };
    let begin = place.offset().saturating_add(ENVELOPE_BYTES as u64);
    let room = end.checked_sub(begin).ok_or(damaged(Fault::Outside))?;
    let mut bytes = [0; ENVELOPE_BYTES];
    file.read(&mut bytes, place.offset())?;
    let envelope = Envelope::from_bytes(&bytes).map_err(|error| damaged(error.into()))?;
    if envelope.kind != place.kind() {
        return Err(damaged(Fault::Mismatch));
    }
    if envelope.length > room {
        return Err(damaged(Fault::Outside));
    }
    if envelope.length > codec::BODY_LIMIT as u64 {
        return Err(damaged(Fault::TooLong(envelope.length)));
    }
    let mut body = vec![0; envelope.length as usize];
    file.read(&mut body, begin)?;
    if is_intact(&body, envelope.checksum) {
        Ok((envelope, body))
    } else {
        Err(damaged(Fault::Checksum))
    }
}

fn check_version(place: Place, version: u16, known: u16) -> Result<(), ReadError> {
    if version == known {
        Ok(())
    } else {
        Err(ReadError::Version { place, version, known })
    }
}

/// Every byte between header and index belongs to exactly one record or chunk, and pages are numbered without gaps, from
/// wherever they begin.
fn check_index(index: &IndexRecord, end: u64) -> Result<(), ReadError> {
    let records = index.records.iter().map(|entry| (entry.offset, entry.length));
    let chunks = index.chunks.iter().map(|chunk| (chunk.offset, u64::from(chunk.stored)));
    let mut places: Vec<(u64, u64)> = records.chain(chunks).collect();
    places.sort_unstable();
    let mut at = HEADER_BYTES as u64;
    for (offset, length) in places {
        if offset != at {
            return Err(ReadError::Index("its records overlap or leave gaps"));
        }
        at = offset
            .checked_add(ENVELOPE_BYTES as u64)
            .and_then(|at| at.checked_add(length))
            .ok_or(ReadError::Index("a length overflows"))?;
    }
    if at != end {
        return Err(ReadError::Index("its records do not reach to it"));
    }
    if index.records.iter().map(|entry| entry.length).sum::<u64>() > RECORDS_LIMIT {
        return Err(ReadError::Index("its records are longer than all together may be"));
    }
    let mut page = index.chunks.first().map_or(0, |chunk| chunk.first.0);
    for chunk in &index.chunks {
        let stored = PREFIX_BYTES + 1..=PREFIX_BYTES + CHUNK_BYTES;
        let pages = chunk.pages as usize;
        if chunk.first.0 != page || !(1..=CHUNK_PAGES).contains(&pages) || !stored.contains(&(chunk.stored as usize)) {
            return Err(ReadError::Index(
                "its chunks of pages are out of order or of an impossible size",
            ));
        }
        page = page
            .checked_add(u64::from(chunk.pages))
            .ok_or(ReadError::Index("its pages are more than can be numbered"))?;
    }
    Ok(())
}

fn read_records(file: File, bytes: u64, end: u64, mut index: IndexRecord) -> Result<Image, ReadError> {
    let mut headers: Vec<HeaderRecord> = Vec::new();
    let mut sandboxes: Vec<SandboxRecord> = Vec::new();
    let mut identities: Vec<IdentityRecord> = Vec::new();
    let mut owners: Vec<OwnerRecord> = Vec::new();
    let mut machines: Vec<MachineRecord> = Vec::new();
    let mut records = Records::default();
    let mut ahead = Ahead::new(&file);
    for (position, entry) in index.records.iter().enumerate() {
        let place = Place::of(position, entry);
        let body = read_record(&mut ahead, place, entry, end)?;
        match entry.kind {
            RecordKind::Header => push(&mut headers, place, entry, &body)?,
            RecordKind::Sandbox => push(&mut sandboxes, place, entry, &body)?,
            RecordKind::Process => push(&mut records.processes, place, entry, &body)?,
            RecordKind::AddressSpace => push(&mut records.address_spaces, place, entry, &body)?,
            RecordKind::MappedFile => push(&mut records.mapped_files, place, entry, &body)?,
            RecordKind::Shmem => push(&mut records.shmems, place, entry, &body)?,
            RecordKind::Ghost => push(&mut records.ghosts, place, entry, &body)?,
            RecordKind::OpenFile => push(&mut records.open_files, place, entry, &body)?,
            RecordKind::Object => push(&mut records.objects, place, entry, &body)?,
            RecordKind::DescriptorTable => push(&mut records.descriptor_tables, place, entry, &body)?,
            RecordKind::PageMap => push(&mut records.page_maps, place, entry, &body)?,
            RecordKind::MountNamespace => push(&mut records.mount_namespaces, place, entry, &body)?,
            RecordKind::Filesystem => push(&mut records.filesystems, place, entry, &body)?,
            RecordKind::Network => push(&mut records.networks, place, entry, &body)?,
            RecordKind::Identity => push(&mut identities, place, entry, &body)?,
            RecordKind::Owner => push(&mut owners, place, entry, &body)?,
            RecordKind::Machine => push(&mut machines, place, entry, &body)?,
            RecordKind::Pages | RecordKind::Index => {
                return Err(ReadError::Index("it lists pages or itself as a record"));
            }
        }
    }
    if index.records.first().map(|entry| (entry.kind, entry.offset)) != Some((RecordKind::Header, HEADER_BYTES as u64))
    {
        return Err(ReadError::Index("the first record is not a header"));
    }
    Ok(Image {
        layers: vec![Layer::own(file)],
        coming: None,
        chunks: std::mem::take(&mut index.chunks),
        own_chunks: 0,
        bytes,
        index,
        identity: only(identities, "identity")?,
        header: only(headers, "header")?,
        sandbox: only(sandboxes, "sandbox")?,
        owner: at_most_one(owners, "owner")?,
        machine: at_most_one(machines, "machine")?,
        records,
    })
}

fn read_record(file: &mut Ahead<'_>, place: Place, entry: &RecordEntry, end: u64) -> Result<Vec<u8>, ReadError> {
    let (envelope, body) = read_body(file, place, end)?;
    if envelope.version != entry.version || envelope.length != entry.length {
        let fault = Fault::Mismatch;
        return Err(ReadError::Damaged { place, fault });
    }
    Ok(body)
}

fn push<R: Record>(list: &mut Vec<R>, place: Place, entry: &RecordEntry, body: &[u8]) -> Result<(), ReadError> {
    check_version(place, entry.version, R::VERSION)?;
    list.push(codec::decode(body).map_err(|source| ReadError::Body { place, source })?);
    Ok(())
}

fn only<T>(found: Vec<T>, what: &'static str) -> Result<T, ReadError> {
    Ok(at_most_one(found, what)?.ok_or(Contradiction::Missing(what))?)
}

fn at_most_one<T>(mut found: Vec<T>, what: &'static str) -> Result<Option<T>, ReadError> {
    let last = found.pop();
    if found.is_empty() {
        Ok(last)
    } else {
        Err(Contradiction::Repeated(what).into())
    }
}
