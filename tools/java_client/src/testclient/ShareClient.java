package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * A member of a share group. Unlike a consumer it polls only when records are taken: with explicit acknowledgement the
 * records of one poll must be acknowledged before the next.
 */
final class ShareClient implements Client {
    private final KafkaShareConsumer<byte[], byte[]> consumer;
    private final ArrayNode commits = Json.array();
    private final Map<String, ConsumerRecord<byte[], byte[]>> taken = new HashMap<>();

    ShareClient(Map<String, Object> config) {
        consumer = new KafkaShareConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        consumer.setAcknowledgementCommitCallback((offsets, error) -> offsets.forEach((partition, numbers) -> {
            ObjectNode made = Json.object();
            made.set("partition", Json.pair(partition.topicPartition()));
            ArrayNode each = made.putArray("offsets");
            numbers.stream().sorted().forEach(each::add);
            if (error != null) {
                made.set("error", Json.error(error));
            }
            commits.add(made);
        }));
    }

    @Override
    public JsonNode call(String operation, JsonNode arguments) {
        switch (operation) {
            case "subscribe":
                consumer.subscribe(Json.strings(arguments.get("topics")));
                return Json.object();
            case "unsubscribe":
                consumer.unsubscribe();
                return Json.object();
            case "take":
                return take(arguments);
            case "acknowledge":
                AcknowledgeType type = AcknowledgeType.valueOf(arguments.get("as").asText().toUpperCase());
                for (JsonNode each : arguments.get("records")) {
                    consumer.acknowledge(taken.get(place(each)), type);
                }
                return Json.object();
            case "commit":
                ArrayNode failed = Json.array();
                consumer.commitSync(Duration.ofSeconds(30)).forEach((partition, error) -> error.ifPresent(thrown ->
                        failed.add(Json.pair(partition.topicPartition()).add(Json.error(thrown)))));
                return failed;
            default:
                throw new IllegalArgumentException("a share consumer has no " + operation);
        }
    }

    private static String place(JsonNode record) {
        return record.get(0).asText() + "-" + record.get(1).asInt() + "@" + record.get(2).asLong();
    }

    /** Polls until there are `count` records; with `once`, until a poll gave any. */
    private JsonNode take(JsonNode arguments) {
        ArrayNode records = Json.array();
        taken.clear();
        int wanted = arguments.path("once").asBoolean(false) ? 1 : arguments.path("count").asInt(1);
        long deadline = System.nanoTime() + (long) (arguments.path("timeout").asDouble(10) * 1e9);
        while (records.size() < wanted && System.nanoTime() < deadline) {
            for (ConsumerRecord<byte[], byte[]> each : consumer.poll(Duration.ofMillis(100))) {
                ArrayNode shown = ConsumerClient.record(each);
                taken.put(place(shown), each);
                records.add(shown);
            }
        }
        ObjectNode made = Json.object();
        made.set("records", records);
        made.set("events", commits.deepCopy());
        commits.removeAll();
        return made;
    }

    @Override
    public void close() {
        consumer.close();
    }
}
