-- What Tandem installs on a node so that its DDL is in its stream. In this text {policy} stands for a JSON object, class to
-- 'local' or 'refuse'; {allowed} for an expression over the text "name" (schema.table); {policies} for rows (schema, table,
-- counters, layered).

CREATE OR REPLACE FUNCTION tandem.is_kept(name text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$tandem$ SELECT {allowed} $tandem$;

-- Tells the stream of each command: its text, who gave it, under which settings, and what it is about. It runs as whoever
-- gave it, so that it sees the role and the search path; it needs no right.
CREATE OR REPLACE FUNCTION tandem.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $tandem$
DECLARE
    policy CONSTANT jsonb := {policy};
    session text := coalesce(nullif(current_setting('tandem.ddl', true), ''), 'replicate');
    query text := current_query();
    stack text;
    seen jsonb;
    sent text;
    digest text;
    class text;
    rule text;
    objects jsonb;
    definition text;
    is_unique boolean;
    is_extension boolean;
BEGIN
    IF session = 'off' OR TG_TAG = 'REINDEX' THEN
        RETURN;
    END IF;
    -- What ALTER drops is told with the ALTER.
    IF TG_EVENT = 'sql_drop' AND TG_TAG NOT LIKE 'DROP %' THEN
        RETURN;
    END IF;
    IF TG_EVENT = 'ddl_command_end' THEN
        SELECT bool_and(c.in_extension) INTO is_extension FROM pg_event_trigger_ddl_commands() c;
        IF is_extension THEN
            RETURN;
        END IF;
    ELSIF query ~* '^\s*(create|alter)\s+extension' THEN
        -- Its script drops what was its own.
        RETURN;
    END IF;

    -- Inside of a function the client's text is not the command; the innermost SQL statement of the call stack is.
    GET DIAGNOSTICS stack = PG_CONTEXT;
    IF position(E'\n' IN stack) > 0 THEN
        stack := substr(stack, position(E'\n' IN stack) + 1);
        IF left(stack, 15) = 'SQL statement "' AND position(E'"\nPL/pgSQL function ' IN stack) > 0 THEN
            query := substr(left(stack, position(E'"\nPL/pgSQL function ' IN stack) - 1), 16);
        ELSE
            RAISE EXCEPTION '% inside of a function cannot be brought to the other nodes', TG_TAG
                USING ERRCODE = 'feature_not_supported',
                HINT = 'Send it as a statement of its own, or from PL/pgSQL; SET tandem.ddl = ''local'' keeps it on this node.';
        END IF;
    END IF;

    -- Which of the commands of this text it is: how many have ended before it.
    digest := md5(query);
    seen := nullif(current_setting('tandem.ddl_seen', true), '')::jsonb;
    IF seen IS NULL OR seen ->> 'at' IS DISTINCT FROM statement_timestamp()::text THEN
        seen := jsonb_build_object('at', statement_timestamp()::text, 'sent', seen ->> 'sent');
    END IF;
    IF TG_EVENT = 'ddl_command_end' THEN
        PERFORM set_config('tandem.ddl_seen',
            (seen || jsonb_build_object(digest, coalesce((seen ->> digest)::int, 0) + 1))::text, false);
        IF TG_TAG LIKE 'DROP %' THEN
            RETURN;
        END IF;
        SELECT jsonb_agg(jsonb_build_object('type', c.object_type, 'identity', c.object_identity,
                'schema', n.nspname, 'table', t.relname)),
            bool_or(x.indisunique)
        INTO objects, is_unique
        FROM pg_event_trigger_ddl_commands() c
            LEFT JOIN pg_index x ON c.classid = 'pg_class'::regclass AND x.indexrelid = c.objid
            LEFT JOIN pg_class t ON t.oid = CASE c.classid
                WHEN 'pg_class'::regclass THEN coalesce(x.indrelid, c.objid)
                WHEN 'pg_trigger'::regclass THEN (SELECT g.tgrelid FROM pg_trigger g WHERE g.oid = c.objid)
                WHEN 'pg_policy'::regclass THEN (SELECT p.polrelid FROM pg_policy p WHERE p.oid = c.objid)
                WHEN 'pg_rewrite'::regclass THEN (SELECT r.ev_class FROM pg_rewrite r WHERE r.oid = c.objid)
                WHEN 'pg_constraint'::regclass THEN (SELECT k.conrelid FROM pg_constraint k WHERE k.oid = c.objid)
                WHEN 'pg_attrdef'::regclass THEN (SELECT d.adrelid FROM pg_attrdef d WHERE d.oid = c.objid) END
            LEFT JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE NOT c.in_extension AND coalesce(t.relpersistence, 'p') = 'p'
            AND coalesce(n.nspname, c.schema_name, '') NOT IN ('tandem', 'pg_temp')
            AND c.object_type NOT LIKE 'publication%' AND c.object_type <> 'subscription'
            AND NOT (c.object_type = 'schema' AND c.object_identity = 'tandem')
            AND (t.relkind IS NULL OR t.relkind NOT IN ('r', 'p') OR tandem.is_kept(n.nspname || '.' || t.relname));
    ELSE
        SELECT jsonb_agg(jsonb_build_object('type', d.object_type, 'identity', d.object_identity,
                'schema', d.schema_name, 'table', CASE WHEN d.object_type = 'table' THEN d.object_name END))
        INTO objects
        FROM pg_event_trigger_dropped_objects() d
        WHERE d.original AND NOT d.is_temporary AND coalesce(d.schema_name, '') NOT IN ('tandem', 'pg_temp')
            AND d.object_type NOT LIKE 'publication%' AND d.object_type <> 'subscription'
            AND NOT (d.object_type = 'schema' AND d.object_identity = 'tandem')
            AND (d.object_type <> 'table' OR tandem.is_kept(d.schema_name || '.' || d.object_name));
    END IF;
    IF objects IS NULL THEN
        RETURN;
    END IF;
    -- Elsewhere the name of the temporary one may mean another.
    IF TG_EVENT = 'sql_drop' AND EXISTS (
        SELECT FROM pg_event_trigger_dropped_objects() d WHERE d.original AND d.is_temporary) THEN
        RAISE EXCEPTION 'temporary objects and others cannot be dropped by one statement'
            USING ERRCODE = 'feature_not_supported', HINT = 'Drop them one by one.';
    END IF;

    class := CASE
        WHEN TG_TAG IN ('GRANT', 'REVOKE', 'ALTER DEFAULT PRIVILEGES') THEN 'grant'
        WHEN TG_TAG IN ('COMMENT', 'SECURITY LABEL') THEN 'comment'
        WHEN TG_TAG IN ('SELECT INTO', 'CREATE TABLE AS') OR TG_TAG LIKE '% TABLE' THEN 'table'
        WHEN TG_TAG LIKE '% INDEX' THEN 'index'
        WHEN TG_TAG LIKE '% VIEW' THEN 'view'
        WHEN TG_TAG LIKE '% FUNCTION' OR TG_TAG LIKE '% PROCEDURE' OR TG_TAG LIKE '% AGGREGATE'
            OR TG_TAG LIKE '% ROUTINE' THEN 'function'
        WHEN TG_TAG LIKE '% TYPE' OR TG_TAG LIKE '% DOMAIN' THEN 'type'
        WHEN TG_TAG LIKE '% SCHEMA' THEN 'schema'
        WHEN TG_TAG LIKE '% EXTENSION' THEN 'extension'
        WHEN TG_TAG LIKE '% SEQUENCE' THEN 'sequence'
        WHEN TG_TAG LIKE '% TRIGGER' OR TG_TAG LIKE '% RULE' THEN 'trigger'
        WHEN TG_TAG LIKE '% POLICY' THEN 'policy'
        ELSE 'other' END;
    rule := CASE session WHEN 'replicate' THEN coalesce(policy ->> class, 'replicate') ELSE session END;
    IF rule = 'refuse' THEN
        RAISE EXCEPTION '% is refused in this cluster', TG_TAG
            USING ERRCODE = 'feature_not_supported',
            HINT = format('[replication.ddl] in tandem.toml says %s = "refuse".', class);
    ELSIF rule = 'local' THEN
        IF is_unique AND TG_TAG = 'CREATE INDEX' THEN
            RAISE EXCEPTION 'a unique index cannot be on one node only'
                USING ERRCODE = 'feature_not_supported',
                HINT = 'Rows of other nodes would be refused by it: SET tandem.ddl = ''replicate''.';
        END IF;
        RETURN;
    ELSIF rule <> 'replicate' THEN
        RAISE EXCEPTION 'invalid value for parameter "tandem.ddl": "%"', session
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Available values: replicate, local, off.';
    END IF;

    -- A column's default for the rows that are there already is computed once, by each node for itself.
    IF TG_TAG = 'ALTER TABLE' AND policy ->> 'rewrite' <> 'replicate' AND EXISTS (
        SELECT FROM pg_event_trigger_ddl_commands() c
            JOIN pg_attribute a ON a.attrelid = c.objid AND a.atthasmissing
                AND a.xmin::text::bigint >= pg_current_xact_id()::text::bigint % 4294967296
            JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.classid = 'pg_class'::regclass AND pg_relation_size(a.attrelid) > 0
            AND (d.adbin::text LIKE '%SQLVALUEFUNCTION%' OR EXISTS (
                SELECT FROM regexp_matches(d.adbin::text, ':(?:funcid|opfuncid) (\d+)', 'g') m
                    JOIN pg_proc p ON p.oid = m[1]::oid WHERE p.provolatile <> 'i'))) THEN
        RAISE EXCEPTION 'the rows of the table would get another default on each node'
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Add the column without a default, fill it by UPDATE, then set its default.';
    END IF;

    -- The rows of such a table are in the stream: only what it is like is told, and that from the catalog, because what
    -- its query reads may be a temporary table or a variable.
    IF TG_TAG IN ('CREATE TABLE AS', 'SELECT INTO') THEN
        SELECT format('CREATE TABLE %I.%I (%s)%s', n.nspname, t.relname,
            (SELECT string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                (SELECT format(' COLLATE %I.%I', s.nspname, l.collname) FROM pg_collation l
                    JOIN pg_namespace s ON s.oid = l.collnamespace JOIN pg_type y ON y.oid = a.atttypid
                    WHERE l.oid = a.attcollation AND a.attcollation <> y.typcollation)), ', ' ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped),
            coalesce(' WITH (' || array_to_string(t.reloptions, ', ') || ')', ''))
        INTO definition
        FROM pg_event_trigger_ddl_commands() c JOIN pg_class t ON t.oid = c.objid AND t.relkind = 'r'
            JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE c.classid = 'pg_class'::regclass LIMIT 1;
    END IF;

    -- The text of many commands is told once in a transaction.
    sent := pg_current_xact_id()::text || ' ' || digest;
    PERFORM pg_logical_emit_message(true, 'tandem.ddl', jsonb_build_object(
        'tag', TG_TAG, 'role', current_user, 'number', coalesce((seen ->> digest)::int, 0),
        'query', CASE WHEN seen ->> 'sent' IS DISTINCT FROM sent AND definition IS NULL THEN query END,
        'definition', definition, 'objects', objects,
        'settings', (SELECT jsonb_object_agg(s, current_setting(s)) FROM unnest(ARRAY['search_path', 'check_function_bodies',
            'default_tablespace', 'default_table_access_method', 'default_toast_compression', 'standard_conforming_strings',
            'TimeZone', 'DateStyle', 'IntervalStyle', 'xmloption']) s))::text);
    IF definition IS NULL THEN
        seen := nullif(current_setting('tandem.ddl_seen', true), '')::jsonb;
        PERFORM set_config('tandem.ddl_seen', (coalesce(seen, '{}') || jsonb_build_object('sent', sent))::text, false);
    END IF;
END $tandem$;

-- A rewrite gives every row another version, and may compute other values on each node, while the others write.
CREATE OR REPLACE FUNCTION tandem.refuse_rewrite() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog AS $tandem$
DECLARE
    policy CONSTANT jsonb := {policy};
    relation CONSTANT regclass := pg_event_trigger_table_rewrite_oid();
    name text;
BEGIN
    IF current_setting('tandem.ddl', true) IN ('off', 'local') OR policy ->> 'rewrite' = 'replicate' THEN
        RETURN;
    END IF;
    SELECT n.nspname || '.' || c.relname INTO name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = relation AND c.relpersistence <> 't' AND c.relkind = 'r' AND n.nspname <> 'tandem';
    IF name IS NULL OR NOT tandem.is_kept(name) THEN
        RETURN;
    END IF;
    -- Its indexes may not be there at the moment: not even a plan can be made.
    IF pg_relation_size(relation) > 0 THEN
        RAISE EXCEPTION 'this would rewrite all rows of %, on each node for itself', relation
            USING ERRCODE = 'feature_not_supported',
            HINT = 'Add a column without a default, or with a constant one, fill it by UPDATE, then set its default; drop the old column.';
    END IF;
END $tandem$;

-- Gives tables what their stream has to tell of old rows, in the transaction that makes or alters them; where Tandem applies
-- such a transaction, too.
CREATE OR REPLACE FUNCTION tandem.fit_tables() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog SET session_replication_role = replica AS $tandem$
DECLARE
    t record;
    name text;
BEGIN
    FOR t IN
        SELECT c.oid::regclass AS relation, c.oid, c.relreplident, x.indexrelid IS NOT NULL AS has_key,
            coalesce(x.indimmediate, true) AS immediate, p.layered, CASE WHEN x.indexrelid IS NULL THEN NULL ELSE p.counters END AS counters,
            EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped) AS is_virtual,
            EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = 'tandem_truncate') AS truncates_by_row
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_index x ON x.indrelid = c.oid AND x.indisprimary
            LEFT JOIN (VALUES {policies}) p(nspname, relname, counters, layered) ON p.nspname = n.nspname AND p.relname = c.relname
        WHERE c.oid IN (SELECT e.objid FROM pg_event_trigger_ddl_commands() e
                WHERE e.classid = 'pg_class'::regclass AND NOT e.in_extension)
            AND c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'tandem'
            AND tandem.is_kept(n.nspname || '.' || c.relname)
    LOOP
        CONTINUE WHEN NOT t.immediate;
        IF NOT t.is_virtual AND t.relreplident <> 'f'
            AND (NOT t.has_key OR coalesce(t.layered, false) OR cardinality(t.counters) > 0) THEN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', t.relation);
        END IF;
        IF NOT t.truncates_by_row AND (NOT t.has_key OR cardinality(t.counters) > 0) THEN
            EXECUTE format('CREATE OR REPLACE TRIGGER tandem_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT '
                'EXECUTE FUNCTION tandem.truncate_as_delete()', t.relation);
        END IF;
        FOR name IN SELECT a.attname FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = ANY (t.counters)
            AND NOT a.attnotnull AND NOT a.attisdropped
        LOOP
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', t.relation, name);
        END LOOP;
    END LOOP;
END $tandem$;

-- Remembers which tables and columns are gone: what other nodes wrote to them meanwhile is to be left out, not waited for.
CREATE OR REPLACE FUNCTION tandem.note_dropped() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog AS $tandem$
BEGIN
    INSERT INTO tandem.dropped
    SELECT DISTINCT format('"%s"."%s"', replace(d.address_names[1], '"', '""'), replace(d.address_names[2], '"', '""')),
        coalesce(d.address_names[3], ''), clock_timestamp()
    FROM pg_event_trigger_dropped_objects() d
    WHERE d.object_type IN ('table', 'table column') AND NOT d.is_temporary AND d.address_names[1] <> 'tandem'
    ON CONFLICT (relation, column_name) DO UPDATE SET dropped = excluded.dropped;
END $tandem$;

DO $tandem$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT w.* FROM (VALUES
        ('tandem_capture', 'ddl_command_end', 'capture_ddl', 'O'),
        ('tandem_capture_drop', 'sql_drop', 'capture_ddl', 'O'),
        ('tandem_dropped', 'sql_drop', 'note_dropped', 'A'),
        ('tandem_fit', 'ddl_command_end', 'fit_tables', 'A'),
        ('tandem_rewrite', 'table_rewrite', 'refuse_rewrite', 'O')) w(name, event, function, enabled)
        WHERE NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = w.name)
    LOOP
        EXECUTE format('CREATE EVENT TRIGGER %I ON %s EXECUTE FUNCTION tandem.%I()', t.name, t.event, t.function);
        IF t.enabled = 'A' THEN
            EXECUTE format('ALTER EVENT TRIGGER %I ENABLE ALWAYS', t.name);
        END IF;
    END LOOP;
END $tandem$;
GRANT USAGE ON SCHEMA tandem TO PUBLIC;
