-- name: attempt_to_append_to
SELECT pk, state, rollout, number FROM attempts WHERE id = :id
/* postgres: FOR KEY SHARE */;

-- name: lock_attempt
SELECT pk FROM attempts WHERE pk = :pk
/* postgres: FOR NO KEY UPDATE */;

-- name: calls_so_far
SELECT count(*), coalesce(sum(prompt_tokens + completion_tokens), 0)
FROM events WHERE attempt = :attempt AND kind = 'call';

-- name: has_event
SELECT 1 FROM events WHERE attempt = :attempt AND id = :id;

-- name: payload_of_event
SELECT payload FROM events WHERE attempt = :attempt AND id = :id;

-- name: insert_event
INSERT INTO events (attempt, id, kind, prompt_tokens, completion_tokens,
                    payload, base, shared_ids, shared_head, shared_tail)
VALUES (:attempt, :id, :kind, :prompt_tokens, :completion_tokens,
        :payload, :base, :shared_ids, :shared_head, :shared_tail)
ON CONFLICT (attempt, id) DO NOTHING
/* postgres: RETURNING seq */;

-- name: events_of_attempt
SELECT seq, id, payload, base, shared_ids, shared_head, shared_tail
FROM events WHERE attempt = :attempt ORDER BY seq;

-- name: calls_of_attempt
SELECT seq, id, payload, base, shared_ids, shared_head, shared_tail
FROM events WHERE attempt = :attempt AND kind = 'call' ORDER BY seq;
