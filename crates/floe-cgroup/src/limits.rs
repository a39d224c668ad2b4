//! Limits of a sandbox, as its user names them, in the files of either version.

use crate::{CgroupError, Cgroups, group::wrap};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The period of a processor quota, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// Processors, in quotas of the kernel's: microseconds of each 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    quota: u64,
}

impl Cpus {
    /// Some number of processors, which need not be whole; `None` for less than the kernel knows, a hundredth.
    #[must_use]
    pub fn new(number: f64) -> Option<Self> {
        let quota = (number * PERIOD as f64).round();
        // Its greatest quota is some 2^44 microseconds.
        (quota >= 1000.0 && quota < (1_u64 << 44) as f64).then_some(Self { quota: quota as u64 })
    }
}

/// Memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Bytes.
    Bytes(u64),
    /// As much swap as there is.
    Unlimited,
}

/// What a sandbox may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; where `None`, and memory is limited, twice as much as that if the host counts
    /// swap.
    pub swap: Option<Swap>,
    /// Processors.
    pub cpus: Option<Cpus>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// A file and what is to be written.
type Writing = (&'static str, String);

impl Limits {
    /// The controllers that they take.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        let needed = [
            ("memory", self.memory.is_some() || self.swap.is_some()),
            ("cpu", self.cpus.is_some()),
            ("pids", self.pids.is_some()),
        ];
        let needed = needed.iter().filter(|(_, needed)| *needed);
        needed.map(|(name, _)| (*name).to_owned()).collect()
    }

    /// Sets them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn set(&self, cgroups: &Cgroups) -> Result<(), CgroupError> {
        if let Some(memory) = self.memory {
            let version_1 = [("memory.limit_in_bytes", memory.to_string())];
            set_either(cgroups, "memory", &[&version_1, &[("memory.max", memory.to_string())]])?;
            self.set_swap(cgroups, memory)?;
        }
        if let Some(Cpus { quota }) = self.cpus {
            let version_1 = [
                ("cpu.cfs_period_us", PERIOD.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ];
            set_either(
                cgroups,
                "cpu",
                &[&version_1, &[("cpu.max", format!("{quota} {PERIOD}"))]],
            )?;
        }
        if let Some(pids) = self.pids {
            set_either(cgroups, "pids", &[&[("pids.max", pids.to_string())]])?;
        }
        Ok(())
    }

    /// Swap has files of its own, which a host that does not count it lacks.
    fn set_swap(&self, cgroups: &Cgroups, memory: u64) -> Result<(), CgroupError> {
        let both = match self.swap {
            Some(Swap::Bytes(both)) => both.to_string(),
            Some(Swap::Unlimited) => return Ok(()),
            None => memory.saturating_mul(2).to_string(),
        };
        let swap = match self.swap {
            Some(Swap::Bytes(both)) => both.saturating_sub(memory).to_string(),
            _ => memory.to_string(),
        };
        let forms: [&[Writing]; 2] = [&[("memory.memsw.limit_in_bytes", both)], &[("memory.swap.max", swap)]];
        match set_either(cgroups, "memory", &forms) {
            Err(CgroupError::NoController { .. }) if self.swap.is_none() => Ok(()),
            Err(CgroupError::NoController { .. }) => Err(CgroupError::NoController {
                controller: "memory".to_owned(),
                reason: "it does not count swap (swapaccount=1)".to_owned(),
            }),
            done => done,
        }
    }

    /// Reads those that are set.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn read(cgroups: &Cgroups) -> Result<Self, CgroupError> {
        let number = |files: &[&str]| -> Result<Option<u64>, CgroupError> {
            let found = find(cgroups, files).map(|path| text(&path)).transpose()?;
            let number = found.and_then(|text| text.parse().ok());
            // Version 1 says by the greatest number of whole pages that there is no limit.
            Ok(number.filter(|number| *number < i64::MAX as u64 - (64 << 10)))
        };
        let memory = number(&["memory.limit_in_bytes", "memory.max"])?;
        let swap = number(&["memory.swap.max"])?.map(|swap| memory.unwrap_or(0).saturating_add(swap));
        let both = number(&["memory.memsw.limit_in_bytes"])?.or(swap);
        Ok(Self {
            memory,
            swap: both.map(Swap::Bytes),
            cpus: read_cpus(cgroups)?,
            pids: number(&["pids.max"])?,
        })
    }
}

impl Cpus {
    /// How many.
    #[must_use]
    pub fn number(self) -> f64 {
        self.quota as f64 / PERIOD as f64
    }
}

fn read_cpus(cgroups: &Cgroups) -> Result<Option<Cpus>, CgroupError> {
    let of = |quota: &str, period: &str| {
        let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
        Cpus::new(quota / period)
    };
    if let Some(path) = find(cgroups, &["cpu.max"]) {
        return Ok(text(&path)?
            .split_once(' ')
            .and_then(|(quota, period)| of(quota, period)));
    }
    let files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| find(cgroups, &[file]));
    let [Some(quota), Some(period)] = files else {
        return Ok(None);
    };
    Ok(of(&text(&quota)?, &text(&period)?))
}

fn text(path: &Path) -> Result<String, CgroupError> {
    let text = fs::read_to_string(path).map_err(wrap("read", path))?;
    Ok(text.trim().to_owned())
}

/// The first of the files that one of the cgroups has.
fn find(cgroups: &Cgroups, files: &[&str]) -> Option<PathBuf> {
    let mut all = files
        .iter()
        .flat_map(|file| cgroups.paths().map(move |path| path.join(file)));
    all.find(|path| path.exists())
}

/// Writes the first of several forms whose files one of the cgroups has.
fn set_either(cgroups: &Cgroups, controller: &str, forms: &[&[Writing]]) -> Result<(), CgroupError> {
    let form = forms.iter().find(|form| find(cgroups, &[form[0].0]).is_some());
    let lacking = || CgroupError::NoController {
        controller: controller.to_owned(),
        reason: "it lacks the files that it has elsewhere".to_owned(),
    };
    for (file, value) in *form.ok_or_else(lacking)? {
        let path = find(cgroups, &[file]).ok_or_else(lacking)?;
        fs::write(&path, value).map_err(|source| explain(source, &path, value))?;
    }
    Ok(())
}

fn explain(source: io::Error, path: &Path, value: &str) -> CgroupError {
    CgroupError::Setting {
        value: value.to_owned(),
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::{Cpus, Limits};

    #[test]
    fn processors_need_not_be_whole() {
        assert_eq!(Cpus::new(1.5).map(|cpus| cpus.quota), Some(150_000));
        assert_eq!(Cpus::new(0.01).map(|cpus| cpus.quota), Some(1000));
        for bad in [0.0, 0.001, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Cpus::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_is_limited_takes_a_controller() {
        let limits = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        assert_eq!(limits.controllers(), ["pids"]);
        assert!(Limits::default().controllers().is_empty());
    }
}
