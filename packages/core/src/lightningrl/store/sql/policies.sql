-- name: policy_version
SELECT version FROM policies WHERE run = :run AND name = :name;

-- name: put_policy
INSERT INTO policies (run, name, version, policy) VALUES (:run, :name, :version, :policy)
ON CONFLICT (run, name) DO UPDATE SET version = excluded.version, policy = excluded.policy;

-- name: policies
SELECT policy FROM policies WHERE :run IS NULL OR run = :run ORDER BY name, run;

-- name: meta
SELECT value FROM meta WHERE name = :name;

-- name: put_meta
INSERT INTO meta (name, value) VALUES (:name, :value);

-- name: is_ours
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta';
