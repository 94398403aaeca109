//! Every error's gRPC code.

use tonic::{Code, Status};

use super::{
    page::{OrderError, TokenError},
    watch::WatchError,
};
use crate::{
    containerd::ContainerdError,
    containment::{self, ContainmentError},
    enforcement::{EditError, ModeError},
    store::{StoreError, filter::FilterError},
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

impl From<OrderError> for Status {
    fn from(error: OrderError) -> Self {
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
            StoreError::TooMuch => return Self::resource_exhausted(error.to_string()),
            StoreError::NoSignal { .. } => return Self::not_found(error.to_string()),
            StoreError::Body { .. } => Self::data_loss(error.to_string()),
            StoreError::Write(_) => Self::internal("the signal store can't be written; the agent's log says why"),
            _ => Self::internal("the signal store can't be read; the agent's log says why"),
        };
        // The causes are for the node's operator.
        let error = anyhow::Error::from(error);
        tracing::error!(error = format!("{error:#}"), "a request failed because of the store");
        status
    }
}

impl From<EditError> for Status {
    fn from(error: EditError) -> Self {
        let code = match error {
            EditError::Invalid(_) => Code::InvalidArgument,
            EditError::Elsewhere { .. } => Code::AlreadyExists,
            EditError::None { .. } => Code::NotFound,
            EditError::Occupied { .. } | EditError::Shipped { .. } | EditError::Others(_) | EditError::Catalog(_) => {
                Code::FailedPrecondition
            }
            EditError::Read(_) | EditError::Write { .. } | EditError::Enforce(_) => Code::Internal,
        };
        Self::new(code, chain(error))
    }
}

impl From<ModeError> for Status {
    fn from(error: ModeError) -> Self {
        let code = match error {
            ModeError::NoPolicy { .. } | ModeError::NoContainer { .. } => Code::NotFound,
            ModeError::Unguarded { .. } => Code::FailedPrecondition,
            ModeError::Save(_) | ModeError::Enforce(_) | ModeError::NotMoved => Code::Internal,
        };
        Self::new(code, chain(error))
    }
}

/// Bytes of a message: it travels as a header, where each may take three, and clients take 16 kB.
const MESSAGE_MAX: usize = 4096;

/// With its causes: whoever may change policies may know the node's files.
fn chain(error: impl Into<anyhow::Error>) -> String {
    let error: anyhow::Error = error.into();
    cut(format!("{error:#}"))
}

/// No longer than clients take: for what quotes a request.
pub fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let cut = message.char_indices().map(|(place, _)| place).take_while(|place| *place <= MESSAGE_MAX).last();
        message.truncate(cut.unwrap_or_default());
        message.push_str("… (and more)");
    }
    message
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
        Self::new(code, cut(text))
    }
}
