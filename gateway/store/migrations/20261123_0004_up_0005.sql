-- 0005: finance. Imported settlements and deposits, reconciliations, exceptions, closes, and what the admin process
-- adds to the accounts. All of it only grows: what somebody did later is a row of its own, and where a thing stands
-- is what its last row says. Lines of a file that belong to no department that is known here, and everything that is
-- the whole city's, stand under the department 'city', which only a grant for all departments reaches.

-- When a movement was done is when its first entry was recorded.
CREATE INDEX journal_by_time ON gateway.journal (department_id, recorded_at) WHERE line = 1;
CREATE INDEX tokens_by_last4 ON gateway.tokens (department_id, last4);
CREATE INDEX events_by_time ON audit.events (department_id, occurred_at, event_id);
CREATE INDEX events_by_subject ON audit.events (department_id, subject);

-- What a department's days, accounts and fees are from a date on. The owner writes them, by command.
CREATE TABLE gateway.cutoffs (
  department_id text NOT NULL REFERENCES gateway.departments,
  valid_from    date NOT NULL,
  at            time NOT NULL,
  PRIMARY KEY (department_id, valid_from)
);
COMMENT ON COLUMN gateway.cutoffs.at IS 'in the city''s time zone; from then on it is the next business date';
CREATE TABLE gateway.gl_codes (
  department_id text NOT NULL REFERENCES gateway.departments,
  service       text NOT NULL,
  valid_from    date NOT NULL,
  gl_code       text NOT NULL CHECK (gl_code ~ '^[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,63}$'),
  share         integer NOT NULL CHECK (share > 0),
  PRIMARY KEY (department_id, service, valid_from, gl_code)
);
COMMENT ON COLUMN gateway.gl_codes.service IS 'a service of the department; empty for what has none';
CREATE TABLE gateway.fee_costs (
  department_id text NOT NULL REFERENCES gateway.departments,
  valid_from    date NOT NULL,
  basis_points  integer NOT NULL CHECK (basis_points BETWEEN 0 AND 10000),
  fixed_minor   integer NOT NULL CHECK (fixed_minor >= 0),
  PRIMARY KEY (department_id, valid_from)
);

-- Reference table: a file holds lines of every department.
CREATE TABLE gateway.imports (
  import_id   text PRIMARY KEY,
  kind        text NOT NULL CHECK (kind IN ('settlement', 'deposit')),
  format      text NOT NULL,
  sha256      bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),
  lines       integer NOT NULL CHECK (lines >= 0),
  gross_minor bigint NOT NULL,
  fee_minor   bigint NOT NULL,
  net_minor   bigint NOT NULL CHECK (net_minor = gross_minor - fee_minor),
  currency    text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  settled_on  date[] NOT NULL,
  staff_id    text NOT NULL,
  imported_at timestamptz NOT NULL
);
COMMENT ON COLUMN gateway.imports.settled_on IS 'every date on which a line of the file was settled, or credited';
COMMENT ON COLUMN gateway.imports.staff_id IS 'who brought it; `inbox` where a watched folder did';

-- `subject` is the charge that a line is about, or its reference where nobody here knows that.
-- What a file comes to is known, and written, after its last line.
CREATE TABLE gateway.settlement_lines (
  department_id text NOT NULL,
  import_id     text NOT NULL REFERENCES gateway.imports DEFERRABLE INITIALLY DEFERRED,
  line          integer NOT NULL CHECK (line > 0),
  kind          text NOT NULL CHECK (kind IN ('charge', 'refund', 'chargeback', 'adjustment')),
  subject       text NOT NULL,
  reference     text NOT NULL,
  gross_minor   bigint NOT NULL,
  fee_minor     bigint NOT NULL,
  net_minor     bigint NOT NULL CHECK (net_minor = gross_minor - fee_minor),
  currency      text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  created_at    timestamptz NOT NULL,
  settled_on    date NOT NULL,
  batch         text NOT NULL,
  business_date date NOT NULL,
  PRIMARY KEY (department_id, import_id, line)
);
CREATE INDEX settlement_lines_by_subject ON gateway.settlement_lines (department_id, subject);
CREATE INDEX settlement_lines_by_date ON gateway.settlement_lines (department_id, business_date);
CREATE INDEX settlement_lines_by_batch ON gateway.settlement_lines (department_id, batch);
COMMENT ON COLUMN gateway.settlement_lines.business_date IS
  'of created_at; where that was closed at the import, the first open date after it';

-- Lines and items as a process hands them over, some thousand at once. Row-level security lets nobody COPY, and rows
-- in one array are half the work of an array for each column.
CREATE TYPE gateway.new_line AS (
  department_id text, subject text, business_date date, line integer, kind text, reference text, gross_minor bigint,
  fee_minor bigint, net_minor bigint, currency text, created_at timestamptz, settled_on date, batch text
);
CREATE TYPE gateway.new_item AS (
  state text, reason text, kind text, charge_id text, movement_id text, reference text, ledger_minor bigint,
  settled_minor bigint, deposited_minor bigint, fee_minor bigint, expected_fee_minor bigint, batch text, currency text,
  business_date date, difference_minor bigint, exception_id text
);

CREATE TABLE gateway.deposit_lines (
  department_id text NOT NULL CHECK (department_id = 'city'),
  import_id     text NOT NULL REFERENCES gateway.imports DEFERRABLE INITIALLY DEFERRED,
  line          integer NOT NULL CHECK (line > 0),
  type_code     text NOT NULL,
  amount_minor  bigint NOT NULL,
  currency      text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  deposited_on  date NOT NULL,
  batch         text NOT NULL,
  bank_reference text NOT NULL,
  PRIMARY KEY (department_id, import_id, line)
);
CREATE INDEX deposit_lines_by_date ON gateway.deposit_lines (department_id, deposited_on);
CREATE INDEX deposit_lines_by_batch ON gateway.deposit_lines (department_id, batch);
COMMENT ON COLUMN gateway.deposit_lines.amount_minor IS 'negative where the bank took it';
COMMENT ON COLUMN gateway.deposit_lines.batch IS 'as the processor''s text or reference names it; empty where none does';

-- Reference table, seen by who sees all its departments.
CREATE TABLE gateway.reconciliations (
  reconciliation_id text PRIMARY KEY,
  departments       text[] NOT NULL CHECK (cardinality(departments) > 0),
  from_date         date NOT NULL,
  to_date           date NOT NULL CHECK (to_date >= from_date),
  counts            jsonb NOT NULL,
  totals            jsonb NOT NULL,
  inputs            text[] NOT NULL,
  staff_id          text NOT NULL,
  made_at           timestamptz NOT NULL
);
COMMENT ON COLUMN gateway.reconciliations.inputs IS 'SHA-256, in hex, of every file whose lines took part; sorted';

-- Written before their reconciliation, whose sums they make, and in one commit with it.
CREATE TABLE gateway.reconciliation_items (
  department_id     text NOT NULL,
  reconciliation_id text NOT NULL,
  item              integer NOT NULL CHECK (item > 0),
  state             text NOT NULL CHECK (state IN ('matched', 'timing', 'amount_differs', 'fee_differs', 'missing_here',
                                                   'missing_there', 'duplicate')),
  reason            text NOT NULL,
  charge_id         text,
  movement_id       text,
  reference         text NOT NULL,
  kind              text NOT NULL,
  ledger_minor      bigint,
  settled_minor     bigint,
  deposited_minor   bigint,
  fee_minor         bigint,
  expected_fee_minor bigint,
  difference_minor  bigint NOT NULL,
  currency          text NOT NULL,
  batch             text NOT NULL,
  business_date     date NOT NULL,
  exception_id      text,
  PRIMARY KEY (department_id, reconciliation_id, item)
);
CREATE INDEX reconciliation_items_by_exception ON gateway.reconciliation_items (department_id, exception_id)
  WHERE exception_id IS NOT NULL;

-- One for each difference, however often it is found. Where it stands is what its last act says; without one, open.
CREATE TABLE gateway.exceptions (
  department_id     text NOT NULL,
  exception_id      text NOT NULL,
  reconciliation_id text NOT NULL REFERENCES gateway.reconciliations,
  state             text NOT NULL CHECK (state IN ('timing', 'amount_differs', 'fee_differs', 'missing_here',
                                                   'missing_there', 'duplicate')),
  reason            text NOT NULL,
  charge_id         text,
  reference         text NOT NULL,
  difference_minor  bigint NOT NULL,
  currency          text NOT NULL,
  business_date     date NOT NULL,
  found_at          timestamptz NOT NULL,
  PRIMARY KEY (department_id, exception_id)
);
CREATE INDEX exceptions_by_date ON gateway.exceptions (department_id, business_date);
COMMENT ON COLUMN gateway.exceptions.difference_minor IS 'what processor or bank has more than the ledger; may be negative';

CREATE TABLE gateway.exception_acts (
  department_id text NOT NULL,
  exception_id  text NOT NULL,
  act           integer NOT NULL CHECK (act > 0),
  what          text NOT NULL CHECK (what IN ('taken', 'proposed', 'resolved', 'approved', 'rejected', 'cleared', 'reopened')),
  resolution    text NOT NULL,
  note          text NOT NULL CHECK (length(note) <= 500),
  staff_id      text NOT NULL,
  acted_at      timestamptz NOT NULL,
  PRIMARY KEY (department_id, exception_id, act),
  FOREIGN KEY (department_id, exception_id) REFERENCES gateway.exceptions
);

-- A chargeback's stages, by the lines that told of them.
CREATE TABLE gateway.chargebacks (
  department_id text NOT NULL,
  charge_id     text NOT NULL,
  stage_number  integer NOT NULL CHECK (stage_number > 0),
  stage         text NOT NULL CHECK (stage IN ('opened', 'won')),
  amount_minor  bigint NOT NULL CHECK (amount_minor > 0),
  currency      text NOT NULL,
  import_id     text NOT NULL,
  line          integer NOT NULL,
  recorded_at   timestamptz NOT NULL,
  PRIMARY KEY (department_id, charge_id, stage_number),
  UNIQUE (department_id, import_id, line),
  FOREIGN KEY (department_id, charge_id) REFERENCES gateway.charges
);

CREATE TABLE gateway.closes (
  department_id     text NOT NULL,
  close_id          text NOT NULL,
  from_date         date NOT NULL,
  to_date           date NOT NULL CHECK (to_date >= from_date),
  reconciliation_id text NOT NULL REFERENCES gateway.reconciliations,
  PRIMARY KEY (department_id, close_id)
);
CREATE TABLE gateway.close_acts (
  department_id text NOT NULL,
  close_id      text NOT NULL,
  act           integer NOT NULL CHECK (act > 0),
  what          text NOT NULL CHECK (what IN ('proposed', 'approved', 'rejected', 'reopening', 'reopened', 'kept')),
  reason        text NOT NULL CHECK (length(reason) <= 500),
  pack_sha256   bytea CHECK (length(pack_sha256) = 32),
  pack_signature bytea,
  pack_key      integer,
  staff_id      text NOT NULL,
  acted_at      timestamptz NOT NULL,
  PRIMARY KEY (department_id, close_id, act),
  FOREIGN KEY (department_id, close_id) REFERENCES gateway.closes,
  CHECK ((what = 'proposed') = (act = 1)),
  CHECK ((what = 'approved') = (pack_sha256 IS NOT NULL)),
  CHECK ((pack_sha256 IS NULL) = (pack_signature IS NULL) AND (pack_sha256 IS NULL) = (pack_key IS NULL))
);

-- Whether a business date is closed: that is what the last act on a close of it says.
CREATE FUNCTION gateway.is_closed(department text, day date) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (
    SELECT FROM gateway.closes c
    WHERE c.department_id = department AND day BETWEEN c.from_date AND c.to_date
    AND (SELECT a.what FROM gateway.close_acts a WHERE a.department_id = c.department_id AND a.close_id = c.close_id
         ORDER BY a.act DESC LIMIT 1) IN ('approved', 'reopening', 'kept'))
$$;
REVOKE ALL ON FUNCTION gateway.is_closed(text, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gateway.is_closed(text, date) TO gateway_admin;

-- What settlements, deposits, chargebacks and corrections mean in money; the journal of the api and worker processes
-- goes on with it. A row takes an amount from one account and gives it to another, and cannot be out of balance.
CREATE TABLE gateway.postings (
  department_id text NOT NULL,
  posting_id    text NOT NULL,
  line          integer NOT NULL CHECK (line > 0),
  debit         text NOT NULL,
  credit        text NOT NULL,
  amount_minor  bigint NOT NULL CHECK (amount_minor > 0),
  currency      text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  business_date date NOT NULL,
  source        text NOT NULL CHECK (source IN ('settlement', 'deposit', 'chargeback', 'exception')),
  source_id     text NOT NULL,
  recorded_at   timestamptz NOT NULL,
  PRIMARY KEY (department_id, posting_id, line),
  CHECK (debit <> credit),
  CHECK (ARRAY[debit, credit] <@ ARRAY['receivable', 'convenience_fees', 'processor_due', 'refunds', 'clearing', 'bank',
                                       'fees', 'chargebacks', 'over_short'])
);
CREATE INDEX postings_by_date ON gateway.postings (department_id, business_date);

DO $$
DECLARE
  -- What staff may see, or write for: the departments of who asks, which each transaction names.
  mine text := 'department_id = current_setting(''gateway.department'', true)'
    ' OR department_id = ANY (string_to_array(current_setting(''gateway.departments'', true), '',''))';
  -- The same, looked up once a statement and not once a row: for what comes by the hundred thousand.
  once text := 'department_id = (SELECT current_setting(''gateway.department'', true))'
    ' OR department_id = ANY ((SELECT string_to_array(current_setting(''gateway.departments'', true), '',''))::text[])';
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['settlement_lines', 'deposit_lines', 'reconciliation_items', 'exceptions',
                              'exception_acts', 'chargebacks', 'closes', 'close_acts', 'postings', 'reconciliations'] LOOP
    EXECUTE format('ALTER TABLE gateway.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('GRANT SELECT, INSERT ON gateway.%I TO gateway_admin', name);
    CONTINUE WHEN name = 'reconciliations';
    EXECUTE format('CREATE POLICY staff_sees ON gateway.%I FOR SELECT TO gateway_admin USING (%s)', name, mine);
    CONTINUE WHEN name IN ('postings', 'chargebacks', 'exception_acts', 'close_acts');
    EXECUTE format('CREATE POLICY staff_adds ON gateway.%I FOR INSERT TO gateway_admin WITH CHECK (%s)', name, mine);
  END LOOP;
  FOREACH name IN ARRAY ARRAY['settlement_lines', 'reconciliation_items', 'tokens', 'charges', 'movements', 'journal'] LOOP
    EXECUTE format('ALTER POLICY staff_sees ON gateway.%I USING (%s)', name, once);
    CONTINUE WHEN name NOT IN ('settlement_lines', 'reconciliation_items');
    EXECUTE format('ALTER POLICY staff_adds ON gateway.%I WITH CHECK (%s)', name, once);
  END LOOP;
  FOREACH name IN ARRAY ARRAY['cutoffs', 'gl_codes', 'fee_costs'] LOOP
    EXECUTE format('ALTER TABLE gateway.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY staff_sees ON gateway.%I FOR SELECT TO gateway_admin USING (%s)', name, mine);
  END LOOP;
  -- Read before a department is known, as applications are.
  CREATE POLICY every_cost ON gateway.fee_costs FOR SELECT TO gateway_api USING (true);
  -- Nothing is posted into a date that is closed, whatever the code does.
  EXECUTE format('CREATE POLICY staff_adds ON gateway.postings FOR INSERT TO gateway_admin
    WITH CHECK ((%s) AND NOT gateway.is_closed(department_id, business_date))', mine);
  -- What one proposed, or asked for, another one grants, and an approver of that department, whatever the code does.
  EXECUTE format('CREATE POLICY staff_adds ON gateway.exception_acts FOR INSERT TO gateway_admin
    WITH CHECK ((%s) AND (what NOT IN (''approved'', ''rejected'') OR EXISTS (
      SELECT FROM gateway.staff s WHERE s.staff_id = exception_acts.staff_id AND ''approver'' = ANY (s.roles)
      AND s.disabled_at IS NULL AND (''*'' = ANY (s.departments) OR exception_acts.department_id = ANY (s.departments)))
      AND EXISTS (SELECT FROM gateway.exception_acts a WHERE a.department_id = exception_acts.department_id
      AND a.exception_id = exception_acts.exception_id AND a.act = exception_acts.act - 1 AND a.what = ''proposed''
      AND a.staff_id <> exception_acts.staff_id)))', mine);
  EXECUTE format('CREATE POLICY staff_adds ON gateway.close_acts FOR INSERT TO gateway_admin
    WITH CHECK ((%s) AND (what IN (''proposed'', ''reopening'') OR EXISTS (
      SELECT FROM gateway.staff s WHERE s.staff_id = close_acts.staff_id AND ''approver'' = ANY (s.roles)
      AND s.disabled_at IS NULL AND (''*'' = ANY (s.departments) OR close_acts.department_id = ANY (s.departments))))
      AND (what = ''proposed'' OR EXISTS (SELECT FROM gateway.close_acts a
      WHERE a.department_id = close_acts.department_id AND a.close_id = close_acts.close_id
      AND a.act = close_acts.act - 1 AND CASE WHEN close_acts.what = ''reopening'' THEN a.what IN (''approved'', ''kept'')
        WHEN close_acts.what IN (''approved'', ''rejected'') THEN a.what = ''proposed'' AND a.staff_id <> close_acts.staff_id
        ELSE a.what = ''reopening'' AND a.staff_id <> close_acts.staff_id END)))',
    mine);
  EXECUTE format('CREATE POLICY staff_adds ON gateway.chargebacks FOR INSERT TO gateway_admin WITH CHECK (%s)', mine);
  CREATE POLICY staff_sees ON gateway.reconciliations FOR SELECT TO gateway_admin
    USING (departments <@ string_to_array(current_setting('gateway.departments', true), ','));
  CREATE POLICY staff_adds ON gateway.reconciliations FOR INSERT TO gateway_admin
    WITH CHECK (departments <@ string_to_array(current_setting('gateway.departments', true), ','));
  -- The audit log is read by department, too; what is the city's own only with a grant for all of them.
  CREATE POLICY staff_sees ON audit.events FOR SELECT TO gateway_admin
    USING (department_id = ANY (string_to_array(current_setting('gateway.departments', true), ',')));
  CREATE POLICY staff_adds ON audit.events FOR INSERT TO gateway_admin
    WITH CHECK (department_id = ANY (string_to_array(current_setting('gateway.departments', true), ',')));
END $$;
GRANT SELECT ON audit.events TO gateway_admin;
GRANT SELECT, INSERT ON gateway.imports TO gateway_admin;
GRANT SELECT ON gateway.cutoffs, gateway.gl_codes, gateway.fee_costs TO gateway_admin;
GRANT SELECT ON gateway.fee_costs TO gateway_api;
