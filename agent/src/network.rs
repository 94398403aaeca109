//! What is known of a signal's network activity: alike operations become one with a count, and the list is bounded.

use portcullis_proto::v1::{NetworkActivity, NetworkOperation};

use crate::clock;

/// Different operations that a signal keeps.
pub const OPERATIONS: usize = 64;

fn is_alike(one: &NetworkOperation, other: &NetworkOperation) -> bool {
    (one.kind, one.transport, &one.endpoint, &one.dns_name, &one.dns_type)
        == (other.kind, other.transport, &other.endpoint, &other.dns_name, &other.dns_type)
}

/// Adds an operation, or counts it with one that is alike.
pub fn add(activity: &mut NetworkActivity, operation: NetworkOperation) {
    let ns = |time: &Option<prost_types::Timestamp>| time.as_ref().and_then(clock::from_timestamp);
    if let Some(known) = activity.operations.iter_mut().find(|known| is_alike(known, &operation)) {
        known.count = known.count.saturating_add(operation.count);
        if ns(&operation.last_time) > ns(&known.last_time) {
            known.last_time = operation.last_time;
        }
    } else if activity.operations.len() < OPERATIONS {
        activity.operations.push(operation);
    } else {
        activity.omitted = activity.omitted.saturating_add(operation.count);
    }
}

/// Adds all that was seen since.
pub fn merge(activity: &mut NetworkActivity, later: NetworkActivity) {
    for operation in later.operations {
        add(activity, operation);
    }
    activity.omitted = activity.omitted.saturating_add(later.omitted);
}

/// How many operations there were.
pub fn count(activity: &NetworkActivity) -> u64 {
    activity.operations.iter().map(|operation| operation.count).fold(activity.omitted, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use portcullis_proto::v1::Endpoint;

    use super::*;
    use crate::clock::timestamp;

    fn connect(port: u32, second: u64) -> NetworkOperation {
        let time = Some(timestamp(second * 1_000_000_000));
        NetworkOperation {
            endpoint: Some(Endpoint { address: "10.0.0.1".into(), port }),
            first_time: time,
            last_time: time,
            count: 1,
            ..NetworkOperation::default()
        }
    }

    #[test]
    fn alike_operations_are_counted_and_a_scan_is_bounded() {
        let (mut early, mut late) = (NetworkActivity::default(), NetworkActivity::default());
        for port in 1..=100 {
            add(&mut early, connect(port, 1));
            add(&mut late, connect(port + 50, 2));
        }
        assert_eq!((early.operations.len(), early.omitted), (OPERATIONS, 36));
        merge(&mut early, late);
        // Of the later ones 51 to 64 are known, 65 to 114 are not, and 36 were left out before.
        assert_eq!((early.operations.len(), early.omitted, count(&early)), (OPERATIONS, 36 + 50 + 36, 200));
        let known: Vec<u64> = early.operations.iter().map(|operation| operation.count).collect();
        assert_eq!((known[49], known[50], known[63]), (1, 2, 2));
        assert_eq!(early.operations[63].first_time, Some(timestamp(1_000_000_000)));
        assert_eq!(early.operations[63].last_time, Some(timestamp(2_000_000_000)));
    }
}
