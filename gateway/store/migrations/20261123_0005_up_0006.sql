-- Who may change a movement, said so that no plan takes it for a way to find one. Written as `progress IN (…)` it
-- matched the partial indexes of what is open. They look small to the planner, and keep an entry for each movement
-- that ever was, until the next vacuum: each batch read all of them.

DO $$
DECLARE
  own text := 'department_id = current_setting(''gateway.department'', true)';
  open text := 'WHEN ''sending'' THEN true WHEN ''unknown'' THEN true WHEN ''in_review'' THEN true';
BEGIN
  EXECUTE format('ALTER POLICY gateway_worker_moves ON gateway.movements USING (%s AND CASE progress %s ELSE false END)',
    own, open);
  EXECUTE format('ALTER POLICY gateway_api_moves ON gateway.movements USING (%s AND CASE progress %s
    WHEN ''awaiting_approval'' THEN EXISTS (
      SELECT FROM gateway.refund_approvals a
      WHERE a.department_id = movements.department_id AND a.movement_id = movements.movement_id)
    ELSE false END)', own, open);
END $$;
