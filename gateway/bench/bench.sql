-- What `gateway bench` asks of its own servers, and of nobody else's.

-- name: create_database
CREATE DATABASE %s OWNER gateway_owner;

-- name: create_rows
CREATE TABLE public.rows (key text PRIMARY KEY, value bytea NOT NULL);

-- name: insert_row
-- What one commit a request is: durable, keyed at random, as large as a sealed card with what goes with it.
INSERT INTO public.rows (key, value) VALUES ($1, $2);

-- name: tokens
SELECT token_id FROM gateway.tokens WHERE usage = 'multi' LIMIT $1;

-- name: columns
-- In their order, without those that the server computes.
SELECT attname FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum;

-- name: like_deks
SELECT * FROM gateway.deks WHERE record_id = $1;

-- name: like_fingerprints
SELECT f.* FROM gateway.fingerprints f JOIN gateway.tokens t USING (department_id, fingerprint_id) WHERE t.token_id = $1;

-- name: like_tokens
SELECT * FROM gateway.tokens WHERE token_id = $1;

-- name: like_events
SELECT * FROM audit.events WHERE subject = $1 AND event = 'token.created';

-- name: sizes
-- Bytes of each table with its TOAST, and of its indexes.
SELECT n.nspname || '.' || c.relname AS name, pg_table_size(c.oid) AS rows_bytes, pg_indexes_size(c.oid) AS index_bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('gateway', 'audit') AND c.relkind = 'r';

-- name: commits
-- How many transactions stored tokens since then.
SELECT count(DISTINCT xmin::text) FROM audit.events
WHERE department_id = $1 AND occurred_at >= $2 AND event = 'token.created';

-- name: analyze
ANALYZE;

-- name: checkpoint
CHECKPOINT;

-- name: vacuum
VACUUM (ANALYZE);

-- name: vacuum_deks
VACUUM (ANALYZE) gateway.deks;

-- name: add_generation
INSERT INTO gateway.key_generations (generation, state) VALUES ($1, 'active');

-- name: retire_generations
UPDATE gateway.key_generations SET state = 'retired' WHERE generation < $1;

-- name: insert_wraps
INSERT INTO gateway.deks (department_id, record_id, first_generation, generation, wrapped)
SELECT $1, r, $2, $2, w FROM unnest($3::text[], $4::bytea[]) AS n (r, w);

-- name: page_of_wraps
SELECT department_id, record_id, wrapped FROM gateway.deks
WHERE generation = $4 AND (department_id, record_id) > ($1, $2) ORDER BY department_id, record_id LIMIT $3;

-- name: move_wraps
UPDATE gateway.deks d SET generation = $1, wrapped = n.w FROM unnest($2::text[], $3::text[], $4::bytea[]) AS n (d, r, w)
WHERE d.department_id = n.d AND d.record_id = n.r;

-- name: guarded
-- Tables with row-level security, as SQL writes their names.
SELECT oid::regclass::text AS name FROM pg_class WHERE relrowsecurity ORDER BY name;

-- name: unguard
ALTER TABLE %s DISABLE ROW LEVEL SECURITY;

-- name: guard
ALTER TABLE %s ENABLE ROW LEVEL SECURITY;
