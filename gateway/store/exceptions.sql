-- Exceptions of finance: what differs, and what was done about it.

-- name: page
-- `$1` are departments; the others select where they are not null. `$3` are last acts, '' for none; `$9` leaves out
-- what is only a matter of time.
SELECT e.department_id AS department, e.exception_id, e.reconciliation_id, e.state, e.reason, coalesce((
         SELECT i.kind FROM gateway.reconciliation_items i WHERE i.department_id = e.department_id
         AND i.exception_id = e.exception_id LIMIT 1), '') AS kind,
       e.charge_id, e.reference, e.difference_minor, e.currency, e.business_date, e.found_at
FROM gateway.exceptions e
WHERE e.department_id = ANY($1::text[])
AND ($2::text IS NULL OR e.state = $2)
AND NOT ($9 AND e.state = 'timing')
AND ($3::text[] IS NULL OR coalesce(
  (SELECT a.what FROM gateway.exception_acts a WHERE a.department_id = e.department_id
   AND a.exception_id = e.exception_id ORDER BY a.act DESC LIMIT 1), '') = ANY($3))
AND ($4::text IS NULL OR (
  SELECT a.staff_id FROM gateway.exception_acts a WHERE a.department_id = e.department_id
  AND a.exception_id = e.exception_id AND a.what IN ('taken', 'proposed', 'resolved') ORDER BY a.act DESC LIMIT 1)
  IN (SELECT staff_id FROM gateway.staff WHERE username = $4))
AND ($5::date IS NULL OR e.business_date >= $5)
AND ($6::date IS NULL OR e.business_date <= $6)
AND ($7::text IS NULL OR (e.business_date, e.department_id, e.exception_id) > (
  SELECT l.business_date, l.department_id, l.exception_id FROM gateway.exceptions l
  WHERE l.department_id = ANY($1::text[]) AND l.exception_id = $7 LIMIT 1))
ORDER BY e.business_date, e.department_id, e.exception_id LIMIT $8;

-- name: one
SELECT e.department_id AS department, e.exception_id, e.reconciliation_id, e.state, e.reason, coalesce((
         SELECT i.kind FROM gateway.reconciliation_items i WHERE i.department_id = e.department_id
         AND i.exception_id = e.exception_id LIMIT 1), '') AS kind,
       e.charge_id, e.reference, e.difference_minor, e.currency, e.business_date, e.found_at
FROM gateway.exceptions e WHERE e.department_id = ANY($1::text[]) AND e.exception_id = $2;

-- name: acts
-- Of several exceptions, each in order.
SELECT a.department_id, a.exception_id, a.act, a.what, a.resolution, a.note, a.staff_id,
       coalesce(s.username, a.staff_id) AS username, a.acted_at
FROM gateway.exception_acts a LEFT JOIN gateway.staff s ON s.staff_id = a.staff_id
WHERE a.department_id = ANY($1::text[]) AND a.exception_id = ANY($2::text[])
ORDER BY a.department_id, a.exception_id, a.act;

-- name: items
-- A run that covers departments that are not seen has no moment here.
SELECT i.reconciliation_id, r.made_at, i.state, i.reason, i.reference, i.kind, i.ledger_minor,
       i.settled_minor, i.deposited_minor, i.fee_minor, i.expected_fee_minor, i.currency, i.batch
FROM gateway.reconciliation_items i LEFT JOIN gateway.reconciliations r ON r.reconciliation_id = i.reconciliation_id
WHERE i.department_id = $1 AND i.exception_id = $2 ORDER BY r.made_at DESC NULLS LAST, i.item LIMIT 20;

-- name: disputed
-- What a charge was, if a line about it of this amount made a stage of a chargeback.
SELECT c.captured_minor, c.convenience_fee_minor FROM gateway.charges c
WHERE c.department_id = $1 AND c.charge_id = $2 AND EXISTS (
  SELECT FROM gateway.chargebacks b WHERE b.department_id = c.department_id AND b.charge_id = c.charge_id
  AND b.amount_minor = abs($3::bigint) AND b.stage = CASE WHEN $3 < 0 THEN 'opened' ELSE 'won' END);

-- name: act
-- The key of the table lets one through; the time is of after all locks.
INSERT INTO gateway.exception_acts
  (department_id, exception_id, act, what, resolution, note, staff_id, acted_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())
ON CONFLICT (department_id, exception_id, act) DO NOTHING RETURNING act;

-- name: post
INSERT INTO gateway.postings (department_id, posting_id, line, debit, credit, amount_minor, currency, business_date,
                              source, source_id, recorded_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'exception', $9, clock_timestamp());
