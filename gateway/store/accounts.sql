-- Accounts of staff, as their owner writes and lists them. What the admin process does with them stands in staff.sql.

-- name: hold_account
-- Until this transaction ends, nobody else grants to it or disables it.
SELECT staff_id, person, granted_at, disabled_at, password_hash, earlier_hashes FROM gateway.staff WHERE username = $1 FOR UPDATE;

-- name: account_of_person
SELECT username FROM gateway.staff WHERE person = $1 AND username <> $2 AND disabled_at IS NULL;

-- name: account_of_subject
SELECT username FROM gateway.staff WHERE oidc_subject = $1 AND username <> $2;

-- name: unknown_departments
SELECT asked FROM unnest($1::text[]) AS asked
WHERE asked <> '*' AND asked NOT IN (SELECT department_id FROM gateway.departments) ORDER BY asked;

-- name: put_account
-- A grant replaces the one before it, with all its factors, and enables.
INSERT INTO gateway.staff (staff_id, username, person, roles, departments, password_hash, password_must_change,
                           totp_sealed, oidc_subject, grant_act, granted_by, approved_by, created_at, granted_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)
ON CONFLICT (username) DO UPDATE SET
  roles = EXCLUDED.roles, departments = EXCLUDED.departments, oidc_subject = EXCLUDED.oidc_subject,
  password_hash = EXCLUDED.password_hash, password_must_change = EXCLUDED.password_must_change,
  earlier_hashes = (array_remove(ARRAY[staff.password_hash], NULL) || staff.earlier_hashes)[1:3],
  totp_sealed = EXCLUDED.totp_sealed, totp_step = 0,
  grant_act = EXCLUDED.grant_act, granted_by = EXCLUDED.granted_by, approved_by = EXCLUDED.approved_by,
  granted_at = EXCLUDED.granted_at, disabled_at = NULL;

-- name: end_sessions
UPDATE gateway.staff_sessions SET ended_at = now() WHERE staff_id = $1 AND ended_at IS NULL;

-- name: clear_tries
-- Whoever has the new factors has six tries, whatever strangers did with the name.
DELETE FROM gateway.sign_in_tries WHERE name_digest = ANY ($1::bytea[]);

-- name: disable_account
UPDATE gateway.staff SET disabled_at = $2 WHERE staff_id = $1;

-- name: usernames
SELECT username FROM gateway.staff;

-- name: list_accounts
-- $1 is after how long without a sign-in an account is idle, and refused.
SELECT staff_id, username, person, roles, departments, granted_by, approved_by, granted_at, last_signed_in_at,
       oidc_subject IS NOT NULL AS by_provider,
       CASE WHEN disabled_at IS NOT NULL THEN 'disabled'
            WHEN greatest(last_signed_in_at, granted_at) <= now() - $1::interval THEN 'idle'
            ELSE 'active' END AS state
FROM gateway.staff ORDER BY username;
