-- `select_rollouts`, the `and_*` that apply, and an order are fragments that make one query.

-- name: rollout_spec
SELECT spec FROM rollouts WHERE id = :id;

-- name: queued
SELECT * FROM rollout_records WHERE state = 'queued' AND mode <> 'live' ORDER BY pk LIMIT :limit
/* postgres: FOR UPDATE SKIP LOCKED */;

-- name: queued_of_run
SELECT * FROM rollout_records WHERE state = 'queued' AND run = :run AND mode <> 'live'
ORDER BY pk LIMIT :limit
/* postgres: FOR UPDATE SKIP LOCKED */;

-- name: queued_by_id
SELECT * FROM rollout_records WHERE state = 'queued' AND id = :id
/* postgres: FOR UPDATE SKIP LOCKED */;

-- name: start_rollout
UPDATE rollouts
SET state = 'running', attempts = attempts + 1, reward = NULL, reward_revision = NULL
WHERE pk = :pk;

-- name: requeue_rollout
UPDATE rollouts SET state = 'queued', reward = NULL, reward_revision = NULL WHERE pk = :pk;

-- name: retry_rollout
UPDATE rollouts
SET state = 'queued', ended_us = NULL, complete = 0, ended_seq = NULL, forgiven = attempts
WHERE pk = :pk;

-- name: end_rollout
-- Only a success has a reward.
UPDATE rollouts
SET state = :state, ended_us = :now_us,
  reward = CASE WHEN :state = 'succeeded' THEN reward END,
  reward_revision = CASE WHEN :state = 'succeeded' THEN reward_revision END
WHERE pk = :pk;

-- name: lock_rollout
SELECT pk FROM rollouts WHERE pk = :pk /* postgres: FOR UPDATE */;

-- name: reward_rollout
UPDATE rollouts
SET reward = :value, reward_revision = :revision
WHERE pk = :pk AND attempts = :number
  AND (reward_revision IS NULL OR reward_revision <= :revision);

-- name: rollout_by_pk
SELECT * FROM rollout_records WHERE pk = :pk;

-- name: rollout_by_id
SELECT * FROM rollout_records WHERE id = :id;

-- name: rollout_to_change
SELECT * FROM rollout_records WHERE id = :id /* postgres: FOR UPDATE */;

-- name: select_rollouts
SELECT r.* FROM (
    SELECT *,
           CASE :order
               WHEN 'created' THEN created_us
               WHEN 'ended' THEN ended_us
               WHEN 'reward' THEN reward
               ELSE attempts
           END AS sort_key
    FROM rollout_records
) AS r WHERE TRUE

-- name: select_rollouts_by_creation
SELECT r.* FROM rollout_records AS r WHERE TRUE

-- name: and_run
AND run = :run

-- name: and_known_run
-- Where ids or a group say more than the run does: an expression, so that no index of the run is read instead.
AND coalesce(run, '') = :run

-- name: and_whole_run
-- The expression of `rollouts_created` and `rollouts_open`, which hold a run in order of creation.
AND run || '' = :run

-- name: and_open
-- What `rollouts_open` holds: queued and running ones.
AND ended_us IS NULL

-- name: and_mode
AND mode = :mode

-- name: and_iteration
AND iteration = :iteration

-- name: and_variant
AND variant = :variant

-- name: and_group_id
AND group_id = :group_id

-- name: and_task_id
AND EXISTS (SELECT 1 FROM rollouts AS t WHERE t.pk = r.pk AND t.task_id = :task_id)

-- name: and_min_reward
AND reward >= :min_reward

-- name: and_max_reward
AND reward <= :max_reward

-- name: after_ascending
AND (sort_key > :after_key OR (sort_key = :after_key AND id > :after_id) OR sort_key IS NULL)

-- name: after_descending
AND (sort_key < :after_key OR (sort_key = :after_key AND id < :after_id) OR sort_key IS NULL)

-- name: after_null_ascending
AND sort_key IS NULL AND id > :after_id

-- name: after_null_descending
AND sort_key IS NULL AND id < :after_id

-- name: ascending
ORDER BY CASE WHEN sort_key IS NULL THEN 1 ELSE 0 END, sort_key, id LIMIT :limit

-- name: descending
ORDER BY CASE WHEN sort_key IS NULL THEN 1 ELSE 0 END, sort_key DESC, id DESC LIMIT :limit

-- name: after_creation_ascending
AND (created_us, id) > (:after_key, :after_id)

-- name: after_creation_descending
AND (created_us, id) < (:after_key, :after_id)

-- name: creation_ascending
ORDER BY created_us, id LIMIT :limit

-- name: creation_descending
ORDER BY created_us DESC, id DESC LIMIT :limit

-- name: ended_rollouts
SELECT * FROM rollout_records
WHERE run = :run AND ended_seq > :after ORDER BY ended_seq LIMIT :limit;

-- name: progress
SELECT state, count(*), coalesce(sum(reward), 0.0), count(reward),
       count(CASE WHEN complete = 1 THEN 1 END)
FROM rollouts
WHERE run = :run AND mode = :mode AND iteration = :iteration
  AND (variant = :variant OR :variant IS NULL)
GROUP BY state;

-- name: runs
-- From one run to the next in the index, whatever number of rollouts is between them.
WITH RECURSIVE found (run) AS (
    SELECT min(run) FROM rollouts
    UNION ALL
    SELECT (SELECT min(r.run) FROM rollouts AS r WHERE r.run > found.run) FROM found WHERE found.run IS NOT NULL
)
SELECT run FROM found WHERE run IS NOT NULL UNION SELECT run FROM policies ORDER BY 1;

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
