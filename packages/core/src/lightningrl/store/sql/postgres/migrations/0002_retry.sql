-- An operator retries failed rollouts.

INSERT INTO rollout_moves VALUES ('failed', 'queued');

ALTER TABLE rollouts ADD COLUMN forgiven BIGINT NOT NULL DEFAULT 0;

DROP VIEW rollout_records;

CREATE VIEW rollout_records AS
SELECT spec, state, attempts, reward, created_us, ended_us, forgiven,
       pk, id, run, mode, iteration, variant, group_id, member, ended_seq
FROM rollouts;
