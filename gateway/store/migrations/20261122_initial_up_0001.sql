-- 0001: departments, applications, tokens, charges, idempotency, keys' mirror, audit.
--
-- Rules of this schema: every primary key and unique index of a department's table starts with department_id, which
-- never changes; foreign keys only within a department or to a reference table; append-only by grant; a second wall
-- by row-level security on `gateway.department`, which each transaction sets for itself. Nothing that a person typed
-- is here in clear: `sealed` columns hold it, and data_inventory.toml gives every column its class.

CREATE SCHEMA IF NOT EXISTS gateway;
CREATE SCHEMA audit;
REVOKE ALL ON SCHEMA gateway, audit FROM PUBLIC;
GRANT USAGE ON SCHEMA gateway, audit TO gateway_api, gateway_admin, gateway_worker, gateway_reseal, gateway_keys;

-- Reference tables: the same on every node.

CREATE TABLE gateway.departments (
  department_id text PRIMARY KEY CHECK (department_id ~ '^[a-z][a-z0-9_]{0,30}$' AND department_id <> 'city'),
  name          text NOT NULL,
  created_at    timestamptz NOT NULL
);

CREATE TABLE gateway.key_generations (
  generation     integer PRIMARY KEY CHECK (generation > 0),
  state          text NOT NULL CHECK (state IN ('pending', 'active', 'retired', 'compromised', 'destroyed')),
  wraps_reserved bigint NOT NULL DEFAULT 0 CHECK (wraps_reserved BETWEEN 0 AND 2147483648)
);

CREATE TABLE gateway.key_manifest (
  one     boolean PRIMARY KEY DEFAULT true CHECK (one),
  version integer NOT NULL CHECK (version > 0)
);

-- A department's tables.

CREATE TABLE gateway.applications (
  department_id    text NOT NULL REFERENCES gateway.departments,
  application_id   text NOT NULL,
  name             text NOT NULL,
  certificate_san  text,
  amount_minor_max bigint NOT NULL CHECK (amount_minor_max > 0),
  created_at       timestamptz NOT NULL,
  revoked_at       timestamptz,
  PRIMARY KEY (department_id, application_id)
);

CREATE TABLE gateway.api_keys (
  department_id  text NOT NULL,
  key_id         text NOT NULL,
  application_id text NOT NULL,
  digest         bytea NOT NULL CHECK (length(digest) = 32),
  created_at     timestamptz NOT NULL,
  revoked_at     timestamptz,
  PRIMARY KEY (department_id, key_id),
  FOREIGN KEY (department_id, application_id) REFERENCES gateway.applications
);

CREATE TABLE gateway.services (
  department_id text NOT NULL REFERENCES gateway.departments,
  service       text NOT NULL,
  name          text NOT NULL,
  gl_code       text NOT NULL,
  created_at    timestamptz NOT NULL,
  PRIMARY KEY (department_id, service)
);

CREATE TABLE gateway.deks (
  department_id text NOT NULL REFERENCES gateway.departments,
  record_id     text NOT NULL,
  generation    integer NOT NULL REFERENCES gateway.key_generations,
  wrapped       bytea NOT NULL,
  PRIMARY KEY (department_id, record_id)
);
CREATE INDEX deks_by_generation ON gateway.deks (generation, department_id, record_id);

CREATE TABLE gateway.fingerprints (
  department_id  text NOT NULL REFERENCES gateway.departments,
  key_version    integer NOT NULL,
  card_index     bytea NOT NULL CHECK (length(card_index) = 32),
  fingerprint_id text NOT NULL,
  seen_at        timestamptz NOT NULL,
  PRIMARY KEY (department_id, key_version, card_index)
);
CREATE INDEX fingerprints_by_id ON gateway.fingerprints (department_id, fingerprint_id);

CREATE TABLE gateway.tokens (
  department_id  text NOT NULL,
  token_id       text NOT NULL,
  application_id text NOT NULL,
  kind           text NOT NULL CHECK (kind IN ('card')),
  usage          text NOT NULL CHECK (usage IN ('single', 'multi')),
  status         text NOT NULL CHECK (status IN ('active', 'spent', 'erased')),
  brand          text,
  last4          text CHECK (last4 ~ '^[0-9]{4}$'),
  fingerprint_id text,
  cvc_check      text NOT NULL CHECK (cvc_check IN ('pass', 'fail', 'unavailable', 'unchecked')),
  created_at     timestamptz NOT NULL,
  expires_at     timestamptz NOT NULL,
  sealed         bytea,
  has_record     boolean NOT NULL GENERATED ALWAYS AS (sealed IS NOT NULL) STORED,
  PRIMARY KEY (department_id, token_id),
  FOREIGN KEY (department_id, application_id) REFERENCES gateway.applications,
  CHECK ((status = 'erased') = (sealed IS NULL)),
  CHECK (status <> 'erased' OR (brand IS NULL AND last4 IS NULL AND fingerprint_id IS NULL))
);
CREATE INDEX tokens_by_fingerprint ON gateway.tokens (department_id, fingerprint_id) WHERE fingerprint_id IS NOT NULL;

CREATE TABLE gateway.charges (
  department_id         text NOT NULL,
  charge_id             text NOT NULL,
  application_id        text NOT NULL,
  token_id              text NOT NULL,
  idempotency_key       text NOT NULL,
  amount_minor          bigint NOT NULL CHECK (amount_minor > 0),
  currency              text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  convenience_fee_minor bigint NOT NULL CHECK (convenience_fee_minor BETWEEN 0 AND amount_minor),
  service               text,
  reference             text NOT NULL,
  processor_reference   text NOT NULL,
  state                 text NOT NULL CHECK (state IN ('sending', 'unknown', 'captured', 'declined', 'rejected')),
  captured_minor        bigint NOT NULL DEFAULT 0 CHECK (captured_minor BETWEEN 0 AND amount_minor),
  refunded_minor        bigint NOT NULL DEFAULT 0 CHECK (refunded_minor BETWEEN 0 AND captured_minor),
  cvc_check             text NOT NULL CHECK (cvc_check IN ('pass', 'fail', 'unavailable', 'unchecked')),
  with_cvc              boolean NOT NULL,
  decline_class         text,
  decline_code          text,
  created_at            timestamptz NOT NULL,
  lease_until           timestamptz NOT NULL,
  sealed                bytea,
  has_record            boolean NOT NULL GENERATED ALWAYS AS (sealed IS NOT NULL) STORED,
  PRIMARY KEY (department_id, charge_id),
  UNIQUE (department_id, processor_reference),
  FOREIGN KEY (department_id, application_id) REFERENCES gateway.applications,
  FOREIGN KEY (department_id, token_id) REFERENCES gateway.tokens,
  FOREIGN KEY (department_id, service) REFERENCES gateway.services,
  CHECK ((state = 'declined') = (decline_code IS NOT NULL))
);
CREATE INDEX charges_by_time ON gateway.charges (department_id, created_at DESC, charge_id DESC);
CREATE INDEX charges_by_reference ON gateway.charges (department_id, reference, created_at DESC, charge_id DESC);
CREATE INDEX charges_by_token ON gateway.charges (department_id, token_id);
CREATE INDEX charges_unresolved ON gateway.charges (department_id, created_at) WHERE state IN ('sending', 'unknown');

-- The mapping from key to effect never expires; only answers may be compacted.
CREATE TABLE gateway.idempotency (
  department_id    text NOT NULL REFERENCES gateway.departments,
  route            text NOT NULL,
  idempotency_key  text NOT NULL,
  request_digest   bytea NOT NULL CHECK (length(request_digest) = 32),
  card_part        bytea CHECK (length(card_part) = 32),
  card_key_version integer,
  subject_id       text NOT NULL,
  status           smallint,
  body             bytea,
  created_at       timestamptz NOT NULL,
  lease_until      timestamptz NOT NULL,
  PRIMARY KEY (department_id, route, idempotency_key),
  CHECK ((status IS NULL) = (body IS NULL)),
  CHECK ((card_part IS NULL) = (card_key_version IS NULL))
);
CREATE INDEX idempotency_by_subject ON gateway.idempotency (department_id, subject_id);

CREATE TABLE audit.events (
  department_id text NOT NULL,
  event_id      text NOT NULL,
  occurred_at   timestamptz NOT NULL,
  process       text NOT NULL,
  event         text NOT NULL,
  outcome       text NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
  actor         text NOT NULL,
  subject       text NOT NULL,
  reason        text NOT NULL,
  request_id    text NOT NULL,
  mac           bytea NOT NULL CHECK (length(mac) = 32),
  PRIMARY KEY (department_id, event_id)
);

-- Row-level security: a transaction sees the department that it named, and nothing without naming one.

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['services', 'deks', 'fingerprints', 'tokens', 'charges', 'idempotency'] LOOP
    EXECUTE format('ALTER TABLE gateway.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format($p$CREATE POLICY own_department ON gateway.%I TO gateway_api
      USING (department_id = current_setting('gateway.department', true))
      WITH CHECK (department_id = current_setting('gateway.department', true))$p$, name);
  END LOOP;
END $$;

ALTER TABLE audit.events ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_department ON audit.events FOR INSERT TO gateway_api, gateway_admin, gateway_worker, gateway_reseal
  WITH CHECK (department_id = 'city' OR department_id = current_setting('gateway.department', true));
CREATE POLICY key_acts ON audit.events FOR INSERT TO gateway_keys WITH CHECK (department_id = 'city');

-- `keys` works on the wraps of all departments, and sees of records no more than that they exist.
CREATE POLICY every_wrap ON gateway.deks TO gateway_keys USING (true) WITH CHECK (true);
CREATE POLICY ids_only ON gateway.tokens FOR SELECT TO gateway_keys USING (true);
CREATE POLICY ids_only ON gateway.charges FOR SELECT TO gateway_keys USING (true);

-- Least privilege, a role a process. Nobody may update or delete an audit row.

GRANT SELECT ON gateway.departments, gateway.key_generations, gateway.key_manifest,
  gateway.applications, gateway.api_keys TO gateway_api;
GRANT UPDATE (wraps_reserved) ON gateway.key_generations TO gateway_api;
GRANT SELECT ON gateway.services TO gateway_api;
GRANT SELECT, INSERT, DELETE ON gateway.deks TO gateway_api;
GRANT SELECT, INSERT, DELETE, UPDATE (seen_at) ON gateway.fingerprints TO gateway_api;
GRANT SELECT, INSERT,
  UPDATE (status, sealed, brand, last4, fingerprint_id, expires_at) ON gateway.tokens TO gateway_api;
GRANT SELECT, INSERT,
  UPDATE (state, captured_minor, refunded_minor, cvc_check, decline_class, decline_code, lease_until)
  ON gateway.charges TO gateway_api;
GRANT SELECT, INSERT,
  UPDATE (status, body, card_part, card_key_version, lease_until) ON gateway.idempotency TO gateway_api;

GRANT SELECT ON gateway.deks TO gateway_keys;
GRANT SELECT, INSERT, UPDATE ON gateway.key_generations, gateway.key_manifest TO gateway_keys;
GRANT SELECT (department_id, token_id, has_record) ON gateway.tokens TO gateway_keys;
GRANT SELECT (department_id, charge_id, has_record) ON gateway.charges TO gateway_keys;

GRANT INSERT ON audit.events TO gateway_api, gateway_admin, gateway_worker, gateway_reseal, gateway_keys;
