-- Rollouts await rewards, resources have versions, workers are known for longer, and attempts can be deleted.
-- Calls that were recorded before keep no count of their tokens beside the payload.

DROP VIEW attempt_records;
DROP VIEW rollout_records;

CREATE TABLE new_rollouts (
    pk              INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    run             TEXT NOT NULL,
    mode            TEXT NOT NULL,
    iteration       INTEGER NOT NULL,
    variant         TEXT NOT NULL,
    task_id         TEXT NOT NULL,
    group_id        TEXT NOT NULL,
    member          INTEGER NOT NULL,
    state           TEXT NOT NULL DEFAULT 'queued'
                    CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    forgiven        INTEGER NOT NULL DEFAULT 0, -- attempts that the retry policy no longer counts
    reward          REAL,       -- the final reward of the latest attempt
    reward_revision INTEGER,    -- the revision that `reward` is of
    created_us      INTEGER NOT NULL,
    ended_us        INTEGER,
    complete        INTEGER NOT NULL DEFAULT 0, -- 1: it ended, and the rewards that it awaits are in
    ended_seq       INTEGER UNIQUE,     -- the order of completion, over all runs
    spec            BLOB NOT NULL,      -- NewRollout
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_us IS NOT NULL)),
    CHECK (complete = 0 OR ended_us IS NOT NULL),
    CHECK (complete = 1 OR ended_seq IS NULL),
    CHECK ((reward IS NULL) = (reward_revision IS NULL))
);

INSERT INTO new_rollouts (pk, id, run, mode, iteration, variant, task_id, group_id, member, state, attempts, forgiven, reward,
    reward_revision, created_us, ended_us, complete, ended_seq, spec)
SELECT pk, id, run, mode, iteration, variant, task_id, group_id, member, state, attempts, forgiven, reward,
    reward_revision, created_us, ended_us, ended_us IS NOT NULL, ended_seq, spec FROM rollouts;
DROP TABLE rollouts;
ALTER TABLE new_rollouts RENAME TO rollouts;

CREATE INDEX rollouts_iteration ON rollouts (run, mode, iteration, variant);
CREATE INDEX rollouts_group ON rollouts (group_id);
CREATE INDEX rollouts_ended ON rollouts (run, ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX rollouts_queued ON rollouts (pk) WHERE state = 'queued';
CREATE INDEX rollouts_queued_by_run ON rollouts (run, pk) WHERE state = 'queued';

CREATE TRIGGER rollouts_start_queued BEFORE INSERT ON rollouts WHEN NEW.state <> 'queued'
BEGIN
    SELECT RAISE(ABORT, 'a rollout starts queued');
END;

CREATE TRIGGER rollouts_move BEFORE UPDATE OF state ON rollouts
WHEN OLD.state <> NEW.state AND NOT EXISTS (
    SELECT 1 FROM rollout_moves WHERE from_state = OLD.state AND to_state = NEW.state
)
BEGIN
    SELECT RAISE(ABORT, 'rollout_moves does not list this move');
END;

CREATE TABLE new_events (
    seq         INTEGER PRIMARY KEY,
    attempt     INTEGER NOT NULL REFERENCES attempts (pk),
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    prompt_tokens     INTEGER,      -- of a call; before the payload, so that counting reads no more
    completion_tokens INTEGER,
    payload     BLOB NOT NULL,      -- Event; of a call with a base only what the base lacks
    base        INTEGER,            -- seq of the call of this attempt that it continues; no foreign key:
                                    -- checking it would read the table once for each deleted event
    shared_ids  INTEGER,            -- bytes of the base's prompt and answer ids that come first
    shared_head INTEGER,            -- bytes of the base's request that come first
    shared_tail INTEGER,            -- bytes of the base's request that come last
    UNIQUE (attempt, id)
);

INSERT INTO new_events (seq, attempt, id, kind, payload, base, shared_ids, shared_head, shared_tail)
SELECT seq, attempt, id, kind, payload, base, shared_ids, shared_head, shared_tail FROM events;
DROP TABLE events;
ALTER TABLE new_events RENAME TO events;

CREATE TABLE deletions (
    attempt INTEGER PRIMARY KEY
);

CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

CREATE TRIGGER events_are_kept BEFORE DELETE ON events
WHEN NOT EXISTS (SELECT 1 FROM deletions WHERE attempt = OLD.attempt)
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

CREATE TABLE awaited_rewards (
    rollout INTEGER NOT NULL REFERENCES rollouts (pk),
    name    TEXT NOT NULL,
    attempt INTEGER NOT NULL REFERENCES attempts (pk),
    PRIMARY KEY (rollout, name)
) WITHOUT ROWID;

CREATE INDEX awaited_rewards_by_attempt ON awaited_rewards (attempt);

CREATE TABLE resources (
    run        TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    id         TEXT,                -- the caller's
    created_us INTEGER NOT NULL,
    value      BLOB NOT NULL,       -- JSON-like
    PRIMARY KEY (run, name, version),
    UNIQUE (run, name, id)
) WITHOUT ROWID;

CREATE TABLE new_workers (
    name       TEXT PRIMARY KEY,
    run        TEXT,
    first_us   INTEGER NOT NULL,    -- when it was first seen
    seen_us    INTEGER NOT NULL,    -- when it last claimed or renewed
    claimed_us INTEGER,             -- when it last got something
    claimed    INTEGER NOT NULL DEFAULT 0   -- attempts that it got so far
) WITHOUT ROWID;

INSERT INTO new_workers (name, run, first_us, seen_us, claimed_us, claimed)
SELECT name, run, seen_us, seen_us,
    (SELECT max(a.started_us) FROM attempts AS a WHERE a.worker = name),
    (SELECT count(*) FROM attempts AS a WHERE a.worker = name) FROM workers;
DROP TABLE workers;
ALTER TABLE new_workers RENAME TO workers;

CREATE TABLE new_taken_rollouts (
    pk          INTEGER PRIMARY KEY,    -- in member order within one group
    taken_group INTEGER NOT NULL REFERENCES taken_groups (pk) ON DELETE CASCADE,
    rollout     INTEGER NOT NULL UNIQUE REFERENCES rollouts (pk),
    attempt     INTEGER NOT NULL REFERENCES attempts (pk),
    reward      REAL NOT NULL,          -- as it was when it was taken
    events      INTEGER NOT NULL        -- how many the attempt had then: later ones are not trained
);

INSERT INTO new_taken_rollouts (pk, taken_group, rollout, attempt, reward, events)
SELECT pk, taken_group, rollout, attempt, reward,
    (SELECT count(*) FROM events AS e WHERE e.attempt = taken_rollouts.attempt) FROM taken_rollouts;
DROP TABLE taken_rollouts;
ALTER TABLE new_taken_rollouts RENAME TO taken_rollouts;

CREATE INDEX taken_rollouts_by_group ON taken_rollouts (taken_group);
CREATE INDEX taken_rollouts_by_attempt ON taken_rollouts (attempt);

CREATE VIEW rollout_records AS
SELECT spec, state, attempts, reward, created_us, ended_us, forgiven, complete,
       pk, id, run, mode, iteration, variant, group_id, member, ended_seq
FROM rollouts;

CREATE VIEW attempt_records AS
SELECT a.id, r.id AS rollout_id, a.number, a.state, a.worker, a.lease_us, a.started_us, a.ended_us,
       a.failure_kind, a.failure_message, a.output,
       a.pk, a.rollout
FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout;
