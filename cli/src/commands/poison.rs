//! `poison`: stream records that could not be understood.

mod list;
mod paging;
mod redrive;

pub use list::list;
pub use paging::days_to_list;
pub use redrive::redrive;
