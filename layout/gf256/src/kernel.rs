//! Which code path multiplies: a value, so that tests and benchmarks run each one that the CPU has.

use std::fmt;
use std::str::FromStr;

/// A code path of the inner loop. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Table look-ups byte by byte: every CPU, and the one that Miri checks.
    Scalar,
    /// 32 bytes at a time, products by two shuffles of 16-byte tables.
    Avx2,
    /// 32 bytes at a time, products by one affine instruction.
    Avx2Gfni,
    /// 64 bytes at a time, products by one affine instruction.
    Avx512Gfni,
}

/// A text that names no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no kernel: the names are scalar, avx2, avx2-gfni, avx512-gfni")]
pub struct ParseKernelError {
    /// The text as given.
    pub text: String,
}

impl Kernel {
    /// All kernels, slowest first.
    pub const ALL: [Kernel; 4] = [Kernel::Scalar, Kernel::Avx2, Kernel::Avx2Gfni, Kernel::Avx512Gfni];

    /// True if this CPU has what the kernel needs. The answer is cached by the standard library.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2");
            match self {
                Kernel::Scalar => true,
                Kernel::Avx2 => avx2,
                Kernel::Avx2Gfni => avx2 && is_x86_feature_detected!("gfni"),
                Kernel::Avx512Gfni => {
                    is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("gfni")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Kernel::Scalar
        }
    }

    /// The kernels that this CPU has, slowest first. Never empty.
    pub fn available() -> impl Iterator<Item = Kernel> {
        Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The fastest kernel that this CPU has.
    #[must_use]
    pub fn best() -> Kernel {
        Kernel::available().last().unwrap_or(Kernel::Scalar)
    }

    /// The name as the command line takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::Scalar => "scalar",
            Kernel::Avx2 => "avx2",
            Kernel::Avx2Gfni => "avx2-gfni",
            Kernel::Avx512Gfni => "avx512-gfni",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = ParseKernelError;
    fn from_str(text: &str) -> Result<Kernel, ParseKernelError> {
        let named = Kernel::ALL.into_iter().find(|kernel| kernel.name() == text);
        named.ok_or_else(|| ParseKernelError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_the_best_is_available() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        assert!("sse".parse::<Kernel>().is_err());
        assert!(Kernel::best().is_available());
        assert_eq!(Kernel::available().next(), Some(Kernel::Scalar));
    }
}
