package testclient;

import com.fasterxml.jackson.databind.node.ArrayNode;

/** When nothing happened for a while: each gap of at least LEAST, as [Unix seconds of its end, its seconds]. */
final class Gaps {
    private static final double LEAST = 0.02;
    private static final int MOST = 10_000;

    private ArrayNode found = Json.array();
    private long last = -1;

    synchronized void seen() {
        long now = System.nanoTime();
        double seconds = (now - last) / 1e9;
        if (last >= 0 && seconds >= LEAST && found.size() < MOST) {
            found.add(Json.array().add(System.currentTimeMillis() / 1e3).add(seconds));
        }
        last = now;
    }

    /** Those since the last call. */
    synchronized ArrayNode take() {
        ArrayNode made = found;
        found = Json.array();
        return made;
    }
}
