-- Who may do what, for the half-yearly review: read by the owner, beside what applications.sql and accounts.sql
-- list.

-- name: database_roles
-- Whoever may connect to this database, superusers included.
SELECT rolname AS role, rolsuper AS superuser, rolbypassrls AS bypasses_row_security, rolcreaterole AS creates_roles
FROM pg_roles WHERE rolcanlogin AND has_database_privilege(oid, current_database(), 'CONNECT') ORDER BY rolname;

-- name: owner_acts
-- What the owner's audit rows tell of these events. Other roles can insert rows that say the same: the MAC decides.
SELECT department_id, event_id, occurred_at, process, event, outcome, actor, subject, reason, request_id, mac_key, mac
FROM audit.events WHERE process = 'owner' AND event = ANY ($1::text[]) ORDER BY occurred_at;
