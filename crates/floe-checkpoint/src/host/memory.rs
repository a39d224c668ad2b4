//! Memory: finding, following and backing it; and the kernel's own.

use super::{
    Finding, NONE, Probe, RESTORING, SAVING, TREES,
    attempt::{Caller, words},
};
use floe_sys::{
    Pid, kernel, memfd,
    pagemap::{Category, Filter, Pagemap},
    pager::Pager,
    procfs::Mapping,
    userfault,
};
use nix::fcntl::FallocateFlags;
use std::{error::Error, fs, io};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "PAGEMAP_SCAN",
        used_for: "finding the pages that there are to save at once, and huge ones; without, the entry of each page is read",
        advice: "Linux 6.7 or newer",
        used_by: SAVING,
        needed_by: NONE,
        ask: scan,
    },
    Probe {
        name: "map_files",
        used_for: "deleted files that are only mapped, shared memory, System V segments",
        advice: "run floe as root",
        used_by: TREES,
        needed_by: NONE,
        ask: map_files,
    },
    Probe {
        name: "kernel memory",
        used_for: "trees with what no call tells: input that waits in terminals, messages in queues, connections that wait",
        advice: "run floe as root, on a kernel with CONFIG_DEBUG_INFO_BTF that is not locked down",
        used_by: TREES,
        needed_by: NONE,
        ask: kernel_memory,
    },
    Probe {
        name: "userfaultfd WP_ASYNC",
        used_for: "knowing what was written since an earlier image, which floe does not make use of yet",
        advice: "Linux 6.7 or newer with CONFIG_USERFAULTFD",
        used_by: SAVING,
        needed_by: NONE,
        ask: follow,
    },
    Probe {
        name: "userfaultfd events",
        used_for: "memory that comes while the tree runs (restore --lazy); without, it comes before",
        advice: "run floe as root, outside of containers, on a kernel with CONFIG_USERFAULTFD",
        used_by: RESTORING,
        needed_by: NONE,
        ask: bring_later,
    },
    Probe {
        name: "huge pages",
        used_for: "trees that use hugetlbfs, MAP_HUGETLB or SHM_HUGETLB",
        advice: "sysctl vm.nr_overcommit_hugepages=N, or vm.nr_hugepages=N",
        used_by: TREES,
        needed_by: NONE,
        ask: huge,
    },
];

fn scan(_: &Caller) -> Finding {
    let own = Pid::new(std::process::id() as i32);
    let scanned = || -> Result<bool, Box<dyn Error>> {
        let mappings = Mapping::read_all_without_flags(own)?;
        let filter = Filter {
            all: Category::empty(),
            any: Category::PRESENT,
            inverted: Category::empty(),
            report: Category::PRESENT,
        };
        // The program itself.
        let first = mappings.first().ok_or("there is no memory")?;
        Ok(Pagemap::open(own)?.knows_scan(first.start, &filter)?)
    };
    match scanned() {
        Ok(true) => Finding::Yes("this kernel has it".to_owned()),
        Ok(false) => Finding::No("this kernel does not have it".to_owned()),
        Err(error) => Finding::No(words(&*error)),
    }
}

fn map_files(_: &Caller) -> Finding {
    let opened = || -> io::Result<()> {
        let mut entries = fs::read_dir("/proc/self/map_files")?;
        let entry = entries
            .next()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))??;
        fs::File::open(entry.path()).map(drop)
    };
    match opened() {
        Ok(()) => Finding::Yes("its files can be opened".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn kernel_memory(_: &Caller) -> Finding {
    match kernel::try_reading() {
        Ok(()) => Finding::Yes("read by bpf(2), at places that BTF tells".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn follow(_: &Caller) -> Finding {
    match userfault::notes_written_pages() {
        Ok(true) => Finding::Yes("the kernel notes written pages by itself".to_owned()),
        Ok(false) => Finding::No("userfaultfd is there, but does not know it".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn bring_later(_: &Caller) -> Finding {
    match Pager::of_own() {
        Ok(_) => Finding::Yes("it tells of forks and of changed mappings, and of the kernel's own accesses".to_owned()),
        Err(error) => Finding::No(words(&error)),
    }
}

fn huge(_: &Caller) -> Finding {
    let setting = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/vm/{name}")).unwrap_or_default();
        format!("vm.{name} is {}", text.trim())
    };
    let settings = format!("{}, {}", setting("nr_hugepages"), setting("nr_overcommit_hugepages"));
    match allocate_huge() {
        Ok(bytes) => Finding::Yes(format!("one of {} KiB was to be had; {settings}", bytes / 1024)),
        Err(error) => Finding::No(format!("{}; {settings}", words(&error))),
    }
}

/// Takes one huge page of the usual size for a moment; its size.
fn allocate_huge() -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<i64>().ok());
    let bytes = kibibytes.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))? * 1024;
    let file = memfd::create(c"floe-check", libc::MFD_HUGETLB)?;
    nix::fcntl::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    Ok(bytes)
}
