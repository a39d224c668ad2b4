//! Work on several processors that ends before the caller goes on. None of it may fork: see [`crate::fork`].

use std::{
    panic::resume_unwind,
    sync::OnceLock,
    thread::{self, Builder, ScopedJoinHandle},
};

/// Threads that one piece of work is divided among, at most.
const THREADS: usize = 4;

/// So many short files of /proc take longer to read than a thread to begin.
pub const FEW_FILES: usize = 50;

/// How many threads there is something for to do.
#[must_use]
pub fn threads() -> usize {
    // It reads files of cgroups each time.
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, |count| count.get().min(THREADS)))
}

/// What `act` makes of each item, in their order. The caller takes the first share, and those for which there may be no
/// further thread; none is smaller than `worth` items.
pub fn map<'a, T: Sync, R: Send>(items: &'a [T], worth: usize, act: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(threads()).max(worth).max(1);
    let do_share = |share: &'a [T]| -> Vec<R> { share.iter().map(&act).collect() };
    let mut shares = items.chunks(share);
    let own = shares.next().unwrap_or_default();
    if own.len() == items.len() {
        return do_share(own);
    }
    thread::scope(|scope| {
        let do_share = &do_share;
        let others = shares.map(|share| (share, Builder::new().spawn_scoped(scope, move || do_share(share))));
        let others: Vec<_> = others.collect();
        let mut all = do_share(own);
        for (share, thread) in others {
            all.extend(match thread.map(ScopedJoinHandle::join) {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => do_share(share),
            });
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::map;
    use std::{collections::HashSet, panic::catch_unwind, sync::Barrier, thread};

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for count in [0, 1, 2, 3, 7, 8, 9, 100, 1001] {
            let items: Vec<usize> = (0..count).collect();
            for worth in [0, 1, 8, 5000] {
                let doubled = map(&items, worth, |item| item * 2);
                assert!(
                    doubled.iter().copied().eq((0..count).map(|item| item * 2)),
                    "{count} items, {worth}"
                );
            }
        }
    }

    #[test]
    fn several_threads_take_part_and_what_is_not_worth_it_stays_here() {
        let who = |count: usize, worth| -> HashSet<_> {
            map(&vec![(); count], worth, |()| thread::current().id())
                .into_iter()
                .collect()
        };
        assert_eq!(who(100, 100), HashSet::from([thread::current().id()]));
        assert_eq!(who(100, 8).len(), super::threads());
        // At the same time.
        let meeting = Barrier::new(super::threads());
        map(&vec![(); super::threads()], 1, |()| meeting.wait());
    }

    #[test]
    fn a_panic_of_any_is_the_callers() {
        for bad in [0, 99] {
            let items: Vec<usize> = (0..100).collect();
            let ended = catch_unwind(|| map(&items, 1, |item| assert_ne!(*item, bad)));
            assert!(ended.is_err(), "item {bad}");
        }
    }
}
