-- Deletion, in the order in which deletion.py runs it.

-- name: lock_attempts_of_rollout
-- An append that is under way ends first, so that its events are deleted too.
SELECT a.pk FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout
WHERE r.id = :id ORDER BY a.pk
/* postgres: FOR UPDATE OF a */;

-- name: uncommitted_take_of_rollout
SELECT t.iteration
FROM rollouts AS r
JOIN taken_groups AS g ON g.run = r.run AND g.iteration = r.iteration AND g.group_id = r.group_id
JOIN takes AS t ON t.run = g.run AND t.iteration = g.iteration
WHERE r.pk = :pk AND r.mode IN ('train', 'live') AND t.committed = 0;

-- name: attempt_keys_of_rollout
SELECT pk FROM attempts WHERE rollout = :rollout ORDER BY pk
/* postgres: FOR UPDATE */;

-- name: allow_deletion
INSERT INTO deletions (attempt) VALUES (:attempt);

-- name: delete_events
DELETE FROM events WHERE attempt = :attempt;

-- name: delete_awaited_rewards
DELETE FROM awaited_rewards WHERE rollout = :rollout;

-- name: delete_taken_rollout
DELETE FROM taken_rollouts WHERE rollout = :rollout;

-- name: delete_attempts
DELETE FROM attempts WHERE rollout = :rollout;

-- name: end_deletion
DELETE FROM deletions WHERE attempt = :attempt;

-- name: delete_resources
DELETE FROM resources WHERE run = :run;

-- name: rollout_ids_of_run
SELECT id FROM rollouts WHERE run = :run ORDER BY pk;

-- name: delete_takes
DELETE FROM takes WHERE run = :run;

-- name: delete_policies
DELETE FROM policies WHERE run = :run;

-- name: retired_rollouts
SELECT r.id FROM rollouts AS r
LEFT JOIN takes AS t ON t.run = r.run AND t.iteration = r.iteration
WHERE r.complete = 1 AND r.ended_us <= :before_us
  AND ((r.mode = 'train' AND :train = 1 AND t.committed = 1) OR (r.mode = 'val' AND :val = 1)
       OR (r.mode = 'test' AND :test = 1)
       OR (r.mode = 'live' AND :live = 1 AND (r.iteration = 0 OR t.committed = 1)))
ORDER BY r.ended_us, r.pk LIMIT :limit;
