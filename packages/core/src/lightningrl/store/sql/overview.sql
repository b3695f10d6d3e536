-- Groups, tasks and statistics. What a filter doesn't name is NULL.

-- name: groups
SELECT * FROM (
    SELECT min(pk) AS place, group_id, mode, iteration, max(variant) AS variant,
           max(task_id) AS task_id, count(*) AS members, count(ended_us) AS ended,
           count(CASE WHEN state = 'succeeded' THEN 1 END) AS succeeded,
           count(CASE WHEN complete = 1 THEN 1 END) AS complete,
           count(CASE WHEN state = 'succeeded' THEN reward END) AS rewarded,
           avg(CASE WHEN state = 'succeeded' THEN reward END) AS mean_reward
    FROM rollouts
    WHERE run = :run AND (mode = :mode OR :mode IS NULL)
      AND (iteration = :iteration OR :iteration IS NULL) AND (task_id = :task_id OR :task_id IS NULL)
    GROUP BY mode, iteration, group_id
) AS g
WHERE place > :after
  AND (CASE WHEN complete = members THEN 1 ELSE 0 END = :complete OR :complete IS NULL)
ORDER BY place LIMIT :limit;

-- name: tasks
SELECT g.*, f.spec FROM (
    SELECT min(pk) AS place, task_id, count(DISTINCT group_id) AS groups, count(*) AS members,
           count(ended_us) AS ended,
           count(CASE WHEN state = 'succeeded' THEN 1 END) AS succeeded,
           count(CASE WHEN complete = 1 THEN 1 END) AS complete,
           count(CASE WHEN state = 'succeeded' THEN reward END) AS rewarded,
           avg(CASE WHEN state = 'succeeded' THEN reward END) AS mean_reward
    FROM rollouts
    WHERE run = :run AND (mode = :mode OR :mode IS NULL)
      AND (iteration = :iteration OR :iteration IS NULL) AND (task_id = :task_id OR :task_id IS NULL)
    GROUP BY task_id
) AS g JOIN rollouts AS f ON f.pk = g.place
WHERE g.place > :after
  AND (CASE WHEN g.complete = g.members THEN 1 ELSE 0 END = :complete OR :complete IS NULL)
ORDER BY g.place LIMIT :limit;

-- name: rollouts_in_short
SELECT state, reward, ended_us FROM rollouts
WHERE run = :run AND (mode = :mode OR :mode IS NULL);

-- name: attempts_in_short
SELECT a.state, a.failure_kind, a.number, a.started_us, a.ended_us, r.created_us
FROM attempts AS a JOIN rollouts AS r ON r.pk = a.rollout
WHERE r.run = :run AND (r.mode = :mode OR :mode IS NULL);

-- name: events_in_short
SELECT e.kind, count(*), sum(e.prompt_tokens), sum(e.completion_tokens)
FROM rollouts AS r JOIN attempts AS a ON a.rollout = r.pk JOIN events AS e ON e.attempt = a.pk
WHERE r.run = :run AND (r.mode = :mode OR :mode IS NULL)
GROUP BY e.kind;
