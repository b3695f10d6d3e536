-- What must never be found: each statement lists the ids of what breaks one rule, ten at most.

-- name: broken_running
SELECT r.id FROM rollouts AS r
WHERE (SELECT count(*) FROM attempts AS a WHERE a.rollout = r.pk AND a.state = 'running')
      <> CASE WHEN r.state = 'running' THEN 1 ELSE 0 END
LIMIT 10;

-- name: broken_success
SELECT r.id FROM rollouts AS r
WHERE (SELECT count(*) FROM attempts AS a WHERE a.rollout = r.pk AND a.state = 'succeeded')
      <> CASE WHEN r.state = 'succeeded' THEN 1 ELSE 0 END
LIMIT 10;

-- name: broken_attempt_count
SELECT r.id FROM rollouts AS r
WHERE (SELECT count(*) FROM attempts AS a WHERE a.rollout = r.pk) <> r.attempts LIMIT 10;

-- name: broken_completion
SELECT r.id FROM rollouts AS r
WHERE (r.complete = 1)
      <> (r.ended_us IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM awaited_rewards AS w WHERE w.rollout = r.pk))
LIMIT 10;

-- name: broken_order
SELECT id FROM rollouts WHERE complete = 1 AND ended_seq IS NULL LIMIT 10;

-- name: attempts_without_rollout
SELECT a.id FROM attempts AS a LEFT JOIN rollouts AS r ON r.pk = a.rollout
WHERE r.pk IS NULL LIMIT 10;

-- name: events_without_attempt
SELECT e.id FROM events AS e LEFT JOIN attempts AS a ON a.pk = e.attempt
WHERE a.pk IS NULL LIMIT 10;

-- name: broken_base
SELECT e.id FROM events AS e LEFT JOIN events AS b ON b.seq = e.base
WHERE e.base IS NOT NULL
  AND (b.seq IS NULL OR b.attempt <> e.attempt OR b.seq >= e.seq OR b.kind <> 'call')
LIMIT 10;

-- name: broken_take
SELECT r.id FROM taken_rollouts AS m
JOIN taken_groups AS g ON g.pk = m.taken_group
JOIN rollouts AS r ON r.pk = m.rollout
JOIN attempts AS a ON a.pk = m.attempt
WHERE g.status <> 'taken' OR r.mode NOT IN ('train', 'live') OR a.rollout <> r.pk
   OR a.state NOT IN ('succeeded', 'failed', 'timed_out')
   OR r.run <> g.run OR r.iteration <> g.iteration OR r.group_id <> g.group_id
LIMIT 10;

-- name: broken_group
SELECT g.group_id FROM taken_groups AS g
WHERE (SELECT min(m.pk) FROM taken_rollouts AS m WHERE m.taken_group = g.pk) IS NULL
      AND g.status = 'taken'
      AND EXISTS (  -- what was trained may be deleted
          SELECT 1 FROM takes AS t
          WHERE t.run = g.run AND t.iteration = g.iteration AND t.committed = 0
      )
LIMIT 10;

-- name: attempts_after
SELECT pk, id FROM attempts WHERE pk > :after ORDER BY pk LIMIT 500;
