//! What the agent itself dropped, refused or fell back on: all zero on a healthy node. And what it left out because the policy
//! says so: no loss, but told.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Some more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    (
        losses { $($(#[$loss_doc:meta])* $loss:ident,)* }
        suppressed { $($(#[$suppressed_doc:meta])* $suppressed:ident,)* }
    ) => {
        /// The agent's counters since it started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$loss_doc])* pub $loss: Counter,)*
            $($(#[$suppressed_doc])* pub $suppressed: Counter,)*
        }

        impl Counters {
            /// Name and value of each that is zero on a healthy node.
            pub fn losses(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($loss), self.$loss.get()),)*]
            }

            /// Name and value of each that says how many events the policy's exceptions and repeats kept from becoming signals of
            /// their own.
            pub fn suppressed(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($suppressed), self.$suppressed.get()),)*]
            }
        }
    };
}

counters! {
    losses {
        /// Records of the ring buffer that are no event.
        decode_errors,
        /// Events of a container without a record: their signals carry the cgroup id only.
        events_without_record,
        /// Signals that the store could not take.
        store_dropped,
        /// Events that were stored already.
        duplicates,
        /// Signals removed before their age because the database had outgrown its limit, or its disk was full.
        expired_by_size,
        /// Databases moved aside because they were corrupt, or a newer agent's.
        store_replaced,
        /// Workloads and habits of theirs that were forgotten before their time to make room: what they do is new again.
        habits_forgotten,
        /// Container records that could not be read.
        records_invalid,
        /// Container records beyond the number that is kept.
        records_over_limit,
        /// Overflows of the watch on the record directory, each repaired by reading it anew.
        records_rescanned,
        /// Containers whose tools' contents could not be learnt: they are recognised by their names only.
        contents_unknown,
        /// Containers found ended without their shim having said so.
        containers_abandoned,
        /// Guards left behind without record and without cgroup, removed.
        guards_orphaned,
        /// Guards that could not be removed.
        release_errors,
        /// Times that catalogue or policies could not be used, and the former ones stayed in force.
        policies_rejected,
        /// Containers that could not be put under the policy that is chosen for them; each is tried again.
        moves_failed,
        /// Policies that are no longer in force and whose rules stay for containers that could not be moved.
        policies_outlived,
        /// Files of operators' modes that could not be read and were moved aside.
        overrides_lost,
        /// Directories of policies or catalogue that can't be watched: only SIGHUP makes the agent read them again.
        directories_unwatched,
        /// Questions for a container's image that containerd did not answer.
        images_unanswered,
        /// Questions for containers' tasks that containerd did not answer: it is not known whether they are frozen.
        tasks_unanswered,
        /// What operators asked for that could not be kept as a signal; the log has it.
        operations_unrecorded,
        /// Signals stored without their container's image because it did not become known in time.
        signals_without_image,
        /// Commands of exec sessions forgotten before their time: if they are a probe's, it takes a while to say so again.
        probes_forgotten,
        /// Reported executions forgotten before their time, of which a repeat is reported once more.
        repeats_forgotten,
        /// Signals of which repeats were no longer folded into before their window's end, and so told once more.
        folds_forgotten,
        /// Events folded into signals that retention had removed or the store did not take.
        repeats_lost,
        /// Events told by their number only, in a signal `signals_suppressed`, because their container made too many.
        signals_suppressed,
        /// Events that the kernel counted and that are in no signal, told by number in a signal `events_lost` of their container.
        events_untold,
        /// Signals that retention removed before an exporter had handed them over.
        export_gap,
        /// Findings that an exporter's receiver refused for what they are.
        export_refused,
        /// Attempts of exporters that failed; each is repeated.
        export_failures,
        /// Exporters that began anew because what says how far they had come could not be read.
        export_cursors_lost,
        /// Times that how far an exporter has come could not be written down.
        export_cursors_unwritten,
        /// What processes did on the network whose signal is not in the store: suppressed, omitted, or removed by retention.
        activity_unmatched,
        /// Calls of the API refused because their user made too many.
        requests_refused,
        /// Connections to the API closed because their user had too many.
        connections_refused,
        /// Calls of the API refused because the client's certificate may not make them.
        calls_forbidden,
        /// Calls of the API ended because they took too long.
        calls_timed_out,
        /// Connections over TCP that ended without a valid certificate, or without TLS 1.3.
        handshakes_refused,
        /// Times that the certificate files for TCP could not be used, and the former ones stayed in use.
        certificates_rejected,
        /// System calls of the agent itself that were refused, as its profile does not name them.
        syscalls_refused,
    }
    suppressed {
        /// One of the arguments contained what the rule excepts.
        excepted_arguments,
        /// Repeats of what was reported within the rule's time.
        excepted_repeats,
        /// Repeats counted in the first one's signal.
        repeats_folded,
    }
}
