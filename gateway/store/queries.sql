-- Everything that the gateway asks of PostgreSQL. `$1` is the department wherever a table belongs to departments.

-- name: applications
-- Who may call, of every department: read before a department is known.
SELECT k.key_id, k.digest_key, k.digest, k.expires_at, a.department_id, a.application_id, a.amount_minor_max,
       a.certificate_san, a.scopes, a.services, a.refund_minor_max, a.requests_per_s_max
FROM gateway.api_keys k
JOIN gateway.applications a USING (department_id, application_id)
JOIN gateway.departments d USING (department_id)
WHERE k.revoked_at IS NULL AND a.revoked_at IS NULL AND d.disabled_at IS NULL
AND (k.expires_at IS NULL OR k.expires_at > now());

-- name: personal_fields
SELECT department_id, field, reason FROM gateway.personal_fields;

-- name: fee_costs
SELECT department_id, valid_from, basis_points, fixed_minor FROM gateway.fee_costs ORDER BY department_id, valid_from;

-- name: denied_certificates
SELECT fingerprint FROM gateway.denied_certificates;

-- name: note_use
UPDATE gateway.api_keys SET last_used_at = now()
WHERE department_id = $1 AND key_id = ANY($2::text[])
AND (last_used_at IS NULL OR last_used_at < now() - interval '1 hour');

-- name: claimed
SELECT request_digest, card_part, card_key_version, subject_id, status, body, lease_until > now() AS running
FROM gateway.idempotency WHERE department_id = $1 AND route = $2 AND idempotency_key = $3;

-- name: stored_answer
SELECT status, body FROM gateway.idempotency
WHERE department_id = $1 AND route = $2 AND idempotency_key = $3 AND status IS NOT NULL;

-- name: claim
-- Takes the key or waits for whoever is taking it, and then gives no row. Gives none, and waits for nobody, when the
-- card part's key is not active here.
INSERT INTO gateway.idempotency (department_id, route, idempotency_key, request_digest, card_part, card_key_version,
                                 subject_id, created_at, lease_until)
SELECT $1, $2, $3, $4, $5::bytea, $6::integer, $7, now(), now() + $8
WHERE $6 IS NULL OR EXISTS (SELECT FROM gateway.fingerprint_versions WHERE version = $6 AND state = 'active')
ON CONFLICT (department_id, route, idempotency_key) DO NOTHING
RETURNING idempotency_key;

-- name: take_over
UPDATE gateway.idempotency SET lease_until = now() + $4
WHERE department_id = $1 AND route = $2 AND idempotency_key = $3 AND status IS NULL AND lease_until <= now()
RETURNING idempotency_key;

-- name: hold
-- A held key that nobody has answered yet: of two runs under it, one gets past here at a time.
SELECT idempotency_key FROM gateway.idempotency
WHERE department_id = $1 AND route = $2 AND idempotency_key = $3 AND status IS NULL FOR NO KEY UPDATE;

-- name: answer
-- An answer that was given is never replaced.
UPDATE gateway.idempotency SET status = $4, body = $5
WHERE department_id = $1 AND route = $2 AND idempotency_key = $3 AND status IS NULL;

-- name: insert_dek
-- Inserts nothing unless its generation is active here.
INSERT INTO gateway.deks (department_id, record_id, first_generation, generation, wrapped)
SELECT $1, $2, $3, $3, $4 WHERE EXISTS (SELECT FROM gateway.key_generations WHERE generation = $3 AND state = 'active')
RETURNING generation;

-- name: sealed_token
-- What the charge path opens.
SELECT t.sealed, d.generation, d.wrapped
FROM gateway.tokens t LEFT JOIN gateway.deks d ON d.department_id = t.department_id AND d.record_id = t.token_id
WHERE t.department_id = $1 AND t.token_id = $2;

-- name: fingerprint
-- The id of this card in this department, under one version of the index: the first to write it decides. The update
-- holds the row against an erasure that is about to remove it. No row comes back when the version may not index here.
INSERT INTO gateway.fingerprints (department_id, key_version, card_index, fingerprint_id, seen_at)
SELECT $1, $2, $3, $4, $5
WHERE EXISTS (SELECT FROM gateway.fingerprint_versions WHERE version = $2 AND state = ANY($6::text[]))
ON CONFLICT (department_id, key_version, card_index) DO UPDATE SET seen_at = EXCLUDED.seen_at
RETURNING fingerprint_id;

-- name: insert_token
INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,
                            fingerprint_id, cvc_check, created_at, expires_at, sealed)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: token
SELECT department_id AS department, token_id, application_id, kind, usage, status, brand, last4, fingerprint_id,
       cvc_check, created_at, expires_at
FROM gateway.tokens WHERE department_id = $1 AND token_id = $2;

-- name: lock_token
-- One charge or erasure at a time.
SELECT usage, status, expires_at > now() AS fresh, fingerprint_id
FROM gateway.tokens WHERE department_id = $1 AND token_id = $2 FOR NO KEY UPDATE;

-- name: set_token_status
UPDATE gateway.tokens SET status = $3 WHERE department_id = $1 AND token_id = $2 AND status = $4;

-- name: lock_fingerprint
-- Every version's row, oldest first, as writers take them.
SELECT FROM gateway.fingerprints WHERE department_id = $1 AND fingerprint_id = $2 ORDER BY key_version FOR UPDATE;

-- name: forget_fingerprint
-- After the lock, in a statement of its own, so that a token stored meanwhile is seen.
DELETE FROM gateway.fingerprints f WHERE f.department_id = $1 AND f.fingerprint_id = $2
AND NOT EXISTS (SELECT FROM gateway.tokens t WHERE t.department_id = $1 AND t.fingerprint_id = $2);

-- name: erase_token
UPDATE gateway.tokens SET status = 'erased', sealed = NULL, brand = NULL, last4 = NULL, fingerprint_id = NULL
WHERE department_id = $1 AND token_id = $2;

-- name: delete_dek
DELETE FROM gateway.deks WHERE department_id = $1 AND record_id = $2;

-- name: forget_answer
-- The erased token stands in the place of the answer that made it.
UPDATE gateway.idempotency SET body = CASE WHEN body IS NULL THEN NULL ELSE $3::bytea END,
                               card_part = NULL, card_key_version = NULL
WHERE department_id = $1 AND subject_id = $2;

-- name: forget_card_parts
-- Of charges that brought the card themselves.
UPDATE gateway.idempotency SET card_part = NULL, card_key_version = NULL
WHERE department_id = $1 AND card_part IS NOT NULL
AND subject_id IN (SELECT charge_id FROM gateway.charges WHERE department_id = $1 AND token_id = $2);

-- name: unresolved_of_token
SELECT EXISTS (SELECT FROM gateway.charges
               WHERE department_id = $1 AND token_id = $2 AND progress IN ('sending', 'unknown', 'in_review'));

-- name: departments
SELECT department_id FROM gateway.departments ORDER BY department_id;
