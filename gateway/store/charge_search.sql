-- The charges of some departments as finance looks for them, and the story of one of them.

-- name: place
-- Where a page ended, as the next one goes on from it.
SELECT created_at FROM gateway.charges WHERE department_id = ANY($1::text[]) AND charge_id = $2;

-- name: along_the_index
-- Nobody can guess how many charges a filter leaves; a walk along the index, newest first, ends when it has enough.
-- Whatever is asked for the plan is the same.
SET LOCAL enable_bitmapscan = off; SET LOCAL plan_cache_mode = force_generic_plan;

-- name: walk
-- Newest first, from `$7` on. `$1` to `$4` are spans, which do not overlap: of a department, of one of its services
-- (NULL for all, empty for none), from when until when. Of each span the newest are enough to know the newest of all.
SELECT s.department_id, newest.charge_id
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS s (department_id, service, starts, ends)
CROSS JOIN LATERAL (
  SELECT c.charge_id, c.created_at FROM gateway.charges c
  WHERE c.department_id = s.department_id
  AND c.created_at >= s.starts AND c.created_at < least(s.ends, $7::timestamptz + interval '1 microsecond')
  AND (s.service IS NULL OR coalesce(c.service, '') = s.service)
  AND ($5::text[] IS NULL OR c.kind || ' ' || c.progress = ANY($5))
  AND ($6::bigint IS NULL OR c.amount_minor = $6)
  AND ($7 IS NULL OR (c.created_at, c.charge_id) < ($7, $8))
  ORDER BY c.created_at DESC, c.charge_id DESC LIMIT $9
) newest
ORDER BY newest.created_at DESC, newest.charge_id DESC LIMIT $9;

-- name: find
-- The same of the few that a reference (`$10`: its own, the processor's, a movement's) or the last four digits of a
-- card (`$11`) name.
WITH few AS MATERIALIZED (
  SELECT department_id, charge_id FROM gateway.charges WHERE department_id = ANY($1::text[]) AND reference = $10
  UNION
  SELECT department_id, charge_id FROM gateway.movements WHERE department_id = ANY($1::text[]) AND reference = $10
  UNION
  SELECT department_id, charge_id FROM gateway.tokens t JOIN gateway.charges c USING (department_id, token_id)
  WHERE department_id = ANY($1::text[]) AND $10::text IS NULL AND t.last4 = $11
)
SELECT c.department_id, c.charge_id
FROM few JOIN gateway.charges c USING (department_id, charge_id)
JOIN gateway.tokens t USING (department_id, token_id)
JOIN unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS s (department_id, service, starts, ends)
ON s.department_id = c.department_id AND c.created_at >= s.starts AND c.created_at < s.ends
AND (s.service IS NULL OR coalesce(c.service, '') = s.service)
WHERE ($5::text[] IS NULL OR c.kind || ' ' || c.progress = ANY($5))
AND ($6::bigint IS NULL OR c.amount_minor = $6)
AND ($7::timestamptz IS NULL OR (c.created_at, c.charge_id) < ($7, $8))
AND ($11::text IS NULL OR t.last4 = $11)
ORDER BY c.created_at DESC, c.charge_id DESC LIMIT $9;

-- name: charges
-- As they were found; of an erased card there is neither brand nor last4.
SELECT c.department_id AS department, c.charge_id, c.amount_minor, c.currency, c.convenience_fee_minor, c.service,
       c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor, c.refunded_minor, c.created_at,
       t.brand, t.last4,
       (SELECT b.stage FROM gateway.chargebacks b WHERE b.department_id = c.department_id AND b.charge_id = c.charge_id
        ORDER BY b.stage_number DESC LIMIT 1) AS chargeback
FROM unnest($1::text[], $2::text[]) AS found (department_id, charge_id)
JOIN gateway.charges c USING (department_id, charge_id) JOIN gateway.tokens t USING (department_id, token_id)
ORDER BY c.created_at DESC, c.charge_id DESC;

-- name: story
-- Everything that is known of a charge, in the order in which it became known here. `$3`: the audit log, too.
WITH moved AS (
  SELECT * FROM gateway.movements WHERE department_id = $1 AND charge_id = $2
), settled AS (
  SELECT * FROM gateway.settlement_lines WHERE department_id = $1 AND subject = $2
), differing AS (
  SELECT * FROM gateway.exceptions WHERE department_id = $1 AND charge_id = $2
)
SELECT told.at, told.what, told.name, told.state, told.amount_minor, told.fee_minor, told.currency, told.reference,
       coalesce(p.username, told.who) AS who, told.note, told.day
FROM (
  SELECT c.created_at AS at, 1 AS place, 'charge' AS what, 'made' AS name, '' AS state, c.amount_minor, NULL::bigint AS fee_minor,
         c.currency, c.reference, a.name AS who, '' AS note, NULL::date AS day
  FROM gateway.charges c JOIN gateway.applications a USING (department_id, application_id)
  WHERE c.department_id = $1 AND c.charge_id = $2
  UNION ALL
  SELECT m.created_at, 2, 'movement', m.kind, m.progress, m.amount_minor, NULL, m.currency, m.reference, a.name,
         coalesce(m.decline_code, ''), NULL
  FROM moved m JOIN gateway.applications a USING (department_id, application_id)
  UNION ALL
  SELECT d.decided_at, 3, 'approval', d.verdict, '', m.amount_minor, NULL, m.currency, m.reference, d.staff_id, '', NULL
  FROM moved m JOIN gateway.refund_approvals d USING (department_id, movement_id)
  UNION ALL
  SELECT j.recorded_at, 3 + j.line, 'journal', j.debit, j.credit, j.amount_minor, NULL, j.currency, m.reference, '', '', NULL
  FROM moved m JOIN gateway.journal j USING (department_id, movement_id)
  UNION ALL
  SELECT i.imported_at, 10, 'settlement', l.kind, '', l.gross_minor, l.fee_minor, l.currency, l.reference, i.staff_id, l.batch,
         l.settled_on
  FROM settled l JOIN gateway.imports i USING (import_id)
  UNION ALL
  SELECT i.imported_at, 11, 'deposit', d.type_code, '', d.amount_minor, NULL, d.currency, d.bank_reference, i.staff_id, d.batch,
         d.deposited_on
  FROM gateway.deposit_lines d JOIN gateway.imports i USING (import_id)
  WHERE d.department_id = 'city' AND d.batch IN (SELECT batch FROM settled WHERE batch <> '')
  UNION ALL
  SELECT b.recorded_at, 12, 'chargeback', b.stage, '', b.amount_minor, NULL, b.currency, b.import_id, '', '', NULL
  FROM gateway.chargebacks b WHERE b.department_id = $1 AND b.charge_id = $2
  UNION ALL
  SELECT e.found_at, 13, 'exception', e.state, e.reason, e.difference_minor, NULL, e.currency, e.exception_id, '', '',
         e.business_date
  FROM differing e
  UNION ALL
  SELECT x.acted_at, 14, 'exception', x.what, x.resolution, NULL, NULL, e.currency, e.exception_id, x.staff_id, x.note, NULL
  FROM differing e JOIN gateway.exception_acts x USING (department_id, exception_id)
  UNION ALL
  SELECT e.occurred_at, 20, 'audit', e.event, e.outcome, NULL, NULL, '', e.subject, e.actor, e.reason, NULL
  FROM audit.events e
  WHERE $3 AND e.department_id = $1
  AND e.subject IN (SELECT $2 UNION SELECT movement_id FROM moved UNION SELECT exception_id FROM differing)
) told LEFT JOIN gateway.staff p ON p.staff_id = told.who
ORDER BY told.at, told.place;
