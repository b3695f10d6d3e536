-- Rollouts await rewards for a limited time.

ALTER TABLE awaited_rewards ADD COLUMN until_us BIGINT;

CREATE INDEX awaited_rewards_due ON awaited_rewards (until_us) WHERE until_us IS NOT NULL;
