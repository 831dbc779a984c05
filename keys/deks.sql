-- What the keys commands ask of the database: wraps, the mirror of states, and what depends on which key.

-- name: lock_key_store
-- One change of the key store at a time, wherever the commands run. Gone with the connection.
SELECT pg_try_advisory_lock(hashtextextended('gateway.key_store', 0));

-- name: unlock_key_store
SELECT pg_advisory_unlock(hashtextextended('gateway.key_store', 0));

-- name: seen
SELECT version, signing_key FROM gateway.key_manifest;

-- name: record_seen
-- The highest manifest version and the newest signing key that this database has seen; they never go back.
INSERT INTO gateway.key_manifest (version, signing_key) VALUES ($1, $2)
ON CONFLICT (one) DO UPDATE SET version = greatest(key_manifest.version, EXCLUDED.version),
                                signing_key = greatest(key_manifest.signing_key, EXCLUDED.signing_key);

-- name: record_generation
INSERT INTO gateway.key_generations (generation, state) VALUES ($1, $2)
ON CONFLICT (generation) DO UPDATE SET state = EXCLUDED.state WHERE key_generations.state <> EXCLUDED.state;

-- name: record_fingerprint_version
INSERT INTO gateway.fingerprint_versions (version, state) VALUES ($1, $2)
ON CONFLICT (version) DO UPDATE SET state = EXCLUDED.state WHERE fingerprint_versions.state <> EXCLUDED.state;

-- name: mirrored
SELECT 'kek' AS purpose, generation AS number, state FROM gateway.key_generations
UNION ALL SELECT 'fingerprint', version, state FROM gateway.fingerprint_versions;

-- name: await_writers
SELECT gateway.await_writers();

-- name: departments
SELECT department_id FROM gateway.departments ORDER BY department_id;

-- name: count_by_generation
SELECT generation, count(*) AS records FROM gateway.deks GROUP BY generation;

-- name: count_exposed
-- Records whose data key one of these generations wrapped, or may have wrapped before it was rewrapped.
SELECT count(*) FROM gateway.deks
WHERE EXISTS (SELECT FROM unnest($1::integer[]) AS c(generation)
              WHERE c.generation BETWEEN deks.first_generation AND deks.generation);

-- name: count_by_fingerprint_version
SELECT key_version, count(*) AS rows FROM gateway.fingerprints GROUP BY key_version;

-- name: count_card_parts_by_version
SELECT card_key_version AS key_version, count(*) AS rows FROM gateway.idempotency
WHERE card_key_version IS NOT NULL GROUP BY card_key_version;

-- name: count_not_indexed_anew
-- Cards that a version of the index knows and the newer one does not yet.
SELECT count(*) FROM gateway.fingerprints AS old
WHERE old.key_version = $1 AND NOT EXISTS (
  SELECT FROM gateway.fingerprints AS new
  WHERE new.department_id = old.department_id AND new.fingerprint_id = old.fingerprint_id AND new.key_version = $2);

-- name: count_by_digest_key
SELECT digest_key, count(*) AS rows FROM gateway.api_keys WHERE revoked_at IS NULL GROUP BY digest_key;

-- name: emptied_at
-- When the last wrap left a generation; set here the first time that it is found empty. One that is pending has
-- wrapped nothing yet: dated now, it would look long empty on the day that it is.
UPDATE gateway.key_generations SET emptied_at = coalesce(emptied_at, now())
WHERE generation = $1 AND state <> 'pending' AND NOT EXISTS (SELECT FROM gateway.deks WHERE generation = $1)
RETURNING emptied_at;

-- name: page_of_wraps
SELECT department_id, record_id, generation, wrapped FROM gateway.deks
WHERE (department_id, record_id) > ($1, $2) ORDER BY department_id, record_id LIMIT $3;

-- name: take_page
-- Wraps of one department that still stand under a generation. Locked, so that of several rewraps each takes others;
-- what somebody else holds is passed by and found again in the next round.
SELECT record_id, wrapped FROM gateway.deks
WHERE department_id = $1 AND generation = $2 AND record_id > $3
ORDER BY record_id LIMIT $4 FOR UPDATE SKIP LOCKED;

-- name: move_page
-- Compare and set, and only to a generation that is active at this moment.
UPDATE gateway.deks SET generation = $3, wrapped = moved.wrapped
FROM unnest($4::text[], $5::bytea[], $6::bytea[]) AS moved(record_id, was, wrapped)
WHERE deks.department_id = $1 AND deks.generation = $2
AND deks.record_id = moved.record_id AND deks.wrapped = moved.was
AND EXISTS (SELECT FROM gateway.key_generations WHERE generation = $3 AND state = 'active');

-- name: reserve_wraps
UPDATE gateway.key_generations SET wraps_reserved = wraps_reserved + $2
WHERE generation = $1 AND state = 'active' AND wraps_reserved + $2 <= $3
RETURNING wraps_reserved;

-- name: wraps_reserved
SELECT generation, wraps_reserved FROM gateway.key_generations;

-- name: records_without_wrap
-- A record whose data key is gone while the record is not: it cannot be opened any more.
SELECT count(*) FROM (
  SELECT department_id, token_id AS record_id FROM gateway.tokens WHERE has_record
  UNION ALL
  SELECT department_id, charge_id FROM gateway.charges WHERE has_record
) AS record
WHERE NOT EXISTS (SELECT FROM gateway.deks
                  WHERE deks.department_id = record.department_id AND deks.record_id = record.record_id);

-- name: count_records
SELECT (SELECT count(*) FROM gateway.tokens WHERE has_record) + (SELECT count(*) FROM gateway.charges WHERE has_record);

-- name: insert_audit
INSERT INTO audit.events
  (department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
