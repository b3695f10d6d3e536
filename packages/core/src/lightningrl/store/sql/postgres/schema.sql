-- The LightningStore in a PostgreSQL database: the tables of SQLite's schema.sql, in PostgreSQL's words.
--
-- Instants are integers, microseconds since 1970 in UTC (`*_us`). Payloads are msgpack, compressed
-- with zstd where that pays. Rollouts and attempts move only as the two tables below allow: they
-- stand also in schema/states.py as ROLLOUT_MOVES and ATTEMPT_MOVES, and a test compares them.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

-- One row per process that writes. Each of its transactions begins by noting its number here, so that
-- after a lost connection the row says whether the last one was committed.
CREATE TABLE writers (
    name    TEXT PRIMARY KEY,
    batch   BIGINT NOT NULL,
    seen_us BIGINT NOT NULL
);

CREATE TABLE rollout_moves (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
);

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
);

INSERT INTO attempt_moves VALUES
    ('running', 'succeeded'),
    ('running', 'failed'),
    ('running', 'timed_out'),
    ('running', 'lost');

-- One execution of an agent on one task. `pk` is the order of enqueueing.
CREATE TABLE rollouts (
    pk              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    run             TEXT NOT NULL,
    mode            TEXT NOT NULL,
    iteration       BIGINT NOT NULL,
    variant         TEXT NOT NULL,
    task_id         TEXT NOT NULL,
    group_id        TEXT NOT NULL,
    member          BIGINT NOT NULL,
    state           TEXT NOT NULL DEFAULT 'queued'
                    CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempts        BIGINT NOT NULL DEFAULT 0,
    forgiven        BIGINT NOT NULL DEFAULT 0,  -- attempts that the retry policy no longer counts
    reward          DOUBLE PRECISION,   -- the final reward of the latest attempt
    reward_revision BIGINT,             -- the revision that `reward` is of
    created_us      BIGINT NOT NULL,
    ended_us        BIGINT,
    complete        BIGINT NOT NULL DEFAULT 0, -- 1: it ended, and the rewards that it awaits are in
    ended_seq       BIGINT UNIQUE,      -- the order of completion, over all runs; given at the commit
    spec            BYTEA NOT NULL,     -- NewRollout
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_us IS NOT NULL)),
    CHECK (complete = 0 OR ended_us IS NOT NULL),
    CHECK (complete = 1 OR ended_seq IS NULL),
    CHECK ((reward IS NULL) = (reward_revision IS NULL))
);

CREATE INDEX rollouts_iteration ON rollouts (run, mode, iteration, variant);
CREATE INDEX rollouts_group ON rollouts (group_id);
-- By an expression: only those read it who say so, and no query of less of a run is led here.
CREATE INDEX rollouts_created ON rollouts ((run || ''), created_us, id);
CREATE INDEX rollouts_open ON rollouts ((run || ''), created_us, id) WHERE ended_us IS NULL;
CREATE INDEX rollouts_ended ON rollouts (run, ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX rollouts_queued ON rollouts (pk) WHERE state = 'queued';
CREATE INDEX rollouts_queued_by_run ON rollouts (run, pk) WHERE state = 'queued';

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER rollouts_start_queued BEFORE INSERT ON rollouts
FOR EACH ROW WHEN (NEW.state <> 'queued')
EXECUTE FUNCTION refuse('a rollout starts queued');

CREATE FUNCTION check_rollout_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM rollout_moves WHERE from_state = OLD.state AND to_state = NEW.state
    ) THEN
        RAISE EXCEPTION 'rollout_moves does not list this move' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER rollouts_move BEFORE UPDATE OF state ON rollouts
FOR EACH ROW WHEN (OLD.state <> NEW.state)
EXECUTE FUNCTION check_rollout_move();

-- Places in the order of completion are given at the commit, by one transaction at a time: who has seen a
-- place has seen all before it, so that no reader of `ended_seq > cursor` ever passes one over. The lock
-- is the last one that a transaction takes, so that it can't take part in a deadlock.
CREATE SEQUENCE ending_order;

CREATE FUNCTION give_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(CAST(CAST('ending_order' AS regclass) AS oid)::bigint);
    UPDATE rollouts SET ended_seq = nextval('ending_order') WHERE pk = NEW.pk AND complete = 1;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER rollouts_complete AFTER UPDATE OF complete ON rollouts
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (OLD.complete = 0 AND NEW.complete = 1)
EXECUTE FUNCTION give_place();

-- One try at a rollout, by one worker, under a lease.
CREATE TABLE attempts (
    pk              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    rollout         BIGINT NOT NULL REFERENCES rollouts (pk),
    number          BIGINT NOT NULL,
    state           TEXT NOT NULL DEFAULT 'running'
                    CHECK (state IN ('running', 'succeeded', 'failed', 'timed_out', 'lost')),
    worker          TEXT NOT NULL,
    lease_us        BIGINT NOT NULL,    -- when the lease runs out
    deadline_us     BIGINT NOT NULL,    -- when the attempt's time runs out, extensions included
    started_us      BIGINT NOT NULL,
    ended_us        BIGINT,
    failure_kind    TEXT,
    failure_message TEXT,
    output          BYTEA,              -- JSON-like value; NULL while running
    UNIQUE (rollout, number),
    CHECK ((state = 'running') = (ended_us IS NULL)),
    CHECK ((state IN ('failed', 'timed_out', 'lost')) = (failure_kind IS NOT NULL)),
    CHECK ((failure_kind IS NULL) = (failure_message IS NULL))
);

CREATE UNIQUE INDEX attempts_one_running ON attempts (rollout) WHERE state = 'running';
CREATE INDEX attempts_running_by_worker ON attempts (worker) WHERE state = 'running';
CREATE INDEX attempts_due ON attempts (least(lease_us, deadline_us)) WHERE state = 'running';

CREATE TRIGGER attempts_start_running BEFORE INSERT ON attempts
FOR EACH ROW WHEN (NEW.state <> 'running')
EXECUTE FUNCTION refuse('an attempt starts running');

CREATE FUNCTION check_attempt_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM attempt_moves WHERE from_state = OLD.state AND to_state = NEW.state
    ) THEN
        RAISE EXCEPTION 'attempt_moves does not list this move' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER attempts_move BEFORE UPDATE OF state ON attempts
FOR EACH ROW WHEN (OLD.state <> NEW.state)
EXECUTE FUNCTION check_attempt_move();

-- What attempts produced, append-only. `seq` is the order of arrival within an attempt.
CREATE TABLE events (
    seq         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    attempt     BIGINT NOT NULL REFERENCES attempts (pk),
    id          TEXT NOT NULL,
    kind        TEXT NOT NULL,
    prompt_tokens     BIGINT,       -- of a call
    completion_tokens BIGINT,
    payload     BYTEA NOT NULL,     -- Event; of a call with a base only what the base lacks
    base        BIGINT,             -- seq of the call of this attempt that it continues; no foreign key:
                                    -- checking it would read the table once for each deleted event
    shared_ids  BIGINT,             -- bytes of the base's prompt and answer ids that come first
    shared_head BIGINT,             -- bytes of the base's request that come first
    shared_tail BIGINT,             -- bytes of the base's request that come last
    UNIQUE (attempt, id)
);

-- The payload is compressed already.
ALTER TABLE events ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TRIGGER events_stay BEFORE UPDATE ON events
FOR EACH ROW EXECUTE FUNCTION refuse('events are append-only');

-- The one way out: the attempts that a transaction deletes stand here until its end.
CREATE TABLE deletions (
    attempt BIGINT PRIMARY KEY
);

CREATE FUNCTION keep_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM deletions WHERE attempt = OLD.attempt) THEN
        RAISE EXCEPTION 'events are append-only' USING ERRCODE = 'check_violation';
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER events_are_kept BEFORE DELETE ON events
FOR EACH ROW EXECUTE FUNCTION keep_events();

-- Rewards that running and succeeded attempts await and don't have.
CREATE TABLE awaited_rewards (
    rollout BIGINT NOT NULL REFERENCES rollouts (pk),
    name    TEXT NOT NULL,
    attempt BIGINT NOT NULL REFERENCES attempts (pk),
    until_us BIGINT,             -- when its time runs out; NULL: it runs, or awaits for as long as it takes
    PRIMARY KEY (rollout, name)
);

CREATE INDEX awaited_rewards_by_attempt ON awaited_rewards (attempt);
CREATE INDEX awaited_rewards_due ON awaited_rewards (until_us) WHERE until_us IS NOT NULL;

-- What an algorithm tunes, every version of it.
CREATE TABLE resources (
    run        TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    BIGINT NOT NULL,
    id         TEXT,                -- the caller's
    created_us BIGINT NOT NULL,
    value      BYTEA NOT NULL,      -- JSON-like
    PRIMARY KEY (run, name, version),
    UNIQUE (run, name, id)
);

CREATE TABLE policies (
    run     TEXT NOT NULL,
    name    TEXT NOT NULL,
    version BIGINT NOT NULL,
    policy  BYTEA NOT NULL,         -- Policy
    PRIMARY KEY (run, name)
);

CREATE TABLE workers (
    name       TEXT PRIMARY KEY,
    run        TEXT,
    first_us   BIGINT NOT NULL,     -- when it was first seen
    seen_us    BIGINT NOT NULL,     -- when it last claimed or renewed
    claimed_us BIGINT,              -- when it last got something
    claimed    BIGINT NOT NULL DEFAULT 0    -- attempts that it got so far
);

-- The processes that pass model calls, where several share the store.
CREATE TABLE gateways (
    name    TEXT PRIMARY KEY,
    seen_us BIGINT NOT NULL,
    drained BYTEA NOT NULL       -- [DrainedHold]: the holds that it has drained
);

-- The training ledger: what each iteration was given. A rollout stands in it at most once.
CREATE TABLE takes (
    run       TEXT NOT NULL,
    iteration BIGINT NOT NULL,
    taken_us  BIGINT NOT NULL,
    committed BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (run, iteration)
);

CREATE TABLE taken_groups (
    pk        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- in enqueue order within one take
    run       TEXT NOT NULL,
    iteration BIGINT NOT NULL,
    group_id  TEXT NOT NULL,
    status    TEXT NOT NULL CHECK (status IN ('taken', 'skipped')),
    UNIQUE (run, iteration, group_id),
    FOREIGN KEY (run, iteration) REFERENCES takes (run, iteration) ON DELETE CASCADE
);

CREATE INDEX taken_groups_by_group ON taken_groups (run, group_id);

CREATE TABLE taken_rollouts (
    pk          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,    -- in member order within one group
    taken_group BIGINT NOT NULL REFERENCES taken_groups (pk) ON DELETE CASCADE,
    rollout     BIGINT NOT NULL UNIQUE REFERENCES rollouts (pk),
    attempt     BIGINT NOT NULL REFERENCES attempts (pk),
    reward      DOUBLE PRECISION NOT NULL,  -- as it was when it was taken
    events      BIGINT NOT NULL     -- how many the attempt had then: later ones are not trained
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
