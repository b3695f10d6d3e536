-- name: rollouts_to_dump
SELECT * FROM rollout_records WHERE run = :run AND pk > :after ORDER BY pk LIMIT :limit;

-- name: deadlines_of_rollout
SELECT id, deadline_us FROM attempts WHERE rollout = :rollout;

-- name: load_attempt
INSERT INTO attempts (id, rollout, number, worker, lease_us, deadline_us, started_us)
VALUES (:id, :rollout, :number, :worker, :lease_us, :deadline_us, :started_us);

-- name: forgive_rollout
UPDATE rollouts SET forgiven = :forgiven WHERE pk = :pk;

-- name: load_taken_rollout
INSERT INTO taken_rollouts (taken_group, rollout, attempt, reward, events)
VALUES (:taken_group, :rollout, :attempt, :reward, :events);

-- name: has_taken_group
SELECT 1 FROM taken_groups WHERE run = :run AND iteration = :iteration AND group_id = :group_id;
