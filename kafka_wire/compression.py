"""The four codecs of record batches as Kafka's own clients frame them.

What Java insists on: snappy in xerial's blocks (raw snappy is read too), lz4 frames with independent blocks. Old
messages (magic 0) carry lz4 frames whose header checksum was computed over the magic number as well (KIP-57).
"""

from __future__ import annotations

import gzip
import struct
import zlib

import cramjam

from kafka_wire.codec import Buffer, DecodeError

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
NAMES = ("none", "gzip", "snappy", "lz4", "zstd")

_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER = _XERIAL + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK = 32 << 10
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_I32 = struct.Struct(">i")
_GZIP_LEVEL = 6
_U32 = 0xFFFFFFFF
_XXH = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


def compress(codec: int, data: Buffer) -> bytes:
    """`data` as the records of a batch with that codec (attribute bits 0 to 2). ValueError: no such codec."""
    if codec == NONE:
        return bytes(data)
    if codec == GZIP:
        return gzip.compress(data, _GZIP_LEVEL, mtime=0)
    if codec == SNAPPY:
        out = bytearray(_XERIAL_HEADER)
        view = memoryview(data)
        for start in range(0, len(view), _XERIAL_BLOCK):
            block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK]))
            out += _I32.pack(len(block))
            out += block
        return bytes(out)
    if codec == LZ4:
        # Linked blocks, cramjam's default, are refused by Java ("dependent block stream").
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(bytes(data))
        return bytes(compressor.finish())
    if codec == ZSTD:
        return bytes(cramjam.zstd.compress(data))
    raise ValueError(f"no such codec: {codec}")


def decompress(codec: int, data: Buffer, magic: int = 2) -> bytes:
    """The inverse of `compress`, for whatever framing Kafka's clients write; `magic` is the batch's.

    Raises:
        DecodeError: an unknown codec, or bytes that are not its.
    """
    try:
        if codec == NONE:
            return bytes(data)
        if codec == GZIP:
            return gzip.decompress(data)
        if codec == SNAPPY:
            return _snappy(memoryview(data))
        if codec == LZ4:
            return bytes(cramjam.lz4.decompress(_mended(data) if magic == 0 else data))
        if codec == ZSTD:
            return bytes(cramjam.zstd.decompress(data))
    except (cramjam.DecompressionError, EOFError, OSError, struct.error, zlib.error) as error:
        raise DecodeError(f"{NAMES[codec]} records: {error}") from None
    raise DecodeError(f"no such codec: {codec}")


def _snappy(data: memoryview) -> bytes:
    if data[: len(_XERIAL)] != _XERIAL:
        return bytes(cramjam.snappy.decompress_raw(data))
    out = bytearray()
    pos = len(_XERIAL_HEADER)
    while pos < len(data):
        (size,) = _I32.unpack_from(data, pos)
        pos += 4
        if size < 0 or pos + size > len(data):
            raise DecodeError(f"a snappy block of {size} bytes where {len(data) - pos} are left")
        out += bytes(cramjam.snappy.decompress_raw(data[pos : pos + size]))
        pos += size
    return bytes(out)


def _mended(data: Buffer) -> Buffer:
    """The frame with a header checksum as the format has it."""
    if bytes(data[:4]) != _LZ4_MAGIC or len(data) < 7:
        return data
    end = 6 + (8 if data[4] & 0x08 else 0)
    fixed = bytearray(data)
    fixed[end] = _xxh32(bytes(fixed[4:end])) >> 8 & 0xFF
    return fixed


def _xxh32(data: bytes) -> int:
    """XXH32, seed 0, of fewer than 16 bytes."""
    first, second, third, fourth, fifth = _XXH
    value = fifth + len(data) & _U32
    pos = 0
    while pos + 4 <= len(data):
        value = value + int.from_bytes(data[pos : pos + 4], "little") * third & _U32
        value = (value << 17 | value >> 15) * fourth & _U32
        pos += 4
    for byte in data[pos:]:
        value = value + byte * fifth & _U32
        value = (value << 11 | value >> 21) * first & _U32
    value = (value ^ value >> 15) * second & _U32
    value = (value ^ value >> 13) * third & _U32
    return value ^ value >> 16
