-- A bike sharing scheme of several cities. Every table has a primary key, and rows that the application makes have
-- uuid keys: two primaries never make the same one.

CREATE TABLE stations (
    id        integer PRIMARY KEY,
    city      text NOT NULL,
    name      text NOT NULL,
    capacity  integer NOT NULL CHECK (capacity > 0)
);

CREATE TABLE bikes (
    id          integer PRIMARY KEY,
    station_id  integer NOT NULL REFERENCES stations (id),
    state       text NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'rented', 'broken')),
    rides       integer NOT NULL DEFAULT 0,
    changed_at  timestamptz NOT NULL
);
CREATE INDEX ON bikes (station_id);

CREATE TABLE users (
    id      uuid PRIMARY KEY,
    name    text NOT NULL,
    city    text NOT NULL,
    joined  date NOT NULL
);

CREATE TABLE rentals (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    station_id  integer NOT NULL REFERENCES stations (id),
    bike_id     integer NOT NULL REFERENCES bikes (id),
    user_id     uuid NOT NULL REFERENCES users (id),
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz
);
CREATE INDEX ON rentals (station_id) WHERE ended_at IS NULL;

CREATE TABLE payments (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    station_id  integer NOT NULL REFERENCES stations (id),
    rental_id   uuid NOT NULL,
    cents       integer NOT NULL,
    paid_at     timestamptz NOT NULL
);
