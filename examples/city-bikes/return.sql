-- The oldest open rental of a station ends and is paid.
\set station random(1, 30)
BEGIN;
WITH ended AS (
    UPDATE rentals SET ended_at = now()
    WHERE id = (
        SELECT id FROM rentals WHERE station_id = :station AND ended_at IS NULL
        ORDER BY started_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING id, bike_id, station_id
), freed AS (
    UPDATE bikes SET state = 'free', changed_at = now() FROM ended
    WHERE bikes.id = ended.bike_id AND bikes.station_id = :station
)
INSERT INTO payments (station_id, rental_id, cents, paid_at)
SELECT station_id, id, 150, now() FROM ended;
COMMIT;
