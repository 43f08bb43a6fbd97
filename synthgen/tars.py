"""Reproducible USTAR archives of webdataset samples: written, indexed and copied.

Headers are built by hand, so that the same members give the same bytes (no time, no owner, no PAX records)
and copying a sample is copying its blocks. This file knows nothing of runs; it works on bytes and binary
files.
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from synthgen.errors import WorkError

BLOCK = 512
RECORD = 20 * BLOCK  # archives end on a whole record, as tarfile and GNU tar write them


class Member(NamedTuple):
    """One file of an archive: its name and where its data lies, in bytes from the start."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The sample's key: the name up to its first dot (webdataset's rule)."""
        return self.name.partition(".")[0]

    @property
    def suffix(self) -> str:
        """What follows the first dot: "jpg", "cls", "mask.png"."""
        return self.name.partition(".")[2]


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a plain file.

    Raises:
        ValueError: the name is not ASCII or longer than 100 bytes, which readers without PAX cannot hold.
    """
    encoded, length = name.encode("ascii"), b"%011o" % size
    if not 0 < len(encoded) <= 100:
        raise ValueError(f"tar member name {name!r}: 1 to 100 ASCII bytes are allowed")
    checksum = _REST_SUM + sum(encoded) + sum(length)
    return b"%s%s%s%s%06o%s" % (encoded.ljust(100, b"\0"), _BEFORE, length, _BETWEEN, checksum, _AFTER)


# what the headers of all plain files share: mode, uid, gid | size | mtime | checksum | kind, ustar, devices
_BEFORE = b"0000644\0" + b"0000000\0" * 2
_BETWEEN = b"\0" + b"00000000000\0"
_AFTER = (b"\0 0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 64 + b"0000000\0" * 2).ljust(BLOCK - 154, b"\0")
_REST_SUM = sum(_BEFORE + _BETWEEN + _AFTER[2:]) + sum(b" " * 8)  # the checksum counts as spaces


def padded(size: int) -> int:
    """Bytes that a member of so many takes in an archive, header and padding included."""
    return BLOCK + size + -size % BLOCK


def blocks(name: str, data: bytes) -> bytes:
    """One member as it lies in an archive: header, data, padding."""
    return header(name, len(data)) + data + b"\0" * (-len(data) % BLOCK)


def add_sample(file: BinaryIO, key: str, members: dict[str, bytes]) -> dict[str, Member]:
    """Appends one sample; `members` maps suffix to data and its order is the order in the archive.

    Returns:
        suffix -> Member, with offsets from the start of `file`.
    """
    written = {}
    for suffix, data in members.items():
        name = f"{key}.{suffix}"
        written[suffix] = Member(name, file.tell() + BLOCK, len(data))
        file.write(blocks(name, data))
    return written


def finish(file: BinaryIO) -> None:
    """Writes the end of the archive."""
    end = file.tell() + 2 * BLOCK
    file.write(b"\0" * (2 * BLOCK + -end % RECORD))


def index(data: bytes) -> Iterator[Member]:
    """The members of an archive, or of a piece of one that starts at a header.

    Raises:
        WorkError: a header is damaged or the data is cut. (Most readers take a cut tar for its end.)
    """
    at = 0
    while at + BLOCK <= len(data):
        member = read_header(data[at : at + BLOCK], at)
        if member is None:
            return
        if member.offset + member.size > len(data):
            raise WorkError(f"tar: cut inside {member.name}")
        yield member
        at += padded(member.size)


def read_header(head: bytes, at: int = 0) -> Member | None:
    """The member whose header is at a byte of an archive; None where the archive ends.

    Raises:
        WorkError: it is damaged.
    """
    if head == b"\0" * BLOCK:
        return None
    name = head[:100].rstrip(b"\0").decode("ascii", "replace")
    try:
        size, checksum = int(head[124:135], 8), int(head[148:154], 8)
    except ValueError:
        raise WorkError(f"tar: damaged header at byte {at}") from None
    if checksum != sum(head[:148]) + sum(b" " * 8) + sum(head[156:]):
        raise WorkError(f"tar: damaged header at byte {at} ({name})")
    return Member(name, at + BLOCK, size)


def samples(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of an archive, or of a piece of one: (key, suffix -> data), adjacent members of one key
    together.
    """
    key, members = "", dict[str, bytes]()
    for member in index(data):
        if member.key != key and members:
            yield key, members
            members = {}
        key = member.key
        members[member.suffix] = data[member.offset : member.offset + member.size]
    if members:
        yield key, members


def write(file: BinaryIO, all_samples: Iterable[tuple[str, dict[str, bytes]]]) -> int:
    """Writes a whole archive and returns the number of samples."""
    count = 0
    for key, members in all_samples:
        add_sample(file, key, members)
        count += 1
    finish(file)
    return count
