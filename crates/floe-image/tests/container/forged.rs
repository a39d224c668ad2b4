//! Images made to do harm: every checksum is right, what is under it is not. Each ends in one clear error, and reading
//! it takes no more memory than its length allows, whatever lengths it claims.

use crate::{
    dice,
    forge::{self, INDEX, PAGES, Part},
    hoard::peak_of,
    sample,
    shared::{read_all, refusal, written},
};
use floe_image::{Image, record::*};
use proptest::prelude::*;

/// What reading `length` bytes may take: records in memory are larger than in the file, but not much.
fn allowance(length: usize) -> usize {
    10 * length + (4 << 20)
}

/// Opens and verifies, within the allowance; the error, if it is one.
fn read_bounded(bytes: &[u8]) -> Option<String> {
    let file = forge::file(bytes);
    let (image, peak) = peak_of(|| Image::open(file));
    assert!(peak <= allowance(bytes.len()), "{} bytes took {peak}", bytes.len());
    let report = image.and_then(|image| image.verify(|_| {}));
    report.err().map(|error| crate::shared::chain(&error))
}

fn forged(change: impl FnOnce(&mut Vec<Part>)) -> String {
    let mut parts = forge::take_apart(&written(&sample::whole()));
    change(&mut parts);
    read_bounded(&forge::put_together(&parts)).expect("a forged image was to be refused")
}

#[test]
fn a_kind_of_a_later_floe_is_named() {
    let unknown = Part {
        kind: 99,
        version: 1,
        body: Vec::new(),
    };
    let error = forged(|parts| parts.push(unknown.clone()));
    assert!(
        error.starts_with("the index at byte ") && error.contains("can't be decoded"),
        "{error}"
    );
    // An index of this version that calls it by a name it knows.
    let mut parts = forge::take_apart(&written(&sample::tiny()));
    let index = forge::index(&parts);
    parts[3].kind = 99;
    let error = refusal(&forge::put_together_with(&parts, &index));
    assert!(
        error.starts_with("record 3 (process) at byte ") && error.ends_with("its kind, 99, is not known to this floe"),
        "{error}"
    );
}

#[test]
fn versions_of_a_later_floe_are_named() {
    let error = forged(|parts| parts[2].version = 2);
    assert!(
        error.starts_with("the chunk of pages 0 to 4 at byte ")
            && error.ends_with("has version 2, which this floe does not read (it reads 1)"),
        "{error}"
    );
    let error = forged(|parts| parts[1].version = 7);
    assert!(
        error.starts_with("record 2 (sandbox) at byte ")
            && error.ends_with("has version 7, which this floe does not read (it reads 1)"),
        "{error}"
    );
    let image = written(&sample::tiny());
    let parts = forge::take_apart(&image);
    let body = forge::index(&parts);
    let at = image.len() - forge::TRAILER_BYTES - body.len() - forge::ENVELOPE_BYTES;
    let newer = forge::envelope(INDEX, 2, body.len() as u64, &body);
    let bytes = [&image[..at], &newer, &image[at + newer.len()..]].concat();
    assert_eq!(
        refusal(&bytes),
        format!("the index at byte {at} has version 2, which this floe does not read (it reads 1)")
    );
}

#[test]
fn records_that_stand_twice_or_not_at_all_are_refused() {
    let texts = [
        (1, "the first record is not a header"),
        (2, "it has no sandbox record"),
        (3, "processes have no parent, exactly one must"),
        (4, "has no address space"),
        (5, "is mapped file 0, which is missing"),
        (6, "maps something that is missing"),
        (7, "is no deleted directory"),
        (8, "which is missing"),
        (10, "has no descriptor table"),
        (12, "has no page map"),
    ];
    for (kind, text) in texts {
        let error = forged(|parts| parts.retain(|part| part.kind != kind));
        assert!(error.contains(text), "without kind {kind}: {error}");
    }
    let second_file = format!("open file 0 stands at position {}", sample::whole().open_files.len());
    for (kind, text) in [
        (1, "it has more than one header record"),
        (2, "it has more than one sandbox record"),
        (3, "two tasks have the id 1"),
        (
            4,
            "an address space belongs to 1, which is no living process or has one already",
        ),
        (5, "mapped file 0 stands at position 2"),
        (6, "shared memory object 0 stands at position 1"),
        (7, "deleted file 0 stands at position 4"),
        (8, &second_file),
        (9, "two objects are pipe 0"),
        (
            10,
            "a descriptor table belongs to 1, which is no living process or has one already",
        ),
        (12, "process 1 has two page maps"),
    ] {
        let error = forged(|parts| {
            let first = parts
                .iter()
                .find(|part| part.kind == kind)
                .expect("one of each")
                .clone();
            parts.push(first);
        });
        assert_eq!(
            error.strip_prefix("the image contradicts itself: "),
            Some(text),
            "kind {kind} twice"
        );
    }
    let error = forged(|parts| parts.swap(0, 1));
    assert_eq!(
        error,
        "the index contradicts the file: the first record is not a header"
    );
}

#[test]
fn enormous_lengths_are_refused_without_room_for_them() {
    let image = written(&sample::tiny());
    let parts = forge::take_apart(&image);
    let index = forge::index(&parts);
    let at = forge::HEADER_BYTES + forge::ENVELOPE_BYTES + parts[0].body.len();
    for length in [1 << 20, 1 << 28, (1 << 28) + 1, 1 << 40, i64::MAX as u64, u64::MAX] {
        // In the envelope of the second record, and in the index too.
        let lying = forge::envelope(2, 1, length, &parts[1].body);
        let bytes = [&image[..at], &lying, &image[at + lying.len()..]].concat();
        let error = read_bounded(&bytes).expect("refused");
        assert!(
            error.starts_with(&format!("record 2 (sandbox) at byte {at} is damaged: ")),
            "{error}"
        );
        let second = 8 + 22 + 14;
        let index = [&index[..second], &length.to_le_bytes(), &index[second + 8..]].concat();
        let error = read_bounded(&forge::put_together_with(&parts, &index)).expect("refused");
        assert!(error.starts_with("the index contradicts the file: "), "{error}");
        // In the envelope of the index.
        let start = image.len() - forge::TRAILER_BYTES - forge::ENVELOPE_BYTES - index.len();
        let lying = forge::envelope(INDEX, 1, length, &image[start + 24..image.len() - 32]);
        let bytes = [&image[..start], &lying, &image[start + 24..]].concat();
        let error = read_bounded(&bytes).expect("refused");
        assert!(
            error.starts_with(&format!("the index at byte {start} is damaged: ")),
            "{error}"
        );
        // How many items the lists of the index have.
        for place in [0, index.len() - 25 - 8] {
            let mut index = forge::index(&parts);
            index[place..place + 8].copy_from_slice(&length.to_le_bytes());
            let error = read_bounded(&forge::put_together_with(&parts, &index)).expect("refused");
            assert!(error.contains("can't be decoded"), "{error}");
        }
    }
}

#[test]
fn enormous_lengths_inside_of_records_are_refused_without_room_for_them() {
    let parts = forge::take_apart(&written(&sample::whole()));
    let mut refused = 0;
    for (number, part) in parts.iter().enumerate().filter(|(_, part)| part.kind != PAGES) {
        for at in (0..part.body.len().saturating_sub(7)).step_by(if part.kind == 3 { 17 } else { 1 }) {
            let mut parts = parts.clone();
            let length = [u64::MAX, 1 << 40, 200 << 20, 60_000][at % 4];
            parts[number].body[at..at + 8].copy_from_slice(&length.to_le_bytes());
            refused += u32::from(read_bounded(&forge::put_together(&parts)).is_some());
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn a_file_that_is_long_only_on_paper_is_not_read_into_memory() {
    // Holes take no room on the disk: a gigabyte of nothing as the index of an image.
    let file = forge::file(&forge::header(1));
    let length = (1 << 30) + forge::TRAILER_BYTES as u64;
    file.set_len(length).expect("a hole");
    std::os::unix::fs::FileExt::write_all_at(&file, &forge::trailer(16, length), 1 << 30).expect("write");
    let (image, peak) = peak_of(|| Image::open(file));
    assert!(peak < 1 << 20, "{peak}");
    assert_eq!(
        image.expect_err("nothing").to_string(),
        "the index at byte 16 is damaged: no record begins there"
    );
}

#[test]
fn an_index_that_lies_about_places_is_refused() {
    let image = written(&sample::tiny());
    let parts = forge::take_apart(&image);
    let index = forge::index(&parts);
    for record in 0..6 {
        // The offset of a record, one byte on: a gap before it.
        let at = 8 + record * 22 + 6;
        let mut index = index.clone();
        index[at] = index[at].wrapping_add(1);
        let error = refusal(&forge::put_together_with(&parts, &index));
        assert_eq!(
            error,
            "the index contradicts the file: its records overlap or leave gaps"
        );
    }
    // The index calls pages a record, and itself.
    for kind in [PAGES, INDEX] {
        let error = forged(|parts| parts[1].kind = kind);
        assert!(error.contains("the index"), "{error}");
    }
    // Places of the trailer.
    for offset in [0, 15, 16, 17, image.len() as u64 - 33, image.len() as u64, u64::MAX] {
        let end = image.len() - forge::TRAILER_BYTES;
        let bytes = [&image[..end], &forge::trailer(offset, image.len() as u64)].concat();
        let error = refusal(&bytes);
        assert!(
            error.starts_with(&format!("the index at byte {offset} is damaged")),
            "{error}"
        );
    }
}

#[test]
fn chunks_that_lie_are_refused() {
    let pages = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut parts = forge::take_apart(&written(&sample::tiny()));
        change(&mut parts[2].body);
        read_bounded(&forge::put_together(&parts)).expect("refused")
    };
    let index = "the index contradicts the file: its chunks of pages are out of order or of an impossible size";
    let first = "the index contradicts the file: its first page is not the one behind those of the image's base";
    assert_eq!(pages(&|body| body[0] = 1), first);
    assert_eq!(
        pages(&|body| body[..8].fill(0xff)),
        "the index contradicts the file: its pages are more than can be numbered"
    );
    assert_eq!(pages(&|body| body[8] = 0), index);
    assert_eq!(pages(&|body| body[8..10].copy_from_slice(&[1, 1])), index);
    assert_eq!(pages(&|body| body.truncate(16)), index);
    assert_eq!(pages(&|body| body.resize(16 + (1 << 20) + 1, 0)), index);
    let ends = |error: String, text: &str| assert!(error.ends_with(text), "{error}");
    ends(pages(&|body| body[8] = 2), "its pages have another length");
    ends(pages(&|body| body[12] = 0), "its pages have another length");
    // The index knows compressed or not; the prefix has 32 bits for it.
    ends(pages(&|body| body[13] = 1), "the index describes another one");
    ends(pages(&|body| body.truncate(20)), "its pages can't be unpacked");
    ends(pages(&|body| body.extend([1, 2, 3])), "its pages can't be unpacked");
    // A frame of more pages than the chunk says has no room to unpack into.
    let frame = zstd::bulk::compress(&vec![0; 1 << 26], 1).expect("compress");
    ends(
        pages(&|body| {
            body.truncate(16);
            body.extend(&frame);
        }),
        "its pages can't be unpacked",
    );
}

/// One change of an image's parts, with all checksums made right again afterwards.
#[derive(Debug, Clone)]
enum Change {
    Byte { part: usize, at: usize, value: u8 },
    Number { part: usize, at: usize, value: u64 },
    Cut { part: usize, to: usize },
    Grow { part: usize, by: Vec<u8> },
    Remove { part: usize },
    Twice { part: usize },
    Swap { one: usize, other: usize },
    Kind { part: usize, kind: u16 },
}

impl Change {
    fn apply(&self, parts: &mut Vec<Part>) {
        let count = parts.len();
        match self {
            Self::Byte { part, at, value } => {
                let body = &mut parts[part % count].body;
                let length = body.len();
                if length > 0 {
                    body[at % length] = *value;
                }
            }
            Self::Number { part, at, value } => {
                let body = &mut parts[part % count].body;
                if let Some(last) = body.len().checked_sub(8) {
                    let at = at % (last + 1);
                    body[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            Self::Cut { part, to } => {
                let body = &mut parts[part % count].body;
                body.truncate(to % (body.len() + 1));
            }
            Self::Grow { part, by } => parts[part % count].body.extend(by),
            Self::Remove { part } if count > 1 => drop(parts.remove(part % count)),
            Self::Remove { .. } => {}
            Self::Twice { part } => parts.push(parts[part % count].clone()),
            Self::Swap { one, other } => parts.swap(one % count, other % count),
            Self::Kind { part, kind } => parts[part % count].kind = *kind,
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let (part, at) = (any::<usize>, any::<usize>);
    let number = prop_oneof![
        any::<u64>(),
        0..100_u64,
        Just(u64::MAX),
        (0..64_u32).prop_map(|bit| 1 << bit)
    ];
    prop_oneof![
        4 => (part(), at(), any::<u8>()).prop_map(|(part, at, value)| Change::Byte { part, at, value }),
        4 => (part(), at(), number).prop_map(|(part, at, value)| Change::Number { part, at, value }),
        1 => (part(), at()).prop_map(|(part, to)| Change::Cut { part, to }),
        1 => (part(), prop::collection::vec(any::<u8>(), 1..50)).prop_map(|(part, by)| Change::Grow { part, by }),
        1 => part().prop_map(|part| Change::Remove { part }),
        1 => part().prop_map(|part| Change::Twice { part }),
        1 => (part(), at()).prop_map(|(one, other)| Change::Swap { one, other }),
        1 => (part(), 0..17_u16).prop_map(|(part, kind)| Change::Kind { part, kind }),
    ]
}

/// The body of an arbitrary record of this kind.
fn arbitrary(kind: u16, bytes: &[u8]) -> Part {
    use floe_image::codec::encode;
    let body = match kind {
        1 => encode(&dice::roll::<HeaderRecord>(bytes)),
        2 => encode(&dice::roll::<SandboxRecord>(bytes)),
        3 => encode(&dice::roll::<ProcessRecord>(bytes)),
        4 => encode(&dice::roll::<AddressSpaceRecord>(bytes)),
        5 => encode(&dice::roll::<MappedFileRecord>(bytes)),
        6 => encode(&dice::roll::<ShmemRecord>(bytes)),
        7 => encode(&dice::roll::<GhostRecord>(bytes)),
        8 => encode(&dice::roll::<OpenFileRecord>(bytes)),
        9 => encode(&dice::roll::<ObjectRecord>(bytes)),
        10 => encode(&dice::roll::<DescriptorTableRecord>(bytes)),
        14 => encode(&dice::roll::<MountNamespaceRecord>(bytes)),
        15 => encode(&dice::roll::<FilesystemRecord>(bytes)),
        16 => encode(&dice::roll::<NetworkRecord>(bytes)),
        _ => encode(&dice::roll::<PageMapRecord>(bytes)),
    };
    Part {
        kind: if (11..14).contains(&kind) { 12 } else { kind },
        version: 1,
        body: body.expect("encode"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read_bounded(&bytes).is_some());
    }

    #[test]
    fn arbitrary_bytes_between_good_ends_are_refused(
        middle in prop::collection::vec(any::<u8>(), 0..400),
        index in 0..500_u64,
    ) {
        let mut bytes = [forge::header(1), middle].concat();
        let length = (bytes.len() + forge::TRAILER_BYTES) as u64;
        bytes.extend(forge::trailer(index, length));
        prop_assert!(read_bounded(&bytes).is_some());
    }

    #[test]
    fn an_arbitrary_index_is_refused(index in prop::collection::vec(any::<u8>(), 0..200)) {
        let parts = forge::take_apart(&written(&sample::tiny()));
        prop_assume!(index != forge::index(&parts));
        prop_assert!(read_bounded(&forge::put_together_with(&parts, &index)).is_some());
    }

    #[test]
    fn a_changed_index_never_panics(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let parts = forge::take_apart(&written(&sample::whole()));
        let mut index = forge::index(&parts);
        for (at, value) in changes {
            let at = at % index.len();
            index[at] = value;
        }
        read_bounded(&forge::put_together_with(&parts, &index));
    }

    #[test]
    fn changed_images_never_panic(changes in prop::collection::vec(change(), 1..5), small: bool) {
        let sample = if small { sample::tiny() } else { sample::whole() };
        let mut parts = forge::take_apart(&written(&sample));
        changes.iter().for_each(|change| change.apply(&mut parts));
        read_bounded(&forge::put_together(&parts));
    }

    #[test]
    fn images_of_arbitrary_records_never_panic(
        records in prop::collection::vec((2..17_u16, prop::collection::vec(any::<u8>(), 0..400)), 0..20),
    ) {
        let tiny = forge::take_apart(&written(&sample::tiny()));
        let arbitrary = records.iter().map(|(kind, bytes)| arbitrary(*kind, bytes));
        // With and without a good image around them.
        let parts: Vec<Part> = tiny.iter().cloned().chain(arbitrary.clone()).collect();
        read_bounded(&forge::put_together(&parts));
        let parts: Vec<Part> = tiny[..3].iter().cloned().chain(arbitrary).collect();
        read_bounded(&forge::put_together(&parts));
    }
}

#[test]
fn the_images_all_this_begins_with_are_whole() {
    for sample in [sample::tiny(), sample::whole()] {
        assert_eq!(read_bounded(&written(&sample)), None);
        read_all(&written(&sample)).expect("whole");
    }
}
