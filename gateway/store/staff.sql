-- Staff: accounts, sessions and tries to sign in. `usable` stands for: not disabled, and signed in or granted lately.

-- name: account
SELECT staff_id, password_hash, earlier_hashes, totp_sealed,
       disabled_at IS NULL AND greatest(last_signed_in_at, granted_at) > now() - $2::interval AS usable
FROM gateway.staff WHERE username = $1;

-- name: time
SELECT now();

-- name: reserve_try
-- Counted before anything is judged; no row while the name is locked. The last try locks ahead, so that neither others
-- at its side nor an end of the process in its middle give one more; a lock that is over counts from one again.
INSERT INTO gateway.sign_in_tries AS t (name_digest, tries, tried_at) VALUES ($1, 1, now())
ON CONFLICT (name_digest) DO UPDATE SET
  tries = CASE WHEN t.locked_until <= now() THEN 1 ELSE t.tries + 1 END,
  locked_until = CASE WHEN t.locked_until IS NULL AND t.tries + 1 >= $2 THEN now() + $3::interval END,
  tried_at = now()
WHERE t.tries < $2 OR t.locked_until <= now()
RETURNING tries;

-- name: lock
-- The last try was in vain; nothing is locked if somebody has succeeded meanwhile.
UPDATE gateway.sign_in_tries SET locked_until = now() + $3::interval WHERE name_digest = $1 AND tries >= $2
RETURNING tries;

-- name: clear_tries
UPDATE gateway.sign_in_tries SET tries = 0, locked_until = NULL WHERE name_digest = $1;

-- name: touch_tries
-- In place of an audit row that is left out: one commit all the same, so that the time tells no name.
UPDATE gateway.sign_in_tries SET tried_at = now() WHERE name_digest = $1;

-- name: forget_tries
DELETE FROM gateway.sign_in_tries WHERE name_digest IN (
  SELECT name_digest FROM gateway.sign_in_tries
  WHERE tried_at < now() - $1::interval AND (locked_until IS NULL OR locked_until <= now())
  LIMIT $2 FOR UPDATE SKIP LOCKED);

-- name: use_factors
-- The row decides between two uses of one code, and whether the account is still as it was judged.
UPDATE gateway.staff SET totp_step = $3, password_hash = $4, totp_sealed = $5, last_signed_in_at = now()
WHERE staff_id = $1 AND password_hash = $2 AND totp_step < $3
  AND disabled_at IS NULL AND greatest(last_signed_in_at, granted_at) > now() - $6::interval
RETURNING staff_id, username, roles, departments, password_must_change AS must_change;

-- name: use_subject
UPDATE gateway.staff SET last_signed_in_at = now()
WHERE oidc_subject = $1 AND disabled_at IS NULL AND greatest(last_signed_in_at, granted_at) > now() - $2::interval
RETURNING staff_id, username, roles, departments, password_must_change AND password_hash IS NOT NULL AS must_change;

-- name: open_session
INSERT INTO gateway.staff_sessions (session_digest, staff_id, kind, created_at, seen_at)
VALUES ($1, $2, $3, now(), now()) RETURNING created_at + $4::interval AS expires;

-- name: identify
-- Seen now, unless it has ended in any of the ways in which it can; with the grant as it is now.
UPDATE gateway.staff_sessions s SET seen_at = now() FROM gateway.staff a
WHERE s.session_digest = ANY ($1::bytea[]) AND s.ended_at IS NULL
  AND s.seen_at > now() - $2::interval AND s.created_at > now() - $3::interval
  AND a.staff_id = s.staff_id AND a.disabled_at IS NULL
  AND greatest(a.last_signed_in_at, a.granted_at) > now() - $4::interval
RETURNING a.staff_id, a.username, a.roles, a.departments, s.session_digest, s.created_at + $3::interval AS expires,
          a.password_must_change AND a.password_hash IS NOT NULL AS must_change;

-- name: end_session
UPDATE gateway.staff_sessions SET ended_at = now() WHERE session_digest = ANY ($1::bytea[]) AND ended_at IS NULL
RETURNING staff_id;

-- name: end_others
UPDATE gateway.staff_sessions SET ended_at = now()
WHERE staff_id = $1 AND ended_at IS NULL AND session_digest <> $2;

-- name: change_password
UPDATE gateway.staff SET password_hash = $3, earlier_hashes = $4, password_must_change = false
WHERE staff_id = $1 AND password_hash = $2 AND disabled_at IS NULL RETURNING staff_id;
