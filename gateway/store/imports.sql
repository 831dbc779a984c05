-- Files of the processor's and the bank's: how the admin process writes what they hold, and shows it.

-- name: one_at_a_time
-- Until the transaction ends. Who closes dates takes it too, so that no line slips into a date that is being closed.
SELECT pg_advisory_xact_lock(hashtext('gateway.imports'));

-- name: earlier
SELECT import_id AS id, kind, format, lines, gross_minor, fee_minor, net_minor, currency
FROM gateway.imports WHERE sha256 = $1;

-- name: closed
-- What `gateway.is_closed` says, of all ranges at once.
SELECT c.department_id, c.from_date, c.to_date FROM gateway.closes c
WHERE (SELECT a.what FROM gateway.close_acts a WHERE a.department_id = c.department_id AND a.close_id = c.close_id
       ORDER BY a.act DESC LIMIT 1) IN ('approved', 'reopening', 'kept');

-- name: whose
-- `$1` are departments; a reference that two of them had would be the first one's. One look into the index for each
-- reference, whatever the planner thinks of thousands of them.
SELECT m.department_id, asked.reference, m.charge_id FROM unnest($2::text[]) AS asked (reference) CROSS JOIN LATERAL (
  SELECT o.department_id, o.charge_id FROM gateway.movements o
  WHERE o.department_id = ANY($1::text[]) AND o.reference = asked.reference ORDER BY o.department_id LIMIT 1) m;

-- name: disputed
SELECT c.department_id, c.charge_id, c.captured_minor, c.convenience_fee_minor, coalesce(b.stage_number, 0), b.stage
FROM gateway.charges c JOIN unnest($1::text[], $2::text[]) AS asked (department_id, charge_id)
  ON c.department_id = asked.department_id AND c.charge_id = asked.charge_id
LEFT JOIN LATERAL (SELECT s.stage_number, s.stage FROM gateway.chargebacks s
                   WHERE s.department_id = c.department_id AND s.charge_id = c.charge_id
                   ORDER BY s.stage_number DESC LIMIT 1) b ON true;

-- name: add_lines
INSERT INTO gateway.settlement_lines (import_id, department_id, subject, business_date, line, kind, reference,
  gross_minor, fee_minor, net_minor, currency, created_at, settled_on, batch)
SELECT $1, * FROM unnest($2::gateway.new_line[]);

-- name: add_deposits
INSERT INTO gateway.deposit_lines (department_id, import_id, line, type_code, amount_minor, currency, deposited_on,
  batch, bank_reference)
SELECT 'city', $1, * FROM unnest($2::integer[], $3::text[], $4::bigint[], $5::text[], $6::date[], $7::text[],
  $8::text[]);

-- name: add_stages
INSERT INTO gateway.chargebacks (import_id, recorded_at, department_id, charge_id, stage_number, stage, amount_minor,
  currency, line)
SELECT $1, now(), * FROM unnest($2::text[], $3::text[], $4::integer[], $5::text[], $6::bigint[], $7::text[],
  $8::integer[]);

-- name: add_postings
INSERT INTO gateway.postings (recorded_at, department_id, posting_id, line, debit, credit, amount_minor, currency,
  business_date, source, source_id)
SELECT now(), * FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::bigint[], $7::text[],
  $8::date[], $9::text[], $10::text[]);

-- name: add_import
INSERT INTO gateway.imports (import_id, kind, format, sha256, lines, gross_minor, fee_minor, net_minor, currency,
  settled_on, staff_id, imported_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: hold_together
-- What was put off until the commit is looked at now, where it may take its time.
SET CONSTRAINTS ALL IMMEDIATE;

-- name: imports
-- For who sees the whole city: the file's own figures. `$3` is the import behind which the list goes on.
SELECT i.import_id, i.kind, i.format, i.lines, i.gross_minor, i.fee_minor, i.net_minor, i.currency, i.settled_on,
       coalesce(s.username, i.staff_id) AS imported_by, i.imported_at
FROM gateway.imports i LEFT JOIN gateway.staff s USING (staff_id)
WHERE i.kind = $1 AND ($2::text IS NULL OR i.import_id = $2)
AND ($3::text IS NULL OR (i.imported_at, i.import_id) < (SELECT a.imported_at, a.import_id FROM gateway.imports a
                                                          WHERE a.import_id = $3))
ORDER BY i.imported_at DESC, i.import_id DESC LIMIT $4;

-- name: imports_of
-- For who sees some departments, `$5`: what of the file is theirs, and no file that has nothing of it.
SELECT i.import_id, i.kind, i.format, own.lines, own.gross_minor, own.fee_minor, own.net_minor, i.currency,
       i.settled_on, coalesce(s.username, i.staff_id) AS imported_by, i.imported_at
FROM gateway.imports i LEFT JOIN gateway.staff s USING (staff_id) CROSS JOIN LATERAL (
  SELECT count(*)::integer AS lines, sum(l.gross_minor)::bigint AS gross_minor, sum(l.fee_minor)::bigint AS fee_minor,
         sum(l.net_minor)::bigint AS net_minor
  FROM gateway.settlement_lines l WHERE l.department_id = ANY($5::text[]) AND l.import_id = i.import_id) own
WHERE i.kind = $1 AND own.lines > 0 AND ($2::text IS NULL OR i.import_id = $2)
AND ($3::text IS NULL OR (i.imported_at, i.import_id) < (SELECT a.imported_at, a.import_id FROM gateway.imports a
                                                          WHERE a.import_id = $3))
ORDER BY i.imported_at DESC, i.import_id DESC LIMIT $4;

-- name: parts
SELECT department_id AS department, batch, count(*)::integer AS lines, sum(gross_minor)::bigint AS gross_minor,
       sum(fee_minor)::bigint AS fee_minor, sum(net_minor)::bigint AS net_minor
FROM gateway.settlement_lines WHERE department_id = ANY($1::text[]) AND import_id = $2
GROUP BY department_id, batch ORDER BY department_id, batch;

-- name: settlement_lines
SELECT department_id, CASE WHEN department_id <> 'city' THEN subject END AS charge_id, business_date,
       line, kind, reference, gross_minor, fee_minor, net_minor, currency, created_at, settled_on, batch
FROM gateway.settlement_lines WHERE department_id = ANY($1::text[]) AND import_id = $2 AND line > $3
ORDER BY line LIMIT $4;

-- name: deposit_lines
SELECT line, type_code, amount_minor, currency, deposited_on, batch, bank_reference
FROM gateway.deposit_lines WHERE department_id = ANY($1::text[]) AND import_id = $2 AND line > $3
ORDER BY line LIMIT $4;
