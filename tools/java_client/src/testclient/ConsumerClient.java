package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.regex.Pattern;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** Polls all the time once it has a subscription or an assignment; what it read and what happened to it is taken. */
final class ConsumerClient implements Client, ConsumerRebalanceListener {
    private static final Duration POLL = Duration.ofMillis(20);
    private static final Duration CALL = Duration.ofSeconds(30);

    private final KafkaConsumer<byte[], byte[]> consumer;
    private final Object lock = new Object();
    private final Gaps gaps = new Gaps();
    private ArrayNode records = Json.array();
    private ArrayNode events = Json.array();
    private volatile ConsumerGroupMetadata group;
    private boolean polling;
    private boolean held;
    private final boolean grouped;

    ConsumerClient(Map<String, Object> config) {
        consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        grouped = config.containsKey("group.id");
    }

    /** As of the last poll; a producer asks for it from its own thread. */
    ConsumerGroupMetadata groupMetadata() {
        return group;
    }

    @Override
    public boolean turn() {
        if (!polling || held) {
            return false;
        }
        try {
            ArrayNode read = Json.array();
            for (ConsumerRecord<byte[], byte[]> each : consumer.poll(POLL)) {
                read.add(record(each));
            }
            if (!read.isEmpty()) {
                gaps.seen();
            }
            if (grouped) {
                group = consumer.groupMetadata();
            }
            synchronized (lock) {
                records.addAll(read);
                lock.notifyAll();
            }
        } catch (RuntimeException error) {
            event("error", Json.error(error));
            // An error that comes back at once must not fill the memory.
            if (!(error instanceof org.apache.kafka.common.errors.RetriableException)) {
                held = true;
            }
        }
        return true;
    }

    static ArrayNode record(ConsumerRecord<byte[], byte[]> each) {
        return Json.array()
                .add(each.topic())
                .add(each.partition())
                .add(each.offset())
                .add(Json.text(each.key()))
                .add(Json.text(each.value()))
                .add(each.timestamp())
                .add(each.leaderEpoch().orElse(-1))
                .add((int) each.deliveryCount().orElse((short) 0))
                .add(Json.headers(each.headers()));
    }

    @Override
    public JsonNode callAtOnce(String operation, JsonNode arguments) throws Exception {
        if (operation.equals("gaps")) {
            return gaps.take();
        }
        if (!operation.equals("take")) {
            return null;
        }
        long deadline = System.nanoTime() + (long) (arguments.path("timeout").asDouble(0) * 1e9);
        int wanted = arguments.path("count").asInt(0);
        int events = arguments.path("events").asInt(0);
        synchronized (lock) {
            long left;
            while ((records.size() < wanted || this.events.size() < events)
                    && (left = (deadline - System.nanoTime()) / 1_000_000) > 0) {
                lock.wait(left);
            }
            ObjectNode made = Json.object();
            made.set("records", records);
            made.set("events", this.events);
            records = Json.array();
            this.events = Json.array();
            return made;
        }
    }

    @Override
    public JsonNode call(String operation, JsonNode arguments) throws Exception {
        switch (operation) {
            case "subscribe":
                subscribe(arguments);
                polling = true;
                held = false;
                return Json.object();
            case "unsubscribe":
                polling = false;
                consumer.unsubscribe();
                return Json.object();
            case "assign":
                consumer.assign(Json.partitions(arguments.get("partitions")));
                polling = !consumer.assignment().isEmpty();
                held = false;
                return Json.object();
            case "hold":
                held = true;
                return Json.object();
            case "go_on":
                held = false;
                return Json.object();
            case "seek":
                seek(arguments);
                return Json.object();
            case "pause":
                consumer.pause(consumer.assignment());
                return Json.object();
            case "resume":
                consumer.resume(consumer.assignment());
                return Json.object();
            case "commit":
                commit(arguments);
                return Json.object();
            case "assignment":
                return Json.pairs(consumer.assignment());
            case "position":
                return Json.NODES.numberNode(consumer.position(Json.partition(arguments.get("partition")), CALL));
            case "committed":
                return offsets(consumer.committed(new HashSet<>(Json.partitions(arguments.get("partitions"))), CALL));
            case "beginning_offsets":
                return numbers(consumer.beginningOffsets(Json.partitions(arguments.get("partitions")), CALL));
            case "end_offsets":
                return numbers(consumer.endOffsets(Json.partitions(arguments.get("partitions")), CALL));
            case "offsets_for_times":
                return forTimes(arguments);
            case "list_topics":
                return Json.strings(consumer.listTopics(CALL).keySet());
            case "group":
                ConsumerGroupMetadata now = consumer.groupMetadata();
                return Json.object()
                        .put("group", now.groupId())
                        .put("member", now.memberId())
                        .put("generation", now.generationId());
            case "enforce_rebalance":
                consumer.enforceRebalance();
                return Json.object();
            default:
                throw new IllegalArgumentException("a consumer has no " + operation);
        }
    }

    private void subscribe(JsonNode arguments) {
        if (arguments.hasNonNull("pattern")) {
            consumer.subscribe(Pattern.compile(arguments.get("pattern").asText()), this);
        } else if (arguments.hasNonNull("server_pattern")) {
            consumer.subscribe(new SubscriptionPattern(arguments.get("server_pattern").asText()), this);
        } else {
            consumer.subscribe(Json.strings(arguments.get("topics")), this);
        }
    }

    private void seek(JsonNode arguments) {
        TopicPartition partition = Json.partition(arguments.get("partition"));
        switch (arguments.get("offset").asText()) {
            case "beginning" -> consumer.seekToBeginning(List.of(partition));
            case "end" -> consumer.seekToEnd(List.of(partition));
            default -> consumer.seek(partition, arguments.get("offset").asLong());
        }
    }

    private void commit(JsonNode arguments) {
        if (!arguments.hasNonNull("offsets")) {
            consumer.commitSync(CALL);
            return;
        }
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        arguments.get("offsets").forEach(each -> offsets.put(
                Json.partition(each), new OffsetAndMetadata(each.get(2).asLong(), each.path(3).asText(""))));
        consumer.commitSync(offsets, CALL);
    }

    private JsonNode forTimes(JsonNode arguments) {
        Map<TopicPartition, Long> times = new HashMap<>();
        arguments.get("times").forEach(each -> times.put(Json.partition(each), each.get(2).asLong()));
        ArrayNode made = Json.array();
        sorted(consumer.offsetsForTimes(times, CALL)).forEach((partition, found) -> made.add(
                Json.pair(partition).add(found == null ? -1 : found.offset())));
        return made;
    }

    private static <T> Map<TopicPartition, T> sorted(Map<TopicPartition, T> map) {
        Map<TopicPartition, T> made = new TreeMap<>((a, b) -> a.toString().compareTo(b.toString()));
        made.putAll(map);
        return made;
    }

    private static JsonNode numbers(Map<TopicPartition, Long> map) {
        ArrayNode made = Json.array();
        sorted(map).forEach((partition, offset) -> made.add(Json.pair(partition).add(offset)));
        return made;
    }

    static JsonNode offsets(Map<TopicPartition, OffsetAndMetadata> map) {
        ArrayNode made = Json.array();
        sorted(map).forEach((partition, found) ->
                made.add(Json.pair(partition).add(found == null ? -1 : found.offset())));
        return made;
    }

    private void event(String kind, JsonNode what) {
        synchronized (lock) {
            ObjectNode made = Json.object().put("kind", kind);
            made.set(kind.equals("error") ? "error" : "partitions", what);
            events.add(made);
            lock.notifyAll();
        }
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        event("assigned", Json.pairs(partitions));
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        event("revoked", Json.pairs(partitions));
    }

    @Override
    public void onPartitionsLost(Collection<TopicPartition> partitions) {
        event("lost", Json.pairs(partitions));
    }

    @Override
    public void close() {
        consumer.close();
    }
}
