//! `floe inspect`.

mod networks;

use super::{
    image_file::{self, Bases},
    ps::as_tree,
};
use crate::{failure::Outcome, output};
use clap::{Args, ValueEnum};
use floe_image::{
    Image,
    record::{AddressSpaceRecord, CgroupRecord, ContentOwner, HierarchyRecord, ProcessState, VmaSource},
};
use floe_resources::file::kind_of;
use networks::Network;
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

/// Show what an image holds: the tree, memory, descriptors, sizes.
///
/// Example: floe inspect job.floe ps
#[derive(Debug, Args)]
pub struct Inspect {
    /// The image; - for standard input.
    image: PathBuf,
    #[command(flatten)]
    bases: Bases,
    /// Which part.
    #[arg(value_enum)]
    section: Option<Section>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// The tree.
    Ps,
    /// Mappings.
    Memory,
    /// Descriptors.
    Files,
    /// What is set in cgroups.
    Cgroups,
    /// What is in network namespaces.
    Networks,
    /// What takes how much room.
    Sizes,
}

#[derive(Debug, Serialize)]
struct Whole {
    header: Header,
    ps: Vec<Task>,
    memory: Vec<Mapping>,
    files: Vec<Descriptor>,
    cgroups: Vec<Group>,
    networks: Vec<Network>,
    sizes: Sizes,
}

#[derive(Debug, Serialize)]
struct Header {
    floe: String,
    name: String,
    arch: String,
    kernel: String,
    host: String,
    created: u64,
    command: Vec<String>,
    id: String,
    /// The ordinary user in whose user namespace the tree was.
    owner: Option<u32>,
    /// The level of processors that it was started for.
    cpu: Option<String>,
    /// Instructions that its programs may have chosen by, where they were started for no level.
    instructions: Vec<String>,
    /// The image that it is based on.
    base: Option<BasedOn>,
}

#[derive(Debug, Serialize)]
struct BasedOn {
    name: String,
    id: String,
    /// How many images it is based on, one on the other.
    chain: usize,
}

#[derive(Debug, Serialize)]
struct Task {
    pid: i32,
    ppid: i32,
    pgid: i32,
    sid: i32,
    comm: String,
    state: String,
    threads: usize,
    pages: u64,
}

#[derive(Debug, Serialize)]
struct Mapping {
    pid: i32,
    start: u64,
    end: u64,
    prot: String,
    source: String,
}

#[derive(Debug, Serialize)]
struct Descriptor {
    pid: i32,
    number: i32,
    kind: String,
    file: u32,
    /// The network namespace that it is of, if it is a socket or the like.
    network: u32,
    description: String,
    position: u64,
    flags: u32,
    close_on_exec: bool,
}

#[derive(Debug, Serialize)]
struct Group {
    controllers: String,
    path: String,
    frozen: bool,
    tasks: Vec<i32>,
    settings: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Sizes {
    image: u64,
    records: BTreeMap<String, u64>,
    pages: u64,
    page_bytes_stored: u64,
    chunks_raw: usize,
    chunks_compressed: usize,
}

impl Inspect {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let image = Image::open(image_file::open(&self.image, &self.bases)?)?;
        let whole = Whole {
            header: header(&image),
            ps: tasks(&image),
            memory: mappings(&image),
            files: descriptors(&image)?,
            cgroups: cgroups(&image),
            networks: networks::of(&image),
            sizes: sizes(&image),
        };
        match (self.json, self.section) {
            (true, None) => output::json(&whole)?,
            (true, Some(Section::Ps)) => output::json(&whole.ps)?,
            (true, Some(Section::Memory)) => output::json(&whole.memory)?,
            (true, Some(Section::Files)) => output::json(&whole.files)?,
            (true, Some(Section::Cgroups)) => output::json(&whole.cgroups)?,
            (true, Some(Section::Networks)) => output::json(&whole.networks)?,
            (true, Some(Section::Sizes)) => output::json(&whole.sizes)?,
            (false, Some(Section::Ps)) => print_tasks(&whole),
            (false, Some(Section::Memory)) => print_mappings(&whole),
            (false, Some(Section::Files)) => print_files(&whole),
            (false, Some(Section::Cgroups)) => print_cgroups(&whole),
            (false, Some(Section::Networks)) => networks::print(&whole.networks),
            (false, Some(Section::Sizes)) => print_sizes(&whole),
            (false, None) => {
                print_header(&whole);
                print_tasks(&whole);
                print_sizes(&whole);
            }
        }
        Ok(0)
    }
}

fn header(image: &Image) -> Header {
    let (header, sandbox) = (image.header(), image.sandbox());
    let machine = image.machine().cloned().unwrap_or_default();
    Header {
        floe: header.floe_version.clone(),
        name: sandbox.name.clone(),
        arch: header.arch.clone(),
        kernel: header.kernel.clone(),
        host: header.host.clone(),
        created: header.created,
        command: sandbox.command.clone(),
        id: image.identity().id.to_string(),
        owner: image.owner().map(|owner| owner.namespace.maker.0),
        cpu: machine.level,
        instructions: machine.features,
        base: image.identity().base.as_ref().map(|base| BasedOn {
            name: base.shown(),
            id: base.id.to_string(),
            chain: image.bases(),
        }),
    }
}

fn tasks(image: &Image) -> Vec<Task> {
    let pages: BTreeMap<i32, u64> = image
        .page_maps()
        .iter()
        .filter_map(|map| match map.owner {
            ContentOwner::Process(pid) => Some((pid.0, map.runs.iter().map(|run| run.pages).sum())),
            ContentOwner::Shmem(_)
            | ContentOwner::Ghost(_)
            | ContentOwner::Log
            | ContentOwner::Segment { .. }
            | ContentOwner::Node { .. } => None,
        })
        .collect();
    let task = |process: &floe_image::record::ProcessRecord| Task {
        pid: process.pid.0,
        ppid: process.ppid.0,
        pgid: process.pgid.0,
        sid: process.sid.0,
        comm: process
            .threads
            .first()
            .map_or(String::new(), |t| String::from_utf8_lossy(&t.comm).into_owned()),
        state: match process.state {
            ProcessState::Alive => "alive".to_owned(),
            ProcessState::Stopped { signal, .. } => format!("stopped by signal {signal}"),
            ProcessState::Zombie { status } => format!("zombie ({status:#x})"),
        },
        threads: process.threads.len(),
        pages: pages.get(&process.pid.0).copied().unwrap_or(0),
    };
    image.processes().iter().map(task).collect()
}

fn source(image: &Image, source: &VmaSource) -> String {
    match source {
        VmaSource::Anonymous => "anonymous".to_owned(),
        VmaSource::Shmem { object, offset } => format!("shared memory {object} + {offset:#x}"),
        VmaSource::File { file, offset, shared } => {
            let path = image
                .mapped_files()
                .get(*file as usize)
                .map_or(&b"?"[..], |record| &record.path);
            let how = if *shared { "shared" } else { "private" };
            format!("{} + {offset:#x} ({how})", String::from_utf8_lossy(path))
        }
        VmaSource::Special { name } => name.clone(),
        VmaSource::AioRing(ring) => format!(
            "AIO ring for {} requests, {} events wait",
            ring.most,
            ring.waiting.len()
        ),
        VmaSource::Segment {
            namespace: 0,
            id,
            offset,
            ..
        } => format!("System V shared memory {id} + {offset:#x}"),
        VmaSource::Segment {
            namespace, id, offset, ..
        } => {
            format!("System V shared memory {id} of namespace {namespace} + {offset:#x}")
        }
    }
}

fn mappings(image: &Image) -> Vec<Mapping> {
    let of = |space: &AddressSpaceRecord| -> Vec<Mapping> {
        let prot = |bits: u32| -> String {
            ['r', 'w', 'x']
                .iter()
                .enumerate()
                .map(|(i, c)| if bits & (1 << i) != 0 { *c } else { '-' })
                .collect()
        };
        space
            .vmas
            .iter()
            .map(|vma| Mapping {
                pid: space.pid.0,
                start: vma.start,
                end: vma.end,
                prot: prot(vma.prot),
                source: source(image, &vma.source),
            })
            .collect()
    };
    image.address_spaces().iter().flat_map(of).collect()
}

fn descriptors(image: &Image) -> anyhow::Result<Vec<Descriptor>> {
    let mut all = Vec::new();
    for table in image.descriptor_tables() {
        for descriptor in &table.descriptors {
            let file = &image.open_files()[descriptor.file as usize];
            all.push(Descriptor {
                pid: table.pid.0,
                number: descriptor.number,
                kind: file.kind.clone(),
                file: file.id,
                network: file.network,
                description: match (kind_of(file)?.describe(file)?, file.network) {
                    (what, 0) => what,
                    (what, network) => format!("{what}, in network namespace {network}"),
                },
                position: file.position,
                flags: file.flags,
                close_on_exec: descriptor.close_on_exec,
            });
        }
    }
    Ok(all)
}

/// Of all living processes.
fn threads(image: &Image) -> impl Iterator<Item = i32> {
    let living = image.processes().iter();
    let living = living.filter(|process| !matches!(process.state, ProcessState::Zombie { .. }));
    living.flat_map(|process| process.threads.iter().map(|thread| thread.tid.0))
}

/// The position of a thread's cgroup.
fn place(hierarchy: &HierarchyRecord, tid: i32) -> u32 {
    let member = hierarchy.members.iter().find(|(member, _)| member.0 == tid);
    member.map_or(0, |(_, place)| *place)
}

/// Where something is set, or tasks are elsewhere than in the tree's own cgroup.
fn cgroups(image: &Image) -> Vec<Group> {
    let group = |hierarchy: &HierarchyRecord, (index, cgroup): (u32, &CgroupRecord)| Group {
        controllers: hierarchy.controllers.clone(),
        path: String::from_utf8_lossy(&cgroup.path).into_owned(),
        frozen: cgroup.frozen,
        tasks: threads(image).filter(|tid| place(hierarchy, *tid) == index).collect(),
        settings: cgroup.settings.iter().cloned().collect(),
    };
    let all = image.sandbox().cgroups.iter();
    all.flat_map(|hierarchy| {
        (0..)
            .zip(&hierarchy.cgroups)
            .map(move |cgroup| group(hierarchy, cgroup))
    })
    .collect()
}

fn sizes(image: &Image) -> Sizes {
    let mut records: BTreeMap<String, u64> = BTreeMap::new();
    for entry in image.entries() {
        *records.entry(format!("{:?}", entry.kind)).or_default() += entry.length;
    }
    let compressed = image.own_chunks().iter().filter(|chunk| chunk.compressed).count();
    Sizes {
        image: image.bytes(),
        records,
        pages: image.stored_pages() - image.identity().first_page(),
        page_bytes_stored: image.own_chunks().iter().map(|chunk| u64::from(chunk.stored)).sum(),
        chunks_raw: image.own_chunks().len() - compressed,
        chunks_compressed: compressed,
    }
}

fn print_header(whole: &Whole) {
    let header = &whole.header;
    let name = if header.name.is_empty() {
        "a tree that floe did not start"
    } else {
        &header.name
    };
    output::line(&format!("{name}: {}", header.command.join(" ")));
    output::line(&format!(
        "made by floe {} on {} (Linux {}, {}) at {}",
        header.floe,
        header.host,
        header.kernel,
        header.arch,
        date(header.created)
    ));
    if let Some(user) = header.owner {
        output::line(&format!("in a user namespace of user {user}'s"));
    }
    if let Some(level) = &header.cpu {
        output::line(&format!("started for processors of level {level}"));
    }
    if let Some(base) = &header.base {
        let rest = match base.chain {
            1 => String::new(),
            chain => format!(", and by that on {} more", chain - 1),
        };
        output::line(&format!("based on {} (id {}){rest}", base.name, base.id));
    }
    output::line("");
}

/// Seconds since 1970 as a date where the reader is.
fn date(seconds: u64) -> String {
    let second = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    second.map_or_else(
        || format!("second {seconds} since 1970"),
        |second| {
            second
                .to_zoned_datetime(jiff::tz::TimeZone::system())
                .strftime("%F %T %:z")
                .to_string()
        },
    )
}

fn print_tasks(whole: &Whole) {
    let rows = whole.ps.iter().map(|task| {
        let cells = vec![
            task.pid.to_string(),
            task.ppid.to_string(),
            task.pgid.to_string(),
            task.sid.to_string(),
            task.threads.to_string(),
            output::bytes(task.pages * 4096),
            task.state.clone(),
            task.comm.clone(),
        ];
        (task.pid, task.ppid, cells)
    });
    let header = ["PID", "PPID", "PGID", "SID", "THREADS", "MEMORY", "STATE", "COMMAND"];
    output::table(&header, &as_tree(rows.collect()));
    output::line("");
}

fn print_mappings(whole: &Whole) {
    let row = |m: &Mapping| {
        vec![
            m.pid.to_string(),
            format!("{:x}-{:x}", m.start, m.end),
            m.prot.clone(),
            m.source.clone(),
        ]
    };
    output::table(
        &["PID", "RANGE", "PROT", "SOURCE"],
        &whole.memory.iter().map(row).collect::<Vec<_>>(),
    );
}

fn print_files(whole: &Whole) {
    let row = |d: &Descriptor| {
        vec![
            d.pid.to_string(),
            d.number.to_string(),
            d.kind.clone(),
            d.file.to_string(),
            d.position.to_string(),
            format!("{:#o}", d.flags),
            d.description.clone(),
        ]
    };
    let header = ["PID", "FD", "KIND", "OPEN FILE", "POSITION", "FLAGS", "WHAT"];
    output::table(&header, &whole.files.iter().map(row).collect::<Vec<_>>());
}

fn print_cgroups(whole: &Whole) {
    let rows = whole.cgroups.iter().map(|group| {
        let settings = group.settings.iter();
        let settings: Vec<String> = settings
            .map(|(name, value)| format!("{name}={}", value.replace('\n', "; ")))
            .collect();
        let hierarchy = match group.controllers.as_str() {
            "" => "version 2",
            controllers => controllers,
        };
        vec![
            hierarchy.to_owned(),
            format!("/{}", group.path),
            if group.frozen { "frozen" } else { "" }.to_owned(),
            group.tasks.len().to_string(),
            settings.join(", "),
        ]
    });
    output::table(
        &["HIERARCHY", "CGROUP", "", "TASKS", "SETTINGS"],
        &rows.collect::<Vec<_>>(),
    );
}

fn print_sizes(whole: &Whole) {
    let sizes = &whole.sizes;
    let memory = sizes.pages * 4096;
    output::line(&format!("image      {}", output::bytes(sizes.image)));
    let ratio = if sizes.page_bytes_stored == 0 {
        String::new()
    } else {
        format!(" ({:.1} to 1)", memory as f64 / sizes.page_bytes_stored as f64)
    };
    output::line(&format!(
        "pages      {} in {}{ratio}, {} chunks compressed, {} raw",
        output::bytes(memory),
        output::bytes(sizes.page_bytes_stored),
        sizes.chunks_compressed,
        sizes.chunks_raw
    ));
    for (kind, bytes) in &sizes.records {
        output::line(&format!("{:<16} {}", kind, output::bytes(*bytes)));
    }
}
