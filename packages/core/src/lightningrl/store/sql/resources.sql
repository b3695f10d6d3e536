-- Columns in the order that rows.py reads.

-- name: insert_resource
INSERT INTO resources (run, name, version, id, created_us, value)
VALUES (:run, :name, :version, :id, :now_us, :value);

-- name: latest_resource
SELECT run, name, version, id, created_us, value FROM resources
WHERE run = :run AND name = :name ORDER BY version DESC LIMIT 1;

-- name: resource_version
SELECT run, name, version, id, created_us, value FROM resources
WHERE run = :run AND name = :name AND version = :version;

-- name: resource_to_pin
SELECT 1 FROM resources WHERE run = :run AND name = :name AND version = :version
/* postgres: FOR KEY SHARE */;

-- name: resource_by_id
SELECT run, name, version, id, created_us, value FROM resources
WHERE run = :run AND name = :name AND id = :id;

-- name: resource_versions
SELECT run, name, version, id, created_us, value FROM resources
WHERE run = :run AND name = :name ORDER BY version;

-- name: latest_resources
SELECT r.run, r.name, r.version, r.id, r.created_us, r.value FROM resources AS r
WHERE r.run = :run
  AND r.version = (SELECT max(o.version) FROM resources AS o WHERE o.run = r.run AND o.name = r.name)
ORDER BY r.name;
