// The scenarios with pgJDBC: `JdbcScenarios.java DSN KEYS`, with the driver in the class path.

import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.net.URI;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicBoolean;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class JdbcScenarios {
  // More than the pools of all nodes have servers.
  static final int CLIENTS = 9;
  static final int NEIGHBOURS = 3;
  static final int LARGE = 20 << 20;

  static String url;
  static int keys;

  interface Scenario {
    void play(int client, Connection connection) throws Exception;
  }

  interface Work {
    void run() throws Exception;
  }

  static String body(int client, int n) throws Exception {
    byte[] hash = java.security.MessageDigest.getInstance("MD5").digest((client + ":" + n).getBytes());
    return HexFormat.of().formatHex(hash).repeat(n % 7 + 1);
  }

  static List<List<Object>> rows(int client, int count) throws Exception {
    List<List<Object>> rows = new ArrayList<>();
    for (int n = 1; n <= count; n++) rows.add(List.of(client, n, body(client, n)));
    return rows;
  }

  static String series(int client, int count) {
    return "SELECT " + client + " AS client, n, repeat(md5('" + client + ":' || n), n % 7 + 1) AS body"
        + " FROM generate_series(1, " + count + ") n";
  }

  static Connection connect(int client, String... more) throws SQLException {
    Properties settings = new Properties();
    settings.put("user", "app");
    settings.put("password", "app");
    settings.put("ApplicationName", "client " + client);
    // Named statements from the second execution on.
    settings.put("prepareThreshold", "2");
    if (keys > 0) settings.put("options", "-c tandem.key=client:" + client % keys);
    for (int at = 0; at + 1 < more.length; at += 2) settings.put(more[at], more[at + 1]);
    return DriverManager.getConnection(url, settings);
  }

  static List<List<Object>> read(ResultSet found) throws SQLException {
    List<List<Object>> rows = new ArrayList<>();
    int columns = found.getMetaData().getColumnCount();
    while (found.next()) {
      List<Object> row = new ArrayList<>();
      for (int column = 1; column <= columns; column++) row.add(found.getObject(column));
      rows.add(row);
    }
    return rows;
  }

  static List<List<Object>> ask(Connection connection, String sql, Object... values) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      for (int at = 0; at < values.length; at++) statement.setObject(at + 1, values[at]);
      try (ResultSet found = statement.executeQuery()) {
        return read(found);
      }
    }
  }

  static Object one(Connection connection, String sql, Object... values) throws SQLException {
    return ask(connection, sql, values).get(0).get(0);
  }

  static void run(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
    }
  }

  static void equal(Object found, Object wanted) {
    if (!Objects.equals(found, wanted)) {
      String shown = String.valueOf(found);
      throw new AssertionError(shown.substring(0, Math.min(200, shown.length())) + " is not " + wanted);
    }
  }

  static void fails(String state, Work work) throws Exception {
    try {
      work.run();
    } catch (SQLException error) {
      if (!state.equals(error.getSQLState())) throw error;
      return;
    }
    throw new AssertionError("no error " + state);
  }

  static final Map<String, Scenario> SCENARIOS = new LinkedHashMap<>();

  static {
    SCENARIOS.put("prepared", (client, connection) -> {
      List<PreparedStatement> statements = new ArrayList<>();
      for (int n = 0; n < 40; n++) {
        statements.add(connection.prepareStatement("SELECT ?::int * 1000 + " + n + " AS id, ?::text AS body"));
      }
      for (int round = 0; round < 4; round++) {
        for (int n = 0; n < 40; n++) {
          PreparedStatement statement = statements.get(n);
          statement.setInt(1, client);
          statement.setString(2, body(client, n));
          try (ResultSet found = statement.executeQuery()) {
            equal(read(found), List.of(List.of(client * 1000 + n, body(client, n))));
          }
        }
      }
      for (PreparedStatement statement : statements) statement.close();
    });

    SCENARIOS.put("batches", (client, connection) -> {
      try (PreparedStatement insert = connection.prepareStatement("INSERT INTO item VALUES (?, 'batch', ?, ?)")) {
        for (int n = 0; n < 500; n++) {
          insert.setInt(1, client);
          insert.setInt(2, n);
          insert.setString(3, body(client, n));
          insert.addBatch();
        }
        equal(insert.executeBatch().length, 500);
      }
      equal(one(connection, "SELECT count(*) FROM item WHERE client = ? AND scenario = 'batch'", client), 500L);
      // The whole batch is one transaction, which fails.
      try (PreparedStatement insert = connection.prepareStatement("INSERT INTO item VALUES (?, 'failed batch', ?, '')")) {
        for (int n : new int[] {1, 2, 2, 3}) {
          insert.setInt(1, client);
          insert.setInt(2, n);
          insert.addBatch();
        }
        fails("23505", insert::executeBatch);
      }
      equal(one(connection, "SELECT count(*) FROM item WHERE client = ? AND scenario = 'failed batch'", client), 0L);
      try (Statement statement = connection.createStatement()) {
        for (int n = 0; n < 20; n++) {
          statement.addBatch("INSERT INTO item VALUES (" + client + ", 'several', " + n + ", '')");
        }
        equal(statement.executeBatch().length, 20);
      }
    });

    SCENARIOS.put("transactions", (client, connection) -> {
      connection.setAutoCommit(false);
      for (int n = 0; n < 10; n++) {
        Savepoint savepoint = connection.setSavepoint();
        run(connection, "INSERT INTO item VALUES (" + client + ", 'savepoint', " + n + ", '" + body(client, n) + "')");
        if (n % 2 == 1) {
          fails("22012", () -> one(connection, "SELECT 1 / ?", 0));
          fails("25P02", () -> one(connection, "SELECT 1"));
          connection.rollback(savepoint);
        }
        connection.releaseSavepoint(savepoint);
      }
      connection.commit();
      run(connection, "INSERT INTO item VALUES (" + client + ", 'rolled back', 1, '')");
      connection.rollback();
      connection.setAutoCommit(true);
      List<List<Object>> left = ask(connection,
          "SELECT scenario, count(*) FROM item WHERE client = ? AND scenario IN ('savepoint', 'rolled back') GROUP BY 1", client);
      equal(left, List.of(List.of("savepoint", 5L)));
      connection.setReadOnly(true);
      connection.setAutoCommit(false);
      equal(ask(connection, series(client, 5)), rows(client, 5));
      fails("25006", () -> run(connection, "DELETE FROM item WHERE client = " + client));
      connection.rollback();
      connection.setAutoCommit(true);
      connection.setReadOnly(false);
      connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
      equal(one(connection, "SHOW transaction_isolation"), "serializable");
    });

    SCENARIOS.put("cursors", (client, connection) -> {
      connection.setAutoCommit(false);
      try (PreparedStatement statement = connection.prepareStatement(series(client, 200))) {
        statement.setFetchSize(17);
        try (ResultSet found = statement.executeQuery()) {
          equal(read(found), rows(client, 200));
        }
        ResultSet left = statement.executeQuery();
        left.next();
        left.close();
      }
      equal(ask(connection, series(client, 3)), rows(client, 3));
      connection.commit();
      connection.setAutoCommit(true);
    });

    SCENARIOS.put("copies", (client, connection) -> {
      StringBuilder mine = new StringBuilder();
      for (int n = 1000; n < 3000; n++) mine.append(client + "\tcopy\t" + n + "\t" + body(client, n) + "\n");
      CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
      equal(copy.copyIn("COPY item FROM STDIN", new StringReader(mine.toString())), 2000L);
      StringWriter got = new StringWriter();
      copy.copyOut("COPY (SELECT * FROM item WHERE client = " + client + " AND scenario = 'copy' ORDER BY n) TO STDOUT", got);
      if (!got.toString().contentEquals(mine)) throw new AssertionError("the copy is not its own");
      fails("22P02", () -> copy.copyIn("COPY item FROM STDIN", new StringReader("x\tcopy\t1\t\n")));
      equal(one(connection, "SELECT ?::int", client), client);
    });

    SCENARIOS.put("cancels", (client, connection) -> {
      for (String sql : List.of("SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 1000000000)")) {
        try (Statement statement = connection.createStatement()) {
          AtomicBoolean done = new AtomicBoolean();
          Thread canceller = new Thread(() -> {
            // Nothing tells when the statement has begun, so cancel until it has.
            while (!done.get()) {
              try {
                // A statement cancels itself once only.
                connection.unwrap(PGConnection.class).cancelQuery();
              } catch (SQLException late) {
                return;
              }
            }
          });
          canceller.start();
          fails("57014", () -> statement.executeQuery(sql));
          done.set(true);
          canceller.join();
        }
        equal(ask(connection, series(client, 10)), rows(client, 10));
      }
      try (Statement statement = connection.createStatement()) {
        statement.setQueryTimeout(1);
        fails("57014", () -> statement.executeQuery("SELECT pg_sleep(60)"));
      }
      equal(ask(connection, series(client, 10)), rows(client, 10));
    });

    SCENARIOS.put("types", (client, connection) -> {
      Array numbers = connection.createArrayOf("int4", new Integer[] {client, null, -1});
      Array texts = connection.createArrayOf("text", new String[] {"" + client, null, "a \"quoted\", {odd} \\ text", "NULL", ""});
      BigDecimal decimal = new BigDecimal((client + 1) + "23456789012345678901234567890.0123456789");
      byte[] bytes = new byte[257];
      for (int at = 0; at < bytes.length; at++) bytes[at] = (byte) (at + client);
      UUID uuid = new UUID(client, 7);
      String sql = "SELECT ?::int[], ?::text[], ?::numeric, ?::bytea, ?::uuid, ?::bigint, ?::float8, ?::timestamptz, ?::mood, ?::boolean";
      Timestamp time = new Timestamp(1_709_251_199_999L - client);
      for (int round = 0; round < 5; round++) {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
          statement.setArray(1, numbers);
          statement.setArray(2, texts);
          statement.setBigDecimal(3, decimal);
          statement.setBytes(4, bytes);
          statement.setObject(5, uuid);
          statement.setLong(6, Long.MAX_VALUE - client);
          statement.setDouble(7, client / 3.0);
          statement.setTimestamp(8, time);
          statement.setString(9, "it's happy");
          statement.setBoolean(10, client % 2 == 0);
          try (ResultSet found = statement.executeQuery()) {
            found.next();
            equal(Arrays.asList((Object[]) found.getArray(1).getArray()), Arrays.asList(client, null, -1));
            equal(((String[]) found.getArray(2).getArray())[2], "a \"quoted\", {odd} \\ text");
            equal(found.getBigDecimal(3), decimal);
            if (!Arrays.equals(found.getBytes(4), bytes)) throw new AssertionError("bytea");
            equal(found.getObject(5), uuid);
            equal(found.getLong(6), Long.MAX_VALUE - client);
            equal(found.getDouble(7), client / 3.0);
            equal(found.getTimestamp(8), time);
            equal(found.getString(9), "it's happy");
            equal(found.getBoolean(10), client % 2 == 0);
          }
        }
      }
      equal(connection.getMetaData().getTables(null, "public", "item", null).next(), true);
    });

    SCENARIOS.put("large_values", (client, connection) -> {
      if (client >= 3) return;
      String large = ("" + client).repeat(LARGE);
      Object got = one(connection, "SELECT ?::text", large);
      if (!large.equals(got)) throw new AssertionError("a large text is not its own");
      equal(one(connection, "SELECT length(?::text)", large), LARGE);
    });

    SCENARIOS.put("settings", (client, connection) -> {
      run(connection, "SET work_mem = " + (1025 + client));
      connection.setSchema("schema " + client);
      for (int n = 0; n < 20; n++) {
        equal(one(connection, "SHOW work_mem"), (1025 + client) + "kB");
        equal(one(connection, "SHOW application_name"), "client " + client);
        if (!connection.createStatement().executeQuery("SHOW search_path").next()) throw new AssertionError();
        connection.setAutoCommit(false);
        run(connection, "SET LOCAL work_mem = '33MB'");
        equal(one(connection, "SHOW work_mem"), "33MB");
        connection.rollback();
        connection.setAutoCommit(true);
      }
    });

    SCENARIOS.put("generated_keys", (client, connection) -> {
      try (PreparedStatement insert = connection.prepareStatement(
          "INSERT INTO item VALUES (?, 'returning', ?, 'x')", new String[] {"client", "n"})) {
        for (int n = 0; n < 10; n++) {
          insert.setInt(1, client);
          insert.setInt(2, n);
          insert.executeUpdate();
          try (ResultSet made = insert.getGeneratedKeys()) {
            equal(read(made), List.of(List.of(client, n)));
          }
        }
      }
    });
  }

  static boolean report(String name, List<Future<?>> results) throws InterruptedException {
    List<Throwable> problems = new ArrayList<>();
    for (Future<?> result : results) {
      try {
        result.get(120, TimeUnit.SECONDS);
      } catch (ExecutionException error) {
        problems.add(error.getCause());
      } catch (TimeoutException late) {
        problems.add(late);
      }
    }
    for (Throwable problem : problems.subList(0, Math.min(3, problems.size()))) {
      String state = problem instanceof SQLException error ? error.getSQLState() : "";
      System.out.println("FAIL " + name + ": " + state + " " + String.valueOf(problem).replaceAll("\\s+", " ")
          + " at " + Arrays.asList(problem.getStackTrace()).subList(0, Math.min(6, problem.getStackTrace().length))
          + " (" + problems.size() + " of " + results.size() + " clients)");
    }
    if (problems.isEmpty()) System.out.println("ok " + name);
    return !problems.isEmpty();
  }

  // Reads its own rows all the while, and must see nothing of what the others do.
  static void neighbour(int client, AtomicBoolean done) throws Exception {
    try (Connection connection = connect(client)) {
      for (int round = 0; !done.get() || round == 0; round++) {
        int count = round % 50 + 1;
        equal(ask(connection, series(client, count)), rows(client, count));
        String shown = "SELECT current_setting('work_mem'), current_setting('application_name'), current_user::text";
        equal(ask(connection, shown), List.of(List.of("4MB", "client " + client, "app")));
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    URI dsn = new URI(arguments[0]);
    url = "jdbc:postgresql://" + dsn.getHost() + ":" + dsn.getPort() + dsn.getPath();
    keys = Integer.parseInt(arguments[1]);
    AtomicBoolean done = new AtomicBoolean();
    ExecutorService threads = Executors.newCachedThreadPool();
    List<Future<?>> neighbours = new ArrayList<>();
    for (int client = CLIENTS; client < CLIENTS + NEIGHBOURS; client++) {
      int own = client;
      neighbours.add(threads.submit(() -> {
        neighbour(own, done);
        return null;
      }));
    }
    boolean failed = false;
    for (Map.Entry<String, Scenario> scenario : SCENARIOS.entrySet()) {
      List<Future<?>> results = new ArrayList<>();
      for (int client = 0; client < CLIENTS; client++) {
        int own = client;
        results.add(threads.submit(() -> {
          try (Connection connection = connect(own)) {
            scenario.getValue().play(own, connection);
          }
          return null;
        }));
      }
      failed |= report(scenario.getKey(), results);
    }
    done.set(true);
    failed |= report("neighbours", neighbours);
    System.exit(failed ? 1 : 0);
  }
}
