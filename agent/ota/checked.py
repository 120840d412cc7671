"""Records that tell damage from content: a CRC-32 over everything that counts."""

from __future__ import annotations

import re
import zlib

# What it is, which one, how many bytes of content, their CRC with all of that before.
_HEAD = re.compile(rb"(edge-agent-[a-z]+-1) ([0-9]{1,19}) ([0-9]{1,9}) ([0-9a-f]{8})\n")
LONGEST_HEAD = 96


def seal(kind: str, number: int, content: bytes) -> bytes:
    """Return a record: one line that is its head, and the content."""
    head = f"edge-agent-{kind}-1 {number} {len(content)} ".encode()
    return b"%s%08x\n%s" % (head, zlib.crc32(head + content), content)


def unseal(kind: str, record: bytes) -> tuple[int, bytes] | None:
    """Return number and content of the record that begins here, or None if it is not whole.

    Any change of up to 32 bits in a row is found, any other but for one in four thousand million.
    """
    found = _HEAD.match(record[:LONGEST_HEAD])
    if found is None or found[1] != f"edge-agent-{kind}-1".encode():
        return None
    content = record[found.end() : found.end() + int(found[3])]
    head = b"%s %s %s " % (found[1], found[2], found[3])
    if len(content) != int(found[3]) or zlib.crc32(head + content) != int(found[4], 16):
        return None
    return int(found[2]), content
