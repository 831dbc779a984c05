-- 0003: movements. A charge's sale or authorization, its capture or void and its refunds each have a row with a life
-- of their own; what a movement that happened means in money stands in the journal, which only grows.

CREATE TABLE gateway.movements (
  department_id   text NOT NULL,
  movement_id     text NOT NULL,
  charge_id       text NOT NULL,
  kind            text NOT NULL CHECK (kind IN ('sale', 'authorization', 'capture', 'void', 'refund')),
  amount_minor    bigint NOT NULL CHECK (amount_minor > 0),
  currency        text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  reference       text NOT NULL,
  application_id  text NOT NULL,
  route           text NOT NULL,
  idempotency_key text NOT NULL,
  progress        text NOT NULL CHECK (progress IN ('sending', 'unknown', 'in_review', 'done', 'refused', 'failed')),
  with_cvc        boolean NOT NULL,
  decline_class   text,
  decline_code    text,
  created_at      timestamptz NOT NULL,
  first_sent_at   timestamptz NOT NULL,
  not_after       timestamptz NOT NULL,
  sends           integer NOT NULL DEFAULT 1 CHECK (sends > 0),
  epoch           integer NOT NULL DEFAULT 0 CHECK (epoch >= 0),
  looks           integer NOT NULL DEFAULT 0,
  lease_until     timestamptz NOT NULL,
  resend_until    timestamptz,
  PRIMARY KEY (department_id, movement_id),
  UNIQUE (department_id, reference),
  FOREIGN KEY (department_id, charge_id) REFERENCES gateway.charges,
  FOREIGN KEY (department_id, application_id) REFERENCES gateway.applications,
  CHECK ((progress = 'refused') = (decline_code IS NOT NULL))
);
CREATE INDEX movements_by_charge ON gateway.movements (department_id, charge_id);
CREATE INDEX movements_open ON gateway.movements (department_id, lease_until)
  WHERE progress IN ('sending', 'unknown', 'in_review');
CREATE INDEX movements_marked ON gateway.movements (department_id, resend_until) WHERE resend_until IS NOT NULL;
-- Whatever the code does: a charge has one beginning, one movement at a time but for refunds, one capture.
CREATE UNIQUE INDEX movements_one_beginning ON gateway.movements (department_id, charge_id)
  WHERE kind IN ('sale', 'authorization');
CREATE UNIQUE INDEX movements_one_at_a_time ON gateway.movements (department_id, charge_id)
  WHERE kind <> 'refund' AND progress IN ('sending', 'unknown', 'in_review');
CREATE UNIQUE INDEX movements_one_capture ON gateway.movements (department_id, charge_id)
  WHERE kind IN ('sale', 'capture') AND progress = 'done';

-- One entry is one debit and one equal credit: no set of rows can be out of balance.
CREATE TABLE gateway.journal (
  department_id text NOT NULL,
  movement_id   text NOT NULL,
  line          smallint NOT NULL CHECK (line > 0),
  debit         text NOT NULL CHECK (debit IN ('receivable', 'convenience_fees', 'processor_due', 'refunds')),
  credit        text NOT NULL CHECK (credit IN ('receivable', 'convenience_fees', 'processor_due', 'refunds')),
  amount_minor  bigint NOT NULL CHECK (amount_minor > 0),
  currency      text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  recorded_at   timestamptz NOT NULL,
  PRIMARY KEY (department_id, movement_id, line),
  FOREIGN KEY (department_id, movement_id) REFERENCES gateway.movements,
  CHECK (debit <> credit)
);

-- Where a charge stands is where its latest movement stands, refunds aside.
ALTER TABLE gateway.charges ADD COLUMN kind text, ADD COLUMN progress text,
  ADD COLUMN refunding_minor bigint NOT NULL DEFAULT 0 CHECK (refunding_minor >= 0);
UPDATE gateway.charges SET kind = 'sale', progress = CASE state WHEN 'captured' THEN 'done' WHEN 'declined' THEN 'refused'
  WHEN 'rejected' THEN 'failed' ELSE state END;
INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency, reference,
  application_id, route, idempotency_key, progress, with_cvc, decline_class, decline_code, created_at, first_sent_at,
  not_after, lease_until)
SELECT department_id, 'mv_' || substr(charge_id, 4), charge_id, kind, amount_minor, currency, processor_reference,
  application_id, 'POST /v1/charges', idempotency_key, progress, with_cvc, decline_class, decline_code, created_at,
  created_at, created_at, lease_until
FROM gateway.charges;
INSERT INTO gateway.journal
SELECT department_id, 'mv_' || substr(charge_id, 4), 1, 'processor_due', 'receivable',
  amount_minor - convenience_fee_minor, currency, lease_until
FROM gateway.charges WHERE progress = 'done' AND amount_minor > convenience_fee_minor;
INSERT INTO gateway.journal
SELECT department_id, 'mv_' || substr(charge_id, 4), 2, 'processor_due', 'convenience_fees', convenience_fee_minor,
  currency, lease_until
FROM gateway.charges WHERE progress = 'done' AND convenience_fee_minor > 0;
DROP INDEX gateway.charges_unresolved;
ALTER TABLE gateway.charges DROP COLUMN state, DROP COLUMN with_cvc, DROP COLUMN lease_until,
  DROP COLUMN idempotency_key,
  ALTER COLUMN kind SET NOT NULL, ALTER COLUMN progress SET NOT NULL,
  ADD CHECK (kind IN ('sale', 'authorization', 'capture', 'void')),
  ADD CHECK (progress IN ('sending', 'unknown', 'in_review', 'done', 'refused', 'failed')),
  ADD CHECK (refunded_minor + refunding_minor <= captured_minor),
  ADD CHECK ((kind IN ('sale', 'authorization') AND progress = 'refused') = (decline_code IS NOT NULL)),
  ADD CHECK ((captured_minor > 0) = (kind IN ('sale', 'capture') AND progress = 'done'));

DO $$
DECLARE
  own text := 'department_id = current_setting(''gateway.department'', true)';
  role text;
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['movements', 'journal'] LOOP
    EXECUTE format('ALTER TABLE gateway.%I ENABLE ROW LEVEL SECURITY', name);
  END LOOP;
  FOREACH role IN ARRAY ARRAY['gateway_api', 'gateway_worker'] LOOP
    EXECUTE format('CREATE POLICY %I ON gateway.journal TO %I USING (%s) WITH CHECK (%s)', role, role, own, own);
    EXECUTE format('CREATE POLICY %I ON gateway.movements FOR SELECT TO %I USING (%s)', role || '_sees', role, own);
    EXECUTE format('CREATE POLICY %I ON gateway.movements FOR INSERT TO %I WITH CHECK (%s)', role || '_adds', role, own);
    -- What is final is nobody's to change, whatever the code does.
    EXECUTE format('CREATE POLICY %I ON gateway.movements FOR UPDATE TO %I
      USING (%s AND progress IN (''sending'', ''unknown'', ''in_review'')) WITH CHECK (%s)',
      role || '_moves', role, own, own);
  END LOOP;
  FOREACH name IN ARRAY ARRAY['charges', 'tokens', 'idempotency'] LOOP
    EXECUTE format('CREATE POLICY recovering ON gateway.%I TO gateway_worker USING (%s) WITH CHECK (%s)', name, own, own);
  END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE (progress, decline_class, decline_code, sends, epoch, looks, lease_until, resend_until)
  ON gateway.movements TO gateway_api;
GRANT SELECT, INSERT ON gateway.journal TO gateway_api;
GRANT UPDATE (kind, progress, refunding_minor) ON gateway.charges TO gateway_api;

-- `worker`: moves what is unresolved, and never sees a sealed byte, a card's part or a key.
GRANT SELECT ON gateway.departments TO gateway_worker;
GRANT SELECT, UPDATE (progress, decline_class, decline_code, epoch, looks, lease_until, resend_until)
  ON gateway.movements TO gateway_worker;
GRANT SELECT, INSERT ON gateway.journal TO gateway_worker;
GRANT SELECT (department_id, charge_id, application_id, token_id, amount_minor, currency, convenience_fee_minor, service,
              reference, processor_reference, kind, progress, captured_minor, refunded_minor, refunding_minor, cvc_check,
              decline_class, decline_code, created_at),
  UPDATE (kind, progress, captured_minor, refunded_minor, refunding_minor, cvc_check, decline_class, decline_code)
  ON gateway.charges TO gateway_worker;
GRANT SELECT (department_id, token_id, status, has_record), UPDATE (status) ON gateway.tokens TO gateway_worker;
GRANT SELECT (department_id, route, idempotency_key, request_digest, subject_id, status, body, lease_until),
  UPDATE (status, body) ON gateway.idempotency TO gateway_worker;
