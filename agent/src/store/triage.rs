//! What people make of signals. The newest change stands in columns, those before it in the encoded message.

use portcullis_proto::v1::{Triage, TriageState};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

/// Changes of one signal that are kept besides the newest.
const EARLIER: usize = 16;

/// Gives signals a state, all of them or none. The id that is not there is the inner error.
pub(super) fn set(
    connection: &mut Connection,
    ids: &[u64],
    change: &Triage,
    mut revision: u64,
) -> rusqlite::Result<Result<u64, u64>> {
    let transaction = connection.transaction()?;
    for id in ids {
        let key = i64::try_from(*id).unwrap_or(i64::MAX);
        let there = transaction.prepare_cached("SELECT 1 FROM signals WHERE id = ?1")?.exists([key])?;
        if !there {
            return Ok(Err(*id));
        }
        let before: Option<Vec<u8>> = transaction
            .prepare_cached("SELECT body FROM triage WHERE id = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        let mut earlier = Vec::new();
        // What can't be read any more is not worth refusing the change.
        if let Some(mut last) = before.and_then(|body| Triage::decode(body.as_slice()).ok()) {
            earlier = std::mem::take(&mut last.earlier);
            earlier.push(last);
            earlier.drain(..earlier.len().saturating_sub(EARLIER));
        }
        revision += 1;
        let body = Triage { earlier, ..change.clone() }.encode_to_vec();
        transaction
            .prepare_cached(
                "INSERT INTO triage (id, revision, state, body) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, state = excluded.state, body = excluded.body",
            )?
            .execute(params![key, i64::try_from(revision).unwrap_or(i64::MAX), change.state, body])?;
    }
    transaction.commit()?;
    Ok(Ok(revision))
}

/// The state that a signal without any is in.
pub(super) const NONE: TriageState = TriageState::Open;
