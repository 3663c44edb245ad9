"""Unsigned and zigzag varints, for the compact records of tables and guards."""

from __future__ import annotations


class Damaged(ValueError):
    """Bytes that are not what they should be."""


def put(out: bytearray, value: int) -> None:
    """An unsigned varint. ValueError for a negative value."""
    if value < 0:
        raise ValueError(f"negative: {value}")
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def put_signed(out: bytearray, value: int) -> None:
    put(out, value << 1 if value >= 0 else ~value << 1 | 1)


def values(data: bytes | bytearray | memoryview) -> list[int]:
    """All unsigned varints of the data; a table of a million runs is read like this. Damaged as `Reader`."""
    out: list[int] = []
    value = shift = 0
    for byte in data:
        if byte < 0x80:
            out.append(byte << shift | value)
            value = shift = 0
        else:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift >= 70:
                break
    if shift:
        raise Damaged("a varint that does not end")
    return out


class Reader:
    """Reads what `put` and `put_signed` wrote. Damaged at the end of the bytes, or past 10 bytes of one value."""

    __slots__ = ("_data", "pos")

    def __init__(self, data: bytes | bytearray | memoryview, pos: int = 0) -> None:
        self._data = data
        self.pos = pos

    @property
    def done(self) -> bool:
        return self.pos >= len(self._data)

    def get(self) -> int:
        value = shift = 0
        while self.pos < len(self._data) and shift < 70:
            byte = self._data[self.pos]
            self.pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise Damaged("a varint that does not end")

    def signed(self) -> int:
        value = self.get()
        return value >> 1 if value & 1 == 0 else ~(value >> 1)
