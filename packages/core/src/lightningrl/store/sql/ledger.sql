-- name: take_of
SELECT committed FROM takes WHERE run = :run AND iteration = :iteration;

-- name: lock_attempts_to_take
-- An append that is under way ends first: the events of an attempt are then those with the lowest places.
SELECT a.pk FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout
WHERE r.run = :run AND r.iteration = :iteration
  AND r.mode IN ('train', 'live') AND (r.mode = 'train' OR r.iteration > 0)
ORDER BY a.pk
/* postgres: FOR UPDATE OF a */;

-- name: lock_members_to_take
SELECT pk FROM rollouts AS r
WHERE r.run = :run AND r.iteration = :iteration
  AND r.mode IN ('train', 'live') AND (r.mode = 'train' OR r.iteration > 0)
ORDER BY r.pk
/* postgres: FOR UPDATE */;

-- name: members_to_take
SELECT r.pk, r.group_id, r.member, r.mode, r.state, r.reward, a.failure_kind, r.complete
FROM rollouts AS r LEFT JOIN attempts AS a ON a.rollout = r.pk AND a.number = r.attempts
WHERE r.run = :run AND r.iteration = :iteration
  AND r.mode IN ('train', 'live') AND (r.mode = 'train' OR r.iteration > 0)
ORDER BY r.pk;

-- name: live_of_iteration
SELECT id FROM rollouts WHERE run = :run AND mode = 'live' AND iteration = :iteration ORDER BY pk;

-- name: give_rollout
UPDATE rollouts SET iteration = :iteration WHERE pk = :pk;

-- name: take_of_rollout
SELECT g.iteration
FROM rollouts AS r
JOIN taken_groups AS g ON g.run = r.run AND g.iteration = r.iteration AND g.group_id = r.group_id
WHERE r.pk = :pk AND r.mode = 'train';

-- name: take_of_group
SELECT iteration FROM taken_groups WHERE run = :run AND group_id = :group_id;

-- name: insert_take
INSERT INTO takes (run, iteration, taken_us) VALUES (:run, :iteration, :now_us);

-- name: insert_taken_group
INSERT INTO taken_groups (run, iteration, group_id, status)
VALUES (:run, :iteration, :group_id, :status)
RETURNING pk;

-- name: insert_taken_rollout
INSERT INTO taken_rollouts (taken_group, rollout, attempt, reward, events)
SELECT :taken_group, r.pk, a.pk, r.reward,
       (SELECT count(*) FROM events AS e WHERE e.attempt = a.pk)
FROM rollouts AS r JOIN attempts AS a ON a.rollout = r.pk AND a.state = 'succeeded'
WHERE r.pk = :rollout;

-- name: insert_taken_failure
INSERT INTO taken_rollouts (taken_group, rollout, attempt, reward, events)
SELECT :taken_group, r.pk, a.pk, CAST(:reward AS double precision),
       (SELECT count(*) FROM events AS e WHERE e.attempt = a.pk)
FROM rollouts AS r JOIN attempts AS a ON a.rollout = r.pk AND a.number = r.attempts
WHERE r.pk = :rollout;

-- name: taken_groups
SELECT pk, group_id FROM taken_groups
WHERE run = :run AND iteration = :iteration AND status = 'taken' ORDER BY pk;

-- name: taken_rollouts
SELECT m.rollout, m.attempt, m.reward, m.events
FROM taken_rollouts AS m JOIN rollouts AS r ON r.pk = m.rollout
WHERE m.taken_group = :taken_group ORDER BY r.member, m.pk;

-- name: attempt_by_pk
SELECT * FROM attempt_records WHERE pk = :pk;

-- name: commit_take
UPDATE takes SET committed = 1 WHERE run = :run AND iteration = :iteration;

-- name: roll_back_takes
DELETE FROM takes WHERE run = :run AND iteration > :after RETURNING iteration;

-- `select_ledger`, the `and_ledger_*` that apply, and the order are fragments that make one query.

-- name: select_ledger
SELECT g.pk, g.iteration, g.group_id, g.status, t.committed, r.id, a.id, m.reward, m.events
FROM taken_groups AS g
JOIN takes AS t ON t.run = g.run AND t.iteration = g.iteration
LEFT JOIN taken_rollouts AS m ON m.taken_group = g.pk
LEFT JOIN rollouts AS r ON r.pk = m.rollout
LEFT JOIN attempts AS a ON a.pk = m.attempt
WHERE g.run = :run

-- name: and_ledger_iteration
AND g.iteration = :iteration

-- name: and_ledger_group
AND g.group_id = :group

-- name: in_ledger_order
ORDER BY g.iteration, g.pk, r.member, m.pk;
