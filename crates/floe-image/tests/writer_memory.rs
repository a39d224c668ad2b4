//! Writing takes a fixed amount of memory however much is written. The only test of its program, so that the program's
//! memory is the writer's.

use floe_image::{ImageWriter, WriteOptions, record::ObjectRecord};
use std::io;

/// Pages written, 1 MiB at a time.
const CHUNKS: u32 = 300;
/// Two buffers for each of 2 workers, zstd's own memory, and two of the large records, encoded and not.
const ALLOWED: u64 = 28 << 20;

/// Bytes of a line of /proc/self/status.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
    let line = text.lines().find(|line| line.starts_with(name)).expect("the line");
    let kilobytes = line.split_whitespace().nth(1).expect("a number");
    kilobytes.parse::<u64>().expect("a number") << 10
}

#[test]
fn memory_does_not_grow_with_what_is_written() {
    let before = status("VmRSS");
    let options = WriteOptions {
        level: 1.into(),
        workers: 2,
        first_page: 0,
    };
    let mut writer = ImageWriter::start(Box::new(io::sink()), &options).expect("start");
    for number in 0..CHUNKS {
        let fill = move |buffer: &mut [u8]| {
            let mut state = u64::from(number);
            for word in buffer.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let value = if number % 3 == 0 {
                    number.into()
                } else {
                    state.rotate_left(29)
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
            Ok(())
        };
        writer.store(256, fill).expect("store");
        if number % 10 == 0 {
            let record = ObjectRecord {
                kind: "pipe".to_owned(),
                id: number,
                version: 1,
                body: vec![1; 4 << 20],
            };
            writer.record(&record).expect("write");
        }
    }
    let (_, summary) = writer.finish().expect("finish");
    assert_eq!(summary.pages, u64::from(CHUNKS) * 256);
    assert_eq!((summary.raw_chunks, summary.compressed_chunks), (200, 100));
    let took = status("VmHWM") - before;
    assert!(took < ALLOWED, "writing took {took} bytes");
}
