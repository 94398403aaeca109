//! Users, by their numbers as the node sees them.

use std::{fmt, str::FromStr};

/// One user, or all whose numbers lie between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Users {
    /// The smallest number.
    pub first: u32,
    /// The largest number.
    pub last: u32,
}

/// A text that names no users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no users: a number, such as 0, or a range, such as \"1000-1999\"")]
pub struct UsersError {
    /// The text.
    pub text: String,
}

impl Users {
    /// Every user.
    pub const ALL: Self = Self { first: 0, last: u32::MAX };

    /// Whether the user is one of them.
    pub fn contain(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }
}

impl FromStr for Users {
    type Err = UsersError;

    fn from_str(text: &str) -> Result<Self, UsersError> {
        let error = || UsersError { text: text.to_owned() };
        // parse() would take a sign as well.
        let number = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().ok_or_else(error)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let users = Self { first: number(first)?, last: number(last)? };
        if users.first > users.last { Err(error()) } else { Ok(users) }
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_range_that_holds_somebody() {
        assert_eq!("0".parse(), Ok(Users { first: 0, last: 0 }));
        assert_eq!("1000-1999".parse(), Ok(Users { first: 1000, last: 1999 }));
        assert!(Users::ALL.contain(0) && Users::ALL.contain(u32::MAX));
        assert!(Users { first: 1, last: 2 }.contain(2) && !Users { first: 1, last: 2 }.contain(3));
        for bad in ["", "-1", "+1", "root", "2-1", "1-", "-", "1-2-3", "4294967296", "1 - 2"] {
            assert!(bad.parse::<Users>().is_err(), "{bad}");
        }
    }
}
