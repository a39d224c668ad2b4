//! What a sandbox may take, as arguments: podman's and docker's.

use clap::Args;
use floe_cgroup::{Cpus, Limits, Swap};
use serde::Serialize;

/// Limits of a sandbox.
#[derive(Debug, Clone, Copy, Args)]
pub struct LimitArguments {
    /// Bytes of memory that it may take, with b, k, m, g or t behind it for powers of 1024. What needs more is ended by SIGKILL.
    #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<u64>,
    /// Memory and swap that it may take together; -1 for as much swap as there is [default: twice --memory].
    #[arg(long, value_name = "SIZE", value_parser = swap, requires = "memory", allow_hyphen_values = true)]
    memory_swap: Option<Swap>,
    /// How many processors it may keep busy, such as 1.5.
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    cpus: Option<Cpus>,
    /// How many tasks, processes and threads, it may have. One more fork fails with EAGAIN.
    #[arg(long, visible_alias = "pids-limit", value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
}

impl LimitArguments {
    /// As the sandbox is told.
    ///
    /// # Errors
    /// In words, where they contradict each other.
    pub fn limits(self) -> anyhow::Result<Limits> {
        if let (Some(memory), Some(Swap::Bytes(both))) = (self.memory, self.memory_swap) {
            anyhow::ensure!(
                both >= memory,
                "--memory-swap is of memory and swap together, and must not be less than --memory"
            );
        }
        Ok(Limits {
            memory: self.memory,
            swap: self.memory_swap,
            cpus: self.cpus,
            pids: self.pids,
        })
    }
}

/// Limits, for `--json`.
#[derive(Debug, Default, Serialize)]
pub struct ShownLimits {
    /// Bytes.
    memory: Option<u64>,
    /// Bytes of memory and swap together.
    memory_swap: Option<u64>,
    /// Processors.
    cpus: Option<f64>,
    /// Tasks.
    pids: Option<u64>,
}

impl From<Limits> for ShownLimits {
    fn from(limits: Limits) -> Self {
        Self {
            memory: limits.memory,
            memory_swap: match limits.swap {
                Some(Swap::Bytes(both)) => Some(both),
                Some(Swap::Unlimited) | None => None,
            },
            cpus: limits.cpus.map(Cpus::number),
            pids: limits.pids,
        }
    }
}

/// A number of bytes: `512m`, `1.5g`, `4096`, `64MiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let split = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let shift = match unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(unit)
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text:?} is no size: a number, and b, k, m, g or t")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} does not begin with a number"))?;
    let bytes = number * (1_u64 << shift) as f64;
    // Memory is counted in pages, and numbers of the kernel end here.
    if bytes < 4096.0 || bytes >= i64::MAX as f64 {
        return Err(format!("{text:?} is out of range: at least one page of 4096 bytes"));
    }
    Ok(bytes as u64)
}

fn swap(text: &str) -> Result<Swap, String> {
    if text == "-1" {
        return Ok(Swap::Unlimited);
    }
    bytes(text).map(Swap::Bytes)
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    Cpus::new(number).ok_or_else(|| "the kernel knows no less than 0.01".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_podman_reads_them() {
        let good = [
            ("4096", 4096),
            ("64k", 64 << 10),
            ("1.5m", 3 << 19),
            ("2G", 2 << 30),
            ("8MiB", 8 << 20),
            ("16384b", 16384),
            ("1TB", 1 << 40),
        ];
        for (text, wanted) in good {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for bad in ["", "m", "12", "4095", "1x", "-1m", "1.2.3m", "99999999t", "9e9", "nan"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
