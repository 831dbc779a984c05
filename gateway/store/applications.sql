-- Departments, services, applications and their keys: what the owner writes, and the api process only reads.

-- name: add_department
INSERT INTO gateway.departments (department_id, name, created_at) VALUES ($1, $2, now())
ON CONFLICT (department_id) DO NOTHING RETURNING department_id;

-- name: hold_department
-- Until this transaction ends, nobody disables it, enables it or changes its contract.
SELECT disabled_at FROM gateway.departments WHERE department_id = $1 FOR NO KEY UPDATE;

-- name: disable_department
UPDATE gateway.departments SET disabled_at = now() WHERE department_id = $1;

-- name: enable_department
UPDATE gateway.departments SET disabled_at = NULL WHERE department_id = $1;

-- name: list_departments
SELECT d.department_id, d.name, d.created_at, d.disabled_at,
       count(a.application_id) FILTER (WHERE a.revoked_at IS NULL) AS applications
FROM gateway.departments d LEFT JOIN gateway.applications a USING (department_id)
GROUP BY d.department_id ORDER BY d.department_id;

-- name: list_fields
SELECT department_id, field, reason FROM gateway.personal_fields ORDER BY department_id, field;

-- name: allow_field
INSERT INTO gateway.personal_fields (department_id, field, reason, created_at) VALUES ($1, $2, $3, now())
ON CONFLICT (department_id, field) DO UPDATE SET reason = EXCLUDED.reason;

-- name: forbid_field
DELETE FROM gateway.personal_fields WHERE department_id = $1 AND field = $2 RETURNING field;

-- name: add_service
INSERT INTO gateway.services (department_id, service, name, gl_code, created_at) VALUES ($1, $2, $3, $4, now())
ON CONFLICT (department_id, service) DO NOTHING
RETURNING service;

-- name: unknown_services
SELECT asked FROM unnest($2::text[]) AS asked
WHERE asked NOT IN (SELECT service FROM gateway.services WHERE department_id = $1);

-- name: hold_applications
-- One application is added at a time, so that two never get one certificate name; who reads or refers to them goes on.
LOCK TABLE gateway.applications IN SHARE ROW EXCLUSIVE MODE;

-- name: has_certificate_name
SELECT EXISTS (SELECT FROM gateway.applications WHERE certificate_san = $1 AND revoked_at IS NULL);

-- name: add_application
INSERT INTO gateway.applications (department_id, application_id, name, certificate_san, amount_minor_max, scopes,
                                  services, refund_minor_max, requests_per_s_max, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now());

-- name: hold_application
-- Until this transaction ends, nobody else rotates or revokes it.
SELECT department_id, certificate_san, revoked_at FROM gateway.applications
WHERE application_id = $1 FOR NO KEY UPDATE;

-- name: revoke_application
UPDATE gateway.applications SET revoked_at = now() WHERE department_id = $1 AND application_id = $2;

-- name: add_key
-- The last is how long it holds, NULL for as long as nobody ends it.
INSERT INTO gateway.api_keys (department_id, key_id, application_id, digest_key, digest, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, now(), now() + $6::interval);

-- name: live_keys
SELECT key_id, expires_at FROM gateway.api_keys
WHERE department_id = $1 AND application_id = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
ORDER BY created_at, key_id;

-- name: end_live_keys
-- None holds longer than so, and none longer than it would have anyway.
UPDATE gateway.api_keys SET expires_at = LEAST(expires_at, now() + $3::interval)
WHERE department_id = $1 AND application_id = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
RETURNING expires_at;

-- name: revoke_key
UPDATE gateway.api_keys SET revoked_at = now()
WHERE department_id = $1 AND application_id = $2 AND key_id = $3 AND revoked_at IS NULL RETURNING key_id;

-- name: revoke_keys
UPDATE gateway.api_keys SET revoked_at = now()
WHERE department_id = $1 AND application_id = $2 AND revoked_at IS NULL;

-- name: deny_certificate
INSERT INTO gateway.denied_certificates (fingerprint, reason, denied_at) VALUES ($1, $2, now())
ON CONFLICT (fingerprint) DO NOTHING RETURNING fingerprint;

-- name: list_applications
SELECT a.department_id, a.application_id, a.name, a.amount_minor_max, a.refund_minor_max, a.requests_per_s_max,
       a.scopes, a.services, a.certificate_san, a.created_at, a.revoked_at,
       count(k.key_id) FILTER (WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()))
         AS live_keys
FROM gateway.applications a LEFT JOIN gateway.api_keys k USING (department_id, application_id)
GROUP BY a.department_id, a.application_id ORDER BY a.department_id, a.application_id;

-- name: list_keys
SELECT department_id, application_id, key_id, created_at, expires_at, last_used_at, revoked_at
FROM gateway.api_keys ORDER BY department_id, application_id, created_at, key_id;

-- name: list_denied_certificates
SELECT fingerprint, reason, denied_at FROM gateway.denied_certificates ORDER BY denied_at, fingerprint;
