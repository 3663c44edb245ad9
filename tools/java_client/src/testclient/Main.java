package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Reads requests, one JSON object a line, and answers each with one line: {"id", "result"} or {"id", "error"}. Ends when
 * its input does, so that it cannot outlive whoever started it.
 *
 * <p>{"id": 1, "do": "open", "client": "p1", "kind": "producer", "config": {...}}, {"id": 2, "do": "call", "client": "p1",
 * "operation": "send", "arguments": {...}}, {"id": 3, "do": "close", "client": "p1"}, {"id": 4, "do": "tool", "arguments":
 * {"main": "...", "arguments": [...], "stdin": ""}}.
 */
public final class Main {
    private static final Map<String, Driver> DRIVERS = new ConcurrentHashMap<>();
    private static final ExecutorService POOL = Executors.newCachedThreadPool(runnable -> {
        Thread made = new Thread(runnable);
        made.setDaemon(true);
        return made;
    });
    private static final PrintStream ANSWERS =
            new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);

    private Main() {}

    @FunctionalInterface
    private interface Work {
        JsonNode run() throws Exception;
    }

    static Client client(String name) {
        return driver(name).client;
    }

    private static Driver driver(String name) {
        Driver found = DRIVERS.get(name);
        if (found == null) {
            throw new IllegalArgumentException("no client is called " + name);
        }
        return found;
    }

    public static void main(String[] ignored) throws Exception {
        BufferedReader requests = new BufferedReader(
                new InputStreamReader(new FileInputStream(FileDescriptor.in), StandardCharsets.UTF_8));
        Tools.install(System.err);
        String line;
        while ((line = requests.readLine()) != null) {
            JsonNode request = Json.MAPPER.readTree(line);
            try {
                dispatch(request);
            } catch (RuntimeException error) {
                answer(request, () -> {
                    throw error;
                });
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private static void dispatch(JsonNode request) {
        String name = request.path("client").asText();
        switch (request.get("do").asText()) {
            case "tool" -> POOL.execute(() -> answer(request, () -> Tools.run(request.get("arguments"))));
            case "open" -> POOL.execute(() -> answer(request, () -> {
                Map<String, Object> config = Json.config(request.get("config"));
                Client client = switch (request.get("kind").asText()) {
                    case "producer" -> new ProducerClient(config);
                    case "consumer" -> new ConsumerClient(config);
                    case "share" -> new ShareClient(config);
                    case "streams" -> new StreamsClient(config);
                    case "admin" -> new AdminClient(config);
                    default -> throw new IllegalArgumentException("no such kind");
                };
                DRIVERS.put(name, new Driver(name, client));
                return Json.object();
            }));
            case "close" -> {
                Driver driver = driver(name);
                DRIVERS.remove(name);
                driver.submit(() -> {
                    answer(request, () -> {
                        driver.client.close();
                        return Json.object();
                    });
                    driver.ended = true;
                });
            }
            case "call" -> call(request, driver(name));
            default -> throw new IllegalArgumentException("what shall be done?");
        }
    }

    private static void call(JsonNode request, Driver driver) {
        String operation = request.get("operation").asText();
        JsonNode arguments = request.get("arguments");
        // Two hops for few calls: those that may be answered at once must not wait behind the client's own thread.
        if (operation.equals("take") || operation.equals("stop") || operation.equals("gaps")) {
            POOL.execute(() -> answerOr(request, () -> driver.client.callAtOnce(operation, arguments),
                    () -> driver.submit(() -> answer(request, () -> driver.client.call(operation, arguments)))));
        } else {
            driver.submit(() -> answer(request, () -> driver.client.call(operation, arguments)));
        }
    }

    private static void answerOr(JsonNode request, Work work, Runnable otherwise) {
        try {
            JsonNode result = work.run();
            if (result == null) {
                otherwise.run();
            } else {
                answer(request, () -> result);
            }
        } catch (Exception error) {
            answer(request, () -> {
                throw error;
            });
        }
    }

    private static void answer(JsonNode request, Work work) {
        ObjectNode made = Json.object();
        made.set("id", request.get("id"));
        try {
            made.set("result", work.run());
        } catch (Throwable error) {
            made.set("error", Json.error(error));
        }
        synchronized (ANSWERS) {
            ANSWERS.println(made);
            ANSWERS.flush();
        }
    }

    /** The thread of one client: its calls in order, its turns in between. */
    private static final class Driver {
        final Client client;
        volatile boolean ended;
        private final BlockingQueue<Runnable> calls = new LinkedBlockingQueue<>();

        Driver(String name, Client client) {
            this.client = client;
            Thread thread = new Thread(this::run, name);
            thread.setDaemon(true);
            thread.start();
        }

        void submit(Runnable call) {
            calls.add(call);
        }

        private void run() {
            boolean driven = false;
            while (!ended) {
                try {
                    Runnable call = driven ? calls.poll() : calls.poll(50, TimeUnit.MILLISECONDS);
                    if (call != null) {
                        call.run();
                    }
                    driven = !ended && client.turn();
                } catch (Throwable error) {
                    error.printStackTrace();
                    driven = false;
                }
            }
        }
    }
}
