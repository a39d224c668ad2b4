//! What is written reads back: each record by itself, and whole images.

use crate::{
    dice, forge,
    sample::{self, Sample, noise, stripes},
    shared::{compare, open, written},
};
use floe_image::{
    chunk::{CHUNK_PAGES, PAGE_BYTES},
    codec,
    record::*,
};
use proptest::prelude::*;

macro_rules! properties {
    ($($name:ident: $record:ty),+ $(,)?) => {
        proptest! {
            $(#[test]
            fn $name(record in dice::record::<$record>()) {
                let bytes = codec::encode(&record).expect("encode");
                prop_assert_eq!(&codec::decode::<$record>(&bytes).expect("decode"), &record);
                // A body cut short or with more behind it is none.
                if let Some(short) = bytes.len().checked_sub(1) {
                    prop_assert!(codec::decode::<$record>(&bytes[..short]).is_err());
                }
                prop_assert!(codec::decode::<$record>(&[bytes, vec![0]].concat()).is_err());
            })+
        }
    };
}

properties! {
    a_header_record_reads_back: HeaderRecord,
    a_sandbox_record_reads_back: SandboxRecord,
    a_process_record_reads_back: ProcessRecord,
    an_address_space_record_reads_back: AddressSpaceRecord,
    a_mapped_file_record_reads_back: MappedFileRecord,
    a_shmem_record_reads_back: ShmemRecord,
    a_ghost_record_reads_back: GhostRecord,
    an_open_file_record_reads_back: OpenFileRecord,
    an_object_record_reads_back: ObjectRecord,
    a_descriptor_table_record_reads_back: DescriptorTableRecord,
    a_page_map_record_reads_back: PageMapRecord,
    a_mount_namespace_record_reads_back: MountNamespaceRecord,
    a_filesystem_record_reads_back: FilesystemRecord,
    a_network_record_reads_back: NetworkRecord,
    an_identity_record_reads_back: IdentityRecord,
    an_owner_record_reads_back: OwnerRecord,
    a_machine_record_reads_back: MachineRecord,
    an_index_record_reads_back: IndexRecord,
}

#[test]
fn an_image_of_everything_reads_back() {
    let sample = sample::whole();
    let image = open(&written(&sample)).expect("open");
    compare(&image, &sample, "the image just written");
    let report = image.verify(|_| {}).expect("verify");
    let several = [
        sample.processes.len(),
        sample.address_spaces.len(),
        sample.mapped_files.len(),
        sample.shmems.len(),
        sample.ghosts.len(),
        sample.open_files.len(),
        sample.objects.len(),
        sample.descriptor_tables.len(),
        sample.page_maps.len(),
        sample.mount_namespaces.len(),
        sample.filesystems.len(),
        sample.networks.len(),
        usize::from(sample.owner.is_some()),
        usize::from(sample.machine.is_some()),
    ];
    // Header, sandbox and identity besides.
    let records = 3 + several.iter().sum::<usize>();
    assert_eq!((report.records, report.chunks, report.pages), (records, 3, 11));
    let compressed: Vec<bool> = image.chunks().iter().map(|chunk| chunk.compressed).collect();
    assert_eq!(compressed, [true, false, true]);
}

#[test]
fn the_smallest_image_reads_back() {
    let sample = sample::tiny();
    compare(
        &open(&written(&sample)).expect("open"),
        &sample,
        "the image just written",
    );
}

#[test]
fn an_image_put_together_by_hand_is_the_one_that_was_written() {
    for sample in [sample::whole(), sample::tiny()] {
        let image = written(&sample);
        assert!(forge::put_together(&forge::take_apart(&image)) == image);
    }
}

#[test]
fn the_progress_of_verify_ends_at_all_pages() {
    let image = open(&written(&sample::whole())).expect("open");
    let mut last = 0;
    image
        .verify(|done| {
            assert!(done > last, "{done} after {last}");
            last = done;
        })
        .expect("verify");
    assert_eq!(last, 11 * PAGE_BYTES as u64);
}

/// Pages of one chunk: how many, and what is in them.
fn pages() -> impl Strategy<Value = Vec<u8>> {
    let count = prop_oneof![1..20_usize, Just(CHUNK_PAGES)];
    (count, any::<u64>(), 0..3_u8).prop_map(|(count, seed, how)| match how {
        0 => vec![seed as u8; count * PAGE_BYTES],
        1 => stripes(seed % 1000, count),
        _ => noise(seed, count * PAGE_BYTES),
    })
}

fn file(id: usize, record: OpenFileRecord) -> OpenFileRecord {
    OpenFileRecord {
        id: id as u32,
        mount_namespace: 0,
        network: 0,
        ..record
    }
}

fn possible(clocks: ClocksRecord) -> ClocksRecord {
    ClocksRecord {
        monotonic: clocks.monotonic / 4,
        boottime: clocks.boottime / 4,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_image_reads_back(
        chunks in prop::collection::vec(pages(), 1..8),
        sandbox in dice::record::<SandboxRecord>(),
        open_files in prop::collection::vec(dice::record::<OpenFileRecord>(), 0..40),
        objects in prop::collection::vec(dice::record::<ObjectRecord>(), 0..40),
    ) {
        let sample = Sample {
            chunks,
            sandbox: SandboxRecord {
                has_init: true,
                namespaces: Vec::new(),
                pid_namespaces: Vec::new(),
                ended_leaders: Vec::new(),
                log: None,
                clocks: possible(sandbox.clocks),
                ipc_objects: IpcRecord::default(),
                sysctls: Vec::new(),
                net: NamespaceOrigin::Host,
                cgroups: Vec::new(),
                link: None,
                ..sandbox
            },
            open_files: open_files.into_iter().enumerate().map(|(id, record)| file(id, record)).collect(),
            objects: objects
                .into_iter()
                .enumerate()
                .map(|(id, record)| ObjectRecord { id: id as u32, ..record })
                .collect(),
            ..sample::tiny()
        };
        let image = open(&written(&sample)).expect("open");
        compare(&image, &sample, "the image just written");
        prop_assert_eq!(image.verify(|_| {}).expect("verify").chunks, sample.chunks.len());
    }
}
