//! Which instruction set the kernels use: chosen once at start from what the processor has, never
//! at compile time, so that one binary runs on every machine of an architecture.

/// An instruction set that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the twin of all others, and the way out on old processors.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (from 2013 on).
    Avx2,
    /// The same with VNNI's dot products on 256 bits: AVX-VNNI, or a part of AVX-512.
    Avx2Vnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// Every AArch64 processor.
    Neon,
    /// AArch64 with the dot product extension (`dotprod`).
    NeonDotprod,
    /// The same with 8-bit matrix products (`i8mm`).
    NeonI8mm,
}

/// The environment variable that overrides the choice.
pub const OVERRIDE: &str = "FULMAR_CPU";

/// Why the override cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {OVERRIDE}={found:?}: this processor runs {available}")]
pub struct CpuError {
    /// The variable's value.
    pub found: String,
    /// The names that would work here.
    pub available: String,
}

impl Isa {
    /// The name that [`OVERRIDE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// Every set, the best of each architecture first.
    pub const ALL: [Self; 7] = [
        Self::Avx512,
        Self::Avx2Vnni,
        Self::Avx2,
        Self::NeonI8mm,
        Self::NeonDotprod,
        Self::Neon,
        Self::Scalar,
    ];

    /// Everything this processor runs, best first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The best set of this processor, or the one that [`OVERRIDE`] names.
    ///
    /// # Errors
    /// [`CpuError`] when the variable names a set that is unknown or not there.
    pub fn detect() -> Result<Self, CpuError> {
        let available = Self::available();
        let Some(found) = std::env::var_os(OVERRIDE).filter(|value| !value.is_empty()) else {
            return Ok(available.first().copied().unwrap_or(Self::Scalar));
        };
        available.iter().copied().find(|isa| found == isa.name()).ok_or_else(|| CpuError {
            found: found.to_string_lossy().into_owned(),
            available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        match self {
            Self::Scalar => true,
            Self::Avx2 => avx2,
            Self::Avx2Vnni => {
                avx2 && (has!("avxvnni")
                    || has!("avx512f") && has!("avx512vl") && has!("avx512vnni"))
            }
            Self::Avx512 => {
                avx2 && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512vnni")
            }
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Self::Scalar => true,
            Self::Neon => has!("neon"),
            Self::NeonDotprod => has!("neon") && has!("dotprod"),
            Self::NeonI8mm => has!("neon") && has!("dotprod") && has!("i8mm"),
            Self::Avx2 | Self::Avx2Vnni | Self::Avx512 => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Self::Scalar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_there_and_last() {
        assert_eq!(Isa::available().last(), Some(&Isa::Scalar));
    }
}
