//! Two images with fixed contents. [`whole`] has every kind of record and of open file; it is what `tests/golden/v1.floe`
//! holds, so it never changes. [`tiny`] is as small as an image can be.

use self::{
    files::{bpf_map_object, open_files, pipe, table, terminal_object, tun_object},
    memory::{map, segment, space, vma, without_content},
    namespaces::{ipc_objects, namespaces, sysctls},
    tasks::{below, process, with_extended, zombie},
};
use floe_image::{
    ImageWriter, Summary, WriteError, WriteOptions,
    chunk::{CHUNK_PAGES, PAGE_BYTES},
    record::*,
};
use std::io::Write;

mod cgroups;
mod files;
mod filter;
mod memory;
mod mounts;
mod namespaces;
mod network;
mod tasks;

/// Everything an image holds.
pub struct Sample {
    pub header: HeaderRecord,
    pub identity: IdentityRecord,
    pub sandbox: SandboxRecord,
    pub processes: Vec<ProcessRecord>,
    pub address_spaces: Vec<AddressSpaceRecord>,
    pub mapped_files: Vec<MappedFileRecord>,
    pub shmems: Vec<ShmemRecord>,
    pub ghosts: Vec<GhostRecord>,
    pub open_files: Vec<OpenFileRecord>,
    pub objects: Vec<ObjectRecord>,
    pub descriptor_tables: Vec<DescriptorTableRecord>,
    pub page_maps: Vec<PageMapRecord>,
    pub mount_namespaces: Vec<MountNamespaceRecord>,
    pub filesystems: Vec<FilesystemRecord>,
    pub networks: Vec<NetworkRecord>,
    pub owner: Option<OwnerRecord>,
    pub machine: Option<MachineRecord>,
    /// Pages, chunk by chunk.
    pub chunks: Vec<Vec<u8>>,
}

impl Sample {
    /// Writes it as an image.
    pub fn write(&self, sink: Box<dyn Write + Send>) -> Result<Summary, WriteError> {
        let options = WriteOptions {
            level: 1.into(),
            workers: 2,
            first_page: self.identity.first_page(),
        };
        let mut writer = ImageWriter::start(sink, &options)?;
        writer.record(&self.header)?;
        writer.record(&self.sandbox)?;
        // Records and chunks may come in any order; here some of each stand between the others.
        let (first, rest) = self.chunks.split_at(self.chunks.len().min(1));
        store(&mut writer, first)?;
        all(&mut writer, &self.processes)?;
        store(&mut writer, rest)?;
        all(&mut writer, &self.mapped_files)?;
        all(&mut writer, &self.address_spaces)?;
        all(&mut writer, &self.shmems)?;
        all(&mut writer, &self.ghosts)?;
        all(&mut writer, &self.open_files)?;
        all(&mut writer, &self.objects)?;
        all(&mut writer, &self.descriptor_tables)?;
        all(&mut writer, &self.page_maps)?;
        all(&mut writer, &self.mount_namespaces)?;
        all(&mut writer, &self.filesystems)?;
        all(&mut writer, &self.networks)?;
        all(&mut writer, self.owner.as_slice())?;
        all(&mut writer, self.machine.as_slice())?;
        writer.record(&self.identity)?;
        let (mut sink, summary) = writer.finish()?;
        sink.flush()?;
        Ok(summary)
    }
}

fn all<R: Record>(writer: &mut ImageWriter, records: &[R]) -> Result<(), WriteError> {
    records.iter().try_for_each(|record| writer.record(record))
}

fn store(writer: &mut ImageWriter, chunks: &[Vec<u8>]) -> Result<(), WriteError> {
    for pages in chunks {
        let content = pages.clone();
        writer.store(pages.len() / PAGE_BYTES, move |buffer| {
            buffer.copy_from_slice(&content);
            Ok(())
        })?;
    }
    Ok(())
}

/// Bytes that don't shrink, the same for the same seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Bytes that shrink well and differ from page to page.
pub fn stripes(seed: u64, pages: usize) -> Vec<u8> {
    let bytes = pages * PAGE_BYTES;
    (0..bytes)
        .map(|i| (seed as usize + i / PAGE_BYTES + i / 64) as u8)
        .collect()
}

fn terminal() -> TerminalRecord {
    TerminalRecord {
        index: 3,
        settings: (0..44).collect(),
        locked: vec![0; 36],
        window: [24, 80, 640, 480],
        owner: [1000, 5],
        mode: 0o620,
        exclusive: false,
        stopped: OutputStop::Key,
        input: TerminalInput {
            bytes: b"line\nunfin".to_vec(),
            ends: vec![4],
            pushed: false,
            quoting: true,
            beyond: b"ished".to_vec(),
        },
    }
}

/// The content of `tests/golden/v1.floe`.
pub fn whole() -> Sample {
    Sample {
        header: header(600),
        identity: identity(7),
        sandbox: SandboxRecord {
            name: "golden".to_owned(),
            uts: (NamespaceOrigin::Own, "iceberg".to_owned(), "(none)".to_owned()),
            ipc: NamespaceOrigin::Own,
            net: NamespaceOrigin::Own,
            cgroup: NamespaceOrigin::Own,
            mount: NamespaceOrigin::Own,
            devpts: NamespaceOrigin::Own,
            has_init: true,
            namespaces: namespaces(),
            pid_namespaces: vec![
                PidNamespaceRecord {
                    parent: 0,
                    owner: 1,
                    ended: false,
                },
                PidNamespaceRecord {
                    parent: 1,
                    owner: 0,
                    ended: true,
                },
            ],
            ended_leaders: vec![EndedLeaderRecord {
                pid: NsPid(30),
                pid_namespace: 1,
                inner: vec![NsPid(5)],
            }],
            console: ConsoleRecord::Terminal(terminal()),
            log: Some(5000),
            command: vec!["sh".to_owned(), "-c".to_owned(), "sleep 1 | caf\u{e9}".to_owned()],
            clocks: ClocksRecord {
                monotonic: 12_345_678_901_234,
                boottime: 23_456_789_012_345,
            },
            login: 1000,
            ipc_objects: ipc_objects(),
            sysctls: sysctls(),
            cgroups: cgroups::cgroups(),
            link: Some(filter::link()),
        },
        processes: vec![
            ProcessRecord {
                pids_of_children: PidsOfChildren::Known(1),
                mount_namespace: 1,
                ..process(1, 0, &[1, 4], ProcessState::Alive)
            },
            ProcessRecord {
                pids_of_children: PidsOfChildren::New,
                time_of_children: 5,
                ..below(
                    process(
                        7,
                        1,
                        &[7, 9],
                        ProcessState::Stopped {
                            signal: 20,
                            reported: true,
                        },
                    ),
                    &[1, 3],
                )
            },
            below(zombie(8, 7, 0x0300), &[2]),
        ],
        address_spaces: vec![space(1), space(7)],
        mapped_files: vec![
            MappedFileRecord {
                id: 0,
                path: b"/usr/bin/sh".to_vec(),
                mount_namespace: 0,
                ghost: None,
                writable: false,
                size: 125_688,
                mtime: 1_700_000_000_123_456_789,
                head_checksum: 0x1234_5678,
                identity: [0xfe01, 77],
                build_id: vec![0xab; 20],
            },
            MappedFileRecord {
                id: 1,
                path: b"/tmp/\xff gone".to_vec(),
                mount_namespace: 0,
                ghost: Some(0),
                writable: true,
                size: 5000,
                mtime: -1,
                head_checksum: 0,
                identity: [0xfe01, 78],
                build_id: Vec::new(),
            },
        ],
        shmems: vec![ShmemRecord {
            id: 0,
            size: 0x3000,
            huge_page: 0,
        }],
        ghosts: vec![
            GhostRecord {
                id: 0,
                path: b"/tmp/\xff gone".to_vec(),
                mount_namespace: 0,
                size: 5000,
                mode: 0o640,
                uid: 1000,
                gid: 100,
                times: [-1, 1_700_000_000_000_000_001],
                kind: GhostKind::File,
                attributes: vec![ExtendedAttribute {
                    name: b"user.mine".to_vec(),
                    value: b"a value".to_vec(),
                }],
            },
            GhostRecord {
                id: 1,
                path: b"/memfd:scratch".to_vec(),
                mount_namespace: 0,
                size: 0,
                mode: 0o777,
                uid: 0,
                gid: 0,
                times: [0, 0],
                kind: GhostKind::Memfd(MemfdRecord {
                    name: b"scratch".to_vec(),
                    seals: 0x3,
                    huge_page: 2 << 20,
                }),
                attributes: Vec::new(),
            },
            without_content(2, b"/srv/gone", GhostKind::Directory),
            without_content(
                3,
                b"/srv/old name",
                GhostKind::Linked {
                    name: b"/srv/new name".to_vec(),
                    kind: 1,
                    handle: vec![9, 0, 0, 0, 7, 1, 2, 3],
                },
            ),
        ],
        open_files: open_files(),
        objects: vec![
            pipe(0, 65_536, b"not read yet", &[(8, true), (4, false)]),
            pipe(1, 4096, b"", &[]),
            terminal_object(),
            bpf_map_object(),
            tun_object(),
        ],
        descriptor_tables: vec![
            table(
                1,
                &[
                    (0, 7, false),
                    (1, 7, false),
                    (2, 7, true),
                    (3, 0, false),
                    (200, 1, true),
                ],
            ),
            table(
                7,
                &[
                    (0, 4, false),
                    (1, 5, false),
                    (4, 2, false),
                    (5, 3, false),
                    (6, 6, false),
                    (7, 8, true),
                ],
            ),
            table(0, &[(0, 21, false)]),
        ],
        page_maps: vec![
            PageMapRecord {
                huge: vec![HugeRun {
                    start: 0x40_0000,
                    count: 1,
                }],
                ..map(
                    ContentOwner::Process(NsPid(1)),
                    &[(0x40_0000, 2, 0), (0x7ff0_0000, 3, 2)],
                )
            },
            // The first page is shared with the parent, as after a fork; the rest are its own.
            map(
                ContentOwner::Process(NsPid(7)),
                &[(0x40_0000, 1, 0), (0x7ff0_0000, 2, 5)],
            ),
            map(ContentOwner::Shmem(0), &[(0x1000, 2, 7)]),
            map(ContentOwner::Ghost(0), &[(0, 2, 9)]),
            map(ContentOwner::Ghost(1), &[]),
            map(ContentOwner::Node { filesystem: 0, node: 2 }, &[(4096, 1, 3)]),
            map(ContentOwner::Log, &[(0, 2, 9)]),
            map(segment(0), &[(0x1000, 1, 0)]),
            map(segment(4), &[]),
        ],
        mount_namespaces: mounts::mount_namespaces(),
        networks: network::networks(filter::packet_filter()),
        owner: Some(owner()),
        machine: Some(machine()),
        filesystems: mounts::filesystems(),
        chunks: vec![stripes(1, 5), noise(2, 2 * PAGE_BYTES), stripes(3, 4)],
    }
}

/// One process with one page, in as few bytes as it takes.
pub fn tiny() -> Sample {
    let mut process = process(1, 0, &[1], ProcessState::Alive);
    process.pending = Vec::new();
    process.threads[0].pending = Vec::new();
    Sample {
        header: header(0),
        identity: identity(8),
        sandbox: SandboxRecord {
            name: String::new(),
            uts: (NamespaceOrigin::Host, String::new(), String::new()),
            ipc: NamespaceOrigin::Host,
            net: NamespaceOrigin::Host,
            cgroup: NamespaceOrigin::Host,
            mount: NamespaceOrigin::Host,
            devpts: NamespaceOrigin::Host,
            has_init: true,
            namespaces: Vec::new(),
            pid_namespaces: Vec::new(),
            ended_leaders: Vec::new(),
            console: ConsoleRecord::None,
            log: None,
            command: Vec::new(),
            clocks: ClocksRecord::default(),
            login: u32::MAX,
            ipc_objects: IpcRecord::default(),
            sysctls: Vec::new(),
            cgroups: Vec::new(),
            link: None,
        },
        processes: vec![ProcessRecord {
            threads: process
                .threads
                .into_iter()
                .map(|thread| with_extended(thread, 0))
                .collect(),
            ..process
        }],
        address_spaces: vec![AddressSpaceRecord {
            vmas: vec![vma(0x40_0000, 1, 3, VmaSource::Anonymous)],
            auxv: Vec::new(),
            ..space(1)
        }],
        mapped_files: vec![MappedFileRecord {
            id: 0,
            path: b"/x".to_vec(),
            mount_namespace: 0,
            ghost: None,
            writable: false,
            size: 0,
            mtime: 0,
            head_checksum: 0,
            identity: [0; 2],
            build_id: Vec::new(),
        }],
        shmems: Vec::new(),
        ghosts: Vec::new(),
        open_files: Vec::new(),
        objects: Vec::new(),
        descriptor_tables: vec![table(1, &[])],
        page_maps: vec![map(ContentOwner::Process(NsPid(1)), &[(0x40_0000, 1, 0)])],
        mount_namespaces: Vec::new(),
        filesystems: Vec::new(),
        networks: Vec::new(),
        owner: None,
        machine: None,
        chunks: vec![stripes(0, 1)],
    }
}

/// Of user 1000, who has a range besides.
fn owner() -> OwnerRecord {
    let range = |inside, above, count| IdRange { inside, above, count };
    OwnerRecord {
        namespace: UserNamespaceRecord {
            maker: (1000, 100),
            users: vec![range(0, 1000, 1), range(1, 100_000, 65_536)],
            groups: vec![range(0, 100, 1)],
            setgroups: false,
        },
    }
}

/// Of a processor with AVX and protection keys, whose numbers are no vendor's.
fn machine() -> MachineRecord {
    let component = |number, offset, bytes| ComponentRecord { number, offset, bytes };
    MachineRecord {
        level: Some("x86-64-v2".to_owned()),
        features: vec!["AVX".to_owned(), "XSAVE".to_owned()],
        components: vec![component(9, 576, 8), component(2, 584, 16)],
        vdso: b"\x7fELF\x02\x01".to_vec(),
    }
}

/// Of an image that is based on none.
pub fn identity(id: u8) -> IdentityRecord {
    IdentityRecord {
        id: ImageId([id; 16]),
        base: None,
    }
}

fn header(xstate_size: u32) -> HeaderRecord {
    HeaderRecord {
        floe_version: "0.1.0".to_owned(),
        arch: "x86_64".to_owned(),
        kernel: "6.18.0".to_owned(),
        host: "north".to_owned(),
        created: 1_700_000_000,
        page_size: 4096,
        xstate_size,
        xfeatures: 0xe7,
        vdso: VdsoRecord {
            mappings: vec![("[vvar]".to_owned(), 0x4000), ("[vdso]".to_owned(), 0x2000)],
            checksum: 0xdead_beef,
        },
    }
}

const _: () = assert!(CHUNK_PAGES >= 5, "the chunks above fit");
