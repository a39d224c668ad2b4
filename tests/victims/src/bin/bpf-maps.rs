//! Maps of bpf(2): arrays, hashes, a trie, a queue and a stack, of each processor, frozen, with files of their own that may
//! only be read, shared with a child.

use std::{fs, io, os::fd::RawFd};
use victims::{Findings, Peer, Seen, call, play};

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const QUEUE: u32 = 22;
const STACK: u32 = 23;
const NO_PREALLOC: u32 = 1;
const RDONLY: u32 = 1 << 3;

const LOOKUP: i64 = 1;
const UPDATE: i64 = 2;
const NEXT_KEY: i64 = 4;
const TAKE: i64 = 21;

fn main() {
    play(|_| {
        let all = [
            Map::new(HASH, 4, 10, 4, 0, "hash"),
            Map::new(HASH, 4, 8, 1000, NO_PREALLOC, "many"),
            Map::new(ARRAY, 4, 16, 300, 0, "array"),
            Map::new(PERCPU_HASH, 8, 4, 5, 0, "percpu_hash"),
            Map::new(PERCPU_ARRAY, 4, 12, 5, 0, "percpu_array"),
            Map::new(LRU_HASH, 4, 8, 100, 0, "lru"),
            Map::new(LPM_TRIE, 8, 4, 10, NO_PREALLOC, "trie"),
            Map::new(ARRAY, 4, 8, 2, 0, "frozen"),
        ];
        let [hash, many, array, percpu_hash, percpu_array, lru, trie, frozen] = &all;
        for key in 0..4_u32 {
            hash.set(&key.to_ne_bytes(), 10 + key as u8);
            array.set(&(7 * key).to_ne_bytes(), 20 + key as u8);
            percpu_hash.set(&[key as u8; 8], 30 + key as u8);
            percpu_array.set(&key.to_ne_bytes(), 40 + key as u8);
            trie.set(&[8 * (key as u8 + 1), 0, 0, 0, 10, 1, 2, 3], 60 + key as u8);
        }
        for key in 0..1000_u32 {
            many.set(&key.to_ne_bytes(), key as u8);
        }
        for key in 0..60_u32 {
            lru.set(&key.to_ne_bytes(), key as u8 + 1);
        }
        frozen.set(&[1, 0, 0, 0], 70);
        call::checked(bpf(22, &[frozen.file as u64])).expect("BPF_MAP_FREEZE");
        let queues = [Queue::new(QUEUE), Queue::new(STACK)];
        let reader = hash.again(RDONLY);
        let flags = [Seen::of(hash.file), Seen::of(reader)];
        let (shared, key) = (many.file, 7_u32.to_ne_bytes());
        let child = Peer::start(move |value| {
            let file = Map {
                file: shared,
                key: 4,
                value: 8,
            };
            file.set(&key, value as u8);
            0
        });
        let before: Vec<_> = all.iter().map(|map| (map.shape(), map.contents())).collect();
        let mut round = 0;
        move |findings: &mut Findings| {
            let [hash, many, .., frozen] = &all;
            round += 1;
            if findings.sabotage() {
                hash.set(&2_u32.to_ne_bytes(), 99);
            }
            for (map, (shape, contents)) in all.iter().zip(&before) {
                let now = map.shape();
                findings.same(format!("map {shape}"), shape, &now);
                findings.that(*contents == map.contents(), format!("map {shape} holds something else"));
            }
            findings.that(frozen.try_set(&[0; 4], 1).is_err(), "the frozen map takes something");
            let full = hash
                .try_set(&9_u32.to_ne_bytes(), 1)
                .map_err(|error| error.raw_os_error());
            findings.same("one more in a full map", &Err(Some(libc::E2BIG)), &full);
            flags[0].compare(findings, "the file of a map", hash.file);
            flags[1].compare(findings, "the file that is only read", reader);
            let only = Map { file: reader, ..*hash };
            findings.that(only.try_set(&[0; 4], 1).is_err(), "what is only read takes something");
            findings.same("through another file", &hash.contents().len(), &only.contents().len());
            findings.take("ask the child", child.ask(100 + round));
            findings.same("what the child set", &Some(vec![100 + round as u8; 8]), &many.get(&key));
            many.set(&key, 7);
            queues.iter().for_each(|queue| queue.check(findings));
        }
    })
}

fn bpf(command: i64, words: &[u64]) -> i64 {
    // SAFETY: the attributes have the stated size; what they point to outlives the call.
    unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) }
}

fn make(kind: u32, key: u32, value: u32, most: u32, flags: u32, name: &str) -> RawFd {
    // The name is at 28, behind the numbers of another map and of a node.
    let mut bytes = [0_u8; 48];
    for (at, number) in [kind, key, value, most, flags].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes[28..28 + name.len()].copy_from_slice(name.as_bytes());
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().expect("8")))
        .collect();
    call::checked(bpf(0, &words)).unwrap_or_else(|error| panic!("make {name}: {error}")) as RawFd
}

/// A map, the bytes of a key, and those of a value.
#[derive(Clone, Copy)]
struct Map {
    file: RawFd,
    key: usize,
    value: usize,
}

impl Map {
    fn new(kind: u32, key: u32, value: u32, most: u32, flags: u32, name: &str) -> Self {
        let processors = fs::read_to_string("/sys/devices/system/cpu/possible").expect("processors");
        let last = processors
            .trim()
            .rsplit(['-', ','])
            .next()
            .and_then(|last| last.parse::<usize>().ok());
        let own = [PERCPU_HASH, PERCPU_ARRAY].contains(&kind);
        Self {
            file: make(kind, key, value, most, flags, name),
            key: key as usize,
            value: match own {
                true => (value as usize).next_multiple_of(8) * (last.expect("a number") + 1),
                false => value as usize,
            },
        }
    }

    /// Another file of it.
    fn again(&self, flags: u32) -> RawFd {
        let id: u32 = self.info("map_id").parse().expect("a number");
        call::checked(bpf(14, &[id.into(), flags.into()])).expect("BPF_MAP_GET_FD_BY_ID") as RawFd
    }

    fn info(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.file)).expect("fdinfo");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        line.expect("it is told").to_owned()
    }

    fn shape(&self) -> String {
        let keys = [
            "map_type",
            "key_size",
            "value_size",
            "max_entries",
            "map_flags",
            "frozen",
        ];
        let told = keys.map(|key| self.info(key));
        // struct bpf_map_info has the name at 24.
        let mut info = [0_u8; 40];
        let place = info.as_mut_ptr() as u64;
        call::checked(bpf(15, &[self.file as u64 | (info.len() as u64) << 32, place])).expect("BPF_OBJ_GET_INFO_BY_FD");
        format!("{told:?} {}", String::from_utf8_lossy(&info[24..40]))
    }

    fn set(&self, key: &[u8], byte: u8) {
        self.try_set(key, byte).expect("BPF_MAP_UPDATE_ELEM");
    }

    /// All bytes of its value, on each processor others; those between two are no part of it.
    fn try_set(&self, key: &[u8], byte: u8) -> io::Result<()> {
        let value: Vec<u8> = (0..self.value).map(|at| byte + (at / 16) as u8).collect();
        call::checked(bpf(
            UPDATE,
            &[self.file as u64, key.as_ptr() as u64, value.as_ptr() as u64, 0],
        ))
        .map(drop)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0; self.value];
        let place = value.as_mut_ptr() as u64;
        let got = call::checked(bpf(LOOKUP, &[self.file as u64, key.as_ptr() as u64, place, 0]));
        got.ok().map(|_| value)
    }

    /// In the order of keys.
    fn contents(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        let mut key = vec![0; self.key];
        let mut from = 0;
        loop {
            let mut next = vec![0; self.key];
            let place = next.as_mut_ptr() as u64;
            if bpf(NEXT_KEY, &[self.file as u64, from, place, 0]) != 0 {
                all.sort();
                return all;
            }
            all.push((next.clone(), self.get(&next)));
            key.copy_from_slice(&next);
            from = key.as_ptr() as u64;
        }
    }
}

/// A queue or stack of three, in which one was taken, so that it begins elsewhere.
struct Queue {
    file: RawFd,
    kind: u32,
}

impl Queue {
    fn new(kind: u32) -> Self {
        let file = make(kind, 0, 20, 3, 0, "queue");
        let queue = Self { file, kind };
        [1, 2].into_iter().for_each(|byte| queue.put(byte));
        queue.take().expect("one of two");
        let kept = queue.take().expect("the other");
        queue.put(kept);
        [3, 4].into_iter().for_each(|byte| queue.put(byte));
        queue
    }

    fn put(&self, byte: u8) {
        let value = [byte; 20];
        call::checked(bpf(UPDATE, &[self.file as u64, 0, value.as_ptr() as u64, 0])).expect("room");
    }

    fn take(&self) -> Option<u8> {
        let mut value = [0; 20];
        let place = value.as_mut_ptr() as u64;
        let got = call::checked(bpf(TAKE, &[self.file as u64, 0, place, 0]));
        got.ok().map(|_| value[0])
    }

    fn check(&self, findings: &mut Findings) {
        let told = [self.take(), self.take(), self.take(), self.take()];
        let (wanted, all) = match self.kind {
            QUEUE => ([Some(2), Some(3), Some(4), None], [2, 3, 4]),
            _ => ([Some(4), Some(3), Some(1), None], [1, 3, 4]),
        };
        findings.same(format!("what {} gives", self.kind), &wanted, &told);
        all.into_iter().for_each(|byte| self.put(byte));
    }
}
