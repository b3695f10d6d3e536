-- name: see_gateway
INSERT INTO gateways (name, seen_us, drained) VALUES (:name, :now_us, :drained)
ON CONFLICT (name) DO UPDATE SET seen_us = excluded.seen_us, drained = excluded.drained;

-- name: forget_gateway
DELETE FROM gateways WHERE name = :name;

-- name: forget_gateways
DELETE FROM gateways WHERE seen_us < :before_us;

-- name: gateways_seen_since
SELECT name, seen_us, drained FROM gateways WHERE seen_us >= :since_us ORDER BY name;
