//! Page tokens: where the next page begins, bound to filter and order, so that no page is of another list.

use crate::store::filter::Filter;

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
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

impl Token {
    /// The text for a client.
    pub fn encode(self, filter: &Filter, oldest_first: bool) -> String {
        format!("{:016x}{:016x}{:x}", self.last_id, filter.fingerprint(), u8::from(oldest_first))
    }

    /// Reads a client's text; empty means the first page.
    pub fn decode(text: &str, filter: &Filter, oldest_first: bool) -> Result<Option<Self>, TokenError> {
        if text.is_empty() {
            return Ok(None);
        }
        let last_id = text.get(..16).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let last_id = last_id.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(TokenError::Malformed)?;
        let token = Self { last_id };
        if token.encode(filter, oldest_first) == text {
            Ok(Some(token))
        } else if text.len() == 33 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Err(TokenError::OtherList)
        } else {
            Err(TokenError::Malformed)
        }
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
        let token = Token { last_id: 77 };
        let text = token.encode(&filter("nc"), false);
        assert_eq!(Token::decode(&text, &filter("nc"), false), Ok(Some(token)));
        assert_eq!(Token::decode(&text, &filter("dig"), false), Err(TokenError::OtherList));
        assert_eq!(Token::decode(&text, &filter("nc"), true), Err(TokenError::OtherList));
        assert_eq!(Token::decode("", &filter("nc"), true), Ok(None));
        for bad in ["x", "77", "é".repeat(20).as_str(), &text[..32], "+000000000000001"] {
            assert_eq!(Token::decode(bad, &filter("nc"), false), Err(TokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!([size(0), size(5), size(1_000_000)], [100, 5, 1000]);
    }
}
