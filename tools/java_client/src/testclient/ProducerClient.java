package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Sends numbered records and remembers what became of each. Every record's value is prefix, number and padding; results
 * are [number, partition, offset] or [number, error], in the order in which the broker's answers arrived.
 */
final class ProducerClient implements Client {
    private static final long INSIST_NANOS = 60_000_000_000L;

    private final KafkaProducer<byte[], byte[]> producer;
    private final Object lock = new Object();
    private final Gaps gaps = new Gaps();
    private ArrayNode results = Json.array();
    private ArrayNode transactions = Json.array();
    private long outstanding;
    private volatile boolean loading;
    private Thread load;

    ProducerClient(Map<String, Object> config) {
        producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    @Override
    public JsonNode call(String operation, JsonNode arguments) throws Exception {
        switch (operation) {
            case "send":
                send(arguments);
                if (arguments.path("flush").asBoolean(true)) {
                    producer.flush();
                    return take();
                }
                return Json.object();
            case "start":
                start(arguments);
                return Json.object();
            case "flush":
                producer.flush();
                return Json.object();
            case "init_transactions":
                producer.initTransactions();
                return Json.object();
            case "begin":
                producer.beginTransaction();
                return Json.object();
            case "commit":
                producer.commitTransaction();
                return Json.object();
            case "abort":
                producer.abortTransaction();
                return Json.object();
            case "send_offsets":
                sendOffsets(arguments);
                return Json.object();
            case "partitions_for":
                return partitions(arguments);
            default:
                throw new IllegalArgumentException("a producer has no " + operation);
        }
    }

    @Override
    public JsonNode callAtOnce(String operation, JsonNode arguments) throws Exception {
        switch (operation) {
            case "take":
                await(arguments.path("count").asInt(0), arguments.path("timeout").asDouble(0));
                return take();
            case "stop":
                loading = false;
                if (load != null) {
                    load.join();
                }
                producer.flush();
                return take();
            case "gaps":
                return gaps.take();
            default:
                return null;
        }
    }

    private void send(JsonNode arguments) {
        int first = arguments.path("first").asInt(0);
        for (int number = first; number < first + arguments.path("count").asInt(1); number++) {
            send(arguments, number);
        }
    }

    private void send(JsonNode arguments, int number) {
        Integer partition = arguments.hasNonNull("partition") ? arguments.get("partition").asInt() : null;
        Long timestamp = arguments.hasNonNull("timestamp") ? arguments.get("timestamp").asLong() : null;
        byte[] key = Json.bytes(arguments.get("key"));
        if (arguments.path("keys").asInt(0) > 0) {
            key = ("k" + number % arguments.get("keys").asInt()).getBytes(StandardCharsets.UTF_8);
        }
        byte[] value = null;
        if (!arguments.path("tombstone").asBoolean(false)) {
            StringBuilder text = new StringBuilder(Json.text(arguments, "prefix", "")).append(number);
            int missing = arguments.path("size").asInt(0) - text.length();
            if (missing > 0) {
                text.append('.').append("x".repeat(missing - 1));
            }
            value = text.toString().getBytes(StandardCharsets.UTF_8);
        }
        ProducerRecord<byte[], byte[]> record =
                new ProducerRecord<>(arguments.get("topic").asText(), partition, timestamp, key, value);
        arguments.path("headers").properties().forEach(entry ->
                record.headers().add(new RecordHeader(entry.getKey(), Json.bytes(entry.getValue()))));
        synchronized (lock) {
            outstanding++;
        }
        try {
            producer.send(record, (metadata, error) -> {
                ArrayNode result = Json.array().add(number);
                if (error == null) {
                    result.add(metadata.partition()).add(metadata.offset());
                } else {
                    result.add(Json.error(error));
                }
                finished(result);
            });
        } catch (RuntimeException error) {
            finished(Json.array().add(number).add(Json.error(error)));
        }
    }

    private void finished(ArrayNode result) {
        synchronized (lock) {
            outstanding--;
            if (!result.get(1).isObject()) {
                gaps.seen();
            }
            results.add(result);
            lock.notifyAll();
        }
    }

    private void await(int count, double seconds) throws InterruptedException {
        long deadline = System.nanoTime() + (long) (seconds * 1e9);
        synchronized (lock) {
            long left;
            while (results.size() < count && (left = (deadline - System.nanoTime()) / 1_000_000) > 0) {
                lock.wait(left);
            }
        }
    }

    /** Everything answered since the last call, how much is still under way, and the transactions that ended. */
    private JsonNode take() {
        synchronized (lock) {
            ObjectNode made = Json.object();
            made.set("results", results);
            made.put("outstanding", outstanding);
            made.set("transactions", transactions);
            results = Json.array();
            transactions = Json.array();
            return made;
        }
    }

    /** A steady load until "stop"; in transactions of `per_transaction` records where that is given. */
    private void start(JsonNode arguments) {
        if (load != null && load.isAlive()) {
            throw new IllegalStateException("already loading");
        }
        loading = true;
        load = new Thread(() -> run(arguments), "load");
        load.start();
    }

    private void run(JsonNode arguments) {
        Pace pace = new Pace(arguments.path("per_second").asInt(100));
        int perTransaction = arguments.path("per_transaction").asInt(0);
        int abortEvery = arguments.path("abort_every").asInt(0);
        int most = arguments.path("count").asInt(Integer.MAX_VALUE);
        int first = arguments.path("first").asInt(0);
        try {
            if (perTransaction > 0) {
                boolean alive = true;
                for (int count = 1; loading && alive && most > 0; count++, most -= perTransaction) {
                    int size = Math.min(perTransaction, most);
                    alive = transaction(arguments, pace, first, size, abortEvery > 0 && count % abortEvery == 0);
                    first += size;
                }
                return;
            }
            for (int sent = 0; loading && sent < most; sent++) {
                send(arguments, first + sent);
                pace.next();
            }
        } catch (RuntimeException error) {
            synchronized (lock) {
                results.add(Json.array().add(-1).add(Json.error(error)));
            }
        }
    }

    /** One transaction, ended in any case: an error that can be aborted is. False where the producer is done for. */
    private boolean transaction(JsonNode arguments, Pace pace, int first, int size, boolean abort) {
        RuntimeException reason = null;
        int sent = 0;
        try {
            producer.beginTransaction();
            while (sent < size && loading) {
                send(arguments, first + sent++);
                pace.next();
            }
            if (!abort) {
                insist(producer::commitTransaction);
                return ended(first, sent, "committed", null);
            }
            producer.flush();
        } catch (RuntimeException error) {
            reason = error;
            pace.next();
        }
        try {
            insist(producer::abortTransaction);
            return ended(first, sent, "aborted", reason);
        } catch (RuntimeException error) {
            ended(first, sent, "unknown", reason == null ? error : reason);
            return false;
        }
    }

    /** Ending a transaction may take longer than one call waits; it is then asked again, as the client demands. */
    private static void insist(Runnable call) {
        long deadline = System.nanoTime() + INSIST_NANOS;
        while (true) {
            try {
                call.run();
                return;
            } catch (TimeoutException error) {
                if (System.nanoTime() > deadline) {
                    throw error;
                }
            }
        }
    }

    private boolean ended(int first, int sent, String how, RuntimeException reason) {
        synchronized (lock) {
            transactions.add(Json.array().add(first).add(sent).add(how)
                    .add(reason == null ? Json.NODES.nullNode() : Json.error(reason)));
            lock.notifyAll();
        }
        return true;
    }

    /** So many turns a second; late ones are made up for. */
    private final class Pace {
        private final long gap;
        private long next = System.nanoTime();

        Pace(int perSecond) {
            gap = 1_000_000_000L / Math.max(1, perSecond);
        }

        void next() {
            next += gap;
            long ahead;
            while (loading && (ahead = next - System.nanoTime()) > 0) {
                LockSupport.parkNanos(ahead);
            }
        }
    }

    // Naming a group without being its member is deprecated and still what some applications do.
    @SuppressWarnings("removal")
    private void sendOffsets(JsonNode arguments) {
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        arguments.get("offsets").forEach(each -> offsets.put(
                Json.partition(each), new OffsetAndMetadata(each.get(2).asLong())));
        ConsumerGroupMetadata group = arguments.hasNonNull("consumer")
                ? ((ConsumerClient) Main.client(arguments.get("consumer").asText())).groupMetadata()
                : new ConsumerGroupMetadata(arguments.get("group").asText());
        producer.sendOffsetsToTransaction(offsets, group);
    }

    private JsonNode partitions(JsonNode arguments) {
        ArrayNode made = Json.array();
        producer.partitionsFor(arguments.get("topic").asText()).stream()
                .sorted((a, b) -> Integer.compare(a.partition(), b.partition()))
                .forEach(each -> made.add(Json.object()
                        .put("partition", each.partition())
                        .put("leader", each.leader() == null ? -1 : each.leader().id())));
        return made;
    }

    @Override
    public void close() {
        loading = false;
        producer.close(Duration.ofSeconds(5));
    }
}
