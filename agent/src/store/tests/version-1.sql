-- As agents of that time wrote it: never changed again.
BEGIN IMMEDIATE;
CREATE TABLE signals (
    -- AUTOINCREMENT: an id that retention has freed is not given again.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin BLOB NOT NULL UNIQUE,
    time_ns INTEGER NOT NULL,
    rule TEXT NOT NULL,
    verdict INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    tool TEXT NOT NULL,
    category TEXT NOT NULL,
    container_id TEXT NOT NULL,
    image TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL,
    -- portcullis.v1.Signal without its id.
    body BLOB NOT NULL
) STRICT;
CREATE INDEX signals_time ON signals (time_ns);
CREATE INDEX signals_rule ON signals (rule);
CREATE INDEX signals_verdict ON signals (verdict);
CREATE INDEX signals_severity ON signals (severity);
CREATE INDEX signals_tool ON signals (tool);
CREATE INDEX signals_category ON signals (category);
CREATE INDEX signals_container ON signals (container_id);
CREATE INDEX signals_image ON signals (image);
CREATE INDEX signals_pod ON signals (pod_namespace, pod_name);
CREATE TABLE containers (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    image TEXT NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (namespace, id, created_ns)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;
