//! Reads an image: all records at once, pages when they are wanted, from any thread.

use crate::{
    check,
    chunk::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, PREFIX_BYTES, prefix},
    codec::{self, DecodeError},
    envelope::{ENVELOPE_BYTES, Envelope, FrameError, HEADER_BYTES, TRAILER_BYTES, check_header, check_trailer},
    record::{
        AddressSpaceRecord, Chunk, DescriptorTableRecord, GhostRecord, HeaderRecord, IndexRecord, MappedFileRecord,
        ObjectRecord, OpenFileRecord, PageId, PageMapRecord, ProcessRecord, Record, RecordEntry, RecordKind,
        SandboxRecord, ShmemRecord,
    },
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

/// An image that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("read the image file")]
    Io(#[from] io::Error),
    /// Empty or shorter than the smallest image.
    #[error("not a floe image: {0} bytes are too few for one")]
    TooShort(u64),
    /// A fixed part.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A part somewhere in the middle.
    #[error("the record at byte {offset}: {source}")]
    Record {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A body.
    #[error("the {kind:?} record at byte {offset} can't be decoded")]
    Body {
        /// Its kind.
        kind: RecordKind,
        /// Where.
        offset: u64,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// A version of a later floe.
    #[error("the {kind:?} record at byte {offset} has version {version}, which this floe does not read")]
    Version {
        /// Its kind.
        kind: RecordKind,
        /// Where.
        offset: u64,
        /// Its version.
        version: u16,
    },
    /// The parts do not fit together.
    #[error("the image contradicts itself: {0}")]
    Inconsistent(String),
}

/// An image, its records read and checked.
#[derive(Debug)]
pub struct Image {
    file: File,
    bytes: u64,
    index: IndexRecord,
    header: HeaderRecord,
    sandbox: SandboxRecord,
    records: Records,
}

#[derive(Debug, Default)]
struct Records {
    processes: Vec<ProcessRecord>,
    address_spaces: Vec<AddressSpaceRecord>,
    mapped_files: Vec<MappedFileRecord>,
    shmems: Vec<ShmemRecord>,
    ghosts: Vec<GhostRecord>,
    open_files: Vec<OpenFileRecord>,
    objects: Vec<ObjectRecord>,
    descriptor_tables: Vec<DescriptorTableRecord>,
    page_maps: Vec<PageMapRecord>,
}

/// Memory that reading chunks reuses.
#[derive(Debug, Default)]
pub struct ChunkScratch {
    stored: Vec<u8>,
    pages: Vec<u8>,
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident: $record:ty),+ $(,)?) => {
        $($(#[$doc])* #[must_use] pub fn $name(&self) -> &[$record] { &self.records.$name })+
    };
}

impl Image {
    lists! {
        /// Processes.
        processes: ProcessRecord,
        /// Address spaces.
        address_spaces: AddressSpaceRecord,
        /// Mapped files.
        mapped_files: MappedFileRecord,
        /// Shared anonymous memory.
        shmems: ShmemRecord,
        /// Deleted files.
        ghosts: GhostRecord,
        /// Open file descriptions.
        open_files: OpenFileRecord,
        /// What open files share.
        objects: ObjectRecord,
        /// Descriptor tables.
        descriptor_tables: DescriptorTableRecord,
        /// Page maps.
        page_maps: PageMapRecord,
    }

    /// Reads all records and checks that they fit together. Chunks of pages are only located.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(file: File) -> Result<Self, ReadError> {
        let bytes = file.metadata()?.len();
        if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(ReadError::TooShort(bytes));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        check_header(&header)?;
        let mut trailer = [0; TRAILER_BYTES];
        let end = bytes - TRAILER_BYTES as u64;
        file.read_exact_at(&mut trailer, end)?;
        let at = check_trailer(&trailer, bytes)?;
        let index = read_index(&file, at, end)?;
        check_places(&index, at)?;
        Self::read_records(file, bytes, index)
    }

    fn read_records(file: File, bytes: u64, index: IndexRecord) -> Result<Self, ReadError> {
        let mut headers = Vec::new();
        let mut sandboxes = Vec::new();
        let mut records = Records::default();
        let end = bytes - TRAILER_BYTES as u64;
        for entry in &index.records {
            let body = read_body(&file, entry.offset, end, entry.kind, entry.version)?;
            match entry.kind {
                RecordKind::Header => headers.push(decode(entry, &body)?),
                RecordKind::Sandbox => sandboxes.push(decode(entry, &body)?),
                RecordKind::Process => records.processes.push(decode(entry, &body)?),
                RecordKind::AddressSpace => records.address_spaces.push(decode(entry, &body)?),
                RecordKind::MappedFile => records.mapped_files.push(decode(entry, &body)?),
                RecordKind::Shmem => records.shmems.push(decode(entry, &body)?),
                RecordKind::Ghost => records.ghosts.push(decode(entry, &body)?),
                RecordKind::OpenFile => records.open_files.push(decode(entry, &body)?),
                RecordKind::Object => records.objects.push(decode(entry, &body)?),
                RecordKind::DescriptorTable => records.descriptor_tables.push(decode(entry, &body)?),
                RecordKind::PageMap => records.page_maps.push(decode(entry, &body)?),
                RecordKind::Pages | RecordKind::Index => {
                    return Err(ReadError::Inconsistent(
                        "pages or index are listed as a record".to_owned(),
                    ));
                }
            }
        }
        let image = Self {
            file,
            bytes,
            index,
            header: only(headers, "header")?,
            sandbox: only(sandboxes, "sandbox")?,
            records,
        };
        check::check(&image).map_err(ReadError::Inconsistent)?;
        Ok(image)
    }

    /// Where the image was made.
    #[must_use]
    pub fn header(&self) -> &HeaderRecord {
        &self.header
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxRecord {
        &self.sandbox
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where each record stands.
    #[must_use]
    pub fn entries(&self) -> &[RecordEntry] {
        &self.index.records
    }

    /// Chunks of pages, by first page.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.index.chunks
    }

    /// How many pages are stored.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.index
            .chunks
            .last()
            .map_or(0, |chunk| chunk.first.0 + u64::from(chunk.pages))
    }

    /// Position in [`Image::chunks`] of the chunk that holds a page.
    #[must_use]
    pub fn chunk_of(&self, page: PageId) -> Option<usize> {
        let index = self
            .index
            .chunks
            .partition_point(|chunk| chunk.first <= page)
            .checked_sub(1)?;
        let chunk = &self.index.chunks[index];
        (page.0 - chunk.first.0 < u64::from(chunk.pages)).then_some(index)
    }

    /// The pages of a chunk, checked and unpacked.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_chunk<'a>(&self, chunk: &Chunk, scratch: &'a mut ChunkScratch) -> Result<&'a [u8], ReadError> {
        let damaged = |what| ReadError::Record {
            offset: chunk.offset,
            source: FrameError::Damaged(what),
        };
        let stored = chunk.stored as usize;
        if !(PREFIX_BYTES..=PREFIX_BYTES + CHUNK_BYTES).contains(&stored) {
            return Err(damaged("a chunk of pages has an impossible length"));
        }
        scratch.stored.resize(ENVELOPE_BYTES + stored, 0);
        self.file.read_exact_at(&mut scratch.stored, chunk.offset)?;
        let (envelope, body) = scratch.stored.split_at(ENVELOPE_BYTES);
        let envelope =
            Envelope::from_bytes(envelope.try_into().expect("split there")).map_err(|source| ReadError::Record {
                offset: chunk.offset,
                source,
            })?;
        if envelope.kind != RecordKind::Pages || envelope.version != 1 || envelope.length != stored as u64 {
            return Err(damaged("a chunk of pages is not where the index says"));
        }
        if crc32c::crc32c(body) != envelope.checksum {
            return Err(damaged("a chunk of pages has another checksum"));
        }
        let (front, bytes) = body.split_at(PREFIX_BYTES);
        if front != prefix(chunk.first.0, chunk.pages, chunk.compressed) {
            return Err(damaged("a chunk of pages is not the one in the index"));
        }
        let wanted = chunk.pages as usize * PAGE_BYTES;
        if !chunk.compressed {
            return if bytes.len() == wanted {
                Ok(bytes)
            } else {
                Err(damaged("a raw chunk has another length"))
            };
        }
        scratch.pages.resize(CHUNK_BYTES, 0);
        let got = zstd::bulk::decompress_to_buffer(bytes, &mut scratch.pages[..wanted])
            .map_err(|_| damaged("a chunk of pages can't be unpacked"))?;
        if got == wanted {
            Ok(&scratch.pages[..wanted])
        } else {
            Err(damaged("a chunk unpacks to another length"))
        }
    }

    /// Reads and checks every chunk; `progress` is told the bytes of pages done.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<(), ReadError> {
        let mut scratch = ChunkScratch::default();
        let mut done = 0;
        for chunk in self.chunks() {
            done += self.read_chunk(chunk, &mut scratch)?.len() as u64;
            progress(done);
        }
        Ok(())
    }
}

fn only<T>(mut found: Vec<T>, what: &str) -> Result<T, ReadError> {
    match (found.pop(), found.is_empty()) {
        (Some(record), true) => Ok(record),
        (None, _) => Err(ReadError::Inconsistent(format!("it has no {what} record"))),
        (Some(_), false) => Err(ReadError::Inconsistent(format!("it has more than one {what} record"))),
    }
}

fn read_index(file: &File, at: u64, end: u64) -> Result<IndexRecord, ReadError> {
    let body = read_body(file, at, end, RecordKind::Index, 1)?;
    if at + ENVELOPE_BYTES as u64 + body.len() as u64 != end {
        return Err(ReadError::Inconsistent(
            "the index does not reach to the trailer".to_owned(),
        ));
    }
    codec::decode(&body).map_err(|source| ReadError::Body {
        kind: RecordKind::Index,
        offset: at,
        source,
    })
}

/// Every byte between header and index belongs to exactly one record or chunk.
fn check_places(index: &IndexRecord, end: u64) -> Result<(), ReadError> {
    let wrong = |what: &str| ReadError::Inconsistent(format!("the index: {what}"));
    let records = index.records.iter().map(|entry| (entry.offset, entry.length));
    let chunks = index.chunks.iter().map(|chunk| (chunk.offset, u64::from(chunk.stored)));
    let mut places: Vec<(u64, u64)> = records.chain(chunks).collect();
    places.sort_unstable();
    let mut at = HEADER_BYTES as u64;
    for (offset, length) in places {
        if offset != at {
            return Err(wrong("records overlap or leave gaps"));
        }
        at = offset
            .checked_add(ENVELOPE_BYTES as u64)
            .and_then(|at| at.checked_add(length))
            .ok_or_else(|| wrong("a length overflows"))?;
    }
    if at != end {
        return Err(wrong("records do not reach to the index"));
    }
    let mut page = 0;
    for chunk in &index.chunks {
        let pages = chunk.pages as usize;
        if chunk.first.0 != page || pages == 0 || pages > CHUNK_PAGES {
            return Err(wrong("chunks of pages are not in order"));
        }
        page += u64::from(chunk.pages);
    }
    Ok(())
}

fn read_body(file: &File, offset: u64, end: u64, kind: RecordKind, version: u16) -> Result<Vec<u8>, ReadError> {
    let at = |source| ReadError::Record { offset, source };
    let room = end
        .checked_sub(offset)
        .and_then(|room| room.checked_sub(ENVELOPE_BYTES as u64));
    let room = room.ok_or(at(FrameError::Damaged("it lies outside of the file")))?;
    let mut bytes = [0; ENVELOPE_BYTES];
    file.read_exact_at(&mut bytes, offset)?;
    let envelope = Envelope::from_bytes(&bytes).map_err(at)?;
    if envelope.kind != kind || envelope.version != version {
        return Err(at(FrameError::Damaged("it is not the record that the index names")));
    }
    if envelope.length > room || envelope.length > codec::BODY_LIMIT as u64 {
        return Err(at(FrameError::Damaged("its length is impossible")));
    }
    let mut body = vec![0; envelope.length as usize];
    file.read_exact_at(&mut body, offset + ENVELOPE_BYTES as u64)?;
    if crc32c::crc32c(&body) != envelope.checksum {
        return Err(at(FrameError::Damaged("its checksum differs")));
    }
    Ok(body)
}

fn decode<R: Record>(entry: &RecordEntry, body: &[u8]) -> Result<R, ReadError> {
    let RecordEntry {
        kind, version, offset, ..
    } = *entry;
    if version != R::VERSION {
        return Err(ReadError::Version { kind, offset, version });
    }
    codec::decode(body).map_err(|source| ReadError::Body { kind, offset, source })
}

/// Copies a stream into a temporary file without a name, so that it can be read as an image.
///
/// # Errors
/// Those of reading and writing.
pub fn spool(mut stream: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut stream, &mut file)?;
    file.flush()?;
    Ok(file)
}
