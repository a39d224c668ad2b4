//! What the tree's programs have found on the processors they have been on, and this one may lack.

use super::Obstacle;
use floe_image::{
    Image,
    record::{MachineRecord, ProcessState},
};
use floe_sandbox::ProcessorState;
use floe_sys::processor::{self, Component, Level};
use floe_tracee::components_in_use;
use std::collections::BTreeSet;

/// What becomes of a tree whose programs may have chosen instructions that this processor lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessorMode {
    /// It is refused.
    #[default]
    Check,
    /// It comes back: its programs are ended by SIGILL where they do use them.
    Ignore,
}

/// Components of the extended state (XSAVE) that not all processors have: a bit, a name. Intel SDM volume 1, 13.1.
const COMPONENTS: [(u32, &str); 7] = [
    (2, "AVX"),
    (5, "AVX-512"),
    (6, "AVX-512"),
    (7, "AVX-512"),
    (9, "protection keys"),
    (17, "AMX"),
    (18, "AMX"),
];

/// Where the components of its tasks' extended registers stand; as here, where the image does not say.
pub fn components(image: &Image) -> Vec<Component> {
    let Some(machine) = image.machine() else {
        return processor::components();
    };
    let component = |record: &floe_image::record::ComponentRecord| Component {
        number: record.number,
        offset: record.offset,
        bytes: record.bytes,
    };
    machine.components.iter().map(component).collect()
}

/// What the new sandbox is to keep in mind.
pub fn state(image: &Image) -> ProcessorState {
    image
        .machine()
        .map_or_else(ProcessorState::default, |machine| ProcessorState {
            level: machine.level.clone(),
            features: machine.features.clone(),
        })
}

/// Finds what stands in the way.
pub fn obstacles(image: &Image, mode: ProcessorMode) -> Vec<Obstacle> {
    let mut found = state_in_use(image);
    let chosen = image.machine().filter(|_| mode == ProcessorMode::Check);
    found.extend(chosen.and_then(instructions).map(|reason| Obstacle {
        object: "processor".to_owned(),
        reason,
    }));
    found
}

/// Of each process what its threads have in registers that are not here.
fn state_in_use(image: &Image) -> Vec<Obstacle> {
    let (layout, enabled) = (components(image), processor::enabled());
    let living = |state| !matches!(state, ProcessState::Zombie { .. });
    let processes = image.processes().iter().filter(|process| living(process.state));
    let lacking = processes.flat_map(|process| {
        let extended = process.threads.iter().map(|thread| &thread.registers.extended[..]);
        let names = lacking_state(extended, &layout, enabled);
        names.into_iter().map(|name| Obstacle {
            object: format!("process {}", process.pid),
            reason: format!("it has {name} state in use, and this processor has none"),
        })
    });
    lacking.collect()
}

fn lacking_state<'a>(extended: impl Iterator<Item = &'a [u8]>, layout: &[Component], enabled: u64) -> BTreeSet<String> {
    extended
        .flat_map(|extended| components_in_use(extended, layout))
        .filter(|number| enabled & 1 << number == 0)
        .map(name)
        .collect()
}

fn name(number: u32) -> String {
    let known = COMPONENTS.iter().find(|(known, _)| *known == number);
    known.map_or_else(
        || format!("extended (component {number})"),
        |(_, name)| (*name).to_owned(),
    )
}

fn instructions(machine: &MachineRecord) -> Option<String> {
    let here = processor::features();
    if let Some(level) = &machine.level {
        return match level.parse::<Level>() {
            Ok(level) => {
                let lacking = level.lacking();
                (!lacking.is_empty()).then(|| {
                    let lacking = lacking.join(", ");
                    format!("it lacks {lacking} of {level}, which the tree was started for (run --cpu)")
                })
            }
            Err(_) => Some(format!(
                "the tree was started for {level:?}, a level that floe does not know"
            )),
        };
    }
    let is_lacking = |name: &&str| !here.contains(name);
    let lacking: Vec<&str> = machine.features.iter().map(String::as_str).filter(is_lacking).collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "it lacks {}, which the tree's programs may have chosen to use; floe run --cpu starts them for lesser processors (--cpu \
             ignore)",
            lacking.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{instructions, lacking_state};
    use floe_image::record::MachineRecord;
    use floe_sys::processor::{Component, Level, features};

    fn machine(level: Option<&str>, more: &[&str]) -> MachineRecord {
        let here = features().into_iter().chain(more.iter().copied());
        MachineRecord {
            level: level.map(str::to_owned),
            features: here.map(str::to_owned).collect(),
            ..MachineRecord::default()
        }
    }

    #[test]
    fn a_tree_needs_what_its_programs_may_have_chosen() {
        assert_eq!(instructions(&machine(None, &[])), None);
        let told = instructions(&machine(None, &["AVX9000"])).expect("something is lacking");
        assert!(told.starts_with("it lacks AVX9000, which"), "{told}");
        // Those of a level need what that has, whatever their hosts had.
        assert_eq!(instructions(&machine(Some(Level::V1.name()), &["AVX9000"])), None);
        let told = instructions(&machine(Some("x86-64-v9"), &[])).expect("nobody knows it");
        assert!(told.contains("x86-64-v9"), "{told}");
    }

    #[test]
    fn state_that_is_in_use_is_lacking_where_it_is_not_enabled() {
        let layout = [
            Component {
                number: 2,
                offset: 576,
                bytes: 256,
            },
            Component {
                number: 6,
                offset: 832,
                bytes: 512,
            },
        ];
        let mut extended = vec![0; 1344];
        extended[512] = 0b100_0111;
        assert!(lacking_state([&extended[..]].into_iter(), &layout, 0b11).is_empty());
        (extended[600], extended[900]) = (1, 1);
        let both = lacking_state([&extended[..]].into_iter(), &layout, 0b11);
        assert_eq!(both.into_iter().collect::<Vec<_>>(), ["AVX", "AVX-512"]);
        let one = lacking_state([&extended[..]].into_iter(), &layout, 0b111);
        assert_eq!(one.into_iter().collect::<Vec<_>>(), ["AVX-512"]);
    }
}
