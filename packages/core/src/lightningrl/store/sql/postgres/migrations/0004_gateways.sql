-- Several gateways share the store.

CREATE TABLE gateways (
    name    TEXT PRIMARY KEY,
    seen_us BIGINT NOT NULL,
    drained BYTEA NOT NULL       -- [DrainedHold]: the holds that it has drained
);
