-- The LightningStore in one SQLite file.
--
-- Instants are integers, microseconds since 1970 in UTC (`*_us`). Payloads are msgpack, compressed
-- with zstd where that pays. Rollouts and attempts move only as the two tables below allow: they
-- stand also in schema/states.py as ROLLOUT_MOVES and ATTEMPT_MOVES, and a test compares them.
--
-- Nothing here needs a recent SQLite, so that any tool can look into a store.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE rollout_moves (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) WITHOUT ROWID;

INSERT INTO rollout_moves VALUES
    ('queued', 'running'),
    ('queued', 'cancelled'),
    ('running', 'queued'),      -- its attempt was lost or failed, and another one is allowed
    ('running', 'succeeded'),
    ('running', 'failed'),
    ('running', 'cancelled'),
    ('failed', 'queued');       -- an operator's retry

CREATE TABLE attempt_moves (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) WITHOUT ROWID;

INSERT INTO attempt_moves VALUES
    ('running', 'succeeded'),
    ('running', 'failed'),
    ('running', 'timed_out'),
    ('running', 'lost');

-- One execution of an agent on one task. `pk` is the order of enqueueing.
CREATE TABLE rollouts (
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

-- How many rollouts were completed so far, over all runs; `ended_seq` never goes back, whatever is retried.
CREATE TABLE completions (
    last INTEGER NOT NULL
);

INSERT INTO completions VALUES (0);

CREATE INDEX rollouts_iteration ON rollouts (run, mode, iteration, variant);
CREATE INDEX rollouts_group ON rollouts (group_id);
-- By an expression: only those read it who say so, and no query of less of a run is led here.
CREATE INDEX rollouts_created ON rollouts ((run || ''), created_us, id);
CREATE INDEX rollouts_open ON rollouts ((run || ''), created_us, id) WHERE ended_us IS NULL;
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

-- One try at a rollout, by one worker, under a lease.
CREATE TABLE attempts (
    pk              INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    rollout         INTEGER NOT NULL REFERENCES rollouts (pk),
    number          INTEGER NOT NULL,
    state           TEXT NOT NULL DEFAULT 'running'
                    CHECK (state IN ('running', 'succeeded', 'failed', 'timed_out', 'lost')),
    worker          TEXT NOT NULL,
    lease_us        INTEGER NOT NULL,   -- when the lease runs out
    deadline_us     INTEGER NOT NULL,   -- when the attempt's time runs out, extensions included
    started_us      INTEGER NOT NULL,
    ended_us        INTEGER,
    failure_kind    TEXT,
    failure_message TEXT,
    output          BLOB,               -- JSON-like value; NULL while running
    UNIQUE (rollout, number),
    CHECK ((state = 'running') = (ended_us IS NULL)),
    CHECK ((state IN ('failed', 'timed_out', 'lost')) = (failure_kind IS NOT NULL)),
    CHECK ((failure_kind IS NULL) = (failure_message IS NULL))
);

CREATE UNIQUE INDEX attempts_one_running ON attempts (rollout) WHERE state = 'running';
CREATE INDEX attempts_running_by_worker ON attempts (worker) WHERE state = 'running';
CREATE INDEX attempts_due ON attempts (min(lease_us, deadline_us)) WHERE state = 'running';

CREATE TRIGGER attempts_start_running BEFORE INSERT ON attempts WHEN NEW.state <> 'running'
BEGIN
    SELECT RAISE(ABORT, 'an attempt starts running');
END;

CREATE TRIGGER attempts_move BEFORE UPDATE OF state ON attempts
WHEN OLD.state <> NEW.state AND NOT EXISTS (
    SELECT 1 FROM attempt_moves WHERE from_state = OLD.state AND to_state = NEW.state
)
BEGIN
    SELECT RAISE(ABORT, 'attempt_moves does not list this move');
END;

-- What attempts produced, append-only. `seq` is the order of arrival.
CREATE TABLE events (
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

CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- The one way out: the attempts that a transaction deletes stand here until its end.
CREATE TABLE deletions (
    attempt INTEGER PRIMARY KEY
);

CREATE TRIGGER events_are_kept BEFORE DELETE ON events
WHEN NOT EXISTS (SELECT 1 FROM deletions WHERE attempt = OLD.attempt)
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- Rewards that running and succeeded attempts await and don't have.
CREATE TABLE awaited_rewards (
    rollout INTEGER NOT NULL REFERENCES rollouts (pk),
    name    TEXT NOT NULL,
    attempt INTEGER NOT NULL REFERENCES attempts (pk),
    until_us INTEGER,             -- when its time runs out; NULL: it runs, or awaits for as long as it takes
    PRIMARY KEY (rollout, name)
) WITHOUT ROWID;

CREATE INDEX awaited_rewards_by_attempt ON awaited_rewards (attempt);
CREATE INDEX awaited_rewards_due ON awaited_rewards (until_us) WHERE until_us IS NOT NULL;

-- What an algorithm tunes, every version of it.
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

CREATE TABLE policies (
    run     TEXT NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,
    policy  BLOB NOT NULL,          -- Policy
    PRIMARY KEY (run, name)
) WITHOUT ROWID;

CREATE TABLE workers (
    name       TEXT PRIMARY KEY,
    run        TEXT,
    first_us   INTEGER NOT NULL,    -- when it was first seen
    seen_us    INTEGER NOT NULL,    -- when it last claimed or renewed
    claimed_us INTEGER,             -- when it last got something
    claimed    INTEGER NOT NULL DEFAULT 0   -- attempts that it got so far
) WITHOUT ROWID;

-- The processes that pass model calls, where several share the store.
CREATE TABLE gateways (
    name    TEXT PRIMARY KEY,
    seen_us INTEGER NOT NULL,
    drained BLOB NOT NULL       -- [DrainedHold]: the holds that it has drained
) WITHOUT ROWID;

-- The training ledger: what each iteration was given. A rollout stands in it at most once.
CREATE TABLE takes (
    run       TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    taken_us  INTEGER NOT NULL,
    committed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, iteration)
) WITHOUT ROWID;

CREATE TABLE taken_groups (
    pk        INTEGER PRIMARY KEY,  -- in enqueue order within one take
    run       TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    group_id  TEXT NOT NULL,
    status    TEXT NOT NULL CHECK (status IN ('taken', 'skipped')),
    UNIQUE (run, iteration, group_id),
    FOREIGN KEY (run, iteration) REFERENCES takes (run, iteration) ON DELETE CASCADE
);

CREATE INDEX taken_groups_by_group ON taken_groups (run, group_id);

CREATE TABLE taken_rollouts (
    pk          INTEGER PRIMARY KEY,    -- in member order within one group
    taken_group INTEGER NOT NULL REFERENCES taken_groups (pk) ON DELETE CASCADE,
    rollout     INTEGER NOT NULL UNIQUE REFERENCES rollouts (pk),
    attempt     INTEGER NOT NULL REFERENCES attempts (pk),
    reward      REAL NOT NULL,          -- as it was when it was taken
    events      INTEGER NOT NULL        -- how many the attempt had then: later ones are not trained
);

CREATE INDEX taken_rollouts_by_group ON taken_rollouts (taken_group);
CREATE INDEX taken_rollouts_by_attempt ON taken_rollouts (attempt);

-- The columns that rows.py reads, in its order.
CREATE VIEW rollout_records AS
SELECT spec, state, attempts, reward, created_us, ended_us, forgiven, complete,
       pk, id, run, mode, iteration, variant, group_id, member, ended_seq
FROM rollouts;

CREATE VIEW attempt_records AS
SELECT a.id, r.id AS rollout_id, a.number, a.state, a.worker, a.lease_us, a.started_us, a.ended_us,
       a.failure_kind, a.failure_message, a.output,
       a.pk, a.rollout
FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout;
