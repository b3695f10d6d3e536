-- Several gateways share the store.

CREATE TABLE gateways (
    name    TEXT PRIMARY KEY,
    seen_us INTEGER NOT NULL,
    drained BLOB NOT NULL       -- [DrainedHold]: the holds that it has drained
) WITHOUT ROWID;
