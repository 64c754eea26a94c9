//! Helpfulness: who says how well a reply serves its prompt.

pub mod built_in;
pub mod remote;

pub use built_in::BuiltInHelpfulness;
pub use remote::RemoteHelpfulness;
