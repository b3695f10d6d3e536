-- name: insert_attempt
INSERT INTO attempts (id, rollout, number, worker, lease_us, deadline_us, started_us)
VALUES (:id, :rollout, :number, :worker, :lease_us, :deadline_us, :now_us);

-- name: attempt_by_id
SELECT * FROM attempt_records WHERE id = :id;

-- name: attempts_of_rollout
SELECT * FROM attempt_records WHERE rollout = :rollout ORDER BY number;

-- name: running_attempt_of_rollout
SELECT * FROM attempt_records WHERE rollout = :rollout AND state = 'running';

-- name: succeeded_attempt_of_rollout
SELECT * FROM attempt_records WHERE rollout = :rollout AND state = 'succeeded';

-- name: failures_of_rollout
SELECT failure_kind FROM attempts
WHERE rollout = :rollout AND failure_kind IS NOT NULL ORDER BY number;

-- name: end_attempt
UPDATE attempts
SET state = :state, ended_us = :now_us, failure_kind = :failure_kind,
    failure_message = :failure_message, output = :output
WHERE pk = :pk;

-- name: renew_lease
UPDATE attempts SET lease_us = max(lease_us, :lease_us)
WHERE id = :id AND worker = :worker AND state = 'running';

-- name: renew_all_leases
UPDATE attempts SET lease_us = max(lease_us, :lease_us) WHERE state = 'running';

-- name: extend_deadline
UPDATE attempts SET deadline_us = deadline_us + :added_us WHERE id = :id AND state = 'running';

-- name: due_attempts
SELECT id, lease_us, deadline_us FROM attempts
WHERE state = 'running' AND min(lease_us, deadline_us) <= :now_us
ORDER BY pk;

-- name: see_worker
INSERT INTO workers (name, run, seen_us) VALUES (:name, :run, :now_us)
ON CONFLICT (name) DO UPDATE SET run = coalesce(excluded.run, run), seen_us = excluded.seen_us;

-- name: workers_seen_since
SELECT w.name, w.run, w.seen_us,
       (SELECT count(*) FROM attempts AS a WHERE a.worker = w.name AND a.state = 'running')
FROM workers AS w WHERE w.seen_us >= :since_us ORDER BY w.name;
