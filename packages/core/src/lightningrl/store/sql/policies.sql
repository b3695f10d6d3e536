-- name: policy_to_change
SELECT policy FROM policies WHERE run = :run AND name = :name
/* postgres: FOR UPDATE */;

-- name: put_policy
INSERT INTO policies (run, name, version, policy) VALUES (:run, :name, :version, :policy)
ON CONFLICT (run, name) DO UPDATE SET version = excluded.version, policy = excluded.policy
WHERE policies.version <= excluded.version;

-- name: policies
SELECT policy FROM policies WHERE run = :run OR :run IS NULL ORDER BY name, run;

-- name: meta
SELECT value FROM meta WHERE name = :name;

-- name: set_schema_version
UPDATE meta SET value = :value WHERE name = 'schema_version';

-- name: put_meta
INSERT INTO meta (name, value) VALUES (:name, :value);

-- name: note_check
INSERT INTO meta (name, value) VALUES ('checked_us', :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
