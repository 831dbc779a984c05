-- What `gateway reseal` asks of PostgreSQL. `$1` is the department. Locks are taken in the order of an erasure: token
-- or charge, fingerprint, data key. Rows are locked first and read, where another table counts, in the statement
-- after it: a statement that waits for a row sees that row's newest version beside older ones of the others.

-- name: await_writers
SELECT gateway.await_writers();

-- name: departments
SELECT department_id FROM gateway.departments ORDER BY department_id;

-- Records with exposed data keys

-- name: count_exposed_tokens
SELECT count(*) FROM gateway.deks AS d
JOIN gateway.tokens AS t ON t.department_id = d.department_id AND t.token_id = d.record_id
WHERE d.department_id = $1 AND t.sealed IS NOT NULL AND d.record_id <> ALL($3::text[])
AND EXISTS (SELECT FROM unnest($2::integer[]) AS c(generation)
            WHERE c.generation BETWEEN d.first_generation AND d.generation);

-- name: count_exposed_charges
SELECT count(*) FROM gateway.deks AS d
JOIN gateway.charges AS t ON t.department_id = d.department_id AND t.charge_id = d.record_id
WHERE d.department_id = $1 AND t.sealed IS NOT NULL AND d.record_id <> ALL($3::text[])
AND EXISTS (SELECT FROM unnest($2::integer[]) AS c(generation)
            WHERE c.generation BETWEEN d.first_generation AND d.generation);

-- name: count_exposed_without_record
SELECT count(*) FROM gateway.deks AS d
WHERE d.department_id = $1
AND EXISTS (SELECT FROM unnest($2::integer[]) AS c(generation)
            WHERE c.generation BETWEEN d.first_generation AND d.generation)
AND NOT EXISTS (SELECT FROM gateway.tokens AS t
                WHERE t.department_id = $1 AND t.token_id = d.record_id AND t.sealed IS NOT NULL)
AND NOT EXISTS (SELECT FROM gateway.charges AS t
                WHERE t.department_id = $1 AND t.charge_id = d.record_id AND t.sealed IS NOT NULL);

-- name: lock_exposed_tokens
SELECT t.token_id AS record_id, t.sealed FROM gateway.deks AS d
JOIN gateway.tokens AS t ON t.department_id = d.department_id AND t.token_id = d.record_id
WHERE d.department_id = $1 AND d.record_id > $3 AND t.sealed IS NOT NULL AND d.record_id <> ALL($5::text[])
AND EXISTS (SELECT FROM unnest($2::integer[]) AS c(generation)
            WHERE c.generation BETWEEN d.first_generation AND d.generation)
ORDER BY d.record_id LIMIT $4 FOR NO KEY UPDATE OF t SKIP LOCKED;

-- name: lock_exposed_charges
SELECT t.charge_id AS record_id, t.sealed FROM gateway.deks AS d
JOIN gateway.charges AS t ON t.department_id = d.department_id AND t.charge_id = d.record_id
WHERE d.department_id = $1 AND d.record_id > $3 AND t.sealed IS NOT NULL AND d.record_id <> ALL($5::text[])
AND EXISTS (SELECT FROM unnest($2::integer[]) AS c(generation)
            WHERE c.generation BETWEEN d.first_generation AND d.generation)
ORDER BY d.record_id LIMIT $4 FOR NO KEY UPDATE OF t SKIP LOCKED;

-- name: lock_deks
-- The data keys of records that are locked. A rewrap passes by what is locked; one under way is waited for.
SELECT record_id, first_generation, generation, wrapped FROM gateway.deks
WHERE department_id = $1 AND record_id = ANY($2::text[]) ORDER BY record_id FOR UPDATE;

-- name: replace_deks
-- Compare and set, and only to a generation that is active at this moment.
UPDATE gateway.deks AS d SET first_generation = n.generation, generation = n.generation, wrapped = n.wrapped
FROM unnest($2::text[], $3::integer[], $4::bytea[], $5::integer[], $6::bytea[])
  AS n(record_id, was_generation, was, generation, wrapped)
WHERE d.department_id = $1 AND d.record_id = n.record_id AND d.generation = n.was_generation AND d.wrapped = n.was
AND EXISTS (SELECT FROM gateway.key_generations AS k WHERE k.generation = n.generation AND k.state = 'active')
RETURNING d.record_id;

-- name: replace_tokens
UPDATE gateway.tokens AS t SET sealed = n.sealed FROM unnest($2::text[], $3::bytea[]) AS n(record_id, sealed)
WHERE t.department_id = $1 AND t.token_id = n.record_id;

-- name: replace_charges
UPDATE gateway.charges AS t SET sealed = n.sealed FROM unnest($2::text[], $3::bytea[]) AS n(record_id, sealed)
WHERE t.department_id = $1 AND t.charge_id = n.record_id;

-- Cards that only an older version of the index knows

-- name: count_not_indexed
-- Grouped, not joined with itself: of a version that has just begun the planner has no statistics, and would look
-- through all of its rows for each card.
SELECT count(*) FROM (
  SELECT fingerprint_id FROM gateway.fingerprints
  WHERE department_id = $1 AND fingerprint_id <> ALL($4::text[])
  GROUP BY fingerprint_id HAVING bool_or(key_version = ANY($2::integer[])) AND NOT bool_or(key_version = $3)
) AS o
WHERE EXISTS (SELECT FROM gateway.tokens AS t
              WHERE t.department_id = $1 AND t.fingerprint_id = o.fingerprint_id AND t.token_id <> ALL($4::text[]));

-- name: not_indexed
-- Of several older versions the newest is taken: its key is the likeliest to be there.
SELECT fingerprint_id, max(key_version) FILTER (WHERE key_version = ANY($2::integer[])) AS key_version,
       (array_agg(card_index ORDER BY key_version DESC) FILTER (WHERE key_version = ANY($2::integer[])))[1] AS card_index
FROM gateway.fingerprints
WHERE department_id = $1 AND fingerprint_id > $4 AND fingerprint_id <> ALL($6::text[])
GROUP BY fingerprint_id HAVING bool_or(key_version = ANY($2::integer[])) AND NOT bool_or(key_version = $3)
ORDER BY fingerprint_id LIMIT $5;

-- name: lock_token_of_each
-- One living token of each card. While it is held the card's rows in the index stay.
SELECT t.token_id AS record_id, t.fingerprint_id, t.sealed FROM unnest($2::text[]) AS f(fingerprint_id)
CROSS JOIN LATERAL (
  SELECT token_id, fingerprint_id, sealed FROM gateway.tokens
  WHERE department_id = $1 AND tokens.fingerprint_id = f.fingerprint_id AND token_id <> ALL($3::text[])
  LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
) AS t;

-- name: insert_indexes
-- What a writer was faster with stands. Nothing is inserted unless its version is active here. In order of the ids,
-- so that two who insert the same cards wait for each other one way only.
INSERT INTO gateway.fingerprints (department_id, key_version, card_index, fingerprint_id, seen_at)
SELECT $1, n.key_version, n.card_index, n.fingerprint_id, now()
FROM unnest($2::integer[], $3::bytea[], $4::text[]) AS n(key_version, card_index, fingerprint_id)
WHERE EXISTS (SELECT FROM gateway.fingerprint_versions AS v WHERE v.version = n.key_version AND v.state = 'active')
ORDER BY n.fingerprint_id
ON CONFLICT (department_id, key_version, card_index) DO NOTHING;

-- name: inserted_indexes
SELECT n.fingerprint_id, f.fingerprint_id AS stands
FROM unnest($2::integer[], $3::bytea[], $4::text[]) AS n(key_version, card_index, fingerprint_id)
LEFT JOIN gateway.fingerprints AS f
  ON f.department_id = $1 AND f.key_version = n.key_version AND f.card_index = n.card_index;

-- Rows of the index that nobody needs

-- name: strays
SELECT DISTINCT f.fingerprint_id FROM gateway.fingerprints AS f
WHERE f.department_id = $1 AND f.key_version = ANY($2::integer[])
AND NOT EXISTS (SELECT FROM gateway.tokens AS t WHERE t.department_id = $1 AND t.fingerprint_id = f.fingerprint_id)
ORDER BY f.fingerprint_id LIMIT $3;

-- name: lock_fingerprints
SELECT FROM gateway.fingerprints WHERE department_id = $1 AND fingerprint_id = ANY($2::text[])
ORDER BY fingerprint_id, key_version FOR UPDATE;

-- name: forget_fingerprints
-- After the lock, in a statement of its own, so that a token stored meanwhile is seen.
DELETE FROM gateway.fingerprints AS f WHERE f.department_id = $1 AND f.fingerprint_id = ANY($2::text[])
AND NOT EXISTS (SELECT FROM gateway.tokens AS t WHERE t.department_id = $1 AND t.fingerprint_id = f.fingerprint_id)
RETURNING f.fingerprint_id;

-- name: count_destroyed_indexes
SELECT count(*) FROM gateway.fingerprints
WHERE department_id = $1
AND key_version IN (SELECT version FROM gateway.fingerprint_versions WHERE state = 'destroyed');

-- name: forget_indexes
DELETE FROM gateway.fingerprints
WHERE department_id = $1 AND (key_version, card_index) IN (
  SELECT key_version, card_index FROM gateway.fingerprints
  WHERE department_id = $1
  AND key_version IN (SELECT version FROM gateway.fingerprint_versions WHERE state = 'destroyed')
  ORDER BY key_version, card_index LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING card_index;

-- Card parts of idempotency rows

-- name: count_parts
SELECT count(*) FROM gateway.idempotency AS i
WHERE i.department_id = $1 AND i.card_key_version = ANY($2::integer[])
AND coalesce((SELECT c.token_id FROM gateway.charges AS c WHERE c.department_id = $1 AND c.charge_id = i.subject_id),
             i.subject_id) <> ALL($3::text[]);

-- name: parts
SELECT i.route, i.idempotency_key, i.card_part, i.card_key_version,
       coalesce(c.token_id, i.subject_id) AS token_id
FROM gateway.idempotency AS i
LEFT JOIN gateway.charges AS c ON c.department_id = $1 AND c.charge_id = i.subject_id
WHERE i.department_id = $1 AND i.card_key_version = ANY($2::integer[]) AND (i.route, i.idempotency_key) > ($3, $4)
AND coalesce(c.token_id, i.subject_id) <> ALL($6::text[])
ORDER BY i.route, i.idempotency_key LIMIT $5;

-- name: lock_tokens
SELECT token_id AS record_id, sealed FROM gateway.tokens
WHERE department_id = $1 AND token_id = ANY($2::text[]) AND sealed IS NOT NULL
ORDER BY token_id FOR NO KEY UPDATE SKIP LOCKED;

-- name: living_tokens
SELECT token_id FROM gateway.tokens
WHERE department_id = $1 AND token_id = ANY($2::text[]) AND sealed IS NOT NULL;

-- name: replace_parts
-- Compare and set, and only to a version that is active at this moment, or to nothing.
UPDATE gateway.idempotency AS i SET card_part = n.part, card_key_version = n.key_version
FROM unnest($2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::integer[])
  AS n(route, idempotency_key, was, part, key_version)
WHERE i.department_id = $1 AND i.route = n.route AND i.idempotency_key = n.idempotency_key AND i.card_part = n.was
AND (n.key_version IS NULL OR EXISTS (
  SELECT FROM gateway.fingerprint_versions AS v WHERE v.version = n.key_version AND v.state = 'active'));

-- name: version_is_active
SELECT state = 'active' FROM gateway.fingerprint_versions WHERE version = $1;
