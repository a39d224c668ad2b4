//! A place for open files that no process has, and that go on their way through sockets again: one of the tasks has them
//! until then, behind the numbers of its own.

use floe_image::record::{DescriptorRecord, DescriptorTableRecord, IN_FLIGHT, NsPid};
use floe_tracee::{Puppet, PuppetError};
use std::collections::HashSet;

/// The tables of all, that of what is on its way among them.
#[derive(Debug)]
pub struct Stash {
    /// The tables of processes.
    own: Vec<DescriptorTableRecord>,
    /// What one of them has besides.
    besides: Option<DescriptorTableRecord>,
    flying: HashSet<u32>,
}

impl Stash {
    /// From the image's tables. Numbers that are `taken` in all tasks are not given.
    #[must_use]
    pub fn new(tables: &[DescriptorTableRecord], taken: [i32; 2]) -> Self {
        let (flying, own): (Vec<_>, Vec<_>) = tables.iter().cloned().partition(|table| table.pid == IN_FLIGHT);
        let besides = flying.into_iter().next().and_then(|flying| {
            let end = |table: &DescriptorTableRecord| table.descriptors.last().map_or(0, |last| last.number + 1);
            let host = own.iter().min_by_key(|table| end(table))?;
            let first = end(host).max(taken[0] + 1).max(taken[1] + 1);
            Some(moved(flying, host.pid, first))
        });
        let all = besides.iter().flat_map(|table| &table.descriptors);
        let flying = all.map(|one| one.file).collect();
        Self { own, besides, flying }
    }

    /// All tables: each with a process that is there. One may have two.
    pub fn tables(&self) -> impl Iterator<Item = &DescriptorTableRecord> {
        self.own.iter().chain(&self.besides)
    }

    /// Those of what processes have for good.
    #[must_use]
    pub fn own(&self) -> &[DescriptorTableRecord] {
        &self.own
    }

    /// That of what one has for the moment.
    #[must_use]
    pub fn besides(&self) -> Option<&DescriptorTableRecord> {
        self.besides.as_ref()
    }

    /// Whether an open file is one that is on its way, and that no process has.
    #[must_use]
    pub fn flies(&self, file: u32) -> bool {
        self.flying.contains(&file)
    }

    /// Has the task that has it close what is on its way by now.
    ///
    /// # Errors
    /// [`PuppetError`].
    pub fn close<'a>(&self, puppet: impl FnOnce(NsPid) -> Option<&'a Puppet>) -> Result<(), PuppetError> {
        let Some((first, last, puppet)) = self.besides.as_ref().and_then(|table| {
            let (first, last) = (table.descriptors.first()?, table.descriptors.last()?);
            Some((first.number, last.number, puppet(table.pid)?))
        }) else {
            return Ok(());
        };
        let mut batch = puppet.batch();
        let arguments = [first as u64, last as u64, 0];
        batch.call("close what is on its way", libc::SYS_close_range, &arguments);
        puppet.run(&mut batch)
    }
}

fn moved(mut table: DescriptorTableRecord, pid: NsPid, first: i32) -> DescriptorTableRecord {
    let numbers: Vec<i32> = table.descriptors.iter().map(|one| one.number).collect();
    // Their order is what counts.
    let place = |number: i32| {
        let at = numbers.partition_point(|one| *one < number);
        first.saturating_add(i32::try_from(at).unwrap_or(i32::MAX))
    };
    let locks = table.locks.into_iter().map(|mut lock| {
        lock.number = place(lock.number);
        lock
    });
    table.locks = locks.collect();
    let descriptors = table.descriptors.into_iter().map(|one| DescriptorRecord {
        number: place(one.number),
        close_on_exec: true,
        ..one
    });
    table.descriptors = descriptors.collect();
    DescriptorTableRecord { pid, ..table }
}

#[cfg(test)]
mod tests {
    use super::Stash;
    use floe_image::record::{DescriptorRecord, DescriptorTableRecord, IN_FLIGHT, NsPid};

    fn table(pid: NsPid, numbers: &[i32]) -> DescriptorTableRecord {
        let descriptors = numbers.iter().map(|number| DescriptorRecord {
            number: *number,
            file: 0,
            close_on_exec: false,
        });
        DescriptorTableRecord {
            pid,
            descriptors: descriptors.collect(),
            locks: Vec::new(),
            notices: Vec::new(),
        }
    }

    #[test]
    fn what_is_on_its_way_comes_behind_all_others() {
        let tables = [
            table(NsPid(1), &[0, 900]),
            table(NsPid(7), &[0, 1, 4]),
            table(IN_FLIGHT, &[0, 5]),
        ];
        let stash = Stash::new(&tables, [3, 6]);
        let besides = stash.besides().expect("there is one");
        let numbers: Vec<_> = besides.descriptors.iter().map(|one| one.number).collect();
        assert_eq!((besides.pid, numbers), (NsPid(7), vec![7, 8]));
        assert_eq!(stash.tables().count(), 3);
        assert_eq!(stash.own().len(), 2);
        assert!(Stash::new(&tables[..2], [3, 6]).besides().is_none());
    }
}
