"""Tar archives of webdataset samples: reproducible USTAR written, indexed and copied; other people's walked.

Headers are built by hand, so that the same members give the same bytes (no time, no owner, no PAX records)
and copying a sample is copying its blocks. This file knows nothing of runs; it works on bytes and binary
files.
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from synthgen.errors import WorkError

BLOCK = 512
RECORD = 20 * BLOCK  # archives end on a whole record, as tarfile and GNU tar write them
LINKS = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types of members without data: links, devices, folders, pipes."""
MOST_EXTENDED = 2**20
"""Bytes that an extended header may have; a larger one is no header."""
DIGITS = 20
"""Of a number in an extended header: no file has as many bytes."""


class Member(NamedTuple):
    """One file of an archive: its name and where its data lies, in bytes from the start."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The sample's key, by `split_name`."""
        return split_name(self.name)[0]

    @property
    def suffix(self) -> str:
        """What the member is of its sample: "jpg", "cls", "mask.png"."""
        return split_name(self.name)[1]


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: up to the first dot of the last part of its name, and what follows
    (webdataset's rule).
    """
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


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


def walk(file: BinaryIO) -> Iterator[Member]:
    """The plain files of anybody's archive (v7, USTAR, GNU, PAX; not compressed), in order, with their whole
    names. Between two members the file may be read at will.

    `tarfile` takes 14 us a member for this, and takes a damaged header, or a cut between members, for the
    end; both raise here, after what could be read.

    Raises:
        WorkError: a header is damaged, the data is cut, or the archive has no end.
    """
    end, at, name, size = file.seek(0, 2), 0, "", -1  # a name and size from extended headers
    while True:
        file.seek(at)
        head = file.read(BLOCK)
        if head == b"\0" * BLOCK:
            return
        if len(head) < BLOCK:
            raise WorkError(f"cut at byte {end}: the archive has no end")
        kind, held = head[156:157], _number(head[124:136])
        if _number(head[148:156]) != sum(head) - sum(head[148:156]) + 256 or held < 0:
            raise WorkError(f"damaged header at byte {at}")
        at += BLOCK
        if kind in b"LKxg":  # of the next member, or of all
            extra = file.read(held) if held <= MOST_EXTENDED else b""
            if len(extra) < held:
                raise WorkError(f"damaged extended header at byte {at - BLOCK}")
            at += held + -held % BLOCK
            if kind == b"L":
                name = extra.partition(b"\0")[0].decode(errors="backslashreplace")
            elif kind == b"x":
                long, large = _extended(extra, at)
                name, size = long or name, large if large >= 0 else size
            continue
        if kind == b"S":
            raise WorkError(f"sparse file at byte {at - BLOCK}, which is not read")
        if not name:
            parts = [head[:100].partition(b"\0")[0]]
            if head[257:263] == b"ustar\0" and head[345]:
                parts.insert(0, head[345:500].partition(b"\0")[0])
            name = b"/".join(parts).decode(errors="backslashreplace")
        held = held if size < 0 else size
        if kind not in LINKS and at + held > end:
            raise WorkError(f"cut inside {name}, {at + held - end} of its {held} bytes are not there")
        if kind in b"0\0" and not name.endswith("/"):
            yield Member(name, at, held)
        at += held + -held % BLOCK if kind not in LINKS else 0
        name, size = "", -1


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set; -1 is neither."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:]) if field[0] == 0x80 else -1
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if not digits.translate(None, b"01234567") else -1


def _extended(records: bytes, at: int) -> tuple[str, int]:
    """The name ("" is not told) and size (-1) in PAX records, "LENGTH KEY=VALUE\\n" one after another."""
    name, size, start = "", -1, 0
    while start < len(records):
        length = records[start : start + DIGITS].partition(b" ")[0]
        if not length.isdigit() or not len(length) + 2 <= int(length) <= len(records) - start:
            raise WorkError(f"damaged extended header before byte {at}")
        end = start + int(length)
        key, _, value = records[start + len(length) + 1 : end - 1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise WorkError(f"sparse file before byte {at}, which is not read")
        if key == b"path":
            if b"\0" in value:
                raise WorkError(f"damaged extended header before byte {at}")
            name = value.decode(errors="backslashreplace")
        if key == b"size" and value.isdigit():
            size = int(value) if len(value) <= DIGITS else 10**DIGITS
        start = end
    return name, size


def samples(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of an archive, or of a piece of one: (key, suffix -> data)."""
    for key, members in grouped(index(data)):
        yield key, {suffix: data[one.offset : one.offset + one.size] for suffix, one in members.items()}


def grouped(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples that members make: (key, suffix -> member), adjacent ones of one key together. A member
    that is there twice begins another sample, so that no byte of it is mixed in.

    Raises:
        WorkError: as `members` does, after the last sample, which may then lack some.
    """
    key, own = "", dict[str, Member]()
    try:
        for member in members:
            name, suffix = split_name(member.name)
            if own and (name != key or suffix in own):
                yield key, own
                own = {}
            key = name
            own[suffix] = member
    except WorkError:
        if own:
            yield key, own
        raise
    if own:
        yield key, own


def write(file: BinaryIO, all_samples: Iterable[tuple[str, dict[str, bytes]]]) -> int:
    """Writes a whole archive and returns the number of samples."""
    count = 0
    for key, members in all_samples:
        add_sample(file, key, members)
        count += 1
    finish(file)
    return count
