//! Address spaces and pages.

use super::contradiction;
use crate::sample;
use crate::shared::{refusal, written};
use floe_image::record::*;

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
    contradiction("mapped file 1 is deleted file 4, which is missing", |s| {
        s.mapped_files[1].ghost = Some(4);
    });
    contradiction("the working directory of process 7 is no deleted directory", |s| {
        s.processes[1].cwd.ghost = Some(3);
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
                namespace: 0,
                id,
                offset,
                writable: true,
            };
        }
    };
    mapping("maps something that is missing", 6, &segment(32_768, 0));
    mapping("maps something that is missing", 6, &segment(-1, 0));
    mapping("maps something that is missing", 6, &|vma| {
        vma.source = VmaSource::Segment {
            namespace: 3,
            id: 32_769,
            offset: 0,
            writable: true,
        };
    });
    mapping("has an impossible offset", 6, &segment(32_769, 0x2000));
    mapping("has an impossible offset", 6, &segment(32_769, 8));
    mapping("has an impossible offset", 6, &segment(32_769, u64::MAX - 0xfff));
    let ring = |events, head, waiting| {
        move |vma: &mut VmaRecord| {
            let event = AioEvent {
                data: 0,
                obj: 0,
                res: 0,
                res2: 0,
            };
            vma.source = VmaSource::AioRing(AioRing {
                most: 1,
                events,
                head,
                waiting: vec![event; waiting],
            });
        }
    };
    mapping("is no ring of asynchronous I/O", 7, &ring(128, 0, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(u32::MAX, 0, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(127, 127, 0));
    mapping("is no ring of asynchronous I/O", 7, &ring(100, 0, 100));
    contradiction("process 1 locks mappings to come in an unknown way", |s| {
        s.address_spaces[0].lock_future = 1;
    });
    contradiction("shared memory object 0 can't be of huge pages", |s| {
        s.shmems[0].huge_page = 2 << 20;
    });
    contradiction("deleted file 1 can't be of huge pages", |s| {
        s.ghosts[1].kind = GhostKind::Memfd(MemfdRecord {
            name: b"scratch".to_vec(),
            seals: 0,
            huge_page: 12_345,
        });
    });
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
