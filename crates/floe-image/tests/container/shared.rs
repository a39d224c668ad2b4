//! Sinks and small steps that several of these tests take.

use crate::{forge, sample::Sample};
use floe_image::{ChunkScratch, Image, ReadError, VerifyReport, chunk::PAGE_BYTES, record::PageId};
use std::{
    error::Error,
    io::{self, Write},
    sync::{Arc, Mutex},
};

/// A sink in memory, of which the test keeps the other end.
#[derive(Debug, Clone, Default)]
pub struct Shelf(pub Arc<Mutex<Vec<u8>>>);

impl Shelf {
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().expect("no sink panicked"))
    }
}

impl Write for Shelf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no sink panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of an image of this content.
pub fn written(sample: &Sample) -> Vec<u8> {
    let shelf = Shelf::default();
    sample.write(Box::new(shelf.clone())).expect("write an image");
    shelf.take()
}

pub fn open(bytes: &[u8]) -> Result<Image, ReadError> {
    Image::open(forge::file(bytes))
}

/// Opens and verifies.
pub fn read_all(bytes: &[u8]) -> Result<VerifyReport, ReadError> {
    open(bytes)?.verify(|_| {})
}

/// An error with its causes, as the command prints it.
pub fn chain(error: &ReadError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// The error of bytes that must not read.
pub fn refusal(bytes: &[u8]) -> String {
    match read_all(bytes) {
        Ok(report) => panic!("this was to be refused: {report:?}"),
        Err(error) => chain(&error),
    }
}

/// All stored pages, one after the other.
pub fn all_pages(image: &Image) -> Vec<u8> {
    let mut scratch = ChunkScratch::default();
    let mut pages = Vec::new();
    for (position, chunk) in image.chunks().iter().enumerate() {
        assert_eq!(image.chunk_of(chunk.first), Some(position));
        assert_eq!(image.chunk_of(PageId(chunk.end() - 1)), Some(position));
        assert_eq!(chunk.first.0 as usize * PAGE_BYTES, pages.len());
        pages.extend_from_slice(image.read_chunk(chunk, &mut scratch).expect("read a chunk"));
    }
    assert_eq!(image.chunk_of(PageId(image.stored_pages())), None);
    pages
}

/// Every record and page is as in the sample.
pub fn compare(image: &Image, sample: &Sample, whose: &str) {
    assert_eq!(image.header(), &sample.header, "{whose}");
    assert_eq!(image.identity(), &sample.identity, "{whose}");
    assert_eq!(image.sandbox(), &sample.sandbox, "{whose}");
    assert_eq!(image.processes(), sample.processes, "{whose}");
    assert_eq!(image.address_spaces(), sample.address_spaces, "{whose}");
    assert_eq!(image.mapped_files(), sample.mapped_files, "{whose}");
    assert_eq!(image.shmems(), sample.shmems, "{whose}");
    assert_eq!(image.ghosts(), sample.ghosts, "{whose}");
    assert_eq!(image.open_files(), sample.open_files, "{whose}");
    assert_eq!(image.objects(), sample.objects, "{whose}");
    assert_eq!(image.descriptor_tables(), sample.descriptor_tables, "{whose}");
    assert_eq!(image.page_maps(), sample.page_maps, "{whose}");
    assert_eq!(image.mount_namespaces(), sample.mount_namespaces, "{whose}");
    assert_eq!(image.filesystems(), sample.filesystems, "{whose}");
    assert_eq!(image.networks(), sample.networks, "{whose}");
    assert_eq!(image.owner(), sample.owner.as_ref(), "{whose}");
    assert_eq!(image.machine(), sample.machine.as_ref(), "{whose}");
    let pages: Vec<usize> = image.chunks().iter().map(|chunk| chunk.page_bytes()).collect();
    let wanted: Vec<usize> = sample.chunks.iter().map(Vec::len).collect();
    assert_eq!(pages, wanted, "{whose}: the sizes of the chunks");
    assert!(all_pages(image) == sample.chunks.concat(), "{whose}: pages differ");
}
