-- 0004: who may do what. Applications get scopes, services, limits and keys that end; departments a contract of the
-- personal fields that they may send; staff accounts, sessions and tries; and refunds that wait for an approver.

ALTER TABLE gateway.departments ADD COLUMN disabled_at timestamptz;

-- What a department may send of a person beside name and card, and why the city needs it. Nothing else is taken.
CREATE TABLE gateway.personal_fields (
  department_id text NOT NULL REFERENCES gateway.departments,
  field         text NOT NULL CHECK (field = '*' OR field ~ '^[a-z][a-z_]{0,39}(\.[a-z][a-z_]{0,39}){0,3}$'),
  reason        text NOT NULL CHECK (reason <> ''),
  created_at    timestamptz NOT NULL,
  PRIMARY KEY (department_id, field)
);

ALTER TABLE gateway.applications
  ADD COLUMN scopes text[] NOT NULL DEFAULT
    '{tokens:read,tokens:write,tokens:erase,charges:read,charges:write,charges:refund}',
  ADD COLUMN services text[],
  ADD COLUMN refund_minor_max bigint CHECK (refund_minor_max > 0),
  ADD COLUMN requests_per_s_max integer NOT NULL DEFAULT 1000 CHECK (requests_per_s_max > 0);
ALTER TABLE gateway.applications ALTER COLUMN scopes DROP DEFAULT, ALTER COLUMN requests_per_s_max DROP DEFAULT,
  ADD CHECK (scopes <@ ARRAY['tokens:read', 'tokens:write', 'tokens:erase', 'charges:read', 'charges:write',
                             'charges:refund']);
COMMENT ON COLUMN gateway.applications.services IS 'NULL: all that the department registered';
COMMENT ON COLUMN gateway.applications.refund_minor_max IS 'above it a refund waits for an approver; NULL: none waits';

ALTER TABLE gateway.api_keys ADD COLUMN expires_at timestamptz, ADD COLUMN last_used_at timestamptz;

-- Client certificates that are refused whatever the revocation list says. Reference table.
CREATE TABLE gateway.denied_certificates (
  fingerprint bytea PRIMARY KEY CHECK (length(fingerprint) = 32),
  reason      text NOT NULL,
  denied_at   timestamptz NOT NULL
);

-- Staff: the city's people, hence of no department. Reference tables. What somebody may do is written by the owner
-- alone, behind two officers' signatures; the admin process moves factors and times.
CREATE TABLE gateway.staff (
  staff_id             text PRIMARY KEY,
  username             text NOT NULL UNIQUE CHECK (username ~ '^[a-z][a-z0-9.]{2,30}$'),
  person               text NOT NULL CHECK (person <> ''),
  roles                text[] NOT NULL CHECK (cardinality(roles) > 0 AND
                         roles <@ ARRAY['finance', 'approver', 'records', 'auditor']),
  departments          text[] NOT NULL CHECK (cardinality(departments) > 0),
  password_hash        text,
  password_must_change boolean NOT NULL,
  earlier_hashes       text[] NOT NULL DEFAULT '{}',
  totp_sealed          bytea,
  totp_step            bigint NOT NULL DEFAULT 0,
  oidc_subject         text UNIQUE,
  grant_act            text NOT NULL UNIQUE,
  granted_by           text NOT NULL,
  approved_by          text NOT NULL CHECK (approved_by <> granted_by),
  created_at           timestamptz NOT NULL,
  granted_at           timestamptz NOT NULL,
  last_signed_in_at    timestamptz,
  disabled_at          timestamptz,
  CHECK ((password_hash IS NULL) = (totp_sealed IS NULL)),
  CHECK (password_hash IS NOT NULL OR oidc_subject IS NOT NULL)
);
CREATE UNIQUE INDEX staff_one_account_a_person ON gateway.staff (person) WHERE disabled_at IS NULL;
COMMENT ON COLUMN gateway.staff.departments IS '{*}: all of them, also those to come';

CREATE TABLE gateway.staff_sessions (
  session_digest bytea PRIMARY KEY CHECK (length(session_digest) = 32),
  staff_id       text NOT NULL REFERENCES gateway.staff,
  kind           text NOT NULL CHECK (kind IN ('browser', 'script')),
  created_at     timestamptz NOT NULL,
  seen_at        timestamptz NOT NULL,
  ended_at       timestamptz
);
CREATE INDEX staff_sessions_by_staff ON gateway.staff_sessions (staff_id) WHERE ended_at IS NULL;

-- Tries to sign in, by a keyed digest of the name: of names that nobody has, too, so that both look the same.
CREATE TABLE gateway.sign_in_tries (
  name_digest  bytea PRIMARY KEY CHECK (length(name_digest) = 32),
  tries        integer NOT NULL CHECK (tries >= 0),
  locked_until timestamptz,
  tried_at     timestamptz NOT NULL
);

-- A refund above its application's limit: held back until an approver has decided, which is written once.
ALTER TABLE gateway.movements DROP CONSTRAINT movements_progress_check, ADD CONSTRAINT movements_progress_check
  CHECK (progress IN ('awaiting_approval', 'sending', 'unknown', 'in_review', 'done', 'refused', 'failed')),
  DROP CONSTRAINT movements_sends_check,
  ADD CHECK (sends > 0 OR sends = 0 AND kind = 'refund' AND progress IN ('awaiting_approval', 'failed')),
  ADD CHECK (progress <> 'awaiting_approval' OR kind = 'refund' AND sends = 0);
CREATE INDEX movements_awaiting ON gateway.movements (department_id, created_at, movement_id)
  WHERE progress = 'awaiting_approval';
CREATE TABLE gateway.refund_approvals (
  department_id text NOT NULL,
  movement_id   text NOT NULL,
  verdict       text NOT NULL CHECK (verdict IN ('approved', 'rejected')),
  staff_id      text NOT NULL REFERENCES gateway.staff,
  decided_at    timestamptz NOT NULL,
  PRIMARY KEY (department_id, movement_id),
  FOREIGN KEY (department_id, movement_id) REFERENCES gateway.movements
);

DO $$
DECLARE
  own text := 'department_id = current_setting(''gateway.department'', true)';
  -- What staff may see: the departments of who asks, which each look of the admin process names; when it writes, the
  -- one that it writes for.
  seen text := own || ' OR department_id = ANY (string_to_array(current_setting(''gateway.departments'', true), '',''))';
  role text;
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['personal_fields', 'refund_approvals'] LOOP
    EXECUTE format('ALTER TABLE gateway.%I ENABLE ROW LEVEL SECURITY', name);
  END LOOP;
  -- Read before a department is known, as applications are.
  EXECUTE 'CREATE POLICY every_contract ON gateway.personal_fields FOR SELECT TO gateway_api USING (true)';
  EXECUTE format('CREATE POLICY decided ON gateway.refund_approvals FOR SELECT TO gateway_api USING (%s)', own);
  -- In nobody's name but an approver's of that department, whatever the code does.
  EXECUTE format('CREATE POLICY decides ON gateway.refund_approvals FOR INSERT TO gateway_admin WITH CHECK (%s AND EXISTS (
    SELECT FROM gateway.staff s WHERE s.staff_id = refund_approvals.staff_id AND ''approver'' = ANY (s.roles)
    AND s.disabled_at IS NULL AND s.departments && ARRAY[''*'', refund_approvals.department_id]))', own);
  FOREACH name IN ARRAY ARRAY['services', 'tokens', 'charges', 'movements', 'journal', 'refund_approvals'] LOOP
    EXECUTE format('CREATE POLICY staff_sees ON gateway.%I FOR SELECT TO gateway_admin USING (%s)', name, seen);
  END LOOP;
  -- As before; and what waits moves only once it was decided about, and where it was decided to.
  EXECUTE 'DROP POLICY gateway_api_moves ON gateway.movements';
  EXECUTE format('CREATE POLICY gateway_api_moves ON gateway.movements FOR UPDATE TO gateway_api
    USING (%s AND (progress IN (''sending'', ''unknown'', ''in_review'') OR progress = ''awaiting_approval'' AND EXISTS (
      SELECT FROM gateway.refund_approvals a
      WHERE a.department_id = movements.department_id AND a.movement_id = movements.movement_id)))
    WITH CHECK (%s AND (progress = ''failed'' OR NOT EXISTS (
      SELECT FROM gateway.refund_approvals a WHERE a.department_id = movements.department_id
      AND a.movement_id = movements.movement_id AND a.verdict = ''rejected'')))',
    own, own);
END $$;

GRANT SELECT ON gateway.personal_fields, gateway.denied_certificates, gateway.refund_approvals TO gateway_api;
GRANT UPDATE (last_used_at) ON gateway.api_keys TO gateway_api;
GRANT UPDATE (first_sent_at, not_after) ON gateway.movements TO gateway_api;

-- `admin`: reads the ledger of the departments that it names, never a sealed byte, and decides about refunds.
GRANT SELECT ON gateway.departments, gateway.services, gateway.movements, gateway.journal TO gateway_admin;
GRANT SELECT (department_id, application_id, name, revoked_at) ON gateway.applications TO gateway_admin;
GRANT SELECT (department_id, charge_id, application_id, token_id, amount_minor, currency, convenience_fee_minor, service,
              reference, processor_reference, kind, progress, captured_minor, refunded_minor, refunding_minor, cvc_check,
              decline_class, decline_code, created_at) ON gateway.charges TO gateway_admin;
GRANT SELECT (department_id, token_id, brand, last4, status) ON gateway.tokens TO gateway_admin;
GRANT SELECT, INSERT ON gateway.refund_approvals TO gateway_admin;
GRANT SELECT, UPDATE (password_hash, password_must_change, earlier_hashes, totp_sealed, totp_step, last_signed_in_at)
  ON gateway.staff TO gateway_admin;
GRANT SELECT, INSERT, UPDATE (seen_at, ended_at) ON gateway.staff_sessions TO gateway_admin;
GRANT SELECT, INSERT, DELETE, UPDATE (tries, locked_until, tried_at) ON gateway.sign_in_tries TO gateway_admin;
