//! Images made to do harm: every checksum is right, what is under it is not. Each ends in one clear error, and reading
//! it takes no more memory than its length allows, whatever lengths it claims.

use crate::{
    dice,
    forge::{self, INDEX, PAGES, Part},
    hoard::peak_of,
    sample::{self, Sample},
    shared::{open, read_all, refusal, written},
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
        kind: 14,
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
    parts[3].kind = 14;
    let error = refusal(&forge::put_together_with(&parts, &index));
    assert!(
        error.starts_with("record 3 (process) at byte ") && error.ends_with("its kind, 14, is not known to this floe"),
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
        (7, "which is missing"),
        (8, "which is missing"),
        (10, "has no descriptor table"),
        (12, "has no page map"),
    ];
    for (kind, text) in texts {
        let error = forged(|parts| parts.retain(|part| part.kind != kind));
        assert!(error.contains(text), "without kind {kind}: {error}");
    }
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
        (7, "deleted file 0 stands at position 2"),
        (8, "open file 0 stands at position 14"),
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
    assert_eq!(pages(&|body| body[0] = 1), index);
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

fn contradiction(text: &str, change: impl FnOnce(&mut Sample)) {
    let mut sample = sample::whole();
    change(&mut sample);
    assert_eq!(
        refusal(&written(&sample)),
        format!("the image contradicts itself: {text}")
    );
}

#[test]
fn trees_that_are_none_are_refused() {
    contradiction("process 7 is its own ancestor", |s| {
        s.processes[1].ppid = NsPid(7);
        s.processes.truncate(2);
    });
    contradiction("the parent of process 8, 99, is missing", |s| {
        s.processes[2].ppid = NsPid(99);
    });
    contradiction("2 processes have no parent, exactly one must", |s| {
        s.processes[1].ppid = NsPid(0);
    });
    contradiction("0 processes have no parent, exactly one must", |s| {
        s.processes[0].ppid = NsPid(8);
    });
    contradiction("two tasks have the id 7", |s| s.processes[0].threads[1].tid = NsPid(7));
    contradiction("0 is not a possible id of a task", |s| {
        s.processes[2].threads[0].tid = NsPid(0);
    });
    contradiction("4194304 is not a possible id of a task", |s| {
        s.processes[1].threads[1].tid = NsPid(1 << 22);
    });
    contradiction("the first thread of process 7 is not its leader", |s| {
        s.processes[1].threads.reverse();
    });
    contradiction("the first thread of process 1 is not its leader", |s| {
        s.processes[0].threads.clear();
    });
    contradiction("process 7 has no process group or no session", |s| {
        s.processes[1].sid = NsPid(0);
    });
    contradiction("process 8 is a zombie and has 2 threads", |s| {
        let mut thread = s.processes[2].threads[0].clone();
        thread.tid = NsPid(30);
        s.processes[2].threads.push(thread);
    });
    for state in [
        ProcessState::Zombie { status: 0x137f },
        ProcessState::Zombie { status: 0x1_0000 },
        ProcessState::Stopped {
            signal: 9,
            reported: false,
        },
    ] {
        contradiction("process 8 ended or stopped in an impossible way", |s| {
            s.processes[2].state = state;
        });
    }
    for shared in [1, 0x800, 0x1_0100] {
        contradiction("process 7 can't share what it shares with its parent", |s| {
            s.processes[1].shared = shared;
        });
    }
    contradiction("process 1 can't share what it shares with its parent", |s| {
        s.processes[0].shared = 0x200;
    });
    for status in [9, 0x1_0000] {
        contradiction("process 7 ended or stopped in an impossible way", |s| {
            s.processes[1].leader_ended = Some(status);
        });
    }
    contradiction(
        "the root process is 1, and the sandbox record says that PID 1 is not part of the tree",
        |s| s.sandbox.has_init = false,
    );
    contradiction("process 1 has 63 signal actions, not 64", |s| {
        s.processes[0].actions.truncate(63);
    });
    contradiction("process 1 has 0 resource limits, not 16", |s| {
        s.processes[0].limits.clear();
    });
    contradiction("the working directory of process 7 is not a path", |s| {
        s.processes[1].cwd.clear();
    });
    contradiction("the root directory of process 7 is not a path", |s| {
        s.processes[1].root = vec![b'/'; 4096];
    });
    contradiction("8 bytes of general registers of task 9, not 216", |s| {
        s.processes[1].threads[1].registers.general.truncate(8);
    });
    contradiction("64 bytes of extended registers of task 1, not 4294967295", |s| {
        s.header.xstate_size = u32::MAX;
    });
    for name in [&b"sixteen bytes..."[..], b"nul\0"] {
        contradiction("the name of task 4 is longer than 15 bytes or holds a NUL", |s| {
            s.processes[0].threads[1].comm = name.to_vec();
        });
    }
    contradiction(
        "1 bytes of information about a pending signal of task 4, not 128",
        |s| {
            s.processes[0].threads[1].pending[0].truncate(1);
        },
    );
    contradiction("its pages have 16384 bytes, not 4096", |s| s.header.page_size = 16384);
}

#[test]
fn clocks_and_timers_that_can_not_be_are_refused() {
    let late = i64::MAX as u64 / 2 + 1;
    contradiction(&format!("a clock shows {late} ns"), |s| {
        s.sandbox.clocks.boottime = late;
    });
    contradiction("the timer ids of process 7 do not ascend", |s| {
        s.processes[1].posix_timers.swap(1, 2);
    });
    contradiction("the timer ids of process 7 do not ascend", |s| {
        s.processes[1].posix_timers[0].id = -1;
    });
    contradiction("timer 3 of process 7 belongs to thread 4, which is missing", |s| {
        s.processes[1].posix_timers[1].maker = NsPid(4);
    });
    contradiction("timer 7 of process 7 belongs to thread 0, which is missing", |s| {
        s.processes[1].posix_timers[2].target = NsPid(0);
    });
    for (notify, signal, target) in [(3, 34, 0), (5, 34, 9), (0, 0, 0), (0, 34, 9), (4, 65, 9), (1, 0, 9)] {
        contradiction("timer 0 of process 7 tells nobody of its end in a possible way", |s| {
            let timer = &mut s.processes[1].posix_timers[0];
            (timer.notify, timer.signal, timer.target) = (notify, signal, NsPid(target));
        });
    }
}

#[test]
fn switches_that_no_task_has_are_refused() {
    contradiction("task 1 has seccomp filters in strict mode", |s| {
        s.processes[0].threads[0].seccomp.filters = s.processes[1].threads[0].seccomp.filters.clone();
    });
    for length in [0, 7, 8 * 4097] {
        contradiction(
            &format!("a seccomp filter of task 7 has {length} bytes, not 1 to 4096 instructions of 8"),
            |s| s.processes[1].threads[0].seccomp.filters[1].program = vec![6; length],
        );
    }
    contradiction(
        "the seccomp filters of task 7 are longer than a kernel takes together",
        |s| {
            let filters = &mut s.processes[1].threads[0].seccomp.filters;
            *filters = vec![filters[1].clone(); 6554];
        },
    );
    contradiction("the memory policy of task 7 can't be what it is", |s| {
        let policy = s.processes[1].threads[0].switches.memory_policy.as_mut();
        policy.expect("it has one").nodes = vec![1; 17];
    });
    contradiction("the speculation control of task 7 can't be what it is", |s| {
        s.processes[1].threads[0].switches.speculation = vec![(0, 4); 4];
    });
    contradiction("the machine check policy of task 7 can't be what it is", |s| {
        s.processes[1].threads[0].switches.machine_check = Some(2);
    });
    contradiction("the rule on executable memory of task 7 can't be what it is", |s| {
        s.processes[1].switches.deny_write_execute = 4;
    });
    contradiction("the nice value of the session of task 1 can't be what it is", |s| {
        s.processes[0].switches.autogroup_nice = Some(20);
    });
}

#[test]
fn a_long_chain_of_parents_is_checked_in_linear_time() {
    let mut sample = sample::tiny();
    let first = sample.processes[0].clone();
    for pid in (2..20_000).rev() {
        let mut process = first.clone();
        process.pid = NsPid(pid);
        process.ppid = NsPid(pid - 1);
        process.threads[0].tid = NsPid(pid);
        process.state = ProcessState::Zombie { status: 0 };
        process.actions = Vec::new();
        process.limits = Vec::new();
        sample.processes.push(process);
    }
    assert_eq!(open(&written(&sample)).expect("open").processes().len(), 19_999);
    sample.processes[1].ppid = NsPid(19_999);
    assert!(refusal(&written(&sample)).ends_with("is its own ancestor"));
}

#[test]
fn address_spaces_that_are_none_are_refused() {
    let mapping = |text: &str, change: &dyn Fn(&mut VmaRecord)| {
        let mut sample = sample::whole();
        change(&mut sample.address_spaces[0].vmas[3]);
        let error = refusal(&written(&sample));
        assert!(
            error.starts_with("the image contradicts itself: mapping ") && error.ends_with(text),
            "{error} where {text}"
        );
    };
    mapping("does not begin and end with a page", &|vma| vma.start += 1);
    mapping("is empty", &|vma| vma.end = vma.start);
    mapping("is empty", &|vma| vma.end = 0);
    mapping("reaches beyond user space", &|vma| vma.end = 1 << 63);
    mapping("is out of order or overlaps another", &|vma| vma.start = 0x60_0000);
    mapping("has an unknown protection", &|vma| vma.prot = 8);
    mapping("has an impossible name", &|vma| vma.name = Some(b"a\0b".to_vec()));
    mapping("has an impossible name", &|vma| vma.name = Some(vec![b'n'; 80]));
    let shmem = |object, offset| move |vma: &mut VmaRecord| vma.source = VmaSource::Shmem { object, offset };
    mapping("maps something that is missing", &shmem(1, 0));
    mapping("maps something that is missing", &shmem(u32::MAX, 0));
    mapping("has an impossible offset", &shmem(0, 1));
    mapping("has an impossible offset", &shmem(0, u64::MAX - 0xfff));
    mapping("has an impossible offset", &shmem(0, i64::MAX as u64 - 0xfff));
    contradiction(
        "an address space belongs to 8, which is no living process or has one already",
        |s| {
            s.address_spaces[1].pid = NsPid(8);
        },
    );
    contradiction("the executable of process 1 is mapped file 2, which is missing", |s| {
        s.address_spaces[0].exe = 2;
    });
    contradiction("the auxiliary vector of process 1 has 15 bytes", |s| {
        s.address_spaces[0].auxv.truncate(15);
    });
    contradiction("mapped file 1 is deleted file 2, which is missing", |s| {
        s.mapped_files[1].ghost = Some(2);
    });
    contradiction("the name of mapped file 0 is not a path", |s| {
        s.mapped_files[0].path = b"a\0b".to_vec();
    });
    contradiction("the name of deleted file 1 is not a path", |s| s.ghosts[1].path.clear());
    contradiction("deleted file 0 can't have 18446744073709551615 bytes", |s| {
        s.ghosts[0].size = u64::MAX;
    });
    contradiction("shared memory object 0 can't have 140737488355328 bytes", |s| {
        s.shmems[0].size = 1 << 47;
    });
}

#[test]
fn details_of_mappings_that_can_not_be_are_refused() {
    let mapping = |text: &str, index: usize, change: &dyn Fn(&mut VmaRecord)| {
        let mut sample = sample::whole();
        change(&mut sample.address_spaces[0].vmas[index]);
        let error = refusal(&written(&sample));
        assert!(
            error.starts_with("the image contradicts itself: mapping ") && error.ends_with(text),
            "{error} where {text}"
        );
    };
    let guards = |guards: Vec<(u64, u64)>| move |vma: &mut VmaRecord| vma.details.guards = guards.clone();
    let guard = "has an impossible guard region";
    mapping(guard, 5, &guards(vec![(0x7ff1_1000, 0x7ff1_1000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_1001, 0x7ff1_2000)]));
    mapping(guard, 5, &guards(vec![(0x7ff0_f000, 0x7ff1_2000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_2000, 0x7ff1_4000)]));
    mapping(guard, 5, &guards(vec![(0x7ff1_1000, !0xfff)]));
    mapping(
        guard,
        5,
        &guards(vec![(0x7ff1_1000, 0x7ff1_2000), (0x7ff1_1000, 0x7ff1_3000)]),
    );
    let policy = |mode, node| {
        move |vma: &mut VmaRecord| {
            vma.details.policy = Some(RangePolicy {
                mode,
                nodes: vec![node],
            });
        }
    };
    mapping("has an impossible NUMA policy", 5, &policy(8, 0));
    mapping("has an impossible NUMA policy", 5, &policy(2, 1024));
    mapping("has an impossible NUMA policy", 5, &policy(2, u32::MAX));
    let huge = |bytes| move |vma: &mut VmaRecord| vma.details.huge_page = bytes;
    mapping("can't be of huge pages", 5, &huge(4096));
    mapping("can't be of huge pages", 5, &huge(3 << 20));
    mapping("can't be of huge pages", 5, &huge(2 << 20));
    mapping("can't be of huge pages", 5, &huge(1 << 63));
    // Shared memory says itself of which pages it is.
    mapping("can't be of huge pages", 3, &|vma| {
        (vma.start, vma.end) = (0x80_0000, 0xa0_0000);
        vma.details.huge_page = 2 << 20;
    });
    let segment = |id, offset| {
        move |vma: &mut VmaRecord| {
            vma.source = VmaSource::Segment {
                id,
                offset,
                writable: true,
            };
        }
    };
    mapping("maps something that is missing", 6, &segment(32_768, 0));
    mapping("maps something that is missing", 6, &segment(-1, 0));
    mapping("has an impossible offset", 6, &segment(32_769, 0x2000));
    mapping("has an impossible offset", 6, &segment(32_769, 8));
    mapping("has an impossible offset", 6, &segment(32_769, u64::MAX - 0xfff));
    contradiction("process 1 locks mappings to come in an unknown way", |s| {
        s.address_spaces[0].lock_future = 1;
    });
    contradiction("shared memory object 0 can't be of huge pages", |s| {
        s.shmems[0].huge_page = 2 << 20;
    });
    contradiction("deleted file 1 can't be of huge pages", |s| {
        s.ghosts[1].memfd.as_mut().expect("a memfd").huge_page = 12_345;
    });
}

#[test]
fn system_v_objects_that_are_none_are_refused() {
    contradiction("there are System V IPC objects, but no namespace of their own", |s| {
        s.sandbox.ipc = NamespaceOrigin::Host;
    });
    contradiction("System V shared memory 32769 is there twice, or out of order", |s| {
        let again = s.sandbox.ipc_objects.segments[0];
        s.sandbox.ipc_objects.segments.push(again);
    });
    contradiction("System V message queue -1 is there twice, or out of order", |s| {
        s.sandbox.ipc_objects.queues[0].permission.id = -1;
    });
    contradiction("System V semaphore set 2 has impossible permissions", |s| {
        s.sandbox.ipc_objects.semaphores[0].permission.mode = 0o1000;
    });
    for size in [0, 1 << 47, u64::MAX] {
        contradiction("System V shared memory 32769 has an impossible size", |s| {
            s.sandbox.ipc_objects.segments[0].size = size;
        });
    }
    contradiction("System V semaphore set 2 has no semaphores", |s| {
        s.sandbox.ipc_objects.semaphores[0].values.clear();
    });
    contradiction("System V semaphore set 2 has an impossible value", |s| {
        s.sandbox.ipc_objects.semaphores[0].values[0] = 32_768;
    });
    contradiction("System V message queue 0 has a message of an impossible type", |s| {
        s.sandbox.ipc_objects.queues[0].messages[0].kind = 0;
    });
    contradiction(
        "a page map belongs to System V shared memory 5, which is missing",
        |s| {
            s.page_maps.last_mut().expect("a map").owner = ContentOwner::Segment(5);
        },
    );
    contradiction("System V shared memory 32769 has no page map", |s| {
        s.page_maps.pop();
    });
}

#[test]
fn descriptors_that_are_none_are_refused() {
    let descriptor = |text: &str, change: &dyn Fn(&mut DescriptorRecord)| {
        contradiction(text, |s| change(&mut s.descriptor_tables[0].descriptors[1]));
    };
    descriptor("descriptor -1 of process 1 is out of order", &|d| d.number = -1);
    descriptor("descriptor 0 of process 1 is out of order", &|d| d.number = 0);
    descriptor("descriptor 2 of process 1 is out of order", &|d| d.number = i32::MAX);
    descriptor(
        "descriptor 1 of process 1 refers to open file 14, which is missing",
        &|d| d.file = 14,
    );
}

#[test]
fn pages_that_can_not_be_are_refused() {
    let run = |text: &str, change: &dyn Fn(&mut PageRun)| {
        let mut sample = sample::whole();
        change(&mut sample.page_maps[0].runs[1]);
        let run = sample.page_maps[0].runs[1];
        let wanted = format!(
            "the image contradicts itself: {} pages at {:#x} of process 1 {text}",
            run.pages, run.start
        );
        assert_eq!(refusal(&written(&sample)), wanted);
    };
    run("are none", &|run| run.pages = 0);
    run("are too many", &|run| run.pages = u64::MAX);
    run("are too many", &|run| run.start = u64::MAX - 4095);
    run("do not begin with a page", &|run| run.start += 8);
    run("are out of order or overlap others", &|run| run.start = 0x40_1000);
    run("lie outside of it", &|run| run.pages = 5);
    run("lie outside of it", &|run| run.start -= 0x1000);
    // Shared memory's pages are not the process's own.
    run("lie outside of it", &|run| run.start = 0x70_0000);
    run("are not stored", &|run| run.first = PageId(9));
    run("are not stored", &|run| run.first = PageId(u64::MAX));
    let huge = |text: &str, runs: &[(u64, u64)]| {
        contradiction(text, |s| {
            let runs = runs.iter().map(|&(start, count)| HugeRun { start, count });
            s.page_maps[0].huge = runs.collect();
        });
    };
    huge("huge pages at 0x400000 of process 1 are none", &[(0x40_0000, 0)]);
    huge(
        "huge pages at 0x401000 of process 1 do not begin with a huge page",
        &[(0x40_1000, 1)],
    );
    huge(
        "huge pages at 0x400000 of process 1 are too many",
        &[(0x40_0000, u64::MAX)],
    );
    huge(
        "huge pages at 0x400000 of process 1 are out of order or overlap others",
        &[(0x40_0000, 2), (0x40_0000, 1)],
    );
    contradiction("huge pages at 0x0 of shared memory object 0 can't be", |s| {
        s.page_maps[2].huge = vec![HugeRun { start: 0, count: 1 }];
    });
    contradiction("a page map belongs to process 8, which is missing", |s| {
        s.page_maps[0].owner = ContentOwner::Process(NsPid(8));
    });
    contradiction("a page map belongs to shared memory object 1, which is missing", |s| {
        s.page_maps[2].owner = ContentOwner::Shmem(1);
    });
    contradiction("2 pages at 0x0 of deleted file 0 lie outside of it", |s| {
        s.ghosts[0].size = 4096;
    });
    contradiction("deleted file 1 has no page map", |s| s.page_maps.truncate(4));
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
        1 => (part(), 0..16_u16).prop_map(|(part, kind)| Change::Kind { part, kind }),
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
        _ => encode(&dice::roll::<PageMapRecord>(bytes)),
    };
    Part {
        kind: if kind > 10 { 12 } else { kind },
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
        records in prop::collection::vec((2..12_u16, prop::collection::vec(any::<u8>(), 0..400)), 0..20),
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
