-- Closes of finance, and what their packs are made of.
--
-- A row's digest is the SHA-256 of its values as a JSON array in UTF-8 (moments as microseconds since 1970), that of
-- several rows the SHA-256 of theirs one after the other; of none it is that of nothing. Whatever a pack lists is in
-- the order of bytes, so that a database with other habits of sorting makes the same pack.

-- name: page
-- `$1` are departments; `whole` where they are all that the close covers, and only then what it came to is told.
SELECT c.close_id, array_agg(c.department_id ORDER BY c.department_id) AS departments, c.from_date, c.to_date,
       c.reconciliation_id, coalesce(r.departments <@ $1::text[], false) AS whole, r.counts, r.totals
FROM gateway.closes c LEFT JOIN gateway.reconciliations r ON r.reconciliation_id = c.reconciliation_id
WHERE c.department_id = ANY($1::text[])
AND ($2::text IS NULL OR (c.to_date, c.close_id) < (
  SELECT l.to_date, l.close_id FROM gateway.closes l
  WHERE l.department_id = ANY($1::text[]) AND l.close_id = $2 LIMIT 1))
GROUP BY c.close_id, c.from_date, c.to_date, c.reconciliation_id, r.reconciliation_id
ORDER BY c.to_date DESC, c.close_id DESC LIMIT $3;

-- name: one
SELECT c.close_id, array_agg(c.department_id ORDER BY c.department_id) AS departments, c.from_date, c.to_date,
       c.reconciliation_id, coalesce(r.departments <@ $1::text[], false) AS whole, r.counts, r.totals
FROM gateway.closes c LEFT JOIN gateway.reconciliations r ON r.reconciliation_id = c.reconciliation_id
WHERE c.department_id = ANY($1::text[]) AND c.close_id = $2
GROUP BY c.close_id, c.from_date, c.to_date, c.reconciliation_id, r.reconciliation_id;

-- name: acts
-- All departments of a close have the same acts.
SELECT DISTINCT ON (a.close_id, a.act) a.close_id, a.act, a.what, a.reason, a.staff_id,
       coalesce(s.username, a.staff_id) AS username, a.acted_at, a.pack_sha256, a.pack_signature, a.pack_key
FROM gateway.close_acts a LEFT JOIN gateway.staff s ON s.staff_id = a.staff_id
WHERE a.department_id = ANY($1::text[]) AND a.close_id = ANY($2::text[])
ORDER BY a.close_id, a.act, a.department_id;

-- name: taken
-- Whether a close that stands, or is proposed, has one of the dates.
SELECT EXISTS (
  SELECT FROM gateway.closes c
  WHERE c.department_id = ANY($1::text[]) AND c.from_date <= $3 AND c.to_date >= $2
  AND (SELECT a.what FROM gateway.close_acts a WHERE a.department_id = c.department_id AND a.close_id = c.close_id
       ORDER BY a.act DESC LIMIT 1) NOT IN ('rejected', 'reopened'));

-- name: unsettled
-- How many exceptions stand in the way: all, and those among them that were found on dates after these had closed.
-- What is a matter of time is carried forward. Those that are settled are the most, and put aside first.
WITH unsettled AS MATERIALIZED (
  SELECT e.department_id, e.business_date FROM gateway.exceptions e
  WHERE e.department_id = ANY($1::text[]) AND e.state <> 'timing'
  AND coalesce((SELECT a.what FROM gateway.exception_acts a WHERE a.department_id = e.department_id
                AND a.exception_id = e.exception_id ORDER BY a.act DESC LIMIT 1), '')
      NOT IN ('resolved', 'approved', 'cleared')
)
SELECT count(*) AS unsettled, count(*) FILTER (WHERE e.business_date NOT BETWEEN $2 AND $3) AS late
FROM unsettled e
WHERE e.business_date BETWEEN $2 AND $3 OR gateway.is_closed(e.department_id, e.business_date);

-- name: unseen
-- Whether files have lines of the dates that the reconciliation did not see. A commit may take a moment.
SELECT EXISTS (
  SELECT FROM gateway.imports i JOIN gateway.reconciliations r ON r.reconciliation_id = $4
  WHERE encode(i.sha256, 'hex') <> ALL (r.inputs) AND i.imported_at > r.made_at - interval '1 minute'
  AND (EXISTS (SELECT FROM gateway.settlement_lines l WHERE l.department_id = ANY($1::text[])
               AND l.import_id = i.import_id AND l.business_date BETWEEN $2 AND $3)
    OR EXISTS (SELECT FROM gateway.deposit_lines d WHERE d.department_id = ANY($1::text[])
               AND d.import_id = i.import_id AND d.deposited_on BETWEEN $2 AND $3)));

-- name: add
INSERT INTO gateway.closes (department_id, close_id, from_date, to_date, reconciliation_id)
SELECT department, $2, $3, $4, $5 FROM unnest($1::text[]) department;

-- name: act
-- One row a department; the key of the table lets one act of a number through.
INSERT INTO gateway.close_acts
  (department_id, close_id, act, what, reason, staff_id, acted_at, pack_sha256, pack_signature, pack_key)
SELECT department, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM unnest($1::text[]) department
ON CONFLICT (department_id, close_id, act) DO NOTHING;

-- name: now
SELECT clock_timestamp();

-- name: reconciliation
SELECT reconciliation_id, departments, counts, totals, inputs, staff_id, made_at FROM gateway.reconciliations
WHERE reconciliation_id = $1;

-- name: files
-- Every file with lines of the departments' dates.
SELECT encode(i.sha256, 'hex') AS sha256, i.kind, i.format, i.lines, i.gross_minor, i.fee_minor, i.net_minor,
       i.currency, i.staff_id, i.imported_at
FROM gateway.imports i
WHERE i.imported_at <= $4 AND i.import_id IN (
  SELECT import_id FROM gateway.settlement_lines
  WHERE department_id = ANY($1::text[]) AND business_date BETWEEN $2 AND $3
  UNION SELECT import_id FROM gateway.deposit_lines
  WHERE department_id = ANY($1::text[]) AND deposited_on BETWEEN $2 AND $3)
ORDER BY i.sha256;

-- name: lines
-- One department's, of all these files.
SELECT count(*) AS lines, coalesce(sum(gross_minor), 0)::bigint AS gross_minor,
       coalesce(sum(fee_minor), 0)::bigint AS fee_minor, coalesce(sum(net_minor), 0)::bigint AS net_minor,
       encode(sha256(coalesce(string_agg(digest, '' ORDER BY imported, line), '')), 'hex') AS sha256
FROM (
  SELECT l.gross_minor, l.fee_minor, l.net_minor, l.line, i.sha256 AS imported, sha256(convert_to(json_build_array(
    encode(i.sha256, 'hex'), l.line, l.kind, l.subject, l.reference, l.gross_minor, l.fee_minor, l.net_minor,
    l.currency, (extract(epoch FROM l.created_at) * 1000000)::bigint, l.settled_on, l.batch,
    l.business_date)::text, 'UTF8')) AS digest
  FROM gateway.settlement_lines l JOIN gateway.imports i ON i.import_id = l.import_id
  WHERE l.department_id = $1 AND l.business_date BETWEEN $2 AND $3 AND i.imported_at <= $4
) kept;

-- name: deposits
-- The city's.
SELECT count(*) AS lines, coalesce(sum(amount_minor), 0)::bigint AS amount_minor,
       encode(sha256(coalesce(string_agg(digest, '' ORDER BY imported, line), '')), 'hex') AS sha256
FROM (
  SELECT d.amount_minor, d.line, i.sha256 AS imported, sha256(convert_to(json_build_array(
    encode(i.sha256, 'hex'), d.line, d.type_code, d.amount_minor, d.currency, d.deposited_on, d.batch,
    d.bank_reference)::text, 'UTF8')) AS digest
  FROM gateway.deposit_lines d JOIN gateway.imports i ON i.import_id = d.import_id
  WHERE d.department_id = $1 AND d.deposited_on BETWEEN $2 AND $3 AND i.imported_at <= $4
) kept;

-- name: items
-- One department's of the reconciliation.
SELECT count(*) AS items, encode(sha256(coalesce(string_agg(digest, '' ORDER BY item), '')), 'hex') AS sha256
FROM (
  SELECT item, sha256(convert_to(json_build_array(
    item, state, reason, charge_id, movement_id, reference, kind, ledger_minor, settled_minor, deposited_minor,
    fee_minor, expected_fee_minor, difference_minor, currency, batch, business_date,
    exception_id)::text, 'UTF8')) AS digest
  FROM gateway.reconciliation_items WHERE department_id = $1 AND reconciliation_id = $2
) kept;

-- name: carried
-- What is a matter of time.
SELECT department_id, charge_id, reference, kind, ledger_minor, settled_minor, deposited_minor, currency, batch,
       business_date, exception_id
FROM gateway.reconciliation_items
WHERE department_id = ANY($1::text[]) AND reconciliation_id = $2 AND state = 'timing'
ORDER BY department_id COLLATE "C", item LIMIT $3;

-- name: exceptions
-- Those of the dates; and those that were found on dates which had closed by then, and settled since the last close.
WITH earlier AS MATERIALIZED (
  SELECT c.department_id, c.from_date, c.to_date, a.acted_at AS closed_at,
         max(a.acted_at) OVER (PARTITION BY c.department_id) AS last_at,
         (SELECT l.what FROM gateway.close_acts l WHERE l.department_id = c.department_id AND l.close_id = c.close_id
          AND l.acted_at < $4 ORDER BY l.act DESC LIMIT 1) AS what
  FROM gateway.closes c JOIN gateway.close_acts a ON a.department_id = c.department_id AND a.close_id = c.close_id
  WHERE c.department_id = ANY($1::text[]) AND a.what = 'approved' AND a.acted_at < $4
)
SELECT e.department_id, e.exception_id, e.state, e.reason, e.charge_id, e.reference, e.difference_minor, e.currency,
       e.business_date, e.found_at
FROM gateway.exceptions e
WHERE e.department_id = ANY($1::text[]) AND e.found_at <= $4 AND e.state <> 'timing'
AND (e.business_date BETWEEN $2 AND $3 OR EXISTS (
  SELECT FROM earlier c WHERE c.department_id = e.department_id AND e.business_date BETWEEN c.from_date AND c.to_date
  AND c.what IN ('approved', 'reopening', 'kept') AND e.found_at > c.closed_at AND NOT EXISTS (
    SELECT FROM gateway.exception_acts a WHERE a.department_id = e.department_id AND a.exception_id = e.exception_id
    AND a.what IN ('resolved', 'approved', 'cleared') AND a.acted_at <= c.last_at)))
ORDER BY e.department_id COLLATE "C", e.exception_id COLLATE "C" LIMIT $5;

-- name: exception_acts
-- On exceptions, until a moment.
SELECT a.department_id, a.exception_id, a.act, a.what, a.resolution, a.note, a.staff_id, a.acted_at
FROM gateway.exception_acts a JOIN unnest($1::text[], $2::text[]) e (department_id, exception_id)
  ON e.department_id = a.department_id AND e.exception_id = a.exception_id
WHERE a.acted_at <= $3
ORDER BY a.department_id, a.exception_id, a.act;

-- name: journal
-- One department's entries between two moments, by account.
SELECT account, currency, sum(debit)::bigint AS debit_minor, sum(credit)::bigint AS credit_minor
FROM (
  SELECT debit AS account, currency, amount_minor AS debit, 0 AS credit FROM gateway.journal
  WHERE department_id = $1 AND recorded_at >= $2 AND recorded_at < $3
  UNION ALL
  SELECT credit, currency, 0, amount_minor FROM gateway.journal
  WHERE department_id = $1 AND recorded_at >= $2 AND recorded_at < $3
) entry GROUP BY account, currency ORDER BY account COLLATE "C", currency COLLATE "C";

-- name: journal_digest
SELECT count(*) AS entries,
       encode(sha256(coalesce(string_agg(digest, '' ORDER BY movement_id COLLATE "C", line), '')), 'hex') AS sha256
FROM (
  SELECT movement_id, line, sha256(convert_to(json_build_array(
    movement_id, line, debit, credit, amount_minor, currency,
    (extract(epoch FROM recorded_at) * 1000000)::bigint)::text, 'UTF8')) AS digest
  FROM gateway.journal WHERE department_id = $1 AND recorded_at >= $2 AND recorded_at < $3
) kept;

-- name: postings
-- One department's postings of business dates, by account, as they were at a moment.
SELECT account, currency, sum(debit)::bigint AS debit_minor, sum(credit)::bigint AS credit_minor
FROM (
  SELECT debit AS account, currency, amount_minor AS debit, 0 AS credit FROM gateway.postings
  WHERE department_id = $1 AND business_date BETWEEN $2 AND $3 AND recorded_at <= $4
  UNION ALL
  SELECT credit, currency, 0, amount_minor FROM gateway.postings
  WHERE department_id = $1 AND business_date BETWEEN $2 AND $3 AND recorded_at <= $4
) entry GROUP BY account, currency ORDER BY account COLLATE "C", currency COLLATE "C";

-- name: postings_digest
SELECT count(*) AS entries,
       encode(sha256(coalesce(string_agg(digest, '' ORDER BY posting_id COLLATE "C", line), '')), 'hex') AS sha256
FROM (
  SELECT posting_id, line, sha256(convert_to(json_build_array(
    posting_id, line, debit, credit, amount_minor, currency, business_date, source, source_id,
    (extract(epoch FROM recorded_at) * 1000000)::bigint)::text, 'UTF8')) AS digest
  FROM gateway.postings
  WHERE department_id = $1 AND business_date BETWEEN $2 AND $3 AND recorded_at <= $4
) kept;
