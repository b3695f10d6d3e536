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

-- name: taken_group_to_load
SELECT pk, status FROM taken_groups
WHERE run = :run AND iteration = :iteration AND group_id = :group_id;

-- name: members_of_group
SELECT r.id, a.id, m.reward, m.events
FROM taken_rollouts AS m
JOIN rollouts AS r ON r.pk = m.rollout
JOIN attempts AS a ON a.pk = m.attempt
WHERE m.taken_group = :group;
