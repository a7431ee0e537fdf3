-- A user takes a bike from the station where it stands.
\set bike random(1, 300)
\set station 1 + (:bike - 1) % 30
\set user random(1, 500)
BEGIN;
UPDATE bikes SET state = 'rented', rides = rides + 1, changed_at = now() WHERE id = :bike AND station_id = :station;
INSERT INTO rentals (station_id, bike_id, user_id, started_at)
SELECT :station, :bike, id, now() FROM users WHERE name = 'User ' || :user;
COMMIT;
