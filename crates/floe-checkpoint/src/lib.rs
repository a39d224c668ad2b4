//! The two acts, each a list of stages that reads on one page: [`checkpoint`](checkpoint::checkpoint) and
//! [`restore`](restore::restore); and what makes one image of several, [`merge`](merge::merge).

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod host;
mod identity;
pub mod merge;
pub mod restore;
pub mod stage;

fn things_stand(count: usize) -> String {
    if count == 1 {
        "1 thing stands".to_owned()
    } else {
        format!("{count} things stand")
    }
}
