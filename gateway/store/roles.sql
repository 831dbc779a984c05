-- The roles, one a process; run once by the database's superuser (./deploy/run does it for the embedded server).
-- Passwords are set by the caller, as SCRAM verifiers. No role here is superuser or may read the server's files.
-- name: create_roles
DO $$
DECLARE role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['gateway_owner', 'gateway_api', 'gateway_admin', 'gateway_worker',
                              'gateway_reseal', 'gateway_keys'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', role);
    END IF;
  END LOOP;
END $$;
