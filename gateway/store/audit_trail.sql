-- The audit log, to be read: newest first.

-- name: place
-- Where a page ended, as the next one goes on from it.
SELECT occurred_at FROM audit.events WHERE department_id = ANY($1::text[]) AND event_id = $2;

-- name: along_the_index
-- A walk along an index, newest first, ends when it has enough; nobody can guess how many rows a filter leaves. Which
-- index depends on what is asked.
SET LOCAL enable_bitmapscan = off;
SET LOCAL plan_cache_mode = force_custom_plan;

-- name: search
-- Of each department the newest are enough to know the newest of all.
SELECT d.department_id AS department, e.event_id, e.occurred_at, e.process, e.event, e.outcome, e.actor,
       (SELECT s.username FROM gateway.staff s WHERE s.staff_id = e.actor) AS name, e.subject, e.reason, e.request_id
FROM unnest($1::text[]) AS d (department_id)
CROSS JOIN LATERAL (
  SELECT * FROM audit.events e
  WHERE e.department_id = d.department_id
  AND e.occurred_at >= $2 AND e.occurred_at < least($3, $7::timestamptz + interval '1 microsecond')
  AND ($4::text IS NULL OR e.event = $4)
  AND ($5::text IS NULL OR e.actor = $5 OR e.actor = (SELECT s.staff_id FROM gateway.staff s WHERE s.username = $5))
  AND ($6::text IS NULL OR e.subject = $6)
  AND ($7 IS NULL OR (e.occurred_at, e.event_id) < ($7, $8))
  ORDER BY e.occurred_at DESC, e.event_id DESC LIMIT $9
) e
ORDER BY e.occurred_at DESC, e.event_id DESC LIMIT $9;
