-- What the steps of requests ask inside a batch (`store/batch.py`). `$1` is the department; every other parameter is
-- a column of values, one for each asking step. A row says by `n`, from 1 on, for which of them it was found.
--
-- The order here is the order in which a batch asks: what begins holds its key, then the token or the charge; what
-- ends holds the movement, then the charge, the token, the key. The first column is what rows are locked by, and comes
-- in its order. So batches of several processes seldom wait for each other in a ring; who does is done again.

-- name: claim
-- Takes the key or waits for whoever is taking it, and then gives no row. Gives none, and waits for nobody, when the
-- card part's key is not active here.
WITH given AS (
  SELECT * FROM unnest($2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::integer[], $7::text[], $8::interval[])
    WITH ORDINALITY AS g (idempotency_key, route, request_digest, card_part, card_key_version, subject_id, lease, n)
), taken AS (
  INSERT INTO gateway.idempotency (department_id, route, idempotency_key, request_digest, card_part, card_key_version,
                                   subject_id, created_at, lease_until)
  SELECT $1, route, idempotency_key, request_digest, card_part, card_key_version, subject_id, now(), now() + lease
  FROM given g
  WHERE card_key_version IS NULL
     OR EXISTS (SELECT FROM gateway.fingerprint_versions v WHERE v.version = g.card_key_version AND v.state = 'active')
  ORDER BY idempotency_key, route
  ON CONFLICT (department_id, route, idempotency_key) DO NOTHING
  RETURNING route, idempotency_key
)
SELECT n FROM given JOIN taken USING (route, idempotency_key);

-- name: claimed
SELECT i.request_digest, i.card_part, i.card_key_version, i.subject_id, i.status, i.body, i.lease_until > now() AS running,
       g.n
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS g (idempotency_key, route, n)
JOIN gateway.idempotency i
  ON i.department_id = $1 AND i.route = g.route AND i.idempotency_key = g.idempotency_key;

-- name: answered
SELECT i.status, i.body, g.n
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS g (idempotency_key, route, n)
JOIN gateway.idempotency i
  ON i.department_id = $1 AND i.route = g.route AND i.idempotency_key = g.idempotency_key
WHERE i.status IS NOT NULL;

-- name: hold
-- A held key that nobody has answered yet: of two runs under it, one gets past here at a time.
SELECT g.n
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS g (idempotency_key, route, n)
JOIN gateway.idempotency i
  ON i.department_id = $1 AND i.route = g.route AND i.idempotency_key = g.idempotency_key
WHERE i.status IS NULL ORDER BY g.idempotency_key, g.route FOR NO KEY UPDATE OF i;

-- name: service
SELECT g.n FROM unnest($2::text[]) WITH ORDINALITY AS g (service, n)
JOIN gateway.services s ON s.department_id = $1 AND s.service = g.service;

-- name: lock_token
-- One charge or erasure at a time.
SELECT t.usage, t.status, t.expires_at > now() AS fresh, t.fingerprint_id, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (token_id, n)
JOIN gateway.tokens t ON t.department_id = $1 AND t.token_id = g.token_id
ORDER BY g.token_id FOR NO KEY UPDATE OF t;

-- name: spend_token
-- Of several that would, one does.
UPDATE gateway.tokens t SET status = 'spent'
FROM unnest($2::text[]) WITH ORDINALITY AS g (token_id, n)
WHERE t.department_id = $1 AND t.token_id = g.token_id AND t.status = 'active'
RETURNING g.n;

-- name: sealed_token
-- What the charge path opens. After the lock, in a statement of its own, so that what was sealed anew meanwhile is seen.
SELECT t.sealed, d.generation, d.wrapped, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (token_id, n)
JOIN gateway.tokens t ON t.department_id = $1 AND t.token_id = g.token_id
LEFT JOIN gateway.deks d ON d.department_id = $1 AND d.record_id = g.token_id;

-- name: lock_charge
-- One movement of a charge begins at a time.
SELECT c.department_id AS department, c.charge_id, c.application_id, c.token_id, c.amount_minor, c.currency,
       c.convenience_fee_minor, c.service, c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor,
       c.refunded_minor, c.refunding_minor, c.cvc_check, c.decline_class, c.decline_code, c.created_at, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (charge_id, n)
JOIN gateway.charges c ON c.department_id = $1 AND c.charge_id = g.charge_id
ORDER BY g.charge_id FOR NO KEY UPDATE OF c;

-- name: move
-- Compare and set: only for who holds it, and only from where the event may happen.
UPDATE gateway.movements m
SET progress = g.progress, decline_class = g.decline_class, decline_code = g.decline_code,
    lease_until = now() + g.look, resend_until = NULL
FROM unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::interval[], $8::text[])
  WITH ORDINALITY AS g (movement_id, epoch, progress, decline_class, decline_code, look, sources, n)
WHERE m.department_id = $1 AND m.movement_id = g.movement_id AND m.epoch = g.epoch
AND m.progress = ANY(string_to_array(g.sources, ' '))
RETURNING m.department_id AS department, m.movement_id, m.charge_id, m.kind, m.amount_minor, m.currency, m.reference,
          m.application_id, m.route, m.idempotency_key, m.progress, m.with_cvc, m.not_after, m.epoch, m.sends,
          m.decline_class, m.decline_code, m.created_at, g.n;

-- name: postpone
-- Only what is open. Said by what is not, which no partial index offers itself for (`move` needs none, either).
UPDATE gateway.movements m SET lease_until = now() + g.delay, resend_until = now() + g.mark
FROM unnest($2::text[], $3::integer[], $4::interval[], $5::interval[])
  WITH ORDINALITY AS g (movement_id, epoch, delay, mark, n)
WHERE m.department_id = $1 AND m.movement_id = g.movement_id AND m.epoch = g.epoch
AND m.progress NOT IN ('awaiting_approval', 'done', 'refused', 'failed')
RETURNING g.n;

-- name: move_charge
-- What a movement that moved changes of its charge; who gives no kind, as refunds do, leaves what else it says as it is.
UPDATE gateway.charges c
SET kind = coalesce(g.kind, c.kind), progress = coalesce(g.progress, c.progress),
    captured_minor = c.captured_minor + g.captured_minor, refunding_minor = c.refunding_minor - g.refunding_minor,
    refunded_minor = c.refunded_minor + g.refunded_minor, cvc_check = coalesce(g.cvc_check, c.cvc_check),
    decline_class = CASE WHEN g.kind IS NULL THEN c.decline_class ELSE g.decline_class END,
    decline_code = CASE WHEN g.kind IS NULL THEN c.decline_code ELSE g.decline_code END
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[],
            $10::text[])
  WITH ORDINALITY AS g (charge_id, kind, progress, captured_minor, refunding_minor, refunded_minor, cvc_check,
                        decline_class, decline_code, n)
WHERE c.department_id = $1 AND c.charge_id = g.charge_id
RETURNING c.department_id AS department, c.charge_id, c.application_id, c.token_id, c.amount_minor, c.currency,
          c.convenience_fee_minor, c.service, c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor,
          c.refunded_minor, c.refunding_minor, c.cvc_check, c.decline_class, c.decline_code, c.created_at, g.n;

-- name: renew_token
-- A token for one use is as good as new after what never happened.
UPDATE gateway.tokens t SET status = 'active'
FROM unnest($2::text[]) WITH ORDINALITY AS g (token_id, n)
WHERE t.department_id = $1 AND t.token_id = g.token_id AND t.status = 'spent'
RETURNING g.n;

-- name: insert_dek
-- Inserts nothing unless its generation is active here.
WITH given AS (
  SELECT * FROM unnest($2::text[], $3::integer[], $4::bytea[]) WITH ORDINALITY AS g (record_id, generation, wrapped, n)
), inserted AS (
  INSERT INTO gateway.deks (department_id, record_id, first_generation, generation, wrapped)
  SELECT $1, record_id, generation, generation, wrapped FROM given g
  WHERE EXISTS (SELECT FROM gateway.key_generations k WHERE k.generation = g.generation AND k.state = 'active')
  RETURNING record_id
)
SELECT n FROM given JOIN inserted USING (record_id);

-- name: fingerprint
-- The id of a card under an older version of the index, while two stand: the first to write it decides. No row comes
-- back when the version may not index here any more.
WITH given AS (
  SELECT * FROM unnest($2::bytea[], $3::integer[], $4::text[], $5::timestamptz[])
    WITH ORDINALITY AS g (card_index, key_version, fingerprint_id, seen_at, n)
), written AS (
  INSERT INTO gateway.fingerprints AS f (department_id, key_version, card_index, fingerprint_id, seen_at)
  SELECT DISTINCT ON (card_index, key_version) $1, key_version, card_index, fingerprint_id, seen_at FROM given g
  WHERE EXISTS (SELECT FROM gateway.fingerprint_versions v
                WHERE v.version = g.key_version AND v.state IN ('active', 'retired', 'compromised'))
  ORDER BY card_index, key_version, n
  ON CONFLICT (department_id, key_version, card_index) DO UPDATE SET seen_at = EXCLUDED.seen_at
  RETURNING key_version, card_index, f.fingerprint_id
)
SELECT written.fingerprint_id, given.n FROM given JOIN written USING (key_version, card_index);

-- name: store_token
-- The record, its data key and the id of its card under the version of the index that decides. Nothing of it unless
-- the key generation and the version are active here: then no row comes back. The update of the fingerprint holds the
-- row against an erasure that is about to remove it. With it, if that is all that a request asks, its audit row.
-- It may be a transaction of its own, so it names its department itself, before any row of it comes about.
WITH here AS MATERIALIZED (
  SELECT set_config('gateway.department', $1, true)
), given AS (
  SELECT g.* FROM here, unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                               $9::text[], $10::timestamptz[], $11::timestamptz[], $12::bytea[], $13::integer[],
                               $14::bytea[], $15::bytea[], $16::integer[], $17::text[], $18::text[], $19::timestamptz[],
                               $20::text[], $21::text[], $22::text[], $23::text[], $24::text[], $25::text[], $26::text[],
                               $27::integer[], $28::bytea[])
    WITH ORDINALITY AS g (token_id, application_id, kind, usage, status, brand, last4, cvc_check, created_at, expires_at,
                          sealed, generation, wrapped, card_index, key_version, fingerprint_id, event_id, occurred_at,
                          process, event, outcome, actor, subject, reason, request_id, mac_key, mac, n)
), allowed AS (
  SELECT * FROM given g
  WHERE EXISTS (SELECT FROM gateway.key_generations k WHERE k.generation = g.generation AND k.state = 'active')
  AND EXISTS (SELECT FROM gateway.fingerprint_versions v WHERE v.version = g.key_version AND v.state = 'active')
), written AS (
  INSERT INTO gateway.fingerprints AS f (department_id, key_version, card_index, fingerprint_id, seen_at)
  SELECT DISTINCT ON (card_index, key_version) $1, key_version, card_index, fingerprint_id, created_at FROM allowed
  ORDER BY card_index, key_version, n
  ON CONFLICT (department_id, key_version, card_index) DO UPDATE SET seen_at = EXCLUDED.seen_at
  RETURNING key_version, card_index, f.fingerprint_id AS decided
), wrap AS (
  INSERT INTO gateway.deks (department_id, record_id, first_generation, generation, wrapped)
  SELECT $1, token_id, generation, generation, wrapped FROM allowed
), token AS (
  INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,
                              fingerprint_id, cvc_check, created_at, expires_at, sealed)
  SELECT $1, token_id, application_id, kind, usage, status, brand, last4, decided, cvc_check, created_at, expires_at, sealed
  FROM allowed JOIN written USING (card_index, key_version)
), audited AS (
  INSERT INTO audit.events
    (department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac)
  SELECT $1, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac
  FROM allowed WHERE event_id IS NOT NULL
)
SELECT decided AS fingerprint_id, n FROM allowed JOIN written USING (card_index, key_version);

-- name: insert_charge
INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,
                             convenience_fee_minor, service, reference, processor_reference, kind, progress, cvc_check,
                             created_at, sealed)
SELECT $1, g.* FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::text[],
                           $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::timestamptz[],
                           $15::bytea[]) AS g;

-- name: insert_movement
-- The database's clock alone says how old a movement is, how long it is held, and until when it may be carried out.
WITH given AS (
  SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::text[], $11::text[], $12::boolean[], $13::timestamptz[], $14::interval[],
                       $15::interval[], $16::integer[])
    WITH ORDINALITY AS g (movement_id, charge_id, kind, amount_minor, currency, reference, application_id, route,
                          idempotency_key, progress, with_cvc, created_at, life, lease, sends, n)
), inserted AS (
  INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency, reference,
                                 application_id, route, idempotency_key, progress, with_cvc, created_at,
                                 first_sent_at, not_after, lease_until, sends)
  SELECT $1, movement_id, charge_id, kind, amount_minor, currency, reference, application_id, route, idempotency_key,
         progress, with_cvc, created_at, now(), now() + life, now() + lease, sends
  FROM given
  RETURNING movement_id, not_after
)
SELECT not_after, n FROM given JOIN inserted USING (movement_id);

-- name: begin_movement
-- Refunds aside, a charge stands where its latest movement stands; of a refund it knows how much is under way.
UPDATE gateway.charges c
SET kind = coalesce(g.kind, c.kind), progress = coalesce(g.progress, c.progress),
    refunding_minor = c.refunding_minor + g.refunding_minor
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[])
  WITH ORDINALITY AS g (charge_id, kind, progress, refunding_minor, n)
WHERE c.department_id = $1 AND c.charge_id = g.charge_id
RETURNING c.department_id AS department, c.charge_id, c.application_id, c.token_id, c.amount_minor, c.currency,
          c.convenience_fee_minor, c.service, c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor,
          c.refunded_minor, c.refunding_minor, c.cvc_check, c.decline_class, c.decline_code, c.created_at, g.n;

-- name: insert_entry
INSERT INTO gateway.journal (department_id, movement_id, line, debit, credit, amount_minor, currency, recorded_at)
SELECT $1, g.*, now() FROM unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::bigint[], $7::text[]) AS g;

-- name: conclude
-- What a request did, as an audit row; and under its key, if it ends here, its answer. One that was given is never
-- replaced.
WITH given AS (
  SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                       $9::text[], $10::text[], $11::integer[], $12::bytea[], $13::text[], $14::text[], $15::smallint[],
                       $16::bytea[])
    AS g (event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac,
          idempotency_key, route, status, body)
), answered AS (
  UPDATE gateway.idempotency i SET status = g.status, body = g.body FROM given g
  WHERE i.department_id = $1 AND i.route = g.route AND i.idempotency_key = g.idempotency_key AND i.status IS NULL
)
INSERT INTO audit.events
  (department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac)
SELECT $1, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac FROM given;

-- name: token
SELECT t.department_id AS department, t.token_id, t.application_id, t.kind, t.usage, t.status, t.brand, t.last4,
       t.fingerprint_id, t.cvc_check, t.created_at, t.expires_at, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (token_id, n)
JOIN gateway.tokens t ON t.department_id = $1 AND t.token_id = g.token_id;

-- name: charge
SELECT c.department_id AS department, c.charge_id, c.application_id, c.token_id, c.amount_minor, c.currency,
       c.convenience_fee_minor, c.service, c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor,
       c.refunded_minor, c.refunding_minor, c.cvc_check, c.decline_class, c.decline_code, c.created_at, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (charge_id, n)
JOIN gateway.charges c ON c.department_id = $1 AND c.charge_id = g.charge_id;

-- name: movement
-- `running`: its first request may still be at work; nobody has taken it over, and its time is not over.
SELECT m.department_id AS department, m.movement_id, m.charge_id, m.kind, m.amount_minor, m.currency, m.reference,
       c.processor_reference AS charge_reference, m.application_id, m.route, m.idempotency_key, m.progress, m.with_cvc,
       m.not_after, m.epoch, m.sends, m.decline_class, m.decline_code, m.created_at,
       m.progress = 'sending' AND m.epoch = 0 AND m.lease_until > now() AS running, g.n
FROM unnest($2::text[]) WITH ORDINALITY AS g (movement_id, n)
JOIN gateway.movements m ON m.department_id = $1 AND m.movement_id = g.movement_id
JOIN gateway.charges c ON c.department_id = $1 AND c.charge_id = m.charge_id;
