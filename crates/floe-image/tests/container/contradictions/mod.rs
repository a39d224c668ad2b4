//! Images whose records contradict each other: each ends in one clear error.

use crate::{
    sample::{self, Sample},
    shared::{refusal, written},
};

mod memory;
mod namespaces;
mod network;
mod objects;
mod tasks;

pub fn contradiction(text: &str, change: impl FnOnce(&mut Sample)) {
    let mut sample = sample::whole();
    change(&mut sample);
    assert_eq!(
        refusal(&written(&sample)),
        format!("the image contradicts itself: {text}")
    );
}
