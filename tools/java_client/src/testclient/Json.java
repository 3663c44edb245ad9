package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.ApiException;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.protocol.Errors;

/** Between JSON and what Kafka's clients take and give. */
final class Json {
    static final ObjectMapper MAPPER = new ObjectMapper();
    static final JsonNodeFactory NODES = JsonNodeFactory.instance;

    private Json() {}

    static ObjectNode object() {
        return NODES.objectNode();
    }

    static ArrayNode array() {
        return NODES.arrayNode();
    }

    static ArrayNode strings(Collection<String> values) {
        ArrayNode made = array();
        values.stream().sorted().forEach(made::add);
        return made;
    }

    static Map<String, Object> config(JsonNode node) {
        Map<String, Object> made = new HashMap<>();
        node.properties().forEach(entry -> made.put(entry.getKey(), entry.getValue().asText()));
        return made;
    }

    static List<String> strings(JsonNode node) {
        List<String> made = new ArrayList<>();
        node.forEach(each -> made.add(each.asText()));
        return made;
    }

    static String text(JsonNode arguments, String name, String otherwise) {
        return arguments.hasNonNull(name) ? arguments.get(name).asText() : otherwise;
    }

    static ArrayNode pair(TopicPartition partition) {
        return array().add(partition.topic()).add(partition.partition());
    }

    static TopicPartition partition(JsonNode pair) {
        return new TopicPartition(pair.get(0).asText(), pair.get(1).asInt());
    }

    static List<TopicPartition> partitions(JsonNode pairs) {
        List<TopicPartition> made = new ArrayList<>();
        pairs.forEach(pair -> made.add(partition(pair)));
        return made;
    }

    static ArrayNode pairs(Collection<TopicPartition> partitions) {
        ArrayNode made = array();
        partitions.stream()
                .sorted((a, b) -> a.toString().compareTo(b.toString()))
                .forEach(each -> made.add(pair(each)));
        return made;
    }

    static String text(byte[] bytes) {
        return bytes == null ? null : new String(bytes, StandardCharsets.UTF_8);
    }

    static byte[] bytes(JsonNode node) {
        return node == null || node.isNull() ? null : node.asText().getBytes(StandardCharsets.UTF_8);
    }

    static ArrayNode headers(Iterable<Header> headers) {
        ArrayNode made = array();
        headers.forEach(each -> made.add(array().add(each.key()).add(text(each.value()))));
        return made;
    }

    /** The protocol's name and number of an error where it has one, and always the class and the message. */
    static ObjectNode error(Throwable thrown) {
        Throwable cause = thrown;
        while ((cause instanceof ExecutionException || cause instanceof CompletionException) && cause.getCause() != null) {
            cause = cause.getCause();
        }
        Errors known = cause instanceof ApiException ? Errors.forException(cause) : Errors.UNKNOWN_SERVER_ERROR;
        ObjectNode made = object();
        made.put("kind", cause.getClass().getSimpleName());
        made.put("message", String.valueOf(cause.getMessage()));
        made.put("name", cause instanceof ApiException ? known.name() : "");
        made.put("code", cause instanceof ApiException ? known.code() : -1);
        made.put("retriable", cause instanceof RetriableException);
        return made;
    }
}
