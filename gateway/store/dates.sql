-- Which business dates are closed, and who waits for whom while that changes.

-- name: hold
-- Until this transaction ends no close is proposed, approved or opened again. An advisory lock, because a lock of the
-- table takes the right to change rows of it, which nobody has.
SELECT pg_advisory_xact_lock_shared(hashtextextended('gateway.closes', 0));

-- name: keep_files_out
-- Until this transaction ends: the lock that each import takes (`imports.sql`).
SELECT pg_advisory_xact_lock(hashtext('gateway.imports'));

-- name: change
-- Until this transaction ends nobody else does any of that, and nobody counts on a date to stay open.
SELECT pg_advisory_xact_lock(hashtextextended('gateway.closes', 0));

-- name: is_closed
SELECT gateway.is_closed($1, $2::date);

-- name: first_open
-- The date itself, or the first one after it that is not closed for the department. Past the last close all are open.
SELECT day::date FROM generate_series(
  $2::date, greatest($2::date, (SELECT max(to_date) + 1 FROM gateway.closes WHERE department_id = $1)),
  interval '1 day') day
WHERE NOT gateway.is_closed($1, day::date) ORDER BY day LIMIT 1;
