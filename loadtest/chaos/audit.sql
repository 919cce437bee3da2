-- What the database itself saw, in tables beside the service's own, written in the service's transactions.
CREATE TABLE seen_changes (
  n bigserial PRIMARY KEY,
  at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
  request_id text NOT NULL,
  old text,
  new text NOT NULL,
  attempt int NOT NULL,
  owner text
);

CREATE TABLE seen_outputs (
  n bigserial PRIMARY KEY,
  request_id text NOT NULL
);

CREATE FUNCTION see_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO seen_changes (request_id, old, new, attempt, owner)
      VALUES (NEW.id, NULL, NEW.status, NEW.attempt, NEW.owner);
  ELSIF (OLD.status, OLD.attempt, OLD.owner) IS DISTINCT FROM (NEW.status, NEW.attempt, NEW.owner)
      OR (OLD.status = 'COMPLETED' AND (OLD.status_code, OLD.finished_at) IS DISTINCT FROM (NEW.status_code, NEW.finished_at)) THEN
    INSERT INTO seen_changes (request_id, old, new, attempt, owner)
      VALUES (NEW.id, OLD.status, NEW.status, NEW.attempt, NEW.owner);
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION see_output() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.output IS NOT NULL THEN
    INSERT INTO seen_outputs (request_id) VALUES (NEW.request_id);
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER see_change AFTER INSERT OR UPDATE ON requests FOR EACH ROW EXECUTE FUNCTION see_change();
CREATE TRIGGER see_output AFTER UPDATE OF output ON request_io FOR EACH ROW EXECUTE FUNCTION see_output();
