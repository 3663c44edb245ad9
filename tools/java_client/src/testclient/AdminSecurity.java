package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.CreateDelegationTokenOptions;
import org.apache.kafka.clients.admin.DescribeDelegationTokenOptions;
import org.apache.kafka.clients.admin.ExpireDelegationTokenOptions;
import org.apache.kafka.clients.admin.RenewDelegationTokenOptions;
import org.apache.kafka.clients.admin.ScramCredentialInfo;
import org.apache.kafka.clients.admin.ScramMechanism;
import org.apache.kafka.clients.admin.UserScramCredentialDeletion;
import org.apache.kafka.clients.admin.UserScramCredentialUpsertion;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.quota.ClientQuotaFilter;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.common.security.auth.KafkaPrincipal;
import org.apache.kafka.common.security.token.delegation.DelegationToken;
import org.apache.kafka.common.utils.SecurityUtils;

/** ACLs, quotas, SCRAM credentials and delegation tokens. */
final class AdminSecurity {
    private final Admin admin;

    AdminSecurity(Admin admin) {
        this.admin = admin;
    }

    /** Null: not one of ours. */
    JsonNode call(String operation, JsonNode arguments) throws Exception {
        switch (operation) {
            case "create_acls":
                List<AclBinding> wanted = acls(arguments.get("acls"));
                return AdminClient.each(admin.createAcls(wanted).values(), AdminClient::nothing);
            case "describe_acls":
                return shown(admin.describeAcls(AclBindingFilter.ANY).values().get());
            case "delete_acls":
                List<AclBindingFilter> filters = new ArrayList<>();
                acls(arguments.get("acls")).forEach(each -> filters.add(each.toFilter()));
                return shown(admin.deleteAcls(filters).all().get());
            case "alter_quotas":
                return alterQuotas(arguments);
            case "describe_quotas":
                return describeQuotas();
            case "upsert_scram":
                return AdminClient.each(admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(
                                arguments.get("user").asText(),
                                new ScramCredentialInfo(ScramMechanism.fromMechanismName(
                                        arguments.path("mechanism").asText("SCRAM-SHA-256")), 4096),
                                arguments.get("password").asText())))
                        .values(), AdminClient::nothing);
            case "delete_scram":
                return AdminClient.each(admin.alterUserScramCredentials(List.of(new UserScramCredentialDeletion(
                                arguments.get("user").asText(),
                                ScramMechanism.fromMechanismName(
                                        arguments.path("mechanism").asText("SCRAM-SHA-256")))))
                        .values(), AdminClient::nothing);
            case "describe_scram":
                ObjectNode users = Json.object();
                admin.describeUserScramCredentials().all().get().forEach((name, found) -> {
                    ArrayNode kinds = users.putArray(name);
                    found.credentialInfos().forEach(each -> kinds.add(each.mechanism().mechanismName()));
                });
                return users;
            case "create_token":
                return createToken(arguments);
            case "describe_tokens":
                ArrayNode tokens = Json.array();
                admin.describeDelegationToken(new DescribeDelegationTokenOptions()).delegationTokens().get()
                        .forEach(each -> tokens.add(token(each)));
                return tokens;
            case "renew_token":
                return Json.NODES.numberNode(admin.renewDelegationToken(hmac(arguments),
                        new RenewDelegationTokenOptions().renewTimePeriodMs(arguments.path("period").asLong(-1)))
                        .expiryTimestamp().get());
            case "expire_token":
                return Json.NODES.numberNode(admin.expireDelegationToken(hmac(arguments),
                        new ExpireDelegationTokenOptions().expiryTimePeriodMs(arguments.path("period").asLong(-1)))
                        .expiryTimestamp().get());
            default:
                return null;
        }
    }

    /** [principal, allow|deny, operation, resource type, name, literal|prefixed, host] */
    private static List<AclBinding> acls(JsonNode rows) {
        List<AclBinding> made = new ArrayList<>();
        for (JsonNode each : rows) {
            made.add(new AclBinding(
                    new ResourcePattern(
                            ResourceType.fromString(each.get(3).asText()),
                            each.get(4).asText(),
                            PatternType.valueOf(each.path(5).asText("literal").toUpperCase())),
                    new AccessControlEntry(
                            each.get(0).asText(),
                            each.path(6).asText("*"),
                            AclOperation.fromString(each.get(2).asText()),
                            AclPermissionType.fromString(each.get(1).asText()))));
        }
        return made;
    }

    private static ArrayNode shown(Collection<AclBinding> bindings) {
        ArrayNode made = Json.array();
        bindings.stream()
                .sorted((a, b) -> a.toString().compareTo(b.toString()))
                .forEach(each -> made.add(Json.array()
                        .add(each.entry().principal())
                        .add(each.entry().permissionType().name().toLowerCase())
                        .add(each.entry().operation().name().toLowerCase())
                        .add(each.pattern().resourceType().name().toLowerCase())
                        .add(each.pattern().name())
                        .add(each.pattern().patternType().name().toLowerCase())
                        .add(each.entry().host())));
        return made;
    }

    /** {"entity": {"user": "alice", "client-id": null}, "quotas": {"producer_byte_rate": 1000.0 | null}}; null: default */
    private JsonNode alterQuotas(JsonNode arguments) throws Exception {
        Map<String, String> entity = new HashMap<>();
        arguments.get("entity").properties().forEach(entry ->
                entity.put(entry.getKey(), entry.getValue().isNull() ? null : entry.getValue().asText()));
        List<ClientQuotaAlteration.Op> operations = new ArrayList<>();
        arguments.get("quotas").properties().forEach(entry -> operations.add(new ClientQuotaAlteration.Op(
                entry.getKey(), entry.getValue().isNull() ? null : entry.getValue().asDouble())));
        admin.alterClientQuotas(List.of(new ClientQuotaAlteration(new ClientQuotaEntity(entity), operations))).all().get();
        return Json.object();
    }

    private JsonNode describeQuotas() throws Exception {
        ArrayNode made = Json.array();
        admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get().entrySet().stream()
                .sorted((a, b) -> a.getKey().toString().compareTo(b.getKey().toString()))
                .forEach(entry -> {
                    ObjectNode row = made.addObject();
                    ObjectNode entity = row.putObject("entity");
                    entry.getKey().entries().forEach(entity::put);
                    ObjectNode quotas = row.putObject("quotas");
                    entry.getValue().forEach(quotas::put);
                });
        return made;
    }

    private JsonNode createToken(JsonNode arguments) throws Exception {
        List<KafkaPrincipal> renewers = new ArrayList<>();
        arguments.path("renewers").forEach(each -> renewers.add(SecurityUtils.parseKafkaPrincipal(each.asText())));
        CreateDelegationTokenOptions options = new CreateDelegationTokenOptions().renewers(renewers);
        if (arguments.hasNonNull("owner")) {
            options.owner(SecurityUtils.parseKafkaPrincipal(arguments.get("owner").asText()));
        }
        return token(admin.createDelegationToken(options).delegationToken().get());
    }

    private static JsonNode token(DelegationToken each) {
        return Json.object()
                .put("id", each.tokenInfo().tokenId())
                .put("owner", each.tokenInfo().owner().toString())
                .put("requester", each.tokenInfo().tokenRequester().toString())
                .put("expires", each.tokenInfo().expiryTimestamp())
                .put("hmac", each.hmacAsBase64String());
    }

    private static byte[] hmac(JsonNode arguments) {
        return Base64.getDecoder().decode(arguments.get("hmac").asText());
    }
}
