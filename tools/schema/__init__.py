"""Makes `kafka_wire/messages.json` from the message definitions that ship inside kafka-clients' jar."""
