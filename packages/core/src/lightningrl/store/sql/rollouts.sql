-- `select_rollouts`, the `and_*` that apply, and an order are fragments that make one query.

-- name: rollout_spec
SELECT spec FROM rollouts WHERE id = :id;

-- name: insert_rollout
INSERT INTO rollouts (id, run, mode, iteration, variant, task_id, group_id, member, created_us, spec)
VALUES (:id, :run, :mode, :iteration, :variant, :task_id, :group_id, :member, :now_us, :spec);

-- name: queued
SELECT * FROM rollout_records WHERE state = 'queued' ORDER BY pk LIMIT :limit;

-- name: queued_of_run
SELECT * FROM rollout_records WHERE state = 'queued' AND run = :run ORDER BY pk LIMIT :limit;

-- name: start_rollout
UPDATE rollouts
SET state = 'running', attempts = attempts + 1, reward = NULL, reward_revision = NULL
WHERE pk = :pk;

-- name: requeue_rollout
UPDATE rollouts SET state = 'queued' WHERE pk = :pk;

-- name: end_rollout
UPDATE rollouts
SET state = :state,
    ended_us = :now_us,
    ended_seq = (SELECT coalesce(max(ended_seq), 0) + 1 FROM rollouts)
WHERE pk = :pk;

-- name: reward_rollout
UPDATE rollouts
SET reward = :value, reward_revision = :revision
WHERE pk = :pk AND attempts = :number
  AND (reward_revision IS NULL OR reward_revision <= :revision);

-- name: rollout_by_pk
SELECT * FROM rollout_records WHERE pk = :pk;

-- name: rollout_by_id
SELECT * FROM rollout_records WHERE id = :id;

-- name: select_rollouts
SELECT * FROM rollout_records WHERE TRUE

-- name: and_run
AND run = :run

-- name: and_mode
AND mode = :mode

-- name: and_iteration
AND iteration = :iteration

-- name: and_variant
AND variant = :variant

-- name: and_group_id
AND group_id = :group_id

-- name: and_states
AND state IN (SELECT value FROM json_each(:states))

-- name: and_ids
AND id IN (SELECT value FROM json_each(:ids))

-- name: oldest_first
ORDER BY created_us, id LIMIT :limit OFFSET :offset

-- name: newest_first
ORDER BY created_us DESC, id DESC LIMIT :limit OFFSET :offset

-- name: ended_rollouts
SELECT * FROM rollout_records
WHERE run = :run AND ended_seq > :after ORDER BY ended_seq LIMIT :limit;

-- name: progress
SELECT state, count(*), coalesce(sum(reward), 0.0), count(reward)
FROM rollouts
WHERE run = :run AND mode = :mode AND iteration = :iteration
  AND (:variant IS NULL OR variant = :variant)
GROUP BY state;

-- name: runs
SELECT run FROM rollouts UNION SELECT run FROM policies ORDER BY 1;

-- name: count_rollouts
SELECT state, count(*) FROM rollouts WHERE run = :run GROUP BY state;

-- name: count_attempts
SELECT a.state, count(*)
FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout
WHERE r.run = :run GROUP BY a.state;

-- name: count_events
SELECT e.kind, count(*)
FROM rollouts AS r JOIN attempts AS a ON a.rollout = r.pk JOIN events AS e ON e.attempt = a.pk
WHERE r.run = :run GROUP BY e.kind;
