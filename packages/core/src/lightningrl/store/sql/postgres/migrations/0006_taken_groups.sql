-- A live rollout that comes again is looked for in the ledger by its group.

CREATE INDEX taken_groups_by_group ON taken_groups (run, group_id);
