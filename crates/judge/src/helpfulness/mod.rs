//! Helpfulness: who says how well a reply serves its prompt.

pub mod built_in;
pub mod llm;
pub mod remote;
pub mod reward_model;

pub use built_in::BuiltInHelpfulness;
pub use llm::LanguageModelHelpfulness;
pub use remote::RemoteHelpfulness;
pub use reward_model::{LocalReward, ReadAt};
