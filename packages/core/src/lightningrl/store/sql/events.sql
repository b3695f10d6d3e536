-- name: attempt_to_append_to
SELECT pk, state, rollout, number FROM attempts WHERE id = :id;

-- name: has_event
SELECT 1 FROM events WHERE attempt = :attempt AND id = :id;

-- name: insert_event
INSERT INTO events (attempt, id, kind, payload, base, shared_ids, shared_head, shared_tail)
VALUES (:attempt, :id, :kind, :payload, :base, :shared_ids, :shared_head, :shared_tail)
ON CONFLICT (attempt, id) DO NOTHING;

-- name: events_of_attempt
SELECT seq, payload, base, shared_ids, shared_head, shared_tail
FROM events WHERE attempt = :attempt ORDER BY seq;

-- name: calls_of_attempt
SELECT seq, payload, base, shared_ids, shared_head, shared_tail
FROM events WHERE attempt = :attempt AND kind = 'call' ORDER BY seq;
