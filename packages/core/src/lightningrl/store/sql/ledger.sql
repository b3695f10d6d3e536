-- name: take_of
SELECT committed FROM takes WHERE run = :run AND iteration = :iteration;

-- name: members_to_take
SELECT pk, group_id, member, state, reward
FROM rollouts WHERE run = :run AND mode = 'train' AND iteration = :iteration ORDER BY pk;

-- name: insert_take
INSERT INTO takes (run, iteration, taken_us) VALUES (:run, :iteration, :now_us);

-- name: insert_taken_group
INSERT INTO taken_groups (run, iteration, group_id, status)
VALUES (:run, :iteration, :group_id, :status)
RETURNING pk;

-- name: insert_taken_rollout
INSERT INTO taken_rollouts (taken_group, rollout, attempt, reward)
SELECT :taken_group, r.pk, a.pk, r.reward
FROM rollouts AS r JOIN attempts AS a ON a.rollout = r.pk AND a.state = 'succeeded'
WHERE r.pk = :rollout;

-- name: taken_groups
SELECT pk, group_id FROM taken_groups
WHERE run = :run AND iteration = :iteration AND status = 'taken' ORDER BY pk;

-- name: taken_rollouts
SELECT rollout, attempt, reward FROM taken_rollouts WHERE taken_group = :taken_group ORDER BY pk;

-- name: attempt_by_pk
SELECT * FROM attempt_records WHERE pk = :pk;

-- name: commit_take
UPDATE takes SET committed = 1 WHERE run = :run AND iteration = :iteration;

-- name: roll_back_takes
DELETE FROM takes WHERE run = :run AND iteration > :after RETURNING iteration;

-- name: ledger
SELECT g.iteration, g.group_id, g.status, t.committed,
       (SELECT json_group_array(r.id ORDER BY m.pk)
        FROM taken_rollouts AS m JOIN rollouts AS r ON r.pk = m.rollout
        WHERE m.taken_group = g.pk)
FROM taken_groups AS g JOIN takes AS t ON t.run = g.run AND t.iteration = g.iteration
WHERE g.run = :run ORDER BY g.iteration, g.pk;
