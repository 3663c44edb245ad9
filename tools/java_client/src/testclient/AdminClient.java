package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Function;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.CreateTopicsOptions;
import org.apache.kafka.clients.admin.FeatureMetadata;
import org.apache.kafka.clients.admin.ListTopicsOptions;
import org.apache.kafka.clients.admin.LogDirDescription;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.QuorumInfo;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionInfo;
import org.apache.kafka.common.config.ConfigResource;

/** An admin client: cluster, topics, configuration here; groups, transactions and permissions in the other two. */
final class AdminClient implements Client {
    private final Admin admin;
    private final AdminGroups groups;
    private final AdminSecurity security;

    AdminClient(Map<String, Object> config) {
        admin = Admin.create(config);
        groups = new AdminGroups(admin);
        security = new AdminSecurity(admin);
    }

    /** What each key's future gave: a value, or {"error": ...}. */
    static <K, V> ObjectNode each(Map<K, KafkaFuture<V>> futures, Function<V, JsonNode> shown) throws Exception {
        ObjectNode made = Json.object();
        Map<String, KafkaFuture<V>> sorted = new TreeMap<>();
        futures.forEach((key, future) -> sorted.put(String.valueOf(key), future));
        for (Map.Entry<String, KafkaFuture<V>> entry : sorted.entrySet()) {
            try {
                V value = entry.getValue().get();
                made.set(entry.getKey(), value == null ? Json.object() : shown.apply(value));
            } catch (java.util.concurrent.ExecutionException error) {
                made.set(entry.getKey(), Json.object().set("error", Json.error(error)));
            }
        }
        return made;
    }

    static JsonNode nothing(Object ignored) {
        return Json.object();
    }

    static JsonNode node(Node node) {
        if (node == null) {
            return Json.NODES.nullNode();
        }
        return Json.object().put("id", node.id()).put("host", node.host()).put("port", node.port());
    }

    static JsonNode ids(Collection<Node> nodes) {
        ArrayNode made = Json.array();
        nodes.forEach(each -> made.add(each.id()));
        return made;
    }

    @Override
    public JsonNode call(String operation, JsonNode arguments) throws Exception {
        JsonNode found = groups.call(operation, arguments);
        if (found == null) {
            found = security.call(operation, arguments);
        }
        return found != null ? found : own(operation, arguments);
    }

    private JsonNode own(String operation, JsonNode arguments) throws Exception {
        switch (operation) {
            case "list_topics":
                return Json.strings(admin.listTopics(new ListTopicsOptions()
                                .listInternal(arguments.path("internal").asBoolean(false)))
                        .names()
                        .get());
            case "describe_topics":
                return each(admin.describeTopics(Json.strings(arguments.get("topics"))).topicNameValues(),
                        AdminClient::topic);
            case "create_topics":
                return createTopics(arguments);
            case "delete_topics":
                return each(admin.deleteTopics(Json.strings(arguments.get("topics"))).topicNameValues(),
                        AdminClient::nothing);
            case "create_partitions":
                Map<String, NewPartitions> wanted = new HashMap<>();
                arguments.get("topics").properties().forEach(entry ->
                        wanted.put(entry.getKey(), NewPartitions.increaseTo(entry.getValue().asInt())));
                return each(admin.createPartitions(wanted).values(), AdminClient::nothing);
            case "describe_configs":
                Set<ConfigResource> resources = new HashSet<>();
                arguments.get("resources").forEach(pair -> resources.add(resource(pair)));
                return each(admin.describeConfigs(resources).values(), AdminClient::config);
            case "alter_configs":
                return alterConfigs(arguments);
            case "list_config_resources":
                ArrayNode listed = Json.array();
                admin.listConfigResources().all().get().stream()
                        .map(each -> each.type() + ":" + each.name())
                        .sorted()
                        .forEach(listed::add);
                return listed;
            case "describe_cluster":
                return cluster();
            case "describe_features":
                FeatureMetadata features = admin.describeFeatures().featureMetadata().get();
                ObjectNode levels = Json.object();
                new TreeMap<>(features.finalizedFeatures()).forEach((name, range) ->
                        levels.put(name, range.maxVersionLevel()));
                ObjectNode shown = Json.object().put("epoch", features.finalizedFeaturesEpoch().orElse(-1L));
                shown.set("finalized", levels);
                return shown;
            case "describe_quorum":
                QuorumInfo quorum = admin.describeMetadataQuorum().quorumInfo().get();
                return Json.object().put("leader", quorum.leaderId()).put("voters", quorum.voters().size());
            case "list_offsets":
                return listOffsets(arguments);
            case "delete_records":
                Map<TopicPartition, RecordsToDelete> before = new HashMap<>();
                arguments.get("offsets").forEach(each -> before.put(
                        Json.partition(each), RecordsToDelete.beforeOffset(each.get(2).asLong())));
                return each(admin.deleteRecords(before).lowWatermarks(),
                        found -> Json.NODES.numberNode(found.lowWatermark()));
            case "describe_log_dirs":
                List<Integer> brokers = new ArrayList<>();
                arguments.get("brokers").forEach(each -> brokers.add(each.asInt()));
                return each(admin.describeLogDirs(brokers).descriptions(), AdminClient::logDirs);
            case "elect_leaders":
                return electLeaders(arguments);
            case "reassign":
                Map<TopicPartition, Optional<NewPartitionReassignment>> moves = new HashMap<>();
                arguments.get("moves").forEach(each -> moves.put(Json.partition(each), replicas(each.get(2))));
                return each(admin.alterPartitionReassignments(moves).values(), AdminClient::nothing);
            case "list_reassignments":
                ArrayNode moving = Json.array();
                new TreeMap<>(named(admin.listPartitionReassignments().reassignments().get()))
                        .forEach((name, move) -> moving.add(name));
                return moving;
            default:
                throw new IllegalArgumentException("an admin client has no " + operation);
        }
    }

    private static <V> Map<String, V> named(Map<TopicPartition, V> map) {
        Map<String, V> made = new HashMap<>();
        map.forEach((key, value) -> made.put(key.toString(), value));
        return made;
    }

    private static Optional<NewPartitionReassignment> replicas(JsonNode ids) {
        if (ids.isNull()) {
            return Optional.empty();
        }
        List<Integer> made = new ArrayList<>();
        ids.forEach(each -> made.add(each.asInt()));
        return Optional.of(new NewPartitionReassignment(made));
    }

    private static ConfigResource resource(JsonNode pair) {
        return new ConfigResource(ConfigResource.Type.valueOf(pair.get(0).asText().toUpperCase()), pair.get(1).asText());
    }

    private static JsonNode topic(TopicDescription description) {
        ObjectNode made = Json.object()
                .put("id", description.topicId().toString())
                .put("internal", description.isInternal());
        ArrayNode partitions = made.putArray("partitions");
        for (TopicPartitionInfo each : description.partitions()) {
            ObjectNode shown = partitions.addObject().put("partition", each.partition());
            shown.put("leader", each.leader() == null ? -1 : each.leader().id());
            shown.set("replicas", ids(each.replicas()));
            shown.set("isr", ids(each.isr()));
        }
        return made;
    }

    private static JsonNode config(Config config) {
        ObjectNode made = Json.object();
        config.entries().stream()
                .sorted((a, b) -> a.name().compareTo(b.name()))
                .forEach(each -> made.putObject(each.name())
                        .put("value", each.value())
                        .put("source", each.source().name())
                        .put("sensitive", each.isSensitive())
                        .put("read_only", each.isReadOnly()));
        return made;
    }

    private JsonNode createTopics(JsonNode arguments) throws Exception {
        List<NewTopic> topics = new ArrayList<>();
        for (JsonNode each : arguments.get("topics")) {
            Optional<Integer> partitions =
                    each.hasNonNull("partitions") ? Optional.of(each.get("partitions").asInt()) : Optional.empty();
            Optional<Short> replication = each.hasNonNull("replication")
                    ? Optional.of((short) each.get("replication").asInt())
                    : Optional.empty();
            Map<String, String> config = new HashMap<>();
            each.path("config").properties().forEach(entry -> config.put(entry.getKey(), entry.getValue().asText()));
            topics.add(new NewTopic(each.get("name").asText(), partitions, replication).configs(config));
        }
        return each(admin.createTopics(topics, new CreateTopicsOptions()
                        .validateOnly(arguments.path("validate_only").asBoolean(false)))
                .values(), AdminClient::nothing);
    }

    /** {"changes": [["topic", "orders", "retention.ms", "1000"], ["topic", "orders", "cleanup.policy", null]]} */
    private JsonNode alterConfigs(JsonNode arguments) throws Exception {
        Map<ConfigResource, Collection<AlterConfigOp>> changes = new HashMap<>();
        for (JsonNode each : arguments.get("changes")) {
            boolean delete = each.get(3).isNull();
            changes.computeIfAbsent(resource(each), ignored -> new ArrayList<>())
                    .add(new AlterConfigOp(
                            new ConfigEntry(each.get(2).asText(), delete ? null : each.get(3).asText()),
                            delete ? AlterConfigOp.OpType.DELETE : AlterConfigOp.OpType.SET));
        }
        return each(admin.incrementalAlterConfigs(changes).values(), AdminClient::nothing);
    }

    private JsonNode cluster() throws Exception {
        var described = admin.describeCluster();
        ObjectNode made = Json.object().put("id", described.clusterId().get());
        made.set("controller", node(described.controller().get()));
        ArrayNode nodes = made.putArray("nodes");
        described.nodes().get().stream()
                .sorted((a, b) -> Integer.compare(a.id(), b.id()))
                .forEach(each -> nodes.add(node(each)));
        return made;
    }

    /** {"partitions": [["orders", 0, "earliest" | "latest" | "max_timestamp" | "earliest_local" | timestamp]]} */
    private JsonNode listOffsets(JsonNode arguments) throws Exception {
        Map<TopicPartition, OffsetSpec> wanted = new HashMap<>();
        for (JsonNode each : arguments.get("partitions")) {
            wanted.put(Json.partition(each), switch (each.get(2).asText()) {
                case "earliest" -> OffsetSpec.earliest();
                case "latest" -> OffsetSpec.latest();
                case "max_timestamp" -> OffsetSpec.maxTimestamp();
                case "earliest_local" -> OffsetSpec.earliestLocal();
                default -> OffsetSpec.forTimestamp(each.get(2).asLong());
            });
        }
        var result = admin.listOffsets(wanted);
        Map<TopicPartition, KafkaFuture<org.apache.kafka.clients.admin.ListOffsetsResult.ListOffsetsResultInfo>> futures =
                new HashMap<>();
        wanted.keySet().forEach(partition -> futures.put(partition, result.partitionResult(partition)));
        return each(futures, found -> Json.object()
                .put("offset", found.offset())
                .put("timestamp", found.timestamp())
                .put("epoch", found.leaderEpoch().orElse(-1)));
    }

    private static JsonNode logDirs(Map<String, LogDirDescription> dirs) {
        ObjectNode made = Json.object();
        dirs.values().forEach(dir -> named(dir.replicaInfos()).forEach((partition, info) ->
                made.putObject(partition).put("size", info.size()).put("lag", info.offsetLag())));
        return made;
    }

    private JsonNode electLeaders(JsonNode arguments) throws Exception {
        ElectionType type = arguments.path("unclean").asBoolean(false) ? ElectionType.UNCLEAN : ElectionType.PREFERRED;
        Set<TopicPartition> partitions = arguments.hasNonNull("partitions")
                ? new HashSet<>(Json.partitions(arguments.get("partitions")))
                : null;
        ObjectNode made = Json.object();
        new TreeMap<>(named(admin.electLeaders(type, partitions).partitions().get())).forEach((name, error) ->
                made.set(name, error.<JsonNode>map(thrown -> Json.object().set("error", Json.error(thrown)))
                        .orElse(Json.object())));
        return made;
    }

    @Override
    public void close() {
        admin.close(java.time.Duration.ofSeconds(5));
    }
}
