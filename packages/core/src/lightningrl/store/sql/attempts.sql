-- name: insert_attempt
INSERT INTO attempts (id, rollout, number, worker, lease_us, deadline_us, started_us)
VALUES (:id, :rollout, :number, :worker, :lease_us, :deadline_us, :now_us)
/* postgres: RETURNING pk */;

-- name: attempt_by_id
SELECT * FROM attempt_records WHERE id = :id;

-- name: attempt_to_end
SELECT * FROM attempt_records WHERE id = :id /* postgres: FOR UPDATE */;

-- name: attempts_of_rollout
SELECT * FROM attempt_records WHERE rollout = :rollout ORDER BY number;

-- name: running_attempt_to_end
SELECT * FROM attempt_records WHERE rollout = :rollout AND state = 'running'
/* postgres: FOR UPDATE */;

-- name: succeeded_attempt_of_rollout
SELECT * FROM attempt_records WHERE rollout = :rollout AND state = 'succeeded';

-- name: failures_of_rollout
SELECT failure_kind FROM attempts
WHERE rollout = :rollout AND failure_kind IS NOT NULL
  AND number > (SELECT forgiven FROM rollouts WHERE pk = :rollout)
ORDER BY number;

-- name: end_attempt
UPDATE attempts
SET state = :state, ended_us = :now_us, failure_kind = :failure_kind,
    failure_message = :failure_message, output = :output
WHERE pk = :pk;

-- name: extend_deadline
UPDATE attempts SET deadline_us = deadline_us + :added_us WHERE id = :id AND state = 'running';

-- name: see_worker
INSERT INTO workers (name, run, first_us, seen_us, claimed_us, claimed)
VALUES (:name, :run, :now_us, :now_us, :claimed_us, :claimed)
ON CONFLICT (name) DO UPDATE
SET run = coalesce(excluded.run, workers.run),
    seen_us = excluded.seen_us,
    claimed_us = coalesce(excluded.claimed_us, workers.claimed_us),
    claimed = workers.claimed + excluded.claimed;

-- name: workers_seen_since
SELECT w.name, w.run, w.first_us, w.seen_us, w.claimed_us, w.claimed, a.id
FROM workers AS w LEFT JOIN attempts AS a ON a.worker = w.name AND a.state = 'running'
WHERE w.seen_us >= :since_us ORDER BY w.name, a.pk;
