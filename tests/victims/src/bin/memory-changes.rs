//! Memory that changes between one look and the next in all ways that are easily missed: written, mapped anew at the same
//! address, moved so that two areas trade places, given back, zeroed, through a descriptor, by another process, with the
//! break, in huge pages, by fork and by exec. Each check compares everything with what it should be, and then changes it;
//! what was once found wrong is told for ever.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::{AtomicU64, Ordering},
};
use victims::{
    Findings, Stage,
    memory::{Mapping, PAGE},
    pattern, play,
    stage::fork,
    wait_until,
};

const PAGES: usize = 96;
/// Children that can take part.
const CHILDREN: usize = 24;
const HUGE: usize = 2 << 20;
const BOARD_BYTES: usize = PAGE;

/// What is said to children, and what they say, in shared memory.
#[repr(C)]
struct Board {
    /// How often all are to have compared.
    asked: AtomicU64,
    /// How often each has.
    compared: [AtomicU64; CHILDREN],
    /// The page that each found wrong first, from 1 on.
    wrong: [AtomicU64; CHILDREN],
}

/// Pages, each of which has the bytes of a seed, or zeros.
#[derive(Debug)]
struct Area {
    what: &'static str,
    mapping: Mapping,
    seeds: Vec<Option<u64>>,
}

impl Area {
    fn new(what: &'static str, mapping: Mapping) -> Self {
        let seeds = vec![None; mapping.len / PAGE];
        Self { what, mapping, seeds }
    }

    fn private(what: &'static str) -> Self {
        Self::new(what, Mapping::private(PAGES * PAGE))
    }

    fn mark(&mut self, page: usize, seed: u64) {
        self.mapping.mark(page, seed);
        self.seeds[page] = Some(seed);
    }

    fn fill(mut self, seed: u64) -> Self {
        (0..self.seeds.len()).for_each(|page| self.mark(page, seed + page as u64));
        self
    }

    /// The first page that is wrong.
    fn wrong(&self) -> Option<usize> {
        (0..self.seeds.len()).find(|page| {
            let held = self.mapping.read(page * PAGE, PAGE);
            match self.seeds[*page] {
                Some(seed) => pattern::difference(&held, &pattern::bytes(PAGE, seed)).is_some(),
                None => held.iter().any(|byte| *byte != 0),
            }
        })
    }
}

struct Changing {
    written: Area,
    anew: Area,
    traded: [Area; 2],
    given_back: Area,
    zeroed: Area,
    huge: Area,
    file: Area,
    memfd: (File, Area),
    shared: Area,
    own_end: usize,
    grown: Option<Area>,
    board: &'static Board,
    board_file: i32,
    children: usize,
}

fn main() {
    if let [_, flag, file, index] = &std::env::args().collect::<Vec<_>>()[..]
        && flag == "--executed"
    {
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let child = number(index);
        let own = [Area::private("executed").fill(child as u64 * 1000)];
        attend(board(number(file) as i32), child, &mut own.iter());
    }
    play(|stage| {
        let mut changing = Changing::new(stage);
        let mut trouble: Vec<String> = Vec::new();
        let mut generation = 0;
        move |findings: &mut Findings| {
            if findings.sabotage() {
                changing.written.mapping.mark(5, 0xbad);
            }
            trouble.extend(changing.compare(generation));
            generation += 1;
            changing.change(generation);
            trouble.iter().for_each(|what| findings.add(what.clone()));
        }
    })
}

fn board(file: i32) -> &'static Board {
    let flags = libc::MAP_SHARED;
    let mapping = Mapping::new(BOARD_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0);
    // SAFETY: zeros or what a board was before, aligned, large enough, and there till the end; all is atomic.
    unsafe { &*(mapping.address as *const Board) }
}

/// A child's part: compares what it has whenever it is asked.
fn attend<'a>(board: &Board, child: usize, areas: &mut (impl Iterator<Item = &'a Area> + Clone)) -> ! {
    let mut compared = board.asked.load(Ordering::Acquire);
    board.compared[child].store(compared, Ordering::Release);
    loop {
        wait_until(|| board.asked.load(Ordering::Acquire) > compared);
        if board.asked.load(Ordering::Acquire) == compared {
            continue;
        }
        let wrong = areas.clone().find_map(Area::wrong);
        if let Some(page) = wrong {
            board.wrong[child].store(page as u64 + 1, Ordering::Release);
        }
        compared += 1;
        board.compared[child].store(compared, Ordering::Release);
    }
}

fn memfd(name: &std::ffi::CStr, flags: u32, bytes: usize) -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: a name that ends with a NUL.
    let number = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    assert!(number >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let file = unsafe { File::from_raw_fd(number) };
    file.set_len(bytes as u64).expect("its length");
    file
}

impl Changing {
    fn new(stage: &Stage) -> Self {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let path = stage.path("mapped");
        std::fs::write(&path, pattern::bytes(PAGES * PAGE, 77)).expect("a file to map");
        let on_disk = OpenOptions::new().read(true).write(true).open(&path).expect("open it");
        let file = Mapping::new(PAGES * PAGE, both, libc::MAP_PRIVATE, on_disk.as_raw_fd(), 0);
        let memory = memfd(c"changing", libc::MFD_CLOEXEC, PAGES * PAGE);
        let shown = Mapping::new(PAGES * PAGE, both, libc::MAP_SHARED, memory.as_raw_fd(), 0);
        // Executed children find it by its number.
        let told = memfd(c"board", 0, BOARD_BYTES);
        let huge = Mapping::private(3 * HUGE);
        huge.advise(0, 3 * HUGE / PAGE, libc::MADV_HUGEPAGE).expect("madvise");
        let board_file = std::os::fd::IntoRawFd::into_raw_fd(told);
        Self {
            written: Area::private("written").fill(1000),
            anew: Area::private("mapped anew").fill(2000),
            traded: [
                Area::private("traded, one").fill(3000),
                Area::private("traded, other").fill(4000),
            ],
            given_back: Area::private("given back").fill(5000),
            zeroed: Area::private("zeroed").fill(6000),
            huge: Area::new("huge", huge).fill(7000),
            file: Area::new("file", file).fill(8000),
            memfd: (memory, Area::new("memfd", shown).fill(9000)),
            shared: Area::new("shared", Mapping::anonymous(PAGES * PAGE, both, libc::MAP_SHARED)).fill(10_000),
            own_end: 0,
            grown: None,
            board: board(board_file),
            board_file,
            children: 0,
        }
    }

    fn areas(&self) -> impl Iterator<Item = &Area> + Clone {
        let private = [&self.written, &self.anew, &self.given_back, &self.zeroed, &self.huge];
        private.into_iter().chain(&self.traded).chain(&self.grown)
    }

    /// What is wrong, here and in the children.
    fn compare(&mut self, generation: u64) -> Vec<String> {
        let all = self.areas().chain([&self.memfd.1, &self.shared]);
        let wrong = all.filter_map(|area| Some((area.what, area.wrong()?)));
        let mut found: Vec<String> = wrong
            .map(|(what, page)| format!("generation {generation}: page {page} of {what} is wrong"))
            .collect();
        for page in 0..PAGES {
            let held = self.file.mapping.read(page * PAGE, PAGE);
            let seed = self.file.seeds[page];
            let file = || pattern::bytes(PAGES * PAGE, 77)[page * PAGE..][..PAGE].to_vec();
            if held != seed.map_or_else(file, |seed| pattern::bytes(PAGE, seed)) {
                found.push(format!("generation {generation}: page {page} of file is wrong"));
                break;
            }
        }
        let asked = self.board.asked.fetch_add(1, Ordering::AcqRel) + 1;
        for child in 0..self.children {
            if !wait_until(|| self.board.compared[child].load(Ordering::Acquire) >= asked) {
                found.push(format!("generation {generation}: child {child} says nothing"));
            }
            match self.board.wrong[child].load(Ordering::Acquire) {
                0 => {}
                page => found.push(format!(
                    "generation {generation}: child {child} has page {} wrong",
                    page - 1
                )),
            }
        }
        found
    }

    fn change(&mut self, generation: u64) {
        let seed = generation * 100_000;
        for step in 0..7 {
            let page = (generation as usize * 13 + step * 11) % PAGES;
            self.written.mark(page, seed + page as u64);
        }
        map_anew(&mut self.anew, seed + 500);
        trade(&mut self.traded);
        give_back(&mut self.given_back, generation as usize, seed + 700);
        let page = generation as usize * 3 % PAGES;
        self.zeroed.mapping.write(page * PAGE, &[0; PAGE]);
        self.zeroed.seeds[page] = None;
        self.huge
            .mark(generation as usize * 101 % (3 * HUGE / PAGE), seed + 900);
        // A page of the process's own becomes one of the file again.
        let page = generation as usize % PAGES;
        self.file.mapping.advise(page, 1, libc::MADV_DONTNEED).expect("madvise");
        self.file.seeds[page] = None;
        self.file.mark(PAGES - 1 - page, seed + 1100);
        // Past the mapping.
        let (file, area) = &mut self.memfd;
        let page = generation as usize * 5 % PAGES;
        file.write_all_at(&pattern::bytes(PAGE, seed + 1300), (page * PAGE) as u64)
            .expect("write to a memfd");
        area.seeds[page] = Some(seed + 1300);
        self.change_shared(generation, seed + 1500);
        self.move_break(seed + 1700);
        self.bear(generation, seed + 1900);
    }

    /// Another process writes.
    fn change_shared(&mut self, generation: u64, seed: u64) {
        let page = generation as usize * 7 % PAGES;
        let area = &mut self.shared;
        let child = fork(|| area.mark(page, seed));
        victims::call::wait(child, 0).expect("wait for who writes");
        area.seeds[page] = Some(seed);
    }

    /// The heap grows, and is less again where nobody else has moved its end.
    fn move_break(&mut self, seed: u64) {
        // SAFETY: asks for the end.
        let end = unsafe { libc::sbrk(0) } as usize;
        if let Some(area) = self.grown.take_if(|_| end == self.own_end) {
            // SAFETY: what lies above is this area alone, which is gone.
            unsafe { libc::sbrk(-(area.mapping.len as isize)) };
            return;
        }
        if self.grown.is_some() || !end.is_multiple_of(PAGE) {
            return;
        }
        // SAFETY: more memory, of which nobody knows yet.
        let start = unsafe { libc::sbrk((PAGES * PAGE) as isize) } as usize;
        if start != end {
            return;
        }
        let mapping = Mapping {
            address: start,
            len: PAGES * PAGE,
        };
        self.own_end = start + mapping.len;
        self.grown = Some(Area::new("grown", mapping).fill(seed));
    }

    /// A child that has what is there now, with some pages of its own; and one that executes.
    fn bear(&mut self, generation: u64, seed: u64) {
        if self.children + 2 > CHILDREN {
            return;
        }
        let child = self.children;
        fork(|| {
            // SAFETY: plain numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            (0..9).for_each(|page| self.written.mark(page * 9, seed + page as u64));
            trade(&mut self.traded);
            attend(self.board, child, &mut self.areas())
        });
        let executed = child + 1;
        let file = self.board_file;
        fork(|| {
            // SAFETY: plain numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if generation.is_multiple_of(2) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let numbers = [file.to_string(), executed.to_string()];
            let error = std::os::unix::process::CommandExt::exec(
                std::process::Command::new("/proc/self/exe")
                    .arg("--executed")
                    .args(numbers),
            );
            panic!("exec: {error}")
        });
        self.children += 2;
        let asked = self.board.asked.load(Ordering::Acquire);
        let ready = |child: usize| self.board.compared[child].load(Ordering::Acquire) >= asked;
        assert!(
            wait_until(|| ready(child) && ready(executed)),
            "children did not get ready"
        );
    }
}

/// Other memory at the same address, of which half is not written.
fn map_anew(area: &mut Area, seed: u64) {
    let (address, bytes) = (area.mapping.address as *mut libc::c_void, area.mapping.len);
    area.mapping.unmap(0, PAGES);
    let (both, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: the place was just left, and where it was taken since, nothing is replaced.
    let again = unsafe { libc::mmap(address, bytes, both, flags | libc::MAP_FIXED_NOREPLACE, -1, 0) };
    assert_eq!(again, address, "mmap: {}", io::Error::last_os_error());
    area.seeds.fill(None);
    (0..PAGES)
        .step_by(2)
        .for_each(|page| area.mark(page, seed + page as u64));
}

/// Two areas trade places, by three moves: no page is written.
fn trade(areas: &mut [Area; 2]) {
    let between = Mapping::private(PAGES * PAGE);
    let places = [areas[0].mapping.address, areas[1].mapping.address, between.address];
    for (from, to) in [(0, 2), (1, 0), (2, 1)] {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: these are the areas' and the place between them, of which nothing is borrowed.
        let moved = unsafe {
            let target = places[to] as *mut libc::c_void;
            libc::mremap(places[from] as *mut _, PAGES * PAGE, PAGES * PAGE, flags, target)
        };
        assert_eq!(moved as usize, places[to], "mremap: {}", io::Error::last_os_error());
    }
    let [one, other] = areas;
    std::mem::swap(&mut one.seeds, &mut other.seeds);
}

fn give_back(area: &mut Area, generation: usize, seed: u64) {
    let page = generation * 6 % (PAGES - 4);
    area.mapping.advise(page, 4, libc::MADV_DONTNEED).expect("madvise");
    area.seeds[page..page + 4].fill(None);
    // One is read, so that the page of zeros is there, and one is written.
    assert_eq!(area.mapping.read((page + 1) * PAGE, 1), [0]);
    area.mark(page + 2, seed);
}
