//! Lets the tree's clocks go on from where they stood: takes all processes into a time namespace of their own.
//!
//! As late as can be, for the clocks go on from here: behind all that takes long, and before there are threads, as only a
//! process of one thread may enter. Memory stays as it is, but for the kernel's own page of clocks ([vvar]).

use super::{RestoreError, tree::World};
use floe_image::Image;
use floe_sys::time_namespace::{self, CLONE_NEWTIME, Clocks};
use floe_tracee::Script;
use std::os::fd::AsFd;

/// Whether processes share memory: one that does may enter no time namespace, but is born into its parent's. Then the
/// clocks go on from before the tree was made.
pub fn must_come_early(image: &Image) -> bool {
    image
        .processes()
        .iter()
        .any(|process| process.shared & libc::CLONE_VM as u32 != 0)
}

/// Makes the namespace and takes every process there is into it, the later small init too.
pub fn set(image: &Image, world: &World<'_>) -> Result<(), RestoreError> {
    let stood = image.sandbox().clocks;
    let clocks = Clocks {
        monotonic: stood.monotonic as i64,
        boottime: stood.boottime as i64,
    };
    let namespace = time_namespace::make(clocks).map_err(|source| RestoreError::System {
        action: "make a time namespace".to_owned(),
        source,
    })?;
    for puppet in world.puppets.values() {
        let mut script = Script::new(puppet);
        let number = world.channel.give(&mut script, &[namespace.as_fd()])?[0] as u64;
        let arguments = [number, CLONE_NEWTIME as u64];
        script.call("enter the time namespace", libc::SYS_setns, &arguments)?;
        script.call("close the time namespace", libc::SYS_close, &[number])?;
        script.run()?;
    }
    Ok(())
}
