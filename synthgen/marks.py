"""The mark in an image: a small XMP packet that says that a model made it, and which image of which dataset
it is. Written and read here; knows no run.

The source type is IPTC's (Photo Metadata Standard, Digital Source Type; its user guide asks generators for
`trainedAlgorithmicMedia`), the uid its Digital Image GUID, the dataset Dublin Core's `isPartOf`.
"""

import io
from typing import NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from PIL import Image

from synthgen.errors import SynthgenError

TOOL = "synthgen"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP, DCTERMS, IPTC = (
    "http://ns.adobe.com/xap/1.0/",
    "http://purl.org/dc/terms/",
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
)
PROPERTIES = {
    f"{XMP} CreatorTool": "tool",
    f"{DCTERMS} isPartOf": "dataset",
    f"{IPTC} DigImageGUID": "uid",
    f"{IPTC} DigitalSourceType": "digital_source_type",
}
"""Names as expat gives them, and the fields of a `Mark` that they fill."""
LARGEST = 1 << 20
"""Bytes of a packet that is read; other people's hold thumbnails and histories."""


class Mark(NamedTuple):
    """What the XMP packet of an image says of these; "" where it says nothing."""

    tool: str = ""
    dataset: str = ""
    uid: str = ""
    digital_source_type: str = ""

    @property
    def is_ours(self) -> bool:
        return self.tool == TOOL and bool(self.uid)


def packet(uid: str, dataset: str, *, from_image: bool = False) -> bytes:
    """The XMP packet of an image, UTF-8, always the same bytes.

    Args:
        from_image: whether a real image went into it, which has a source type of its own.
    """
    kind = "compositeWithTrainedAlgorithmicMedia" if from_image else "trainedAlgorithmicMedia"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about=""'
        f' xmlns:xmp="{XMP}" xmlns:dcterms="{DCTERMS}" xmlns:Iptc4xmpExt="{IPTC}"'
        f' xmp:CreatorTool="{TOOL}" dcterms:isPartOf={quoteattr(dataset)}'
        f" Iptc4xmpExt:DigImageGUID={quoteattr(uid)}"
        f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}{kind}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def read(data: bytes, name: str) -> Mark:
    """The mark in an image's file (JPEG, WebP or PNG); `name` is what messages call it.

    Raises:
        SynthgenError: it is no such image, or its XMP packet is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP", "PNG")) as image:
            found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    except (OSError, ValueError, Image.DecompressionBombError):
        raise SynthgenError(f"{name}: no JPEG, WebP or PNG that can be opened") from None
    try:
        return parse(found.encode() if isinstance(found, str) else found)
    except (ValueError, expat.ExpatError) as error:
        raise SynthgenError(f"{name}: its XMP packet cannot be read ({error})") from None


def parse(xmp: bytes) -> Mark:
    """What a packet says, as attributes or as elements, whatever its prefixes; an empty one says nothing.

    Raises:
        ValueError: it is too large, or has a document type, with which a few bytes can become gigabytes.
        ExpatError: it is not XML.
    """
    found, path = dict.fromkeys(PROPERTIES.values(), ""), list[str]()
    if len(xmp) > LARGEST:
        raise ValueError(f"{len(xmp)} bytes; at most {LARGEST} are read")

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if name in PROPERTIES and f"{RDF} resource" in attributes:
            found[PROPERTIES[name]] = attributes[f"{RDF} resource"]
        for key in PROPERTIES.keys() & attributes.keys():
            found[PROPERTIES[key]] = attributes[key]

    def text(data: str) -> None:
        if path[-1] in PROPERTIES:
            found[PROPERTIES[path[-1]]] += data

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which XMP has not")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda name: path.pop()
    parser.StartDoctypeDeclHandler = refuse
    if xmp.strip(b"\0 \t\r\n"):
        parser.Parse(xmp.rstrip(b"\0"), True)
    shown = {
        key: "".join(character for character in value.strip() if character.isprintable())  # for a terminal
        for key, value in found.items()
    }
    return Mark(**shown)
