package testclient;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.security.Permission;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main method of a command line tool in this JVM. Each run has its own standard streams, which the threads it
 * starts inherit, so that several tools can run at once.
 */
final class Tools {
    private static final class Streams {
        final InputStream in;
        final ByteArrayOutputStream out = new ByteArrayOutputStream();
        final ByteArrayOutputStream err = new ByteArrayOutputStream();
        /** The first status counts: a tool's own handler may catch what ends it and exit again. */
        final AtomicReference<Integer> status = new AtomicReference<>();

        Streams(byte[] input) {
            in = new ByteArrayInputStream(input);
        }
    }

    private static final class Exited extends Error {
        private static final long serialVersionUID = 1;

        Exited(int status) {
            super("exit status " + status, null, false, false);
        }
    }

    private static final InheritableThreadLocal<Streams> CURRENT = new InheritableThreadLocal<>();

    private Tools() {}

    static void install(PrintStream realErr) {
        System.setOut(new PrintStream(new Split(null, true), true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(new Split(realErr, false), true, StandardCharsets.UTF_8));
        System.setIn(new InputStream() {
            @Override
            public int read() throws IOException {
                Streams mine = CURRENT.get();
                return mine == null ? -1 : mine.in.read();
            }

            @Override
            public int read(byte[] into, int offset, int length) throws IOException {
                Streams mine = CURRENT.get();
                return mine == null ? -1 : mine.in.read(into, offset, length);
            }
        });
        Exit.setExitProcedure((status, message) -> leave(status));
        Exit.setHaltProcedure((status, message) -> leave(status));
        catchSystemExit();
        // They would pile up, and run when this JVM ends.
        Exit.setShutdownHookAdder((name, hook) -> {});
    }

    /** Tools with argparse4j leave through System.exit on --help and on wrong usage. Java 17 can still intercept that. */
    @SuppressWarnings("removal")
    private static void catchSystemExit() {
        try {
            System.setSecurityManager(new SecurityManager() {
                @Override
                public void checkPermission(Permission permission) {}

                @Override
                public void checkPermission(Permission permission, Object context) {}

                @Override
                public void checkExit(int status) {
                    if (CURRENT.get() != null) {
                        leave(status);
                    }
                }
            });
        } catch (UnsupportedOperationException newerJava) {
            // There such a call ends this JVM; everything else works.
        }
    }

    private static void leave(int status) {
        Streams mine = CURRENT.get();
        if (mine != null) {
            mine.status.compareAndSet(null, status);
        }
        throw new Exited(status);
    }

    static JsonNode run(JsonNode arguments) throws ReflectiveOperationException {
        Streams mine = new Streams(Json.text(arguments, "stdin", "").getBytes(StandardCharsets.UTF_8));
        CURRENT.set(mine);
        try {
            new Fresh(Tools.class.getClassLoader()).loadClass(arguments.get("main").asText())
                    .getMethod("main", String[].class)
                    .invoke(null, (Object) Json.strings(arguments.get("arguments")).toArray(new String[0]));
        } catch (InvocationTargetException thrown) {
            if (!(thrown.getCause() instanceof Exited)) {
                mine.status.compareAndSet(null, 1);
                thrown.getCause().printStackTrace(System.err);
            }
        } finally {
            CURRENT.remove();
        }
        Integer status = mine.status.get();
        return Json.object()
                .put("code", status == null ? 0 : status)
                .put("out", mine.out.toString(StandardCharsets.UTF_8))
                .put("err", mine.err.toString(StandardCharsets.UTF_8));
    }

    /** Tools count in static fields (the console consumer its records), so each run loads their classes anew. */
    private static final class Fresh extends ClassLoader {
        private static final List<String> OWN = List.of("org.apache.kafka.tools.", "kafka.admin.", "kafka.tools.");

        Fresh(ClassLoader parent) {
            super(parent);
        }

        @Override
        protected Class<?> loadClass(String name, boolean resolve) throws ClassNotFoundException {
            if (OWN.stream().noneMatch(name::startsWith)) {
                return super.loadClass(name, resolve);
            }
            synchronized (getClassLoadingLock(name)) {
                Class<?> loaded = findLoadedClass(name);
                return loaded != null ? loaded : define(name);
            }
        }

        private Class<?> define(String name) throws ClassNotFoundException {
            try (InputStream file = getParent().getResourceAsStream(name.replace('.', '/') + ".class")) {
                if (file == null) {
                    throw new ClassNotFoundException(name);
                }
                byte[] bytes = file.readAllBytes();
                return defineClass(name, bytes, 0, bytes.length);
            } catch (IOException error) {
                throw new ClassNotFoundException(name, error);
            }
        }
    }

    /** What nobody's tool prints goes to the fallback. */
    private static final class Split extends OutputStream {
        private final PrintStream fallback;
        private final boolean out;

        Split(PrintStream fallback, boolean out) {
            this.fallback = fallback;
            this.out = out;
        }

        @Override
        public void write(int one) {
            write(new byte[] {(byte) one}, 0, 1);
        }

        @Override
        public void write(byte[] bytes, int offset, int length) {
            Streams mine = CURRENT.get();
            if (mine != null) {
                (out ? mine.out : mine.err).write(bytes, offset, length);
            } else if (fallback != null) {
                fallback.write(bytes, offset, length);
                fallback.flush();
            }
        }
    }
}
