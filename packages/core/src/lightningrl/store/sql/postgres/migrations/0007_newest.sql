-- The newest rollouts of a run, and those that have not ended, are found without reading the others.
-- By an expression: only those read it who say so, and no query of less of a run is led here.

CREATE INDEX rollouts_created ON rollouts ((run || ''), created_us, id);
CREATE INDEX rollouts_open ON rollouts ((run || ''), created_us, id) WHERE ended_us IS NULL;
