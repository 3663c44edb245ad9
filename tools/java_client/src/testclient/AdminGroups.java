package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.kafka.clients.admin.AbortTransactionSpec;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ClassicGroupDescription;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.ListShareGroupOffsetsSpec;
import org.apache.kafka.clients.admin.MemberDescription;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.admin.ShareGroupDescription;
import org.apache.kafka.clients.admin.StreamsGroupDescription;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;

/** Groups of every kind, their offsets, transactions and producers. */
final class AdminGroups {
    private final Admin admin;

    AdminGroups(Admin admin) {
        this.admin = admin;
    }

    /** Null: not one of ours. */
    JsonNode call(String operation, JsonNode arguments) throws Exception {
        List<String> groups = arguments.hasNonNull("groups") ? Json.strings(arguments.get("groups")) : List.of();
        String group = Json.text(arguments, "group", "");
        switch (operation) {
            case "list_groups":
                return listGroups();
            case "describe_consumer_groups":
                return AdminClient.each(admin.describeConsumerGroups(groups).describedGroups(), AdminGroups::group);
            case "describe_classic_groups":
                return AdminClient.each(admin.describeClassicGroups(groups).describedGroups(), AdminGroups::group);
            case "describe_share_groups":
                return AdminClient.each(admin.describeShareGroups(groups).describedGroups(), AdminGroups::group);
            case "describe_streams_groups":
                return AdminClient.each(admin.describeStreamsGroups(groups).describedGroups(), AdminGroups::group);
            case "delete_consumer_groups":
                return AdminClient.each(admin.deleteConsumerGroups(groups).deletedGroups(), AdminClient::nothing);
            case "delete_share_groups":
                return AdminClient.each(admin.deleteShareGroups(groups).deletedGroups(), AdminClient::nothing);
            case "delete_streams_groups":
                return AdminClient.each(admin.deleteStreamsGroups(groups).deletedGroups(), AdminClient::nothing);
            case "list_consumer_group_offsets":
                return ConsumerClient.offsets(
                        admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata(group).get());
            case "alter_consumer_group_offsets":
                return alterOffsets(group, arguments);
            case "delete_consumer_group_offsets":
                return deleteOffsets(group, arguments);
            case "list_share_group_offsets":
                ObjectNode starts = Json.object();
                admin.listShareGroupOffsets(Map.of(group, new ListShareGroupOffsetsSpec()))
                        .partitionsToOffsetInfo(group)
                        .get()
                        .forEach((partition, info) -> starts.put(partition.toString(), info == null ? -1 : info.startOffset()));
                return starts;
            case "alter_share_group_offsets":
                Map<TopicPartition, Long> wanted = new HashMap<>();
                arguments.get("offsets").forEach(each -> wanted.put(Json.partition(each), each.get(2).asLong()));
                admin.alterShareGroupOffsets(group, wanted).all().get();
                return Json.object();
            case "remove_members":
                admin.removeMembersFromConsumerGroup(group, new RemoveMembersFromConsumerGroupOptions()).all().get();
                return Json.object();
            case "list_transactions":
                ArrayNode listed = Json.array();
                admin.listTransactions().all().get().stream()
                        .sorted((a, b) -> a.transactionalId().compareTo(b.transactionalId()))
                        .forEach((TransactionListing each) -> listed.addObject()
                                .put("transactional_id", each.transactionalId())
                                .put("producer_id", each.producerId())
                                .put("state", each.state().toString()));
                return listed;
            case "describe_transactions":
                return describeTransactions(Json.strings(arguments.get("transactional_ids")));
            case "fence_producers":
                return AdminClient.each(
                        admin.fenceProducers(Json.strings(arguments.get("transactional_ids"))).fencedProducers(),
                        AdminClient::nothing);
            case "abort_transaction":
                admin.abortTransaction(new AbortTransactionSpec(
                                Json.partition(arguments.get("partition")),
                                arguments.get("producer_id").asLong(),
                                (short) arguments.get("producer_epoch").asInt(),
                                arguments.path("coordinator_epoch").asInt(-1)))
                        .all()
                        .get();
                return Json.object();
            case "describe_producers":
                return describeProducers(Json.partitions(arguments.get("partitions")));
            default:
                return null;
        }
    }

    private JsonNode listGroups() throws Exception {
        ArrayNode made = Json.array();
        admin.listGroups().all().get().stream()
                .sorted((a, b) -> a.groupId().compareTo(b.groupId()))
                .forEach(each -> made.addObject()
                        .put("group", each.groupId())
                        .put("type", each.type().map(String::valueOf).orElse(""))
                        .put("protocol", each.protocol())
                        .put("state", each.groupState().map(String::valueOf).orElse("")));
        return made;
    }

    private static ObjectNode described(String group, Object state, org.apache.kafka.common.Node coordinator) {
        ObjectNode made = Json.object().put("group", group).put("state", String.valueOf(state));
        made.set("coordinator", AdminClient.node(coordinator));
        made.putArray("members");
        return made;
    }

    private static void member(ObjectNode group, MemberDescription each) {
        ObjectNode made = ((ArrayNode) group.get("members")).addObject()
                .put("member", each.consumerId())
                .put("instance", each.groupInstanceId().orElse(""))
                .put("client", each.clientId())
                .put("host", each.host());
        made.set("assignment", Json.pairs(each.assignment().topicPartitions()));
    }

    private static JsonNode group(ConsumerGroupDescription found) {
        ObjectNode made = described(found.groupId(), found.groupState(), found.coordinator());
        made.put("type", found.type().toString()).put("assignor", found.partitionAssignor());
        found.members().forEach(each -> member(made, each));
        return made;
    }

    private static JsonNode group(ClassicGroupDescription found) {
        ObjectNode made = described(found.groupId(), found.state(), found.coordinator());
        made.put("type", "Classic");
        found.members().forEach(each -> member(made, each));
        return made;
    }

    private static JsonNode group(ShareGroupDescription found) {
        ObjectNode made = described(found.groupId(), found.groupState(), found.coordinator());
        made.put("type", "Share");
        found.members().forEach(each -> ((ArrayNode) made.get("members")).addObject()
                .put("member", each.consumerId())
                .put("client", each.clientId())
                .set("assignment", Json.pairs(each.assignment().topicPartitions())));
        return made;
    }

    private static JsonNode group(StreamsGroupDescription found) {
        ObjectNode made = described(found.groupId(), found.groupState(), found.coordinator());
        made.put("type", "Streams").put("subtopologies", found.subtopologies().size());
        found.members().forEach(each -> ((ArrayNode) made.get("members")).addObject()
                .put("member", each.memberId())
                .put("client", each.clientId()));
        return made;
    }

    private JsonNode alterOffsets(String group, JsonNode arguments) throws Exception {
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        arguments.get("offsets").forEach(each -> offsets.put(
                Json.partition(each), new OffsetAndMetadata(each.get(2).asLong())));
        admin.alterConsumerGroupOffsets(group, offsets).all().get();
        return Json.object();
    }

    private JsonNode deleteOffsets(String group, JsonNode arguments) throws Exception {
        HashSet<TopicPartition> partitions = new HashSet<>(Json.partitions(arguments.get("partitions")));
        var result = admin.deleteConsumerGroupOffsets(group, partitions);
        Map<TopicPartition, KafkaFuture<Void>> futures = new HashMap<>();
        partitions.forEach(each -> futures.put(each, result.partitionResult(each)));
        return AdminClient.each(futures, AdminClient::nothing);
    }

    private JsonNode describeTransactions(List<String> ids) throws Exception {
        var result = admin.describeTransactions(ids);
        Map<String, KafkaFuture<TransactionDescription>> futures = new HashMap<>();
        ids.forEach(id -> futures.put(id, result.description(id)));
        return AdminClient.each(futures, found -> Json.object()
                .put("coordinator", found.coordinatorId())
                .put("state", found.state().toString())
                .put("producer_id", found.producerId())
                .put("producer_epoch", found.producerEpoch())
                .set("partitions", Json.pairs(found.topicPartitions())));
    }

    private JsonNode describeProducers(List<TopicPartition> partitions) throws Exception {
        var result = admin.describeProducers(partitions);
        ObjectNode made = Json.object();
        Map<String, TopicPartition> sorted = new TreeMap<>();
        new ArrayList<>(partitions).forEach(each -> sorted.put(each.toString(), each));
        for (Map.Entry<String, TopicPartition> entry : sorted.entrySet()) {
            ArrayNode states = made.putArray(entry.getKey());
            result.partitionResult(entry.getValue()).get().activeProducers().forEach(each -> states.addObject()
                    .put("producer_id", each.producerId())
                    .put("producer_epoch", each.producerEpoch())
                    .put("last_sequence", each.lastSequence())
                    .put("transaction_start", each.currentTransactionStartOffset().orElse(-1)));
        }
        return made;
    }
}
