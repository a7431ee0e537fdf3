-- The same rows on every node: no random(), gen_random_uuid() or now() here.

INSERT INTO stations (id, city, name, capacity)
SELECT i,
       (ARRAY['Paris', 'Delhi', 'Lima'])[1 + (i - 1) % 3],
       'Station ' || i,
       20 + i % 11
FROM generate_series(1, 30) AS i;

-- Bike b stands at station (b - 1) % 30 + 1.
INSERT INTO bikes (id, station_id, changed_at)
SELECT i, 1 + (i - 1) % 30, '2026-01-01 00:00:00+00'
FROM generate_series(1, 300) AS i;

INSERT INTO users (id, name, city, joined)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
       'User ' || i,
       (ARRAY['Paris', 'Delhi', 'Lima'])[1 + (i - 1) % 3],
       date '2025-01-01' + i % 365
FROM generate_series(1, 500) AS i;

INSERT INTO rentals (id, station_id, bike_id, user_id, started_at, ended_at)
SELECT ('00000000-0000-4000-9000-' || lpad(to_hex(i), 12, '0'))::uuid,
       1 + (i - 1) % 30,
       1 + (i - 1) % 300,
       ('00000000-0000-4000-8000-' || lpad(to_hex(1 + i % 500), 12, '0'))::uuid,
       timestamptz '2026-01-01 06:00:00+00' + i * interval '1 minute',
       timestamptz '2026-01-01 06:20:00+00' + i * interval '1 minute'
FROM generate_series(1, 2000) AS i;
