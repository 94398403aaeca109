//! Page tokens: where the next page begins, bound to filter and order, so that no page is of another list.

use portcullis_proto::v1::SignalOrder;

use crate::store::{filter::Filter, reader::Range};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What the order goes by, of the last one of the page before; 0 where that is its id.
    pub key: i64,
    /// The last id of the page before.
    pub last_id: u64,
}

/// A token that was not given out for this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Never given out.
    #[error("page_token is not one that this service gave out")]
    Malformed,
    /// Given out for another list.
    #[error("page_token belongs to a request with another filter or order")]
    OtherList,
}

/// An order that can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Of a newer version.
    #[error("order has the unknown value {0}")]
    Unknown(i32),
    /// Only time goes both ways.
    #[error("oldest_first is for the order by time only")]
    OldestFirst,
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By id, from the greatest down.
    Newest,
    /// By id, from the smallest up.
    Oldest,
    /// The most severe first.
    Severity,
    /// The greatest count first.
    Count,
}

impl Order {
    /// Of a request.
    pub fn new(order: i32, oldest_first: bool) -> Result<Self, OrderError> {
        match (SignalOrder::try_from(order), oldest_first) {
            (Ok(SignalOrder::Unspecified | SignalOrder::Time), false) => Ok(Self::Newest),
            (Ok(SignalOrder::Unspecified | SignalOrder::Time), true) => Ok(Self::Oldest),
            (Ok(SignalOrder::Severity), false) => Ok(Self::Severity),
            (Ok(SignalOrder::Count), false) => Ok(Self::Count),
            (Ok(_), true) => Err(OrderError::OldestFirst),
            (Err(_), _) => Err(OrderError::Unknown(order)),
        }
    }

    /// What follows.
    pub fn range(self, after: Option<Token>) -> Range {
        match (self, after) {
            (Self::Newest, after) => Range::Before(after.map_or(u64::MAX, |token| token.last_id)),
            (Self::Oldest, after) => Range::After(after.map_or(0, |token| token.last_id), u64::MAX),
            (Self::Severity, None) => Range::BelowSeverity(i64::MAX, u64::MAX),
            (Self::Severity, Some(token)) => Range::BelowSeverity(token.key, token.last_id),
            (Self::Count, None) => Range::BelowCount(i64::MAX, u64::MAX),
            (Self::Count, Some(token)) => Range::BelowCount(token.key, token.last_id),
        }
    }
}

impl Token {
    /// The text for a client.
    pub fn encode(self, filter: &Filter, order: Order) -> String {
        format!("{:016x}{:016x}{:016x}{:x}", self.key, self.last_id, filter.fingerprint(), order as u8)
    }

    /// Reads a client's text; empty means the first page.
    pub fn decode(text: &str, filter: &Filter, order: Order) -> Result<Option<Self>, TokenError> {
        if text.is_empty() {
            return Ok(None);
        }
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| TokenError::Malformed);
        if text.len() != 49 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Malformed);
        }
        let part = |range| text.get(range).ok_or(TokenError::Malformed).and_then(number);
        let token = Self { key: part(0..16)?.cast_signed(), last_id: part(16..32)? };
        if token.encode(filter, order) == text { Ok(Some(token)) } else { Err(TokenError::OtherList) }
    }
}

/// The number of signals for a request's `page_size`.
pub fn size(page_size: u32) -> usize {
    match usize::try_from(page_size) {
        Ok(0) => DEFAULT_SIZE,
        Ok(size) => size.min(MAX_SIZE),
        Err(_) => MAX_SIZE,
    }
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::SignalFilter;

    use super::*;

    #[test]
    fn tokens_are_bound_to_their_list() {
        let filter =
            |tool: &str| Filter::new(Some(&SignalFilter { tool: tool.into(), ..SignalFilter::default() })).unwrap();
        let token = Token { key: 3, last_id: 77 };
        let text = token.encode(&filter("nc"), Order::Severity);
        assert_eq!(Token::decode(&text, &filter("nc"), Order::Severity), Ok(Some(token)));
        assert_eq!(Token::decode(&text, &filter("dig"), Order::Severity), Err(TokenError::OtherList));
        assert_eq!(Token::decode(&text, &filter("nc"), Order::Newest), Err(TokenError::OtherList));
        assert_eq!(Token::decode("", &filter("nc"), Order::Oldest), Ok(None));
        for bad in ["x", "77", "é".repeat(20).as_str(), &text[..32], &text.replace('0', "+")] {
            assert_eq!(Token::decode(bad, &filter("nc"), Order::Severity), Err(TokenError::Malformed), "{bad}");
        }
        assert_eq!(Order::new(9, false), Err(OrderError::Unknown(9)));
        assert_eq!(Order::new(SignalOrder::Count.into(), true), Err(OrderError::OldestFirst));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!([size(0), size(5), size(1_000_000)], [100, 5, 1000]);
    }
}
