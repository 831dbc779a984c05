-- 0002: rotation. Which generations ever wrapped a data key; the mirror of fingerprint versions; numbered MAC and
-- digest keys; a barrier that waits for writers; what `keys` and `reseal` may do.

-- Every generation between the first and the present one may have wrapped a data key: when one of them turns out
-- compromised, the record needs a new data key, wherever rewrapping has carried the old one since.
ALTER TABLE gateway.deks ADD COLUMN first_generation integer;
UPDATE gateway.deks SET first_generation = generation;
ALTER TABLE gateway.deks ALTER COLUMN first_generation SET NOT NULL,
  ADD CHECK (first_generation BETWEEN 1 AND generation);

-- Whoever once had an older signing key can make a manifest of any version: the newest one is remembered, too.
ALTER TABLE gateway.key_manifest ADD COLUMN signing_key integer NOT NULL DEFAULT 1 CHECK (signing_key > 0);

-- When the last wrap left a generation: from then on the recovery window of database backups runs.
ALTER TABLE gateway.key_generations ADD COLUMN emptied_at timestamptz;

CREATE TABLE gateway.fingerprint_versions (
  version integer PRIMARY KEY CHECK (version > 0),
  state   text NOT NULL CHECK (state IN ('pending', 'active', 'retired', 'compromised', 'destroyed'))
);
-- Before this migration there was one version, in every database that knew a key store.
INSERT INTO gateway.fingerprint_versions SELECT 1, 'active' FROM gateway.key_manifest;

-- With the version in it, so that whether a card is in the new index yet takes one look.
DROP INDEX gateway.fingerprints_by_id;
CREATE INDEX fingerprints_by_id ON gateway.fingerprints (department_id, fingerprint_id, key_version);

-- A row is checked with the key that it names, so that these keys can be rotated.
ALTER TABLE audit.events ADD COLUMN mac_key integer NOT NULL DEFAULT 1 CHECK (mac_key > 0);
ALTER TABLE audit.events ALTER COLUMN mac_key DROP DEFAULT;
ALTER TABLE gateway.api_keys ADD COLUMN digest_key integer NOT NULL DEFAULT 1 CHECK (digest_key > 0);
ALTER TABLE gateway.api_keys ALTER COLUMN digest_key DROP DEFAULT;

-- Returns when every transaction that had begun to write a data key, a fingerprint or a claim before the call has
-- ended. A statement takes this kind of lock before its snapshot, and keeps it until its transaction ends: whoever
-- has not got it yet sees what was committed before the call. Nothing is locked here, so that nobody queues behind
-- it; to lock the tables one after the other would even deadlock with writers that take them in another order.
-- After a while the call gives up, like one that waited for a lock.
CREATE FUNCTION gateway.await_writers() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE writers text[];
BEGIN
  writers := ARRAY(
    SELECT virtualtransaction FROM pg_locks
    WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND relation IN ('gateway.deks'::regclass, 'gateway.fingerprints'::regclass, 'gateway.idempotency'::regclass)
    AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid());
  FOR turn IN 1..150 LOOP
    IF NOT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY (writers)) THEN
      RETURN;
    END IF;
    PERFORM pg_sleep(0.01);
  END LOOP;
  RAISE lock_not_available USING MESSAGE = 'writers have not ended';
END $$;
REVOKE ALL ON FUNCTION gateway.await_writers() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gateway.await_writers() TO gateway_keys, gateway_reseal;

-- `keys`: moves wraps, mirrors states, counts what depends on a key; of a fingerprint it sees its version only.
GRANT UPDATE (generation, wrapped) ON gateway.deks TO gateway_keys;
GRANT SELECT, INSERT, UPDATE ON gateway.fingerprint_versions TO gateway_keys;
GRANT SELECT (department_id, key_version, fingerprint_id) ON gateway.fingerprints TO gateway_keys;
GRANT SELECT (department_id, card_key_version) ON gateway.idempotency TO gateway_keys;
GRANT SELECT (department_id, digest_key, revoked_at) ON gateway.api_keys TO gateway_keys;
GRANT SELECT ON gateway.departments TO gateway_keys;
CREATE POLICY versions_only ON gateway.fingerprints FOR SELECT TO gateway_keys USING (true);
CREATE POLICY versions_only ON gateway.idempotency FOR SELECT TO gateway_keys USING (true);

GRANT SELECT ON gateway.fingerprint_versions TO gateway_api, gateway_reseal;

-- `reseal`: opens and seals records anew, with their data keys, indexes and card parts, and nothing else.
DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['deks', 'fingerprints', 'tokens', 'charges', 'idempotency'] LOOP
    EXECUTE format($p$CREATE POLICY resealing ON gateway.%I TO gateway_reseal
      USING (department_id = current_setting('gateway.department', true))
      WITH CHECK (department_id = current_setting('gateway.department', true))$p$, name);
  END LOOP;
END $$;
GRANT SELECT ON gateway.departments, gateway.key_generations, gateway.key_manifest TO gateway_reseal;
GRANT UPDATE (wraps_reserved) ON gateway.key_generations TO gateway_reseal;
GRANT SELECT, UPDATE (generation, wrapped, first_generation) ON gateway.deks TO gateway_reseal;
GRANT SELECT (department_id, token_id, fingerprint_id, sealed), UPDATE (sealed) ON gateway.tokens TO gateway_reseal;
GRANT SELECT (department_id, charge_id, token_id, sealed), UPDATE (sealed) ON gateway.charges TO gateway_reseal;
GRANT SELECT, INSERT, DELETE, UPDATE (seen_at) ON gateway.fingerprints TO gateway_reseal;
GRANT SELECT (department_id, route, idempotency_key, subject_id, card_part, card_key_version),
  UPDATE (card_part, card_key_version) ON gateway.idempotency TO gateway_reseal;
