//! The boundary: the only module with unsafe code.

mod view;

pub use view::{FieldView, StrView};
