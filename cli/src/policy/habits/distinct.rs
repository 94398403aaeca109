//! How many different ones there are, without remembering all of them.

use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::Serialize;

/// Counted up to this.
pub const MAX: usize = 256;

/// A set that knows its size up to [`MAX`].
#[derive(Debug, Clone, Default)]
pub struct Distinct(HashSet<u64>);

impl Distinct {
    /// One more, or one of those.
    pub fn add(&mut self, value: &impl Hash) {
        if self.0.len() < MAX {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            self.0.insert(hasher.finish());
        }
    }

    /// How many there are.
    pub fn count(&self) -> Count {
        Count(self.0.len())
    }

    /// Takes in others.
    pub fn merge(&mut self, others: &Self) {
        for value in &others.0 {
            if self.0.len() < MAX {
                self.0.insert(*value);
            }
        }
    }
}

/// A number up to [`MAX`], which stands for itself and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Count(pub usize);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.0 >= MAX { "+" } else { "" };
        write!(f, "{}{more}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_up_to_its_limit() {
        let mut distinct = Distinct::default();
        (0..10).for_each(|number| distinct.add(&(number % 3)));
        assert_eq!(distinct.count().to_string(), "3");
        let mut many = Distinct::default();
        (0..10 * MAX).for_each(|number| many.add(&number));
        assert_eq!(many.count().to_string(), "256+");
        distinct.merge(&many);
        assert_eq!(distinct.count(), Count(MAX));
    }
}
