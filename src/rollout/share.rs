//! A part of a whole, in hundredths of a percent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of a whole from nothing to everything, exact to a hundredth of a percent.
///
/// ```
/// use handover::rollout::Share;
///
/// assert_eq!(Share::percent(5), Share::per_10000(500));
/// assert_eq!(Share::per_10000(25).to_string(), "0.25 %");
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(into = "u16", try_from = "u16")]
pub struct Share(u16);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const FULL: Self = Self(WHOLE);

    /// So many percent; more than 100 is 100.
    pub const fn percent(percent: u8) -> Self {
        Self::per_10000(percent as u16 * 100)
    }

    /// So many hundredths of a percent; more than 10,000 is 10,000.
    pub const fn per_10000(parts: u16) -> Self {
        if parts > WHOLE {
            Self::FULL
        } else {
            Self(parts)
        }
    }

    /// In hundredths of a percent, 0 to 10,000.
    pub const fn parts(self) -> u16 {
        self.0
    }

    /// As a number from 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

/// In percent, with as many decimals as it takes.
impl fmt::Display for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} %", f64::from(self.0) / 100.0)
    }
}

impl From<Share> for u16 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl TryFrom<u16> for Share {
    type Error = ShareError;

    fn try_from(parts: u16) -> Result<Self, ShareError> {
        if parts > WHOLE {
            return Err(ShareError(parts));
        }
        Ok(Self(parts))
    }
}

/// More than everything was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareError(u16);

impl fmt::Display for ShareError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} hundredths of a percent are more than the whole",
            self.0
        )
    }
}

impl std::error::Error for ShareError {}

const WHOLE: u16 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_beyond_the_whole_is_refused_from_outside_and_cut_from_code() {
        assert!(serde_json::from_str::<Share>("10001").is_err());
        assert_eq!(
            serde_json::from_str::<Share>("250").unwrap().to_string(),
            "2.5 %"
        );
        assert_eq!(Share::percent(200), Share::FULL);
        assert_eq!(serde_json::to_string(&Share::percent(5)).unwrap(), "500");
    }
}
