//! Guards: who says whether a prompt or a reply is safe, and whether a reply refuses.

pub mod built_in;
pub mod llm;
pub mod local;
pub mod qwen3guard;
pub mod qwen3guard_stream;
pub mod remote;
pub mod wildguard;

pub use built_in::BuiltInGuard;
pub use llm::LanguageModelGuard;
pub use qwen3guard::Qwen3Guard;
pub use qwen3guard_stream::StreamGuard;
pub use remote::RemoteGuard;
pub use wildguard::{RemoteWildGuard, WildGuard};
