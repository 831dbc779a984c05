-- What the keys commands ask of the database: wraps, the mirror of generations, and whether records exist.

-- name: version_seen
SELECT version FROM gateway.key_manifest;

-- name: record_version
-- The highest manifest version that this database has seen; it never goes back.
INSERT INTO gateway.key_manifest (version) VALUES ($1)
ON CONFLICT (one) DO UPDATE SET version = EXCLUDED.version WHERE key_manifest.version < EXCLUDED.version;

-- name: record_generation
INSERT INTO gateway.key_generations (generation, state) VALUES ($1, $2)
ON CONFLICT (generation) DO UPDATE SET state = EXCLUDED.state;

-- name: count_by_generation
SELECT generation, count(*) AS records FROM gateway.deks GROUP BY generation ORDER BY generation;

-- name: page_of_wraps
SELECT department_id, record_id, generation, wrapped FROM gateway.deks
WHERE (department_id, record_id) > ($1, $2) ORDER BY department_id, record_id LIMIT $3;

-- name: records_without_wrap
-- A record whose data key is gone while the record is not: it cannot be opened any more.
SELECT count(*) FROM (
  SELECT department_id, token_id AS record_id FROM gateway.tokens WHERE has_record
  UNION ALL
  SELECT department_id, charge_id FROM gateway.charges WHERE has_record
) AS record
WHERE NOT EXISTS (SELECT FROM gateway.deks
                  WHERE deks.department_id = record.department_id AND deks.record_id = record.record_id);

-- name: insert_audit
INSERT INTO audit.events
  (department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);
