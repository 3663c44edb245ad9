package testclient;

import com.fasterxml.jackson.databind.JsonNode;

/** One Kafka client. Calls arrive one after another, on a thread of its own. */
interface Client extends AutoCloseable {
    JsonNode call(String operation, JsonNode arguments) throws Exception;

    @Override
    void close();

    /** Work between calls, for clients that must be driven (a consumer's poll); false where there is none. */
    default boolean turn() {
        return false;
    }

    /** Answers at once, on the caller's thread, while the client's own thread is busy; null: not such a call. */
    default JsonNode callAtOnce(String operation, JsonNode arguments) throws Exception {
        return null;
    }
}
