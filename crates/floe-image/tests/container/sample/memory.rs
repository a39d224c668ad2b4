//! Address spaces of the images with fixed contents, and where their pages are.

use super::noise;
use floe_image::{chunk::PAGE_BYTES, record::*};

pub fn segment(namespace: u32) -> ContentOwner {
    ContentOwner::Segment { namespace, id: 32_769 }
}

pub fn space(pid: i32) -> AddressSpaceRecord {
    let file = |file, offset, shared| VmaSource::File { file, offset, shared };
    AddressSpaceRecord {
        pid: NsPid(pid),
        vmas: vec![
            vma(0x40_0000, 2, 5, file(0, 0x1000, false)),
            vma(0x50_0000, 2, 3, file(1, 0, true)),
            VmaRecord {
                name: Some(b"arena".to_vec()),
                flags: vec![*b"dc", *b"hg"],
                ..vma(0x60_0000, 1, 0, VmaSource::Anonymous)
            },
            vma(0x70_0000, 3, 3, VmaSource::Shmem { object: 0, offset: 0 }),
            VmaRecord {
                flags: vec![*b"gd"],
                ..vma(0x7ff0_0000, 4, 3, VmaSource::Anonymous)
            },
            VmaRecord {
                details: VmaDetails {
                    guards: vec![(0x7ff1_1000, 0x7ff1_2000)],
                    policy: Some(RangePolicy {
                        mode: 0x8002,
                        nodes: vec![0, 3],
                    }),
                    huge_page: 0,
                },
                ..vma(0x7ff1_0000, 3, 3, VmaSource::Anonymous)
            },
            vma(
                0x7ff2_0000,
                1,
                1,
                VmaSource::Segment {
                    namespace: 0,
                    id: 32_769,
                    offset: 0x1000,
                    writable: false,
                },
            ),
            vma(
                0x7ff3_0000,
                1,
                3,
                VmaSource::AioRing(AioRing {
                    most: 8,
                    events: 127,
                    head: 126,
                    waiting: vec![AioEvent {
                        data: 7,
                        obj: 0x7ff3_1000,
                        res: -5,
                        res2: 0,
                    }],
                }),
            ),
            vma(
                0x7fff_0000_0000,
                2,
                5,
                VmaSource::Special {
                    name: "[vdso]".to_owned(),
                },
            ),
        ],
        layout: MmLayout {
            start_code: 0x40_0000,
            end_code: 0x40_1000,
            start_data: 0x40_1000,
            end_data: 0x40_2000,
            start_brk: 0x60_0000,
            brk: 0x60_1000,
            start_stack: 0x7ff0_3000,
            arg_start: 0x7ff0_3100,
            arg_end: 0x7ff0_3200,
            env_start: 0x7ff0_3200,
            env_end: 0x7ff0_3300,
        },
        auxv: noise(pid as u64, 32),
        exe: 0,
        lock_future: 6,
    }
}

pub fn vma(start: u64, pages: u64, prot: u32, source: VmaSource) -> VmaRecord {
    VmaRecord {
        start,
        end: start + pages * PAGE_BYTES as u64,
        prot,
        flags: Vec::new(),
        name: None,
        source,
        details: VmaDetails::default(),
    }
}

pub fn map(owner: ContentOwner, runs: &[(u64, u64, u64)]) -> PageMapRecord {
    let runs = runs.iter().map(|&(start, pages, first)| PageRun {
        start,
        pages,
        first: PageId(first),
    });
    PageMapRecord {
        owner,
        runs: runs.collect(),
        huge: Vec::new(),
    }
}

pub fn without_content(id: u32, path: &[u8], kind: GhostKind) -> GhostRecord {
    GhostRecord {
        id,
        path: path.to_vec(),
        mount_namespace: 0,
        size: 0,
        mode: 0o755,
        uid: 0,
        gid: 0,
        times: [0, 0],
        kind,
        attributes: Vec::new(),
    }
}
