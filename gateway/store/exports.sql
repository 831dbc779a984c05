-- What leaves the house in files: read by cursors at one moment, one department (`$1`) after the other, each in the
-- order of time, so that the first row comes at once and nothing is sorted.

-- name: at_one_moment
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: charges
-- From when (`$2`) until when.
SELECT c.department_id AS department, c.charge_id, c.amount_minor, c.currency, c.convenience_fee_minor, c.service,
       c.reference, c.processor_reference, c.kind, c.progress, c.captured_minor, c.refunded_minor, c.created_at,
       t.brand, t.last4,
       (SELECT b.stage FROM gateway.chargebacks b WHERE b.department_id = c.department_id AND b.charge_id = c.charge_id
        ORDER BY b.stage_number DESC LIMIT 1) AS chargeback
FROM gateway.charges c JOIN gateway.tokens t ON t.department_id = c.department_id AND t.token_id = c.token_id
WHERE c.department_id = $1 AND c.created_at >= $2 AND c.created_at < $3
ORDER BY c.created_at, c.charge_id;

-- name: journal
-- What movements meant, by when they were done; and what settlements, deposits, chargebacks and corrections did, by
-- the business dates (`$4` to `$5`) that they were posted to. In the order in which they were recorded.
SELECT * FROM (
  SELECT first.department_id AS department, first.recorded_at, NULL::date AS day, m.kind AS source,
         j.movement_id AS entry_id, m.charge_id, m.reference, j.debit, j.credit, j.amount_minor, j.currency, c.service,
         j.line::integer
  FROM gateway.journal first
  JOIN gateway.journal j ON j.department_id = first.department_id AND j.movement_id = first.movement_id
  JOIN gateway.movements m ON m.department_id = j.department_id AND m.movement_id = j.movement_id
  JOIN gateway.charges c ON c.department_id = m.department_id AND c.charge_id = m.charge_id
  WHERE first.department_id = $1 AND first.line = 1 AND first.recorded_at >= $2 AND first.recorded_at < $3
  UNION ALL
  SELECT p.department_id, p.recorded_at, p.business_date, p.source, p.posting_id, '', p.source_id, p.debit, p.credit,
         p.amount_minor, p.currency, NULL, p.line
  FROM gateway.postings p
  WHERE p.department_id = $1 AND p.business_date BETWEEN $4 AND $5
) entries
ORDER BY recorded_at, entry_id, line;

-- name: reconciliation
-- One that the grant reaches whole.
SELECT departments, from_date, to_date FROM gateway.reconciliations WHERE reconciliation_id = $1;

-- name: items
SELECT department_id AS department, state, reason, charge_id, reference, kind, ledger_minor, settled_minor, deposited_minor,
       difference_minor, fee_minor, expected_fee_minor, currency, batch, business_date, exception_id
FROM gateway.reconciliation_items
WHERE department_id = $1 AND reconciliation_id = $2 ORDER BY item;
