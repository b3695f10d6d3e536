-- name: await_reward
INSERT INTO awaited_rewards (rollout, name, attempt) VALUES (:rollout, :name, :attempt);

-- name: await_nothing
DELETE FROM awaited_rewards WHERE rollout = :rollout;

-- name: reward_arrived
DELETE FROM awaited_rewards WHERE rollout = :rollout AND name = :name AND attempt = :attempt;

-- name: await_until
UPDATE awaited_rewards SET until_us = :until_us WHERE rollout = :rollout;

-- name: due_awaits
SELECT rollout FROM awaited_rewards WHERE until_us <= :now_us ORDER BY rollout
/* postgres: FOR UPDATE SKIP LOCKED */;

-- name: awaits_rewards
SELECT 1 FROM awaited_rewards WHERE rollout = :rollout LIMIT 1;
