//! `--cpu`: which processors a workload is started for, and whether a lesser one stands in a restore's way.

use clap::ValueEnum;
use floe_checkpoint::restore::ProcessorMode;
use floe_sandbox::ProcessorState;
use floe_sys::processor::Level;

/// For which processors a workload is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// Those that have all that this one has.
    Host,
    /// Every 64-bit one.
    #[value(name = "x86-64")]
    V1,
    /// Those with SSE4.2 and POPCNT (from 2009 on).
    #[value(name = "x86-64-v2")]
    V2,
    /// Those with AVX2, BMI and FMA (from 2013 on).
    #[value(name = "x86-64-v3")]
    V3,
    /// Those with AVX-512.
    #[value(name = "x86-64-v4")]
    V4,
}

impl For {
    /// What the sandbox is to keep in mind.
    ///
    /// # Errors
    /// This host is no such one.
    pub fn state(self) -> anyhow::Result<ProcessorState> {
        let level = match self {
            Self::Host => return Ok(ProcessorState::default()),
            Self::V1 => Level::V1,
            Self::V2 => Level::V2,
            Self::V3 => Level::V3,
            Self::V4 => Level::V4,
        };
        let lacking = level.lacking();
        anyhow::ensure!(
            lacking.is_empty(),
            "--cpu {level}: this host's processor lacks {} of it",
            lacking.join(", ")
        );
        Ok(ProcessorState {
            level: Some(level.name().to_owned()),
            features: Vec::new(),
        })
    }
}

/// Whether a lesser processor stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lesser {
    /// Refuse what lacks instructions that the tree's programs may have chosen to use when they started: all that their hosts
    /// had, or those of the level they were started for (run --cpu).
    Check,
    /// Take it all the same. A program that does use one of these is ended by SIGILL, at once or any time later: it may have
    /// written half of something then. What is in its registers is never dropped.
    Ignore,
}

impl From<Lesser> for ProcessorMode {
    fn from(lesser: Lesser) -> Self {
        match lesser {
            Lesser::Check => Self::Check,
            Lesser::Ignore => Self::Ignore,
        }
    }
}
