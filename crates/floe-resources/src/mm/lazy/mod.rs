//! Memory that comes when it is used, or a little later: userfaultfd(2), Documentation/admin-guide/mm/userfaultfd.rst.
//!
//! `choose` says which pages may; `begin` has a puppet's memory looked after; `serve` brings the pages, to who waits for them
//! first and all others behind; `spaces` is what it knows of each address space, with its `layout` and `history`; `queue` which chunk comes
//! next.

mod begin;
mod choose;
mod history;
mod layout;
mod queue;
mod serve;
mod spaces;

pub use begin::{BeginError, begin};
pub(super) use choose::can_be_looked_after;
pub use choose::may_come_later;
pub use layout::Layout;
pub use serve::{Brought, ServeError, Surroundings, Watched, serve};
