//! Descriptors on their way through unix sockets: one of each kind that nobody else has open, in messages that keep their
//! order and borders, in sockets that are on their way themselves.

#[path = "flight/kernel.rs"]
mod kernel;
#[path = "flight/kinds.rs"]
mod kinds;
#[path = "flight/one_each.rs"]
mod one_each;
#[path = "flight/shapes.rs"]
mod shapes;
#[path = "flight/views.rs"]
mod views;

use victims::{Findings, play};

type Check = Box<dyn FnMut(&mut Findings)>;

fn main() {
    play(|stage| {
        let mut checks: Vec<Check> = vec![
            Box::new(one_each::all(stage)),
            Box::new(shapes::borders()),
            Box::new(shapes::many_at_once(stage)),
            Box::new(shapes::shared(stage)),
            Box::new(shapes::nested()),
            Box::new(shapes::through_each_other()),
            Box::new(shapes::nobody_sends()),
            Box::new(shapes::with_sender()),
            Box::new(shapes::watched()),
        ];
        move |findings| {
            for check in &mut checks {
                check(findings);
            }
        }
    })
}
