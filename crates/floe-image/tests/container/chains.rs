//! Images that are based on others: they read as one, and whatever does not make a chain is refused with its name.

use crate::{
    sample::{self, Sample, noise},
    shared::{chain, written},
};
use floe_image::{ChunkScratch, Image, ImageFiles, MAX_BASES, ReadError, chunk::PAGE_BYTES, record::*};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The name of the image with this number.
fn name(number: usize) -> String {
    format!("{number}.floe")
}

fn id(number: usize) -> ImageId {
    ImageId([number as u8 + 1; 16])
}

/// An image of two pages of its own, of which its process has the second at the second place, and a page of each base.
fn link(number: usize) -> Sample {
    let mut sample = sample::tiny();
    let first = 2 * number as u64;
    sample.identity = IdentityRecord {
        id: id(number),
        base: number.checked_sub(1).map(|base| BaseRecord {
            id: id(base),
            name: name(base).into_bytes(),
            pages: first,
        }),
    };
    sample.chunks = vec![noise(number as u64 + 9, 2 * PAGE_BYTES)];
    for run in &mut sample.page_maps[0].runs {
        run.first = PageId(first);
    }
    sample
}

/// A folder with a chain of images, and the path of the last one.
fn chain_of(count: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    (0..count).for_each(|number| put(folder.path(), number, &link(number)));
    let last = folder.path().join(name(count - 1));
    (folder, last)
}

fn put(folder: &Path, number: usize, sample: &Sample) {
    fs::write(folder.join(name(number)), written(sample)).expect("write");
}

fn open_with(path: &Path, given: &[PathBuf]) -> Result<Image, ReadError> {
    let file = File::open(path).expect("open");
    Image::open(ImageFiles::find(file, Some(path), given)?)
}

fn refused(path: &Path) -> String {
    match open_with(path, &[]) {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => chain(&error),
    }
}

#[test]
fn the_pages_of_a_chain_are_numbered_through() {
    let (_folder, last) = chain_of(5);
    let image = open_with(&last, &[]).expect("open");
    assert_eq!((image.bases(), image.stored_pages()), (4, 10));
    assert_eq!((image.chunks().len(), image.own_chunks().len()), (5, 1));
    let mut scratch = ChunkScratch::default();
    for number in 0..5_u64 {
        let chunk = image.chunks()[image.chunk_of(PageId(2 * number + 1)).expect("stored")];
        let pages = image.read_chunk(&chunk, &mut scratch).expect("read");
        assert!(pages == noise(number + 9, 2 * PAGE_BYTES), "of image {number}");
    }
    let report = image.verify(|_| {}).expect("verify");
    assert_eq!((report.chunks, report.pages), (5, 10));
}

#[test]
fn an_image_without_pages_of_its_own_is_one_too() {
    let (folder, _) = chain_of(2);
    let mut sample = link(2);
    sample.chunks.clear();
    sample.page_maps[0]
        .runs
        .iter_mut()
        .for_each(|run| run.first = PageId(0));
    put(folder.path(), 2, &sample);
    let mut above = link(3);
    above.identity.base.as_mut().expect("it has one").pages = 4;
    above.page_maps[0].runs.iter_mut().for_each(|run| run.first = PageId(4));
    put(folder.path(), 3, &above);
    let image = open_with(&folder.path().join(name(3)), &[]).expect("open");
    assert_eq!((image.stored_pages(), image.chunks().len()), (6, 3));
    image.verify(|_| {}).expect("verify");
}

#[test]
fn a_base_is_found_beside_the_image_or_where_it_is_said() {
    let (folder, last) = chain_of(3);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let moved = elsewhere.path().join("moved");
    fs::rename(folder.path().join(name(1)), &moved).expect("move");
    let text = refused(&last);
    assert!(
        text.contains("needs the image 1.floe (id 02020202") && text.contains("--base"),
        "{text}"
    );
    // The one that it is based on itself is looked for beside it now.
    let text = chain(&open_with(&last, std::slice::from_ref(&moved)).expect_err("the oldest is not there"));
    assert!(text.contains("needs the image 0.floe"), "{text}");
    fs::rename(folder.path().join(name(0)), elsewhere.path().join(name(0))).expect("move");
    open_with(&last, std::slice::from_ref(&moved)).expect("open");
    let oldest = elsewhere.path().join(name(0));
    open_with(&last, &[oldest, moved]).expect("open, whatever the order");
    // Without a place of its own nothing is beside it.
    let file = File::open(&last).expect("open");
    let text = chain(&ImageFiles::find(file, None, &[]).expect_err("a stream"));
    assert!(text.starts_with("the image needs the image 1.floe"), "{text}");
    // Nor is it taken for whole by who knows no chains.
    let text = chain(&Image::open(File::open(&last).expect("open")).expect_err("a base is missing"));
    assert!(text.contains("needs the image 1.floe"), "{text}");
}

#[test]
fn what_makes_no_chain_is_refused() {
    let (folder, last) = chain_of(3);
    let oldest = folder.path().join(name(0));
    // Another image under the name of the base.
    let mut other = link(0);
    other.identity.id = ImageId([0xee; 16]);
    put(folder.path(), 0, &other);
    let text = refused(&last);
    assert!(text.contains("is another one, of id eeeeeeee"), "{text}");
    // The right id, but other pages.
    let mut other = link(0);
    other.chunks.push(noise(3, PAGE_BYTES));
    put(folder.path(), 0, &other);
    let text = refused(&last);
    assert!(
        text.contains("counts 2 pages in its base") && text.contains("which has 3"),
        "{text}"
    );
    // A damaged one.
    put(folder.path(), 0, &link(0));
    let mut bytes = fs::read(&oldest).expect("read");
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    fs::write(&oldest, &bytes).expect("write");
    let text = refused(&last);
    assert!(
        text.contains("its base") && text.contains("0.floe") && text.contains("damaged"),
        "{text}"
    );
    // Cut short.
    fs::write(&oldest, &bytes[..bytes.len() / 2]).expect("write");
    assert!(refused(&last).contains("cut short"));
}

#[test]
fn damage_in_a_base_is_told_with_its_name() {
    let (folder, last) = chain_of(3);
    let oldest = folder.path().join(name(0));
    let image = open_with(&last, &[]).expect("open");
    let chunk = image.chunks()[0];
    let mut bytes = fs::read(&oldest).expect("read");
    bytes[chunk.offset as usize + 1000] ^= 1;
    fs::write(&oldest, &bytes).expect("write");
    let error = open_with(&last, &[]).expect("records are whole").verify(|_| {});
    let text = chain(&error.expect_err("a page is not"));
    assert!(text.contains("0.floe: the chunk of pages 0 to 1 at byte"), "{text}");
}

#[test]
fn circles_and_chains_without_end_are_refused() {
    let (folder, last) = chain_of(3);
    // The oldest one says that it is based on the youngest.
    let mut circle = link(0);
    circle.identity.base = Some(BaseRecord {
        id: id(2),
        name: name(2).into_bytes(),
        pages: 0,
    });
    put(folder.path(), 0, &circle);
    assert!(refused(&last).contains("the image is based on itself: id 03030303"));
    let itself = {
        let mut sample = link(1);
        let base = sample.identity.base.as_mut().expect("it has one");
        (base.id, base.name) = (id(1), name(1).into_bytes());
        sample
    };
    put(folder.path(), 1, &itself);
    let text = refused(&folder.path().join(name(1)));
    assert!(text.contains("itself"), "{text}");
    let (_folder, last) = chain_of(MAX_BASES + 1);
    open_with(&last, &[]).expect("so many are allowed");
    let (_folder, last) = chain_of(MAX_BASES + 2);
    assert!(refused(&last).contains("more than 64 images"));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for bad in [
        &b""[..],
        b".",
        b"..",
        b"../0.floe",
        b"/etc/passwd",
        b"a\0b",
        &[b'x'; 256],
    ] {
        let mut sample = link(1);
        sample.identity.base.as_mut().expect("it has one").name = bad.to_vec();
        let (folder, _) = chain_of(1);
        put(folder.path(), 1, &sample);
        let path = folder.path().join(name(1));
        // Before anything is opened by it, also where the base is given.
        for given in [&[][..], &[folder.path().join(name(0))]] {
            let files = ImageFiles::find(File::open(&path).expect("open"), Some(&path), given);
            let text = chain(&files.expect_err("a bad name"));
            assert!(
                text.contains("the image that it is based on has no name of a file"),
                "{text}"
            );
        }
    }
}

#[test]
fn pages_that_no_base_has_are_refused() {
    let (folder, last) = chain_of(2);
    let mut sample = link(1);
    sample.page_maps[0].runs[0].first = PageId(40);
    put(folder.path(), 1, &sample);
    assert!(refused(&last).contains("are not stored"));
    // A chunk that would stand in for one of the base.
    let mut sample = link(1);
    sample.identity.base.as_mut().expect("it has one").pages = 1;
    put(folder.path(), 1, &sample);
    let text = refused(&last);
    assert!(text.contains("counts 1 pages in its base"), "{text}");
}

/// Whoever opens one waits for its other end.
#[test]
fn a_base_that_is_no_regular_file_is_refused_and_not_opened() {
    let (folder, last) = chain_of(2);
    let base = folder.path().join(name(0));
    fs::remove_file(&base).expect("remove");
    let made = std::process::Command::new("mkfifo").arg(&base).status();
    assert!(made.expect("run mkfifo").success());
    assert!(refused(&last).contains("it is no regular file"));
    fs::remove_file(&base).expect("remove");
    std::os::unix::fs::symlink("/dev/zero", &base).expect("link");
    assert!(refused(&last).contains("it is no regular file"));
    fs::remove_file(&base).expect("remove");
    fs::create_dir(&base).expect("a directory");
    assert!(refused(&last).contains("it is no regular file"));
}
