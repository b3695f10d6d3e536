-- What PostgreSQL says otherwise than other databases.

-- name: insert_rollout
INSERT INTO rollouts (id, run, mode, iteration, variant, task_id, group_id, member, created_us, spec)
VALUES (:id, :run, :mode, :iteration, :variant, :task_id, :group_id, :member, :now_us, :spec)
ON CONFLICT (id) DO NOTHING;

-- name: delete_rollout
DELETE FROM rollouts WHERE pk = :rollout;

-- name: complete_rollout
-- The trigger `rollouts_complete` gives it its place in the order of completion.
UPDATE rollouts SET complete = 1 WHERE pk = :pk;

-- name: named_rollouts
SELECT id, group_id, member, complete FROM rollouts
WHERE id IN (SELECT jsonb_array_elements_text(CAST(:ids AS jsonb)))
UNION
SELECT id, group_id, member, complete FROM rollouts
WHERE group_id IN (SELECT jsonb_array_elements_text(CAST(:group_ids AS jsonb)));

-- name: and_states
AND state IN (SELECT jsonb_array_elements_text(CAST(:states AS jsonb)))

-- name: and_failure_kinds
AND EXISTS (
    SELECT 1 FROM attempts AS a
    WHERE a.rollout = r.pk AND a.number = r.attempts AND a.failure_kind IN (SELECT jsonb_array_elements_text(CAST(:failure_kinds AS jsonb)))
)

-- name: and_ids
AND id IN (SELECT jsonb_array_elements_text(CAST(:ids AS jsonb)))

-- name: renew_lease
UPDATE attempts SET lease_us = greatest(lease_us, :lease_us)
WHERE id = :id AND worker = :worker AND state = 'running';

-- name: renew_all_leases
UPDATE attempts SET lease_us = greatest(lease_us, :lease_us) WHERE state = 'running';

-- name: due_attempts
SELECT id, lease_us, deadline_us FROM attempts
WHERE state = 'running' AND least(lease_us, deadline_us) <= :now_us
ORDER BY pk FOR UPDATE SKIP LOCKED;

-- name: used_bytes
-- Payloads alone: the size of a relation falls only when PostgreSQL tidies up.
SELECT CAST(coalesce(sum(octet_length(payload)), 0) AS bigint) FROM events;

-- name: lock_iteration
-- Until the transaction ends. The number of a table tells the stores of one database apart.
SELECT pg_advisory_xact_lock(hashtextextended(
    CAST(:iteration AS text) || ' ' || :run, CAST(CAST('takes' AS regclass) AS oid)::bigint
));

-- name: is_ours
SELECT 1 WHERE to_regclass('meta') IS NOT NULL AND to_regclass('rollouts') IS NOT NULL;

-- name: is_empty
SELECT 1 WHERE NOT EXISTS (
    SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relkind = 'r'
);

-- name: add_writer
INSERT INTO writers (name, batch, seen_us) VALUES (:name, 0, :now_us);

-- name: writer_batch
-- Waits for a transaction of the writer's former connection that is still under way.
SELECT batch FROM writers WHERE name = :name FOR UPDATE;

-- name: remove_writer
DELETE FROM writers WHERE name = :name;

-- name: forget_writers
DELETE FROM writers WHERE seen_us < :before_us;
