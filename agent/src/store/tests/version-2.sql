-- As agents of that time wrote it: never changed again.
BEGIN IMMEDIATE;
CREATE TABLE repeats (
    id INTEGER PRIMARY KEY REFERENCES signals (id) ON DELETE CASCADE,
    -- Grows with every change of any row.
    revision INTEGER NOT NULL UNIQUE,
    count INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    -- portcullis.v1.Signal with only what has changed.
    body BLOB NOT NULL
) STRICT;
CREATE INDEX repeats_last ON repeats (last_ns);
PRAGMA user_version = 2;
COMMIT;
