//! Every error's gRPC code.

use tonic::{Code, Status};

use super::{page::TokenError, watch::WatchError};
use crate::store::{StoreError, filter::FilterError};
use crate::{
    containerd::ContainerdError,
    containment::{self, ContainmentError},
};

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

impl From<ContainmentError> for Status {
    fn from(error: ContainmentError) -> Self {
        use ContainmentError as E;
        let text = containment::describe(&error);
        let code = match &error {
            E::NoContainer { .. } | E::NoProcess { .. } => Code::NotFound,
            E::Several { .. } | E::Irreversible(_) | E::NoMeasure | E::Pid => Code::InvalidArgument,
            E::Ended { .. }
            | E::Unguarded { .. }
            | E::Nested { .. }
            | E::NotInTable { .. }
            | E::NoCgroup { .. }
            | E::NoContainerd { .. }
            | E::NotItsProcess { .. } => Code::FailedPrecondition,
            E::Containerd(ContainerdError::Call(status)) => match status.code() {
                // Of the agent these would say that itself is not there.
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Code::Aborted,
                code => code,
            },
            E::Containerd(_) => Code::Aborted,
            E::KillProcess { .. } | E::Guard(_) | E::Isolation(_) | E::Cgroup(_) => Code::Internal,
            E::NotPermitted => Code::PermissionDenied,
            E::Stopping => Code::Unavailable,
        };
        Self::new(code, text)
    }
}
