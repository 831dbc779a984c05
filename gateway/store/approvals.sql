-- Refunds that wait for an approver, and what was said of them: as the admin process reads and writes it.

-- name: departments
SELECT department_id FROM gateway.departments ORDER BY department_id;

-- name: waiting
-- Nobody has decided about them yet, though an api process may not have heard of it. `$1` are departments.
SELECT m.department_id AS department, m.movement_id AS refund_id, m.charge_id, m.amount_minor, m.currency, c.reference,
       a.name AS application, m.created_at AS requested_at, t.brand, t.last4,
       a.revoked_at IS NOT NULL OR o.disabled_at IS NOT NULL AS suspended
FROM gateway.movements m
JOIN gateway.charges c ON c.department_id = m.department_id AND c.charge_id = m.charge_id
JOIN gateway.tokens t ON t.department_id = c.department_id AND t.token_id = c.token_id
JOIN gateway.applications a ON a.department_id = m.department_id AND a.application_id = m.application_id
JOIN gateway.departments o ON o.department_id = m.department_id
WHERE m.department_id = ANY($1::text[]) AND m.progress = 'awaiting_approval'
AND NOT EXISTS (SELECT FROM gateway.refund_approvals d
                WHERE d.department_id = m.department_id AND d.movement_id = m.movement_id)
ORDER BY m.created_at, m.movement_id LIMIT $2;

-- name: refund
-- Wherever it stands. `$1` are departments.
SELECT m.department_id AS department, m.movement_id AS refund_id, m.charge_id, m.amount_minor, m.currency, c.reference,
       a.name AS application, m.created_at AS requested_at, t.brand, t.last4,
       a.revoked_at IS NOT NULL OR o.disabled_at IS NOT NULL AS suspended
FROM gateway.movements m
JOIN gateway.charges c ON c.department_id = m.department_id AND c.charge_id = m.charge_id
JOIN gateway.tokens t ON t.department_id = c.department_id AND t.token_id = c.token_id
JOIN gateway.applications a ON a.department_id = m.department_id AND a.application_id = m.application_id
JOIN gateway.departments o ON o.department_id = m.department_id
WHERE m.department_id = ANY($1::text[]) AND m.movement_id = $2 AND m.kind = 'refund';

-- name: decide
-- The key of the table lets one verdict in, for ever; nothing leaves its waiting without one.
INSERT INTO gateway.refund_approvals (department_id, movement_id, verdict, staff_id, decided_at)
SELECT department_id, movement_id, $3, $4, now() FROM gateway.movements
WHERE department_id = $1 AND movement_id = $2 AND progress = 'awaiting_approval'
ON CONFLICT (department_id, movement_id) DO NOTHING RETURNING verdict;
