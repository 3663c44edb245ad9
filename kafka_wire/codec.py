"""Messages <-> bytes, at every version, driven by the protocol's own definitions.

A decoded message is a dict: integers, `str`, `bytes`/`memoryview` (records, not copied), `bytes` of 16 for a
topic id, lists, dicts, `None`. Keys absent when encoding take the protocol's default; keys the version does not
have are left out. Tagged fields nobody knows here are kept under `"_tags"` as (tag, bytes) and written back, so a
newer broker or client loses nothing on the way through (KIP-482).

Readers and writers are compiled once per (message, version) and cached; runs of fixed-size fields become one
`struct` call. Hostile input raises `DecodeError`. Of a request at most MAX_ELEMENTS list elements are decoded: each
becomes an object of some hundred bytes, though it may take only two on the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from kafka_wire.schema import INTEGERS, Definition, Direction, Field, by_key, definitions

Message = dict[str, Any]
Buffer = bytes | bytearray | memoryview
Read = Callable[[memoryview, int], tuple[Any, int]]
Write = Callable[[bytearray, Any], None]

TAGS = "_tags"
FIXED = INTEGERS | {"bool": "?", "float64": "d", "uuid": "16s"}
MAX_ELEMENTS = 100_000
_UNBOUNDED = 1 << 62
_left = [_UNBOUNDED]  # elements that the message being decoded may still have
_I16, _I32 = struct.Struct(">h"), struct.Struct(">i")


class DecodeError(ValueError):
    """The bytes are not a message of that key and version."""


class UnknownMessage(LookupError):
    """No such API key, or no such version of it."""


def read_uvarint(buf: memoryview, pos: int) -> tuple[int, int]:
    """An unsigned varint of at most 5 bytes: (value, next position)."""
    value = shift = 0
    while shift < 35:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise DecodeError("a varint of more than 5 bytes")


def write_uvarint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _length(buf: memoryview, pos: int, flexible: bool, small: bool) -> tuple[int, int]:
    """A length prefix; -1 is null. `small` is the two-byte form of old-style strings."""
    if flexible:
        n, pos = read_uvarint(buf, pos)
        n -= 1
    elif small:
        n, pos = _I16.unpack_from(buf, pos)[0], pos + 2
    else:
        n, pos = _I32.unpack_from(buf, pos)[0], pos + 4
    if n > len(buf) - pos:
        raise DecodeError(f"a length of {n} where {len(buf) - pos} bytes are left")
    if n < -1:
        raise DecodeError(f"a negative length {n}")
    return n, pos


def _put_length(out: bytearray, n: int, flexible: bool, small: bool) -> None:
    if flexible:
        write_uvarint(out, n + 1)
    else:
        out += (_I16 if small else _I32).pack(n)


def _reader_of(field: Field, version: int, flexible: bool) -> Read:
    """The reader of one value, arrays included."""
    if field.flexible is not None:
        flexible = version in field.flexible
    nullable = version in field.nullable
    if not field.array:
        return _element_reader(field, version, flexible, nullable)
    element = _element_reader(field, version, flexible, False)

    def read_array(buf: memoryview, pos: int) -> tuple[Any, int]:
        n, pos = _length(buf, pos, flexible, False)
        if n < 0:
            if not nullable:
                raise DecodeError(f"{field.name} must not be null")
            return None, pos
        _left[0] -= n
        if _left[0] < 0:
            raise DecodeError(f"more than {MAX_ELEMENTS} elements")
        out = []
        for _ in range(n):
            value, pos = element(buf, pos)
            out.append(value)
        return out, pos

    return read_array


def _element_reader(field: Field, version: int, flexible: bool, nullable: bool) -> Read:
    kind = field.type
    if kind in FIXED:
        fixed = struct.Struct(">" + FIXED[kind])

        def read_fixed(buf: memoryview, pos: int) -> tuple[Any, int]:
            return fixed.unpack_from(buf, pos)[0], pos + fixed.size

        return read_fixed
    if kind == "string":

        def read_string(buf: memoryview, pos: int) -> tuple[Any, int]:
            n, pos = _length(buf, pos, flexible, True)
            if n < 0:
                if not nullable:
                    raise DecodeError(f"{field.name} must not be null")
                return None, pos
            return str(buf[pos : pos + n], "utf-8"), pos + n

        return read_string
    if kind in ("bytes", "records"):

        def read_bytes(buf: memoryview, pos: int) -> tuple[Any, int]:
            n, pos = _length(buf, pos, flexible, False)
            if n < 0:
                # Records are nullable in practice at every version: brokers send null for an empty partition.
                if not nullable and kind != "records":
                    raise DecodeError(f"{field.name} must not be null")
                return None, pos
            part = buf[pos : pos + n]
            return part if kind == "records" else bytes(part), pos + n

        return read_bytes
    inner = _struct_reader(field.fields, version, flexible)
    if not nullable:
        return inner

    def read_nullable(buf: memoryview, pos: int) -> tuple[Any, int]:
        present = buf[pos]
        return inner(buf, pos + 1) if present == 1 else (None, pos + 1)

    return read_nullable


def _struct_reader(fields: Sequence[Field], version: int, flexible: bool) -> Read:
    steps: list[tuple[tuple[str, ...], struct.Struct] | tuple[str, Read]] = []
    names: list[str] = []
    codes = ""

    def flush() -> None:
        nonlocal names, codes
        if names:
            steps.append((tuple(names), struct.Struct(">" + codes)))
            names, codes = [], ""

    defaults: Message = {}
    tagged: dict[int, tuple[str, Read]] = {}
    for one in fields:
        if version in one.tagged:
            assert one.tag is not None
            tagged[one.tag] = (one.name, _reader_of(one, version, flexible))
            defaults[one.name] = one.default
        elif version not in one.versions:
            continue
        elif one.type in FIXED and not one.array:
            names.append(one.name)
            codes += FIXED[one.type]
        else:
            flush()
            steps.append((one.name, _reader_of(one, version, flexible)))
    flush()
    plan = tuple(steps)

    def read_struct(buf: memoryview, pos: int) -> tuple[Message, int]:
        out: Message = {}
        for name, how in plan:
            if type(name) is tuple:
                out.update(zip(name, how.unpack_from(buf, pos), strict=True))  # type: ignore[union-attr]
                pos += how.size  # type: ignore[union-attr]
            else:
                out[name], pos = how(buf, pos)  # type: ignore[operator,index]
        if flexible:
            count, pos = read_uvarint(buf, pos)
            if defaults:
                out.update(defaults)
            for _ in range(count):
                tag, pos = read_uvarint(buf, pos)
                size, pos = read_uvarint(buf, pos)
                if size > len(buf) - pos:
                    raise DecodeError(f"tagged field {tag} is longer than the message")
                if known := tagged.get(tag):
                    out[known[0]], _ = known[1](buf[: pos + size], pos)
                else:
                    out.setdefault(TAGS, []).append((tag, bytes(buf[pos : pos + size])))
                pos += size
        return out, pos

    return read_struct


def _writer_of(field: Field, version: int, flexible: bool) -> Write:
    if field.flexible is not None:
        flexible = version in field.flexible
    nullable = version in field.nullable
    if not field.array:
        return _element_writer(field, version, flexible, nullable)
    element = _element_writer(field, version, flexible, False)

    def write_array(out: bytearray, value: Any) -> None:
        if value is None:
            if not nullable:
                raise ValueError(f"{field.name} must not be null at version {version}")
            _put_length(out, -1, flexible, False)
            return
        _put_length(out, len(value), flexible, False)
        for item in value:
            element(out, item)

    return write_array


def _element_writer(field: Field, version: int, flexible: bool, nullable: bool) -> Write:
    kind = field.type
    if kind in FIXED:
        fixed = struct.Struct(">" + FIXED[kind])

        def write_fixed(out: bytearray, value: Any) -> None:
            out += fixed.pack(value)

        return write_fixed
    if kind in ("string", "bytes", "records"):
        small = kind == "string"

        def write_sized(out: bytearray, value: Any) -> None:
            if value is None:
                if not nullable and kind != "records":
                    raise ValueError(f"{field.name} must not be null at version {version}")
                _put_length(out, -1, flexible, small)
                return
            data = value.encode() if small else value
            _put_length(out, len(data), flexible, small)
            out += data

        return write_sized
    inner = _struct_writer(field.fields, version, flexible)
    if not nullable:
        return inner

    def write_nullable(out: bytearray, value: Any) -> None:
        if value is None:
            out.append(0xFF)
        else:
            out.append(1)
            inner(out, value)

    return write_nullable


def _struct_writer(fields: Sequence[Field], version: int, flexible: bool) -> Write:
    plain: list[tuple[str, Any, Write]] = []
    tagged: list[tuple[int, str, Any, Write]] = []
    for one in fields:
        if version in one.tagged:
            assert one.tag is not None
            tagged.append((one.tag, one.name, one.default, _writer_of(one, version, flexible)))
        elif version in one.versions:
            default = one.default
            if default is None and version not in one.nullable:
                default = [] if one.array else ""
            plain.append((one.name, default, _writer_of(one, version, flexible)))

    def write_struct(out: bytearray, value: Any) -> None:
        for name, default, write in plain:
            write(out, value.get(name, default))
        if not flexible:
            return
        parts: list[tuple[int, bytes | bytearray]] = list(value.get(TAGS, ()))
        for tag, name, default, write in tagged:
            item = value.get(name, default)
            if item != default:
                body = bytearray()
                write(body, item)
                parts.append((tag, body))
        write_uvarint(out, len(parts))
        for tag, data in sorted(parts, key=lambda part: part[0]):
            write_uvarint(out, tag)
            write_uvarint(out, len(data))
            out += data

    return write_struct


@cache
def _compiled_reader(name: str, version: int) -> Read:
    one = definitions()[name]
    return _struct_reader(one.fields, version, version in one.flexible)


@cache
def _compiled_writer(name: str, version: int) -> Write:
    one = definitions()[name]
    return _struct_writer(one.fields, version, version in one.flexible)


def _definition(direction: Direction, key: int, version: int) -> Definition:
    one = by_key(direction).get(key)
    if one is None or version not in one.versions:
        raise UnknownMessage(f"API key {key} version {version} is not known here")
    return one


def decode_named(
    name: str, version: int, data: Buffer, pos: int = 0, elements: int = _UNBOUNDED
) -> tuple[Message, int]:
    """A message by its definition's name (headers, record contents): (message, next position)."""
    _left[0] = elements
    try:
        return _compiled_reader(name, version)(memoryview(data), pos)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DecodeError(f"{name} v{version}: {error}") from None
    except DecodeError as error:
        raise DecodeError(f"{name} v{version}: {error}") from None


def encode_named(name: str, version: int, message: Message) -> bytearray:
    """The bytes of a message by its definition's name."""
    out = bytearray()
    try:
        _compiled_writer(name, version)(out, message)
    except struct.error as error:
        raise ValueError(f"{name} v{version}: {error}") from None
    return out


def decode(direction: Direction, key: int, version: int, data: Buffer, pos: int = 0) -> Message:
    """The body of a request or response.

    Raises:
        UnknownMessage: the key, or this version of it, is not in the protocol table.
        DecodeError: the bytes do not fit.
    """
    elements = MAX_ELEMENTS if direction == "request" else _UNBOUNDED
    return decode_named(_definition(direction, key, version).name, version, data, pos, elements)[0]


def encode(direction: Direction, key: int, version: int, message: Message) -> bytearray:
    """The bytes of the body of a request or response (no header, no size).

    Raises:
        UnknownMessage: the key, or this version of it, is not in the protocol table.
        ValueError: a value does not fit its field.
    """
    return encode_named(_definition(direction, key, version).name, version, message)


def is_flexible(key: int, version: int) -> bool:
    """Whether this version has compact lengths and tagged fields (KIP-482)."""
    return version in _definition("request", key, version).flexible
