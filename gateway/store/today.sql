-- What the start page shows. `$1` are departments; business dates come as intervals, one row of the arrays each.

-- name: taken
-- What was done in each interval, by when its first entry was recorded.
SELECT d.department, d.day,
       coalesce(sum(m.amount_minor) FILTER (WHERE m.kind <> 'refund'), 0)::bigint AS taken_minor,
       count(*) FILTER (WHERE m.kind <> 'refund') AS taken,
       coalesce(sum(m.amount_minor) FILTER (WHERE m.kind = 'refund'), 0)::bigint AS refunded_minor,
       count(*) FILTER (WHERE m.kind = 'refund') AS refunded
FROM unnest($1::text[], $2::date[], $3::timestamptz[], $4::timestamptz[]) AS d (department, day, since, until)
JOIN gateway.journal j
  ON j.department_id = d.department AND j.line = 1 AND j.recorded_at >= d.since AND j.recorded_at < d.until
JOIN gateway.movements m ON m.department_id = j.department_id AND m.movement_id = j.movement_id
WHERE m.kind IN ('sale', 'capture', 'refund') AND m.progress = 'done' AND m.currency = $5
GROUP BY d.department, d.day;

-- name: declined
SELECT d.department, d.day, count(*) AS declined
FROM unnest($1::text[], $2::date[], $3::timestamptz[], $4::timestamptz[]) AS d (department, day, since, until)
JOIN gateway.charges c
  ON c.department_id = d.department AND c.created_at >= d.since AND c.created_at < d.until
WHERE c.kind IN ('sale', 'authorization') AND c.progress = 'refused'
GROUP BY d.department, d.day;

-- name: waiting
-- A last act says where an exception or a close stands.
SELECT (SELECT count(*) FROM gateway.movements m
        WHERE m.department_id = ANY($1::text[]) AND m.progress = 'awaiting_approval'
        AND NOT EXISTS (SELECT FROM gateway.refund_approvals r
                        WHERE r.department_id = m.department_id AND r.movement_id = m.movement_id)) AS refunds,
       (SELECT count(*) FROM gateway.exception_acts a
        WHERE a.department_id = ANY($1::text[]) AND a.what = 'proposed'
        AND NOT EXISTS (SELECT FROM gateway.exception_acts l
                        WHERE l.department_id = a.department_id AND l.exception_id = a.exception_id
                        AND l.act > a.act)) AS exceptions,
       (SELECT count(DISTINCT a.close_id) FROM gateway.close_acts a
        WHERE a.department_id = ANY($1::text[]) AND a.what IN ('proposed', 'reopening')
        AND NOT EXISTS (SELECT FROM gateway.close_acts l
                        WHERE l.department_id = a.department_id AND l.close_id = a.close_id
                        AND l.act > a.act)) AS closes,
       (SELECT count(*) FROM gateway.movements m
        WHERE m.department_id = ANY($1::text[]) AND m.progress = 'in_review') AS in_review;

-- name: unsettled
-- `$2` is until when ages are counted, `$3` where each age but the first begins, in days.
SELECT width_bucket($2::date - e.business_date, $3::integer[]) AS age, e.state = 'timing' AS timing,
       count(*) AS exceptions, sum(abs(e.difference_minor))::bigint AS difference_minor
FROM gateway.exceptions e
LEFT JOIN LATERAL (SELECT a.what FROM gateway.exception_acts a
                   WHERE a.department_id = e.department_id AND a.exception_id = e.exception_id
                   ORDER BY a.act DESC LIMIT 1) last ON true
WHERE e.department_id = ANY($1::text[])
AND (last.what IS NULL OR last.what NOT IN ('resolved', 'approved', 'cleared'))
GROUP BY 1, 2;

-- name: imports
SELECT import_id, kind, format, lines, net_minor, currency, imported_at
FROM gateway.imports ORDER BY imported_at DESC, import_id LIMIT 5;

-- name: run
-- The one that reaches furthest. Only those of which the grant reaches every department are seen.
SELECT reconciliation_id, from_date, to_date, made_at,
       coalesce((totals ->> 'awaiting_deposit')::bigint, 0) AS awaiting_deposit_minor
FROM gateway.reconciliations ORDER BY to_date DESC, made_at DESC, reconciliation_id LIMIT 1;

-- name: close
SELECT c.close_id, c.from_date, c.to_date FROM gateway.closes c
JOIN LATERAL (SELECT a.what FROM gateway.close_acts a
              WHERE a.department_id = c.department_id AND a.close_id = c.close_id
              ORDER BY a.act DESC LIMIT 1) last ON true
WHERE c.department_id = ANY($1::text[]) AND last.what IN ('approved', 'reopening', 'kept')
ORDER BY c.to_date DESC, c.from_date, c.close_id LIMIT 1;
