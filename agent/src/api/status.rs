//! Every error's gRPC code.

use tonic::Status;

use super::{page::TokenError, watch::WatchError};
use crate::store::{StoreError, filter::FilterError};

impl From<FilterError> for Status {
    fn from(error: FilterError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<WatchError> for Status {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::TooMany => Self::resource_exhausted(error.to_string()),
            WatchError::Ahead { .. } => Self::out_of_range(error.to_string()),
            WatchError::Stopping => Self::unavailable(error.to_string()),
        }
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Closed => return Self::unavailable(error.to_string()),
            StoreError::Body { .. } => Self::data_loss(error.to_string()),
            _ => Self::internal("the signal store can't be read; the agent's log says why"),
        };
        // The causes are for the node's operator.
        let error = anyhow::Error::from(error);
        tracing::error!(error = format!("{error:#}"), "a request failed because of the store");
        status
    }
}
