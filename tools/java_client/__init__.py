"""The Java clients and Kafka's command line tools, many at once in one JVM, for tests.

async with jvm.producer(cluster.java()) as producer, jvm.consumer(cluster.java(), group="g") as consumer:
    await consumer.subscribe("orders")
    await producer.send("orders", count=10)
    records = await consumer.take(10)
"""

from tools.java_client.clients import (
    Admin,
    Consumer,
    Event,
    Gap,
    Producer,
    Record,
    Sent,
    ShareConsumer,
    Streams,
    Taken,
    Transaction,
)
from tools.java_client.jvm import Jvm
from tools.java_client.wire import JavaError

__all__ = [
    "Admin",
    "Consumer",
    "Event",
    "Gap",
    "JavaError",
    "Jvm",
    "Producer",
    "Record",
    "Sent",
    "ShareConsumer",
    "Streams",
    "Taken",
    "Transaction",
]
