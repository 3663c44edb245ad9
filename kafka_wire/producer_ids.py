"""Producer ids inside record batches, changed where they lie."""

from __future__ import annotations

import struct

from crc32c import crc32c

from kafka_wire.batches import CRC_FROM

_U32, _I64 = struct.Struct(">I"), struct.Struct(">q")
_CRC_AT, _ID_AT = 17, 43


def add_to_producer(batch: memoryview, added: int) -> None:
    """Add to the producer id of this one batch. A CRC that was wrong stays wrong: what is damaged is not healed."""
    before = crc32c(batch[CRC_FROM:])
    _I64.pack_into(batch, _ID_AT, _I64.unpack_from(batch, _ID_AT)[0] + added)
    if _U32.unpack_from(batch, _CRC_AT)[0] == before:
        _U32.pack_into(batch, _CRC_AT, crc32c(batch[CRC_FROM:]))
