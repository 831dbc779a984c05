-- Charges, their movements, the journal, beside `steps.sql`. `$1` is the department.

-- name: charges
-- Newest first, from a place on. Equal times are ordered by id, so that no page loses or repeats a row.
SELECT department_id AS department, charge_id, application_id, token_id, amount_minor, currency,
       convenience_fee_minor, service, reference, processor_reference, kind, progress, captured_minor, refunded_minor,
       refunding_minor, cvc_check, decline_class, decline_code, created_at
FROM gateway.charges
WHERE department_id = $1 AND ($2::text IS NULL OR reference = $2)
AND ($3::timestamptz IS NULL OR (created_at, charge_id) < ($3, $4))
ORDER BY created_at DESC, charge_id DESC LIMIT $5;

-- name: take
-- What waits longest first. Nobody else holds it, and from now on nobody else's epoch counts.
WITH waiting AS (
  SELECT movement_id FROM gateway.movements
  WHERE department_id = $1 AND progress IN ('sending', 'unknown', 'in_review') AND lease_until <= now()
  ORDER BY lease_until LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE gateway.movements m SET epoch = m.epoch + 1, looks = m.looks + 1, lease_until = now() + $3, resend_until = NULL
FROM waiting WHERE m.department_id = $1 AND m.movement_id = waiting.movement_id
RETURNING m.movement_id, m.looks, extract(epoch FROM now() - m.first_sent_at)::float8 AS age_s,
          extract(epoch FROM now() - m.not_after)::float8 AS overdue_s,
          m.kind IN ('capture', 'void', 'refund') OR NOT m.with_cvc AND EXISTS (
            SELECT FROM gateway.charges c JOIN gateway.tokens t
            ON t.department_id = c.department_id AND t.token_id = c.token_id
            WHERE c.department_id = m.department_id AND c.charge_id = m.charge_id AND t.has_record) AS may_resend;

-- name: take_marked
-- One at a time: it is sent at once, and its card opened in the same commit.
WITH marked AS (
  SELECT movement_id, extract(epoch FROM resend_until - now())::float8 AS left_s FROM gateway.movements
  WHERE department_id = $1 AND resend_until > now() AND progress IN ('sending', 'unknown', 'in_review')
  ORDER BY resend_until LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE gateway.movements m SET epoch = m.epoch + 1, sends = m.sends + 1, lease_until = now() + $2, resend_until = NULL
FROM marked WHERE m.department_id = $1 AND m.movement_id = marked.movement_id
RETURNING m.movement_id, marked.left_s;

-- name: lock_decided
-- A refund that waited, and about which an approver has decided: that which waits longest, and nobody else holds.
SELECT m.movement_id, a.verdict FROM gateway.movements m JOIN gateway.refund_approvals a USING (department_id, movement_id)
WHERE m.department_id = $1 AND m.progress = 'awaiting_approval'
ORDER BY m.created_at, m.movement_id LIMIT 1 FOR NO KEY UPDATE OF m SKIP LOCKED;

-- name: release
-- It begins anew, for who has locked it: all that counts from when a movement was committed counts from now.
UPDATE gateway.movements SET progress = $3, epoch = epoch + 1, sends = sends + 1, first_sent_at = now(),
                             not_after = now() + $4, lease_until = now() + $5
WHERE department_id = $1 AND movement_id = $2;

-- name: unresolved
-- In the words of the two partial indexes, which know what is open; all four in one list would read the whole table.
SELECT progress AS state, count(*) AS charges FROM gateway.movements
WHERE department_id = $1 AND (progress IN ('sending', 'unknown', 'in_review') OR progress = 'awaiting_approval')
GROUP BY progress;

-- name: all_movements
-- Of every department, for a comparison with the processor's own list.
SELECT reference, amount_minor, progress FROM gateway.movements;
