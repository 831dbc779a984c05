-- What the gateway asks of PostgreSQL beside `steps.sql`. `$1` is the department wherever a table belongs to departments.

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

-- name: take_over
UPDATE gateway.idempotency SET lease_until = now() + $4
WHERE department_id = $1 AND route = $2 AND idempotency_key = $3 AND status IS NULL AND lease_until <= now()
RETURNING idempotency_key;

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
