//! Guards: who says whether a prompt or a reply is safe, and whether a reply refuses.

pub mod built_in;
pub mod qwen3guard;
pub mod remote;

pub use built_in::BuiltInGuard;
pub use qwen3guard::Qwen3Guard;
pub use remote::RemoteGuard;
