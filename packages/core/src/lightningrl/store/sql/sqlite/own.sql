-- What SQLite says otherwise than other databases.

-- name: insert_rollout
-- Above every key that was ever given: keys are the cursors of pages.
INSERT INTO rollouts (pk, id, run, mode, iteration, variant, task_id, group_id, member, created_us, spec)
SELECT 1 + max(
           coalesce((SELECT max(pk) FROM rollouts), 0),
           coalesce((SELECT value FROM meta WHERE name = 'highest_deleted_rollout'), 0)
       ),
       :id, :run, :mode, :iteration, :variant, :task_id, :group_id, :member, :now_us, :spec
WHERE true -- so that what follows is no condition of a join
ON CONFLICT (id) DO NOTHING;

-- name: delete_rollout
INSERT INTO meta (name, value) VALUES ('highest_deleted_rollout', :rollout)
ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value);
DELETE FROM rollouts WHERE pk = :rollout;

-- name: complete_rollout
UPDATE completions SET last = last + 1;
UPDATE rollouts SET complete = 1, ended_seq = (SELECT last FROM completions) WHERE pk = :pk;

-- name: named_rollouts
SELECT id, group_id, member, complete FROM rollouts
WHERE id IN (SELECT value FROM json_each(:ids))
UNION
SELECT id, group_id, member, complete FROM rollouts
WHERE group_id IN (SELECT value FROM json_each(:group_ids));

-- name: and_states
AND state IN (SELECT value FROM json_each(:states))

-- name: and_failure_kinds
AND EXISTS (
    SELECT 1 FROM attempts AS a
    WHERE a.rollout = r.pk AND a.number = r.attempts AND a.failure_kind IN (SELECT value FROM json_each(:failure_kinds))
)

-- name: and_ids
AND id IN (SELECT value FROM json_each(:ids))

-- name: renew_lease
UPDATE attempts SET lease_us = max(lease_us, :lease_us)
WHERE id = :id AND worker = :worker AND state = 'running';

-- name: renew_all_leases
UPDATE attempts SET lease_us = max(lease_us, :lease_us) WHERE state = 'running';

-- name: due_attempts
SELECT id, lease_us, deadline_us FROM attempts
WHERE state = 'running' AND min(lease_us, deadline_us) <= :now_us
ORDER BY pk;

-- name: used_bytes
SELECT (p.page_count - f.freelist_count) * s.page_size
FROM pragma_page_count AS p, pragma_freelist_count AS f, pragma_page_size AS s;

-- name: lock_iteration
SELECT 1;

-- name: is_ours
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta';
