-- Departments, services, applications and their keys: what the owner writes, and the api process only reads.

-- name: add_department
INSERT INTO gateway.departments (department_id, name, created_at) VALUES ($1, $2, now())
ON CONFLICT (department_id) DO NOTHING;

-- name: add_service
INSERT INTO gateway.services (department_id, service, name, gl_code, created_at) VALUES ($1, $2, $3, $4, now())
ON CONFLICT (department_id, service) DO NOTHING;

-- name: add_application
INSERT INTO gateway.applications (department_id, application_id, name, certificate_san, amount_minor_max, scopes,
                                  requests_per_s_max, created_at)
VALUES ($1, $2, $3, $4, $5, '{tokens:read,tokens:write,tokens:erase,charges:read,charges:write,charges:refund}', 100,
        now());

-- name: add_key
INSERT INTO gateway.api_keys (department_id, key_id, application_id, digest_key, digest, created_at)
VALUES ($1, $2, $3, $4, $5, now());

-- name: list_applications
SELECT a.department_id, a.application_id, a.name, a.amount_minor_max, a.revoked_at,
       count(k.key_id) FILTER (WHERE k.revoked_at IS NULL) AS live_keys
FROM gateway.applications a LEFT JOIN gateway.api_keys k USING (department_id, application_id)
GROUP BY a.department_id, a.application_id ORDER BY a.department_id, a.application_id;
