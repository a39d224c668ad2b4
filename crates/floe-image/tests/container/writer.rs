//! A writer whose output fails, hangs back or is given up: an error, never a hang, and nothing that reads as an image.

use crate::{
    sample::{self, noise},
    shared::{Shelf, open, written},
};
use floe_image::{
    FillError, ImageWriter, WriteError, WriteOptions,
    chunk::{CHUNK_PAGES, PAGE_BYTES},
    record::{ObjectRecord, PageId},
};
use std::{
    io::{self, Write},
    sync::{Arc, atomic::Ordering},
};

/// A sink that takes so many bytes and then fails.
struct Full {
    room: usize,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Error,
    Nothing,
    Panic,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        match (taken, self.how) {
            (0, How::Error) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            (0, How::Panic) => panic!("a sink that panics, on purpose"),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn object(id: u32, bytes: usize) -> ObjectRecord {
    ObjectRecord {
        kind: "pipe".to_owned(),
        id,
        version: 1,
        body: vec![7; bytes],
    }
}

/// More of everything than all queues hold: 80 chunks of noise and 100 records, some of them large.
fn write_much(sink: Box<dyn Write + Send>, pages: usize) -> Result<(), WriteError> {
    let options = WriteOptions {
        level: 1.into(),
        workers: 3,
        first_page: 0,
    };
    let mut writer = ImageWriter::start(sink, &options)?;
    let content = Arc::new(noise(1, pages * PAGE_BYTES));
    let result = (0..80_u32).try_for_each(|number| {
        let content = Arc::clone(&content);
        writer.store(pages, move |buffer| {
            buffer.copy_from_slice(&content);
            Ok(())
        })?;
        writer.record(&object(number, if number % 20 == 0 { 70_000 } else { 100 }))
    });
    if let Err(error) = result {
        // Once there was an error every further call is one.
        assert!(matches!(writer.store(1, zeros).map(drop), Err(WriteError::GivenUp)));
        assert!(matches!(writer.record(&object(0, 1)), Err(WriteError::GivenUp)));
        assert!(matches!(writer.finish().map(drop), Err(WriteError::GivenUp)));
        return Err(error);
    }
    writer.finish().map(drop)
}

#[test]
fn a_sink_that_fails_at_any_byte_is_an_error() {
    let length = written(&sample::whole()).len();
    for room in (0..length).step_by(61).chain(length - 40..length) {
        let how = if room % 2 == 0 { How::Error } else { How::Nothing };
        let error = sample::whole()
            .write(Box::new(Full { room, how }))
            .expect_err("the sink is full");
        let WriteError::Io(error) = error else {
            panic!("{room}: {error:?}")
        };
        let wanted = if room % 2 == 0 {
            io::ErrorKind::StorageFull
        } else {
            io::ErrorKind::WriteZero
        };
        assert_eq!(error.kind(), wanted, "after {room} bytes");
    }
    let how = How::Error;
    sample::whole()
        .write(Box::new(Full { room: length, how }))
        .expect("there is room");
}

#[test]
fn a_sink_that_fails_while_much_is_on_its_way_is_an_error() {
    for pages in [1, 16] {
        let most = 80 * pages * PAGE_BYTES;
        for room in (0..most).step_by(most / 60) {
            let how = How::Error;
            let error = write_much(Box::new(Full { room, how }), pages).expect_err("the sink is full");
            assert!(matches!(error, WriteError::Io(_)), "after {room} bytes: {error:?}");
        }
    }
    write_much(Box::new(io::sink()), 16).expect("a sink without a bottom");
}

#[test]
fn a_sink_that_panics_is_an_error() {
    for room in [16, 1 << 16, 1 << 20] {
        let how = How::Panic;
        let error = write_much(Box::new(Full { room, how }), 16).expect_err("the sink panicked");
        assert!(matches!(error, WriteError::Thread), "{error:?}");
    }
}

#[test]
fn an_image_that_is_not_finished_is_none() {
    for calls in 0..40 {
        let shelf = Shelf::default();
        let options = WriteOptions {
            level: 1.into(),
            workers: 2,
            first_page: 0,
        };
        let mut writer = ImageWriter::start(Box::new(shelf.clone()), &options).expect("start");
        writer.record(&sample::tiny().header).expect("write");
        for number in 0..calls {
            writer.store(1 + number % 5, zeros).expect("store");
            writer.record(&object(number as u32, 10_000)).expect("write");
        }
        drop(writer);
        assert!(open(&shelf.take()).is_err(), "after {calls} calls");
    }
}

#[test]
fn an_image_has_no_end_before_it_is_finished() {
    let image = written(&sample::whole());
    let end = &image[image.len() - 8..];
    let before = &image[..image.len() - 8];
    assert!(!before.windows(8).any(|window| window == end));
}

#[test]
fn chunks_of_no_or_too_many_pages_are_errors() {
    for pages in [0, CHUNK_PAGES + 1, usize::MAX] {
        let mut writer = ImageWriter::start(Box::new(io::sink()), &WriteOptions::default()).expect("start");
        assert!(matches!(writer.store(pages, zeros), Err(WriteError::ChunkPages(got)) if got == pages));
        assert!(matches!(writer.finish().map(drop), Err(WriteError::GivenUp)));
    }
}

#[test]
fn a_record_that_no_reader_takes_is_an_error() {
    let mut writer = ImageWriter::start(Box::new(io::sink()), &WriteOptions::default()).expect("start");
    let error = writer.record(&object(0, 257 << 20)).expect_err("too long");
    assert!(matches!(error, WriteError::Encode(_)), "{error:?}");
    assert!(matches!(writer.finish().map(drop), Err(WriteError::GivenUp)));
}

#[test]
fn pages_are_numbered_as_they_are_stored() {
    let mut writer = ImageWriter::start(Box::new(io::sink()), &WriteOptions::default()).expect("start");
    let progress = writer.progress();
    let mut next = 0;
    for pages in [1, 256, 3, 77] {
        assert_eq!(writer.store(pages, zeros).expect("store"), PageId(next));
        next += pages as u64;
    }
    let (_, summary) = writer.finish().expect("finish");
    assert_eq!((summary.pages, summary.compressed_chunks), (next, 4));
    assert_eq!(progress.load(Ordering::Relaxed), next * PAGE_BYTES as u64);
}

#[test]
fn a_fill_that_fails_or_panics_is_an_error() {
    for number in [0, 1, 7, 30, 79] {
        for panics in [false, true] {
            let error = fail_at(number, panics).expect_err("a fill failed");
            match error {
                WriteError::Fill(error) if !panics => assert_eq!(error.to_string(), "no such page"),
                WriteError::Thread if panics => {}
                other => panic!("chunk {number}: {other:?}"),
            }
        }
    }
}

/// Stores 80 chunks, the `number`th of which can't be had.
fn fail_at(number: usize, panics: bool) -> Result<(), WriteError> {
    let options = WriteOptions {
        level: 1.into(),
        workers: 2,
        first_page: 0,
    };
    let mut writer = ImageWriter::start(Box::new(io::sink()), &options)?;
    for chunk in 0..80 {
        writer.store(3, move |buffer| {
            buffer.fill(chunk as u8);
            assert!(!panics || chunk != number, "as the test wants it");
            if chunk == number {
                Err("no such page".into())
            } else {
                Ok(())
            }
        })?;
    }
    writer.finish().map(drop)
}

fn zeros(buffer: &mut [u8]) -> Result<(), FillError> {
    buffer.fill(0);
    Ok(())
}
