package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.Stores;

/** A small streams application: it copies a topic, or counts it by value (with a repartition and a changelog topic). */
final class StreamsClient implements Client {
    private final Properties properties = new Properties();
    private KafkaStreams streams;
    private volatile Throwable failure;

    StreamsClient(Map<String, Object> config) {
        properties.putAll(config);
        properties.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        properties.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
    }

    @Override
    public JsonNode call(String operation, JsonNode arguments) {
        switch (operation) {
            case "start":
                start(arguments);
                return Json.object();
            case "state":
                return Json.object()
                        .put("state", streams == null ? "" : streams.state().name())
                        .put("failure", failure == null ? "" : failure.toString());
            default:
                throw new IllegalArgumentException("a streams application has no " + operation);
        }
    }

    private void start(JsonNode arguments) {
        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, String> source = builder.stream(
                Json.strings(arguments.get("sources")), Consumed.with(Serdes.String(), Serdes.String()));
        String sink = arguments.get("sink").asText();
        if (arguments.path("count").asBoolean(false)) {
            // In memory: what is tested are the groups and topics, not a disk format.
            source.groupBy((key, value) -> value, Grouped.with(Serdes.String(), Serdes.String()))
                    .count(Materialized.<String, Long>as(Stores.inMemoryKeyValueStore("counts"))
                            .withKeySerde(Serdes.String())
                            .withValueSerde(Serdes.Long()))
                    .toStream()
                    .mapValues(String::valueOf)
                    .to(sink, Produced.with(Serdes.String(), Serdes.String()));
        } else {
            source.to(sink, Produced.with(Serdes.String(), Serdes.String()));
        }
        streams = new KafkaStreams(builder.build(), properties);
        streams.setUncaughtExceptionHandler(error -> {
            failure = error;
            return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler
                    .StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
    }

    @Override
    public void close() {
        if (streams != null) {
            streams.close(Duration.ofSeconds(10));
        }
    }
}
