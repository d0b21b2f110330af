//! The shape of a parity group as an operator writes it: `N+K+S`.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Data, parity and spare units of a parity group. Valid by construction: see [`LayoutWidth::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct LayoutWidth {
    data: u32,
    parity: u32,
    spare: u32,
}

/// Reed-Solomon over GF(2^8) with a Cauchy matrix has at most 256 units; one is kept back for the all-ones row.
pub const CODED_UNITS_MAX: u32 = 255;

/// Why a width is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutWidthError {
    /// Not three numbers.
    #[error("{text:?} is not a layout: write N+K+S (data, parity and spare units), as in 4+2+1")]
    Shape {
        /// The text as given.
        text: String,
    },
    /// No data unit.
    #[error("a layout needs at least one data unit")]
    NoData,
    /// More spare than parity units: a spare takes the place of a lost unit, and more than K cannot be rebuilt.
    #[error(
        "{spare} spare units are more than {parity} parity units: no more than K lost units can be rebuilt"
    )]
    TooManySpare {
        /// Spare units asked for.
        spare: u32,
        /// Parity units asked for.
        parity: u32,
    },
    /// Beyond the code's field.
    #[error("{data}+{parity} units are more than {CODED_UNITS_MAX}, the limit of the code")]
    TooWide {
        /// Data units asked for.
        data: u32,
        /// Parity units asked for.
        parity: u32,
    },
}

impl LayoutWidth {
    /// 4+2+1, where nobody chooses: any two devices may be lost, at one and a half times the bytes.
    pub const DEFAULT: LayoutWidth = LayoutWidth { data: 4, parity: 2, spare: 1 };

    /// N data, K parity and S spare units. Errors: no data unit, S above K, N+K above [`CODED_UNITS_MAX`].
    pub const fn new(data: u32, parity: u32, spare: u32) -> Result<LayoutWidth, LayoutWidthError> {
        if data == 0 {
            return Err(LayoutWidthError::NoData);
        }
        if spare > parity {
            return Err(LayoutWidthError::TooManySpare { spare, parity });
        }
        match data.checked_add(parity) {
            Some(coded) if coded <= CODED_UNITS_MAX => Ok(LayoutWidth { data, parity, spare }),
            _ => Err(LayoutWidthError::TooWide { data, parity }),
        }
    }

    /// N: data units of a group.
    #[must_use]
    pub const fn data(self) -> u32 {
        self.data
    }
    /// K: parity units of a group.
    #[must_use]
    pub const fn parity(self) -> u32 {
        self.parity
    }
    /// S: spare units of a group.
    #[must_use]
    pub const fn spare(self) -> u32 {
        self.spare
    }
    /// N + K: units that carry bytes.
    #[must_use]
    pub const fn coded(self) -> u32 {
        self.data + self.parity
    }
    /// W = N + K + S: the width of a group, and the least number of devices.
    #[must_use]
    pub const fn width(self) -> u32 {
        self.data + self.parity + self.spare
    }
}

impl fmt::Display for LayoutWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.data, self.parity, self.spare)
    }
}

impl FromStr for LayoutWidth {
    type Err = LayoutWidthError;
    fn from_str(text: &str) -> Result<LayoutWidth, LayoutWidthError> {
        let shape = || LayoutWidthError::Shape { text: text.to_owned() };
        let mut numbers = [0u32; 3];
        let mut parts = text.split('+');
        for number in &mut numbers {
            *number = parts.next().and_then(|part| part.parse().ok()).ok_or_else(shape)?;
        }
        if parts.next().is_some() {
            return Err(shape());
        }
        LayoutWidth::new(numbers[0], numbers[1], numbers[2])
    }
}

impl Serialize for LayoutWidth {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayoutWidth {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<LayoutWidth, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<Context> Decode<Context> for LayoutWidth {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<LayoutWidth, bincode::error::DecodeError> {
        let (data, parity, spare) = <(u32, u32, u32)>::decode(decoder)?;
        LayoutWidth::new(data, parity, spare)
            .map_err(|error| bincode::error::DecodeError::OtherString(error.to_string()))
    }
}

bincode::impl_borrow_decode!(LayoutWidth);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_parse_print_and_are_refused() {
        let width: LayoutWidth = "4+2+1".parse().unwrap();
        assert_eq!((width.width(), width.coded(), width.to_string().as_str()), (7, 6, "4+2+1"));
        assert_eq!("0+1+0".parse::<LayoutWidth>(), Err(LayoutWidthError::NoData));
        assert_eq!(
            "4+1+2".parse::<LayoutWidth>(),
            Err(LayoutWidthError::TooManySpare { spare: 2, parity: 1 })
        );
        assert!(matches!("4+2".parse::<LayoutWidth>(), Err(LayoutWidthError::Shape { .. })));
        assert!(matches!("4+2+1+1".parse::<LayoutWidth>(), Err(LayoutWidthError::Shape { .. })));
        assert!(matches!("250+6+0".parse::<LayoutWidth>(), Err(LayoutWidthError::TooWide { .. })));
    }
}
