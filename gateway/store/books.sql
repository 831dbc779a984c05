-- What the days and the general-ledger codes of departments are.

-- name: cutoffs
-- Of these departments; NULL: of all that the transaction sees.
SELECT department_id, valid_from, at FROM gateway.cutoffs WHERE $1::text[] IS NULL OR department_id = ANY($1);

-- name: mapped
SELECT department_id AS department, service, valid_from, gl_code, share FROM gateway.gl_codes
WHERE department_id = ANY($1::text[]);

-- name: registered
SELECT department_id, service, gl_code FROM gateway.services WHERE department_id = ANY($1::text[]);

-- name: drop_mapped
-- What lies ahead may still be written anew.
DELETE FROM gateway.gl_codes WHERE department_id = $1 AND service = $2 AND valid_from = $3;

-- name: put_mapped
INSERT INTO gateway.gl_codes (department_id, service, valid_from, gl_code, share) VALUES ($1, $2, $3, $4, $5);

-- name: put_cutoff
INSERT INTO gateway.cutoffs (department_id, valid_from, at) VALUES ($1, $2, $3)
ON CONFLICT (department_id, valid_from) DO UPDATE SET at = EXCLUDED.at;

-- name: fee_costs
SELECT valid_from, basis_points, fixed_minor FROM gateway.fee_costs WHERE department_id = $1 ORDER BY valid_from;

-- name: put_fee_cost
INSERT INTO gateway.fee_costs (department_id, valid_from, basis_points, fixed_minor) VALUES ($1, $2, $3, $4)
ON CONFLICT (department_id, valid_from) DO UPDATE
SET basis_points = EXCLUDED.basis_points, fixed_minor = EXCLUDED.fixed_minor;
