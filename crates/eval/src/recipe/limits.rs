//! What code that a model wrote may take.

use serde::{Deserialize, Serialize};

/// What code that a model wrote may take; see [`crate::sandbox`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A command that runs Python on the program at its standard input without network and apart from this machine's
    /// files, such as `["docker", "run", "--rm", "-i", "--network=none", "--pids-limit=64", "--memory=2g", "python:3.12",
    /// "python3", "-I", "-"]`: the limits below are bubblewrap's, a container needs its own. It is tried before it is
    /// trusted. Empty takes bubblewrap.
    pub wrapper: Vec<String>,
    /// Seconds of processor time for each process.
    pub cpu_s: u64,
    /// Seconds to live.
    pub wall_s: f64,
    /// Memory of each process, in MiB.
    pub memory_mb: u64,
    /// Processes and threads at once.
    pub processes: u64,
    /// The temporary folder, and the largest file, in MiB.
    pub disk_mb: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wrapper: Vec::new(),
            cpu_s: 10,
            wall_s: 30.0,
            memory_mb: 2048,
            processes: 16,
            disk_mb: 64,
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        // A day, and a thousand terabytes in MiB: what lies beyond is a slip, and overflows further down.
        if !(self.wall_s > 0.0 && self.wall_s <= 86_400.0) {
            return Err(format!(
                "sandbox.wall_s: expected seconds up to a day, found {}",
                self.wall_s
            ));
        }
        for (key, megabytes) in [("memory_mb", self.memory_mb), ("disk_mb", self.disk_mb)] {
            if !(1..=1 << 30).contains(&megabytes) {
                return Err(format!(
                    "sandbox.{key}: expected from 1 to 2^30 MiB, found {megabytes}"
                ));
            }
        }
        Ok(())
    }
}
