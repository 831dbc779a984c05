-- What a process that holds keys asks of the mirror of the key store, and how it writes audit rows.

-- name: insert_audit
INSERT INTO audit.events
  (department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: may_audit
SELECT has_table_privilege('audit.events', 'INSERT');

-- name: seen
SELECT version, signing_key FROM gateway.key_manifest;

-- name: reserve_wraps
-- Counted ahead, so that a crash can only count too much. Nothing comes back when the generation is not active.
UPDATE gateway.key_generations SET wraps_reserved = wraps_reserved + $2
WHERE generation = $1 AND state = 'active' AND wraps_reserved + $2 <= $3
RETURNING wraps_reserved;

-- name: generation_is_active
SELECT state = 'active' FROM gateway.key_generations WHERE generation = $1;
