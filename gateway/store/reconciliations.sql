-- Reconciliations: what a run reads and writes, and how it is shown.

-- name: prepare
-- The dates differ from run to run, and so do the plans; sorting a month must not spill. For a minute after a large
-- import the planner thinks that there are few lines, and would look through all of them for each charge: while it
-- knows of less than half, it may not.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('work_mem', '64MB', true),
       set_config('jit', 'off', true),
       set_config('enable_nestloop', CASE WHEN 2 * c.reltuples < (
         SELECT sum(lines) FROM gateway.imports WHERE kind = 'settlement') THEN 'off' ELSE 'on' END, true)
FROM pg_class c WHERE c.oid = 'gateway.settlement_lines'::regclass;

-- name: files
SELECT import_id, kind, encode(sha256, 'hex') AS sha256, settled_on FROM gateway.imports ORDER BY imported_at, import_id;

-- name: batches
-- Whole, whatever dates their lines are of. Row-level security leaves the departments of who asks.
SELECT s.batch, max(s.settled_on) AS settled_on, sum(s.net_minor)::bigint AS net_minor, min(s.currency) AS currency
FROM gateway.settlement_lines s
WHERE s.import_id = ANY($3::text[]) AND s.batch <> '' AND s.batch IN (
  SELECT batch FROM gateway.settlement_lines WHERE business_date BETWEEN $1 AND $2
  UNION SELECT batch FROM gateway.deposit_lines WHERE deposited_on BETWEEN $1 AND $2)
GROUP BY s.batch;

-- name: deposits
SELECT f.file::integer - 1 AS file, d.line, d.amount_minor, d.currency, d.deposited_on, d.batch, d.bank_reference
FROM gateway.deposit_lines d JOIN unnest($4::text[]) WITH ORDINALITY f (import_id, file) USING (import_id)
WHERE d.department_id = 'city' AND (d.batch = ANY($3::text[]) OR d.deposited_on BETWEEN $1 AND $2);

-- name: subjects
-- Every movement beside every line of the same charge, for all charges that have any of the dates. One row is one
-- charge with one of each, mostly; several rows repeat what they have.
WITH asked AS (
  SELECT m.charge_id AS subject
  FROM gateway.journal j JOIN gateway.movements m USING (department_id, movement_id)
  WHERE j.department_id = $1 AND j.line = 1 AND j.recorded_at >= $2 AND j.recorded_at < $3
  UNION
  SELECT subject FROM gateway.settlement_lines
  WHERE department_id = $1 AND import_id = ANY($7::text[])
  AND (business_date BETWEEN $4 AND $5 OR batch = ANY($6::text[]))
), moved AS (
  SELECT m.charge_id AS subject, m.movement_id, CASE m.kind WHEN 'refund' THEN 'refund' ELSE 'charge' END AS kind,
         m.reference, CASE m.kind WHEN 'refund' THEN -m.amount_minor ELSE m.amount_minor END AS amount_minor,
         m.currency, j.recorded_at
  FROM asked JOIN gateway.movements m ON m.department_id = $1 AND m.charge_id = asked.subject
  JOIN gateway.journal j ON j.department_id = $1 AND j.movement_id = m.movement_id AND j.line = 1
), settled AS (
  SELECT s.subject, f.file::integer - 1 AS file, s.line, s.kind, s.reference, s.gross_minor, s.fee_minor, s.net_minor,
         s.currency, s.created_at, s.batch, s.business_date
  FROM asked JOIN gateway.settlement_lines s ON s.department_id = $1 AND s.subject = asked.subject
  JOIN unnest($7::text[]) WITH ORDINALITY f (import_id, file) USING (import_id)
)
SELECT coalesce(m.subject, s.subject) COLLATE "C" AS subject, m.movement_id, m.kind, m.reference, m.amount_minor,
       m.currency, m.recorded_at, s.file, s.line, s.kind, s.reference, s.gross_minor, s.fee_minor, s.net_minor,
       s.currency, s.created_at, s.batch, s.business_date
FROM moved m FULL JOIN settled s ON s.subject = m.subject
ORDER BY 1;

-- name: add_items
INSERT INTO gateway.reconciliation_items (reconciliation_id, department_id, item, state, reason, kind, charge_id, movement_id,
  reference, ledger_minor, settled_minor, deposited_minor, fee_minor, expected_fee_minor, batch, currency,
  business_date, difference_minor, exception_id)
SELECT $1, $2, $3::integer - 1 + n.nth, n.state, n.reason, n.kind, n.charge_id, n.movement_id, n.reference,
  n.ledger_minor, n.settled_minor, n.deposited_minor, n.fee_minor, n.expected_fee_minor, n.batch, n.currency,
  n.business_date, n.difference_minor, n.exception_id
FROM unnest($4::gateway.new_item[]) WITH ORDINALITY n (state, reason, kind, charge_id, movement_id, reference,
  ledger_minor, settled_minor, deposited_minor, fee_minor, expected_fee_minor, batch, currency, business_date,
  difference_minor, exception_id, nth);

-- name: add_reconciliation
INSERT INTO gateway.reconciliations (reconciliation_id, departments, from_date, to_date, counts, totals, inputs,
                                     staff_id, made_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: add_exceptions
-- Each once, however many runs find it. In order, so that two runs wait for each other and not in a circle.
INSERT INTO gateway.exceptions (department_id, exception_id, reconciliation_id, state, reason, charge_id, reference,
                                difference_minor, currency, business_date, found_at)
SELECT department_id, exception_id, $1, state, reason, charge_id, reference, difference_minor, currency,
       business_date, $2
FROM gateway.reconciliation_items
WHERE reconciliation_id = $1 AND exception_id IS NOT NULL AND department_id = ANY($3::text[])
ORDER BY department_id, exception_id
ON CONFLICT DO NOTHING;

-- name: add_acts
-- An open exception that this run did not find is cleared; a cleared one that it found is open again. `IN`, and not
-- `EXISTS`: what was found is then hashed once, where a month without its file has an exception for every charge.
INSERT INTO gateway.exception_acts (department_id, exception_id, act, what, resolution, note, staff_id, acted_at)
SELECT e.department_id, e.exception_id, e.act + 1, CASE WHEN e.found THEN 'reopened' ELSE 'cleared' END, '', '', $5, $6
FROM (
  SELECT e.department_id, e.exception_id, coalesce(a.act, 0) AS act, coalesce(a.what, '') AS what,
         (e.department_id, e.exception_id) IN (
           SELECT i.department_id, i.exception_id FROM gateway.reconciliation_items i
           WHERE i.department_id = ANY($2::text[]) AND i.reconciliation_id = $1 AND i.exception_id IS NOT NULL) AS found
  FROM gateway.exceptions e LEFT JOIN LATERAL (
    SELECT a.act, a.what FROM gateway.exception_acts a
    WHERE a.department_id = e.department_id AND a.exception_id = e.exception_id ORDER BY a.act DESC LIMIT 1) a ON true
  WHERE e.department_id = ANY($2::text[]) AND e.business_date BETWEEN $3 AND $4
) e
WHERE CASE WHEN e.found THEN e.what = 'cleared' ELSE e.what NOT IN ('resolved', 'approved', 'cleared') END
ORDER BY e.department_id, e.exception_id
ON CONFLICT DO NOTHING;

-- name: reconciliation
SELECT reconciliation_id, departments, from_date, to_date, counts, totals, inputs, staff_id, made_at
FROM gateway.reconciliations WHERE reconciliation_id = $1 AND departments <@ $2::text[];

-- name: reconciliations
-- The latest first, from a place on.
SELECT reconciliation_id, departments, from_date, to_date, counts, totals, inputs, staff_id, made_at
FROM gateway.reconciliations r
WHERE departments <@ $1::text[] AND ($2::text IS NULL OR (made_at, reconciliation_id) < (
  SELECT made_at, reconciliation_id FROM gateway.reconciliations WHERE reconciliation_id = $2))
ORDER BY made_at DESC, reconciliation_id DESC LIMIT $3;

-- name: items
-- Items are numbered throughout a reconciliation, and each department's stand together in its index.
SELECT i.department_id AS department, i.item, i.state, i.reason, i.kind, i.charge_id, i.movement_id, i.reference,
       i.ledger_minor, i.settled_minor, i.deposited_minor, i.fee_minor, i.expected_fee_minor, i.difference_minor,
       i.currency, i.batch, i.business_date, i.exception_id
FROM unnest($1::text[]) d (department) CROSS JOIN LATERAL (
  SELECT * FROM gateway.reconciliation_items
  WHERE department_id = d.department AND reconciliation_id = $2 AND item > $3 AND state = ANY($4::text[])
  ORDER BY item LIMIT $5) i
ORDER BY i.item LIMIT $5;
