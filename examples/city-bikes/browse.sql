-- What the map of a station shows.
\set station random(1, 30)
SELECT s.name, s.capacity, count(b.id) FILTER (WHERE b.state = 'free') AS free
FROM stations AS s LEFT JOIN bikes AS b ON b.station_id = s.id
WHERE s.id = :station
GROUP BY s.name, s.capacity;
