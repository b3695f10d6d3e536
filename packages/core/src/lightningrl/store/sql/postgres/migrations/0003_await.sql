-- Rollouts await rewards, resources have versions, workers are known for longer, and attempts can be deleted.
-- Calls that were recorded before keep no count of their tokens beside the payload.

DROP TRIGGER rollouts_end ON rollouts;

ALTER TABLE rollouts ADD COLUMN complete BIGINT NOT NULL DEFAULT 0;
UPDATE rollouts SET complete = 1 WHERE ended_us IS NOT NULL;
ALTER TABLE rollouts DROP CONSTRAINT rollouts_check1;
ALTER TABLE rollouts RENAME CONSTRAINT rollouts_check2 TO rollouts_check3;
ALTER TABLE rollouts ADD CONSTRAINT rollouts_check1 CHECK (complete = 0 OR ended_us IS NOT NULL);
ALTER TABLE rollouts ADD CONSTRAINT rollouts_check2 CHECK (complete = 1 OR ended_seq IS NULL);

CREATE OR REPLACE FUNCTION give_place() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(CAST(CAST('ending_order' AS regclass) AS oid)::bigint);
    UPDATE rollouts SET ended_seq = nextval('ending_order') WHERE pk = NEW.pk AND complete = 1;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER rollouts_complete AFTER UPDATE OF complete ON rollouts
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (OLD.complete = 0 AND NEW.complete = 1)
EXECUTE FUNCTION give_place();

ALTER TABLE events ADD COLUMN prompt_tokens BIGINT;
ALTER TABLE events ADD COLUMN completion_tokens BIGINT;
ALTER TABLE events DROP CONSTRAINT events_base_fkey;

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

DROP TRIGGER events_are_kept ON events;

CREATE TRIGGER events_are_kept BEFORE DELETE ON events
FOR EACH ROW EXECUTE FUNCTION keep_events();

CREATE TABLE awaited_rewards (
    rollout BIGINT NOT NULL REFERENCES rollouts (pk),
    name    TEXT NOT NULL,
    attempt BIGINT NOT NULL REFERENCES attempts (pk),
    PRIMARY KEY (rollout, name)
);

CREATE INDEX awaited_rewards_by_attempt ON awaited_rewards (attempt);

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

ALTER TABLE workers ADD COLUMN first_us BIGINT;
ALTER TABLE workers ADD COLUMN claimed_us BIGINT;
ALTER TABLE workers ADD COLUMN claimed BIGINT NOT NULL DEFAULT 0;
UPDATE workers SET
    first_us = seen_us,
    claimed_us = (SELECT max(a.started_us) FROM attempts AS a WHERE a.worker = name),
    claimed = (SELECT count(*) FROM attempts AS a WHERE a.worker = name);
ALTER TABLE workers ALTER COLUMN first_us SET NOT NULL;

ALTER TABLE taken_rollouts ADD COLUMN events BIGINT;
UPDATE taken_rollouts SET
    events = (SELECT count(*) FROM events AS e WHERE e.attempt = taken_rollouts.attempt);
ALTER TABLE taken_rollouts ALTER COLUMN events SET NOT NULL;
CREATE INDEX taken_rollouts_by_attempt ON taken_rollouts (attempt);

DROP VIEW rollout_records;

CREATE VIEW rollout_records AS
SELECT spec, state, attempts, reward, created_us, ended_us, forgiven, complete,
       pk, id, run, mode, iteration, variant, group_id, member, ended_seq
FROM rollouts;
