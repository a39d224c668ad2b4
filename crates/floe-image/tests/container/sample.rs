//! Two images with fixed contents. [`whole`] has every kind of record and of open file; it is what `tests/golden/v1.floe`
//! holds, so it never changes. [`tiny`] is as small as an image can be.

use floe_image::{
    ImageWriter, Summary, WriteError, WriteOptions,
    chunk::{CHUNK_PAGES, PAGE_BYTES},
    record::*,
};
use sample_files::{bpf_map_object, open_files, pipe, table, terminal_object, tun_object};
use std::io::Write;

#[path = "sample_cgroups.rs"]
mod sample_cgroups;
#[path = "sample_files.rs"]
mod sample_files;
#[path = "sample_filter.rs"]
mod sample_filter;
#[path = "sample_mounts.rs"]
mod sample_mounts;
#[path = "sample_network.rs"]
mod sample_network;

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

fn segment(namespace: u32) -> ContentOwner {
    ContentOwner::Segment { namespace, id: 32_769 }
}

fn sysctls() -> Vec<SysctlRecord> {
    [
        (SysctlKind::Ipc, 0, "kernel/sem", "250 32000 32 128"),
        (SysctlKind::Ipc, 4, "kernel/sem", "250 32000 32 129"),
        (SysctlKind::Pid, 1, "kernel/pid_max", "5000"),
        (SysctlKind::User, 0, "user/max_ipc_namespaces", "7"),
    ]
    .map(|(kind, namespace, name, value)| SysctlRecord {
        kind,
        namespace,
        name: name.to_owned(),
        value: value.to_owned(),
    })
    .to_vec()
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
            cgroups: sample_cgroups::cgroups(),
            link: Some(sample_filter::link()),
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
        mount_namespaces: sample_mounts::mount_namespaces(),
        networks: sample_network::networks(sample_filter::packet_filter()),
        owner: Some(owner()),
        machine: Some(machine()),
        filesystems: sample_mounts::filesystems(),
        chunks: vec![stripes(1, 5), noise(2, 2 * PAGE_BYTES), stripes(3, 4)],
    }
}

fn without_content(id: u32, path: &[u8], kind: GhostKind) -> GhostRecord {
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

fn process(pid: i32, ppid: i32, tids: &[i32], state: ProcessState) -> ProcessRecord {
    let number = pid as u64;
    ProcessRecord {
        pid: NsPid(pid),
        ppid: NsPid(ppid),
        pgid: NsPid(pid),
        sid: NsPid(1),
        pid_namespace: 0,
        pids_of_children: PidsOfChildren::Known(0),
        mount_namespace: 0,
        time_of_children: 0,
        state,
        threads: tids.iter().map(|tid| thread(*tid)).collect(),
        actions: (1..=64).map(|signal| action(number, signal)).collect(),
        pending: vec![(0..128).map(|byte| byte ^ pid as u8).collect()],
        limits: (0..16)
            .map(|limit| ResourceLimit {
                soft: limit,
                hard: if limit == 7 { 4096 } else { u64::MAX },
            })
            .collect(),
        umask: 0o022,
        cwd: DirectoryRecord {
            path: if pid == 7 {
                b"/srv/gone".to_vec()
            } else {
                b"/srv".to_vec()
            },
            mount_namespace: 0,
            ghost: (pid == 7).then_some(2),
        },
        root: DirectoryRecord {
            path: b"/".to_vec(),
            mount_namespace: 0,
            ghost: None,
        },
        timers: [
            IntervalTimer {
                interval: 1_000_000,
                value: 250_000,
            },
            IntervalTimer::default(),
            IntervalTimer { interval: 0, value: 1 },
        ],
        personality: 0x0004_0000,
        dumpable: 1,
        subreaper: pid == 1,
        thp_disable: pid == 7,
        oom_score_adj: -500,
        coredump_filter: 0x33,
        exit_signal: 17,
        terminal: (pid == 1).then_some(TerminalLink {
            pair: Some(0),
            foreground: NsPid(7),
        }),
        no_terminal: pid == 7,
        membarrier: if pid == 7 { 1 << 4 } else { 0 },
        shared: 0,
        leader_ended: None,
        posix_timers: if pid == 7 { timers() } else { Vec::new() },
        switches: ProcessSwitches {
            deny_write_execute: u32::from(pid == 7),
            merge_memory: pid == 7,
            thp_except_advised: pid == 7,
            autogroup_nice: (pid == 1).then_some(-3),
        },
    }
}

fn timers() -> Vec<PosixTimerRecord> {
    let timer = |id, clock, expiry| PosixTimerRecord {
        id,
        clock,
        maker: NsPid(7),
        notify: 0,
        target: NsPid(0),
        signal: 34,
        value: 0xfeed_0000 + id as u64,
        interval: 0,
        expiry,
        overrun: 0,
    };
    vec![
        PosixTimerRecord {
            interval: 20_000_000,
            overrun: 3,
            ..timer(0, 1, TimerExpiry::At(12_345_678_999_999))
        },
        timer(3, 0, TimerExpiry::Unset(99_999_999_999_999)),
        PosixTimerRecord {
            maker: NsPid(9),
            notify: 4,
            target: NsPid(9),
            ..timer(7, -2, TimerExpiry::After(1))
        },
        timer(i32::MAX, 7, TimerExpiry::Never),
    ]
}

/// Puts a process and its threads, by their ids there, into the PID namespace below the tree's.
fn below(mut process: ProcessRecord, ids: &[i32]) -> ProcessRecord {
    process.pid_namespace = 1;
    process.pids_of_children = PidsOfChildren::Known(1);
    process.time_of_children = 5;
    for (thread, id) in process.threads.iter_mut().zip(ids) {
        thread.inner = vec![NsPid(*id)];
        thread.namespaces = TaskNamespaces {
            user: 2,
            uts: if *id == 1 { 3 } else { 0 },
            ipc: 4,
            network: 6,
            time: 5,
            cgroup: 7,
        };
    }
    process
}

fn zombie(pid: i32, ppid: i32, status: i32) -> ProcessRecord {
    ProcessRecord {
        actions: Vec::new(),
        pending: Vec::new(),
        limits: Vec::new(),
        cwd: DirectoryRecord::default(),
        root: DirectoryRecord::default(),
        ..process(pid, ppid, &[pid], ProcessState::Zombie { status })
    }
}

fn action(pid: u64, signal: u64) -> SignalAction {
    match signal {
        2 => SignalAction {
            handler: 0x40_1000 + pid,
            flags: 0x1400_0004,
            restorer: 0x40_2000,
            mask: 1 << 14,
        },
        13 => SignalAction {
            handler: 1,
            flags: 0,
            restorer: 0,
            mask: 0,
        },
        _ => SignalAction {
            handler: 0,
            flags: 0,
            restorer: 0,
            mask: 0,
        },
    }
}

fn thread(tid: i32) -> ThreadRecord {
    let number = tid as u64;
    ThreadRecord {
        tid: NsPid(tid),
        inner: Vec::new(),
        namespaces: TaskNamespaces::default(),
        comm: format!("task {tid}").into_bytes(),
        registers: Registers {
            general: noise(number, 27 * 8),
            extended: noise(number + 100, 64),
        },
        signal_mask: 1 << tid,
        alternate_stack: AlternateStack {
            base: 0x40_0000,
            flags: 2,
            size: 8192,
        },
        pending: vec![vec![tid as u8; 128]; usize::from(tid == 4)],
        robust_list: RobustList {
            head: 0x40_0100 + number,
            size: 24,
        },
        rseq: (tid != 9).then_some(RseqRegistration {
            address: 0x40_0200,
            size: 32,
            signature: 0x5305_3053,
        }),
        tid_address: 0x40_0300,
        credentials: Credentials {
            uids: [1000, 1000, 0, 1000],
            gids: [100, 101, 102, 103],
            groups: vec![4, 24, 27],
            inheritable: 0,
            permitted: (1 << 41) - 1,
            effective: 1 << 21,
            bounding: (1 << 41) - 1,
            ambient: 0,
            securebits: 0x10,
            no_new_privs: tid == 7,
        },
        scheduling: Scheduling {
            policy: 2,
            flags: 1,
            nice: -5,
            priority: 3,
            deadline: [10, 20, 30],
            affinity: vec![0, 1],
            io_priority: 0x4002,
        },
        parent_death_signal: 15,
        timer_slack: 50_000,
        slept: 1_500_000_000,
        seccomp: confinement(tid),
        switches: switches(tid),
    }
}

fn confinement(tid: i32) -> SeccompRecord {
    let filter = |log, length: usize| SeccompFilter {
        log,
        program: noise(tid as u64, length),
    };
    match tid {
        1 => SeccompRecord {
            strict: true,
            filters: Vec::new(),
        },
        7 => SeccompRecord {
            strict: false,
            filters: vec![filter(true, 40), filter(false, 8)],
        },
        _ => SeccompRecord::default(),
    }
}

fn switches(tid: i32) -> ThreadSwitches {
    if tid != 7 {
        return ThreadSwitches::default();
    }
    ThreadSwitches {
        tsc_forbidden: true,
        cpuid_forbidden: true,
        machine_check: Some(1),
        speculation: vec![(0, 4), (2, 2)],
        memory_policy: Some(MemoryPolicy {
            mode: 3,
            nodes: vec![0b11, 1],
        }),
        dispatch: Some(CallDispatch {
            selector: 0x40_0400,
            start: 0x40_0000,
            length: 0x1000,
        }),
    }
}

fn with_extended(mut thread: ThreadRecord, bytes: usize) -> ThreadRecord {
    thread.registers.extended.truncate(bytes);
    thread
}

/// A namespace of each kind, of which the first user namespace is another one's parent.
fn namespaces() -> Vec<NamespaceRecord> {
    let range = |inside, above, count| IdRange { inside, above, count };
    let user = |maker, users| UserNamespaceRecord {
        maker,
        users,
        groups: vec![range(0, 7, 1)],
        setgroups: false,
    };
    let record = |owner, contents| NamespaceRecord { owner, contents };
    vec![
        record(
            0,
            NamespaceContents::User(user((1000, 100), vec![range(0, 1000, 1), range(5, 2000, 7)])),
        ),
        record(1, NamespaceContents::User(user((1000, 100), Vec::new()))),
        record(
            1,
            NamespaceContents::Uts {
                host: b"floe\xff".to_vec(),
                domain: b"(none)".to_vec(),
            },
        ),
        record(2, NamespaceContents::Ipc(ipc_objects_below())),
        record(
            0,
            NamespaceContents::Time(ClocksRecord {
                monotonic: 5,
                boottime: 6,
            }),
        ),
        record(0, NamespaceContents::Network),
        record(1, NamespaceContents::Cgroup(vec![sample_cgroups::place("", b"work")])),
    ]
}

fn ipc_objects() -> IpcRecord {
    let permission = |id, key| IpcPermission {
        id,
        key,
        mode: 0o640,
        uid: 1000,
        gid: 100,
        creator_uid: 0,
        creator_gid: 1,
    };
    IpcRecord {
        segments: vec![SegmentRecord {
            huge_page: 0,
            permission: permission(32_769, 0),
            size: 5000,
            removed: true,
            locked: false,
        }],
        semaphores: vec![SemaphoreSetRecord {
            permission: permission(2, -5),
            values: vec![0, 32_767],
        }],
        adjustments: vec![AdjustmentRecord {
            task: NsPid(1),
            set: 2,
            values: vec![-3, 0],
        }],
        queues: vec![QueueRecord {
            permission: permission(0, 0x006d_7367),
            capacity: 16_384,
            messages: vec![MessageRecord {
                kind: 7,
                text: b"not received yet".to_vec(),
            }],
        }],
        posix: vec![
            PosixQueueRecord {
                messages: vec![message(9, b"first"), message(0, b""), message(0, b"last")],
                ..posix_queue(b"jobs")
            },
            PosixQueueRecord {
                unlinked: true,
                notice: Some(NoticeRecord {
                    pid: NsPid(1),
                    signal: Some(10),
                    value: 99,
                }),
                ..posix_queue(b"jobs")
            },
        ],
    }
}

/// Those of the namespace that not all are in: the same identifiers, keys and names stand for others.
fn ipc_objects_below() -> IpcRecord {
    let IpcRecord {
        mut segments,
        mut semaphores,
        queues,
        ..
    } = ipc_objects();
    segments[0].removed = false;
    semaphores[0].values[1] = 7;
    IpcRecord {
        segments,
        semaphores,
        adjustments: vec![AdjustmentRecord {
            task: NsPid(7),
            set: 2,
            values: vec![0, 5],
        }],
        queues,
        posix: vec![posix_queue(b"jobs")],
    }
}

fn posix_queue(name: &[u8]) -> PosixQueueRecord {
    PosixQueueRecord {
        name: name.to_vec(),
        unlinked: false,
        mode: 0o620,
        uid: 1000,
        gid: 100,
        most_messages: 10,
        message_bytes: 64,
        messages: Vec::new(),
        notice: None,
    }
}

fn message(priority: u32, text: &[u8]) -> PosixMessageRecord {
    PosixMessageRecord {
        priority,
        text: text.to_vec(),
    }
}

fn space(pid: i32) -> AddressSpaceRecord {
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

fn vma(start: u64, pages: u64, prot: u32, source: VmaSource) -> VmaRecord {
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

fn map(owner: ContentOwner, runs: &[(u64, u64, u64)]) -> PageMapRecord {
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

const _: () = assert!(CHUNK_PAGES >= 5, "the chunks above fit");
