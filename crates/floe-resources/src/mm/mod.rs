//! Memory: which mappings there are, what they map, which pages hold what.
//!
//! `classify` turns a mapping into a record or a refusal; `content` keeps what several mappings share (files, shared
//! memory), with `hidden` what guards hide of it, with `ghost` what is in use without a name; `pages` stores page contents, with `sharing` those of relatives once; `track` tells which pages were written, and
//! `base` which are as in an earlier image. `assemble` works out
//! how an inherited address space becomes another one; `build` does it in a puppet; `fill` writes the pages, `new_memory` those of what was just mapped, and `lazy` those that
//! come while the tree runs.

mod advice;
mod aio;
mod assemble;
mod attach;
mod base;
mod build;
mod build_id;
mod classify;
mod compare;
mod content;
mod fill;
mod ghost;
mod hidden;
pub mod lazy;
mod links;
mod look;
mod new_memory;
mod pages;
mod private;
mod runs;
mod settle;
mod sharing;
mod track;

pub use assemble::{Assembly, alike, assemble};
pub use base::Base;
pub use build::{BuildError, Builder, Filled, Sources, first_gap};
pub use build_id::build_id;
pub use classify::address_space;
pub use compare::{has_flags, same_layout};
pub use content::{ContentError, ContentPlace, ContentSource, Contents, FileIdentity, MappedPart, head_checksum};
pub(crate) use content::{Located, Place, under};
pub use fill::{FillError, Filler};
pub(crate) use ghost::ELSEWHERE;
pub use look::{PageTables, SeenPages, look_at_copied_pages, shows_in_a_copy};
pub use pages::{PagesError, dump_content};
pub use private::{Earlier, PagesOf, PrivatePages, is_copied_by_fork, may_not_be_shared};
pub use runs::{PageWork, RunList, differing, overlay, page_work, part_huge, within, without};
pub use settle::settle;
pub use sharing::SharedPages;
pub use track::{FOLLOWED_FLAG, Seen, TrackError, Tracker};
