//! Where operations run: on the CPU as fused forms, on any other device as their composed twins.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Result, bail};

use crate::lanes::{Setting, setting};

/// A device by its name: `cpu`, `cuda:N` or `metal`. Nothing of it is touched before [`Place::open`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, counted from 0.
    Cuda(usize),
    /// The GPU of an Apple computer.
    Metal,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => {
                let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| "expected cpu, cuda:N with N from 0 on, or metal".to_owned())
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
            Self::Metal => formatter.write_str("metal"),
        }
    }
}

impl Place {
    /// The cargo feature that this device needs and that this build lacks.
    pub fn missing_feature(self) -> Option<&'static str> {
        match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => Some("cuda"),
            Self::Metal if !cfg!(feature = "metal") => Some("metal"),
            _ => None,
        }
    }

    /// Opens the device. A process does so once and hands it on: tensors of two openings do not meet.
    ///
    /// # Errors
    /// A build without the feature, or a machine without the device.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => Device::new_cuda(number),
            Self::Metal => Device::new_metal(0),
        }
    }
}

/// Whether the fused forms compute what lies on `device`: on the CPU, unless `SAFERL_KERNELS=composed` in the environment
/// asks for what another device would do.
pub fn fuses(device: &Device) -> bool {
    device.is_cpu() && setting() != Setting::Composed
}

/// Fails under `SAFERL_KERNELS=composed`: what only the CPU can do has been reached by a way that another device would take
/// too, and there it would fail.
pub(crate) fn on_the_cpu_alone() -> Result<()> {
    if setting() == Setting::Composed {
        bail!(
            "a kernel of the CPU was called under SAFERL_KERNELS=composed: its caller must ask `kernels::fuses`"
        )
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["cpu", "cuda:0", "cuda:7", "metal"] {
            assert_eq!(name.parse::<Place>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(Place::Cuda(0)));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(name.parse::<Place>().unwrap_err().contains("cuda:N"), "{name}");
        }
    }

    #[test]
    fn a_device_that_was_not_built_in_is_known_before_it_is_opened() {
        assert_eq!(Place::Cpu.missing_feature(), None);
        let missing = Place::Cuda(0).missing_feature();
        assert_eq!(missing, (!cfg!(feature = "cuda")).then_some("cuda"));
        assert!(missing.is_none() || Place::Cuda(0).open().is_err());
    }
}
