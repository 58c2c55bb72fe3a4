"""What a file says of its own origin: C2PA manifests, XMP, IPTC, EXIF, and the texts that generators write.

Read from the bytes, never from pixels, and without the network. Anybody can write or remove all of it, so it is quoted
and never trusted. Files may be hostile: every part that is read has a limit, and damage ends the reading of that part.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias
from xml.parsers import expat

Kind: TypeAlias = Literal["generated", "edited", "captured", ""]

GENERATED: Kind = "generated"
EDITED: Kind = "edited"
CAPTURED: Kind = "captured"
WORDS = {GENERATED: "generated", EDITED: "edited with AI"}
NOTHING = "Nothing in the file says where it is from; most sites remove such notes."
UNREAD = "The file holds a C2PA manifest; pip install 'fakedet[provenance]' reads it."

KEPT = 1 << 18  # bytes of a text that are looked at
PART = 1 << 20  # bytes of a file's part (chunk, packet, directory) that are read
MOST_PARTS = 100_000  # parts of a file that are walked over
MOST_READ = 1 << 24  # bytes of all texts together, each of which counts for at least 256
MOST_CLAIMS = 32  # claims that are kept
SHOWN = 120  # signs of a text that are shown


@dataclass(frozen=True)
class Claim:
    """One thing that a file says of its origin."""

    where: str
    """The field, such as "EXIF Software" or "PNG text 'parameters'"."""
    says: str
    """What stands there, or what it means; printable, on one line, short."""
    kind: Kind = ""
    """"generated", "edited" (a picture into which AI was worked), "captured" (by a camera), or "" for neither."""
    generator: str = ""
    """Name of the program or service that made the picture; "" if not told."""
    standard: bool = False
    """Whether the field is made for saying this (C2PA, IPTC), so that nothing had to be guessed."""
    signed: bool = False
    """Whether a signature over it and the picture holds; that does not tell who the signer is."""


@dataclass(frozen=True)
class Provenance:
    """What a file says of its own origin."""

    declares: Kind = ""
    """What it says that it is; "generated" and "edited" outweigh "captured"."""
    generator: str = ""
    """Name of the program or service that made it; "" if not told."""
    c2pa: str = ""
    """State of its C2PA manifest: "valid", "invalid", "unread" (c2pa-python is not installed), or "" for none."""
    signer: str = ""
    """Who signed a valid manifest, by the certificate, which nobody here vouches for."""
    claims: tuple[Claim, ...] = ()
    """All that was found, the one that decides first."""
    sentence: str = ""
    """The same in plain words; "" for pictures that are no files."""


class Text(NamedTuple):
    """A text in a file's metadata."""

    place: str  # PNG text, JPEG comment, EXIF, XMP, IPTC
    name: str
    value: str

    @property
    def where(self) -> str:
        """Name the field for a reader."""
        return f"{self.place} '{_shown(self.name, 40)}'" if self.place == "PNG text" else f"{self.place} {self.name}"


def read_provenance(data: bytes) -> Provenance:
    """Read what the bytes of a file say of its origin; no bytes raise an error."""
    texts = _texts(data)
    manifest = _read_c2pa(data)
    claims = [*manifest.claims, *(claim for text in texts if (claim := _claim(text))), *_pairs(texts)]
    return _sum_up(claims, manifest)


def _shown(text: str, most: int = SHOWN) -> str:
    """Make a text from a file fit to show: printable signs on one line, and not many."""
    words = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * most]).split()
    line = " ".join(words)
    return line if len(line) <= most else line[: most - 1] + "…"


# --- the texts in a file --------------------------------------------------------------------------------------------


def _texts(data: bytes) -> list[Text]:
    """List the texts in a file's metadata, up to where it is damaged."""
    readers: list[Iterator[Text]]
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        readers = [_png(data)]
    elif data.startswith(b"\xff\xd8"):
        readers = [_jpeg(data), _packets(data)]
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        readers = [_webp(data), _packets(data)]
    elif data.startswith((b"II*\0", b"MM\0*")):
        readers = [_exif(data), _packets(data)]
    else:  # HEIF, AVIF, JPEG XL, and whatever else: EXIF is found by how it begins
        starts = [*_places(data, b"II*\0"), *_places(data, b"MM\0*")]
        readers = [*(_exif(data[start : start + PART]) for start in starts), _packets(data)]
    found, left = list[Text](), MOST_READ
    for reader in readers:
        with suppress(Exception):  # damaged parts raise errors of many types; what was read before stands
            while left > 0:
                found.append(next(reader))
                left -= 256 + len(found[-1].value)
    return found


def _places(data: bytes, mark: bytes, most: int = 8) -> Iterator[int]:
    """Yield where the first few of a mark's occurrences stand."""
    place = data.find(mark)
    while place >= 0 and most > 0:
        yield place
        place, most = data.find(mark, place + len(mark)), most - 1


def _decoded(raw: bytes) -> str:
    raw = raw[:KEPT].rstrip(b"\0")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw.decode(errors="replace") if error.start > KEPT - 4 else raw.decode("latin-1")


def _png(data: bytes) -> Iterator[Text]:
    place = 8
    for _ in range(MOST_PARTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            yield from _png_text(kind, data[place + 8 : place + 8 + min(length, PART)])
        elif kind == b"eXIf":
            yield from _exif(data[place + 8 : place + 8 + min(length, PART)])
        elif kind == b"IEND":
            return
        place += 12 + length


def _png_text(kind: bytes, chunk: bytes) -> Iterator[Text]:
    name, _, value = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        value = value[1:]
    elif kind == b"iTXt":  # flag, method, language, translated name, text
        packed = value[:1] == b"\1"
        value = value[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        with suppress(zlib.error):
            value = zlib.decompressobj().decompress(value, KEPT)
    if name == b"XML:com.adobe.xmp":
        yield from _packets(value)
    else:
        yield Text("PNG text", name.decode("latin-1"), _decoded(value))


def _jpeg(data: bytes) -> Iterator[Text]:
    place = 2
    for _ in range(MOST_PARTS):
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        if mark != 0xFF or kind in (0xD9, 0xDA):  # the end, or pixels
            return
        if kind == 0xFF:  # filling
            place += 1
            continue
        content = data[place + 4 : place + 2 + length]
        if kind == 0xE1 and content.startswith(b"Exif\0\0"):
            yield from _exif(content[6:])
        elif kind == 0xED:
            yield from _iptc(content)
        elif kind == 0xFE:
            yield Text("JPEG", "comment", _decoded(content))
        elif content.startswith(b"AIGC{"):
            yield Text("JPEG", "AIGC", _decoded(content[4:]))
        place += 2 + length


IPTC = {65: "Originating Program", 80: "By-line", 110: "Credit", 120: "Caption"}  # of IPTC-IIM's second record


def _iptc(content: bytes) -> Iterator[Text]:
    for found in re.finditer(rb"\x1c\x02([\x41\x50\x6e\x78])(..)", content, re.DOTALL):
        length = int.from_bytes(found[2], "big")
        yield Text("IPTC", IPTC[found[1][0]], _decoded(content[found.end() : found.end() + length]))


def _webp(data: bytes) -> Iterator[Text]:
    place = 12
    for _ in range(MOST_PARTS):
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF":
            yield from _exif(data[place + 8 : place + 8 + min(length, PART)].removeprefix(b"Exif\0\0"))
        place += 8 + length + length % 2


EXIF = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software", 0x013B: "Artist",
        0x9286: "UserComment"}  # fmt: skip
EXIF_DIRECTORY = 0x8769  # the tag that says where the second directory stands, with UserComment
BYTES = (1, 2, 7, 129)  # types of tags whose values are bytes


def _exif(tiff: bytes) -> Iterator[Text]:
    """Yield the texts of EXIF. PIL would read every tag whole: many tags that name the same bytes take gigabytes."""
    order = "<" if tiff.startswith(b"II") else ">"
    with suppress(struct.error):  # what stands behind damaged EXIF is read
        (place,) = struct.unpack_from(f"{order}I", tiff, 4)
        for _ in range(2):
            (count,), second = struct.unpack_from(f"{order}H", tiff, place), 0
            for entry in range(place + 2, place + 2 + 12 * min(count, 1000), 12):
                tag, kind, length, start = struct.unpack_from(f"{order}HHII", tiff, entry)
                if tag == EXIF_DIRECTORY:
                    second = start
                elif tag in EXIF and kind in BYTES:
                    start = entry + 8 if length <= 4 else start
                    yield Text("EXIF", EXIF[tag], _exif_text(tag, tiff[start : start + min(length, KEPT)]))
            if not second:
                return
            place = second


def _exif_text(tag: int, raw: bytes) -> str:
    if EXIF[tag] != "UserComment":
        return _decoded(raw)
    code, raw = raw[:8], raw[8:]
    if code != b"UNICODE\0":
        return _decoded(raw)
    # Writers differ in the order of the two bytes: the right one gives mostly Latin signs.
    texts = [raw.decode(order, errors="replace") for order in ("utf-16-be", "utf-16-le")]
    return min(texts, key=lambda text: sum(sign > "\xff" for sign in text[:1000])).rstrip("\0")


XMP = {"DigitalSourceType", "AISystemUsed", "AIPromptInformation", "AIGC", "CreatorTool", "softwareAgent", "Software",
       "Credit", "UserComment", "description", "creator", "Make", "Model", "provenance"}  # fmt: skip


def _packets(data: bytes) -> Iterator[Text]:
    """Yield the texts of XMP packets, wherever they stand in a file: they are made to be found so."""
    for start in _places(data, b"<rdf:RDF"):
        end = data.find(b"</rdf:RDF>", start, start + PART)
        yield from _xmp(data[start : start + PART if end < 0 else end + 10])


def _xmp(packet: bytes) -> list[Text]:
    """Read the properties of a packet in element and attribute form, up to where it is damaged.

    It begins after where a document type could stand, so there are no entities to expand.
    """
    found: list[Text] = []
    parts: list[str] = []
    inside = ""

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal inside
        name = tag.rpartition(":")[2]
        if name in XMP and not inside:
            inside = name
            parts.clear()
        for key, value in attributes.items():
            key = key.rpartition(":")[2]
            if key in XMP or (key == "resource" and inside):
                found.append(Text("XMP", key if key in XMP else inside, value[:KEPT]))

    def text(value: str) -> None:
        if inside and len(parts) < 1000:
            parts.append(value[:KEPT])

    def end(tag: str) -> None:
        nonlocal inside
        if inside and tag.rpartition(":")[2] == inside:
            found.append(Text("XMP", inside, "".join(parts)[:KEPT].strip()))
            inside = ""

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = start, text, end
    with suppress(expat.ExpatError):
        parser.Parse(packet, False)
    return found


# --- what a text means ----------------------------------------------------------------------------------------------

# https://cv.iptc.org/newscodes/digitalsourcetype/, and C2PA's own; the others are of neither kind.
SOURCE_TYPES: dict[str, Kind] = {
    "trainedalgorithmicmedia": GENERATED,
    "algorithmicmedia": GENERATED,
    "trainedalgorithmicdata": GENERATED,
    "compositewithtrainedalgorithmicmedia": EDITED,
    "compositesynthetic": EDITED,
    "digitalcapture": CAPTURED,
    "computationalcapture": CAPTURED,
    "compositecapture": CAPTURED,
    "negativefilm": CAPTURED,
    "positivefilm": CAPTURED,
    "print": CAPTURED,
}

# What generators write of their settings: (name of the field or "" for any, what its text holds, the generator). Most
# of these texts are JSON, which is not parsed: it may be cut, damaged, or nested a million deep.
SETTINGS = (
    ("fooocus_scheme", (), "Fooocus"),
    ("", ('"version": "Fooocus',), "Fooocus"),
    ("", ("Steps: ", "Version: Fooocus"), "Fooocus"),
    ("", ('"sui_image_params"',), "SwarmUI"),
    ("", ("Steps: ", "Sampler: ", "Seed: "), "Stable Diffusion web UI"),
    ("invokeai_metadata", (), "InvokeAI"),
    ("invokeai_graph", (), "InvokeAI"),
    ("invokeai_workflow", (), "InvokeAI"),
    ("sd-metadata", (), "InvokeAI"),
    ("dream", ('" ', " -S"), "InvokeAI"),
    ("", ('"class_type"', '"inputs"'), "ComfyUI"),
    ("", ('"last_node_id"',), "ComfyUI"),
    ("use_stable_diffusion_model", (), "Easy Diffusion"),
    ("negative_prompt", (), ""),
    ("negative prompt", (), ""),
)

# Names of generators, in fields that name the program. Captions are left alone: a photograph may show OpenAI's boss.
NAMES = re.compile(
    r"""midjourney | \bdall[·.\- ]?e\b | \bchatgpt | \bgpt[- ](?:4o|image) | \bopenai | adobe[ _]firefly
    | stable[ _-]?diffusion | \bsdxl\b | stability[ .]?ai | dreamstudio | black[ ]forest[ ]labs
    | \bflux[.\- _]?(?:1|2|dev|pro|schnell|kontext)\b | comfyui | automatic1111 | invoke[ ]?ai | novelai | fooocus
    | swarmui | draw[ ]things | diffusionbee | easy[ ]diffusion | \bsd\.next | ideogram | leonardo[ .]ai
    | google[ ](?:gemini|imagen|ai) | \bgemini[ ]\d | \bimagen[ ]\d | nano[ ]banana | \bgrok\b | \bxai\b | recraft
    | nightcafe | craiyon | playground[ .]?ai | \bkrea[ .]ai | \breve\.com | luma[ ]ai | image[ ]playground
    | bing[ ]image[ ]creator | higgsfield | seedream | dreamina | jimeng | doubao | 即梦 | 豆包
    | qwen-image | hunyuan | \bkling\b | 可灵""",
    re.IGNORECASE | re.VERBOSE,
)
PROGRAMS = {"software", "creatortool", "softwareagent", "make", "originating program"}
MADE_BY = re.compile(r"(?:(?:image|picture)\s+)?(?:generated|created|made)\s+(?:by|with|using)\s+(?:the\s+)?(.*)", re.I)
CREDIT = re.compile(
    r"(made|edited|imagined|created|generated) with (google |meta )?ai\b|apple (photos clean up)", re.IGNORECASE
)
CAPTIONS = {"description", "imagedescription", "caption", "comment", "usercomment"}
JOB = re.compile(r"\bJob ID: ?[0-9a-f]{8}-[0-9a-f]{4}-", re.IGNORECASE)
AIGC = re.compile(r'"Label" ?: ?"?([123])\b')  # GB 45438-2025, annex E
AIGC_LABELS = {"1": "", "2": " of what is possibly generated", "3": " of what is suspected to be generated"}
PRODUCER = re.compile(r'"ContentProducer" ?: ?"([^"]{1,200})"')
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _claim(text: Text) -> Claim | None:
    """Say what a text claims of the picture's origin; None if nothing."""
    rules = (_source_type, _aigc, _settings, _system, _credit, _program, _made_by, _remote)
    return next((claim for rule in rules if text.value.strip() and (claim := rule(text))), None)


def _source_type(text: Text) -> Claim | None:
    if text.name.lower() != "digitalsourcetype":
        return None
    word = text.value.strip().rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return Claim(text.where, _shown(word), SOURCE_TYPES.get(word.lower(), ""), standard=True)


def _aigc(text: Text) -> Claim | None:
    """Read the label that China's rules ask of generators, in a field of its own or inside another."""
    value = text.value if text.name == "AIGC" else text.value.partition('"AIGC"')[2]
    if not (found := AIGC.search(value)):
        return None
    producer = PRODUCER.search(value)
    name = _shown(producer[1], 60) if producer else ""
    says = f"China's AIGC label{AIGC_LABELS[found[1]]}" + (f", producer {name}" if name else "")
    return Claim(text.where, says, GENERATED, name, standard=True)


def _settings(text: Text) -> Claim | None:
    if text.name.lower() in CAPTIONS and JOB.search(text.value):
        return Claim(text.where, "a job number as Midjourney writes it", GENERATED, "Midjourney")
    for name, parts, generator in SETTINGS:
        if name in ("", text.name.lower()) and all(part in text.value for part in parts):
            told = f"{generator or 'an image generator'} wrote its settings into it"
            return Claim(text.where, told, GENERATED, generator)
    return None


def _system(text: Text) -> Claim | None:
    """Read the fields of IPTC's standard of 2025 for the AI system and its prompt."""
    if text.name == "AISystemUsed":
        return Claim(text.where, _shown(text.value), GENERATED, _shown(text.value, 60))
    return Claim(text.where, "a prompt", GENERATED) if text.name == "AIPromptInformation" else None


def _credit(text: Text) -> Claim | None:
    found = CREDIT.match(text.value.strip()) if text.name == "Credit" else None
    if not found:
        return None
    edited = found[3] or found[1].lower() == "edited"
    generator = f"{found[2].strip()} AI" if found[2] else ""
    return Claim(text.where, _shown(text.value), EDITED if edited else GENERATED, generator)


def _program(text: Text) -> Claim | None:
    name = text.name.lower()
    if name == "source" and text.place == "PNG text":  # NovelAI's model; elsewhere it is a credit
        name = "make"
    if name not in PROGRAMS:
        return None
    if NAMES.search(text.value[:1000]):
        kind = EDITED if name == "softwareagent" else GENERATED  # one step of several
        return Claim(text.where, _shown(text.value), kind, _shown(text.value, 60))
    return None if name == "make" else Claim(text.where, _shown(text.value))


def _made_by(text: Text) -> Claim | None:
    found = MADE_BY.match(_shown(text.value))
    name = NAMES.match(found[1]) if found else None
    return Claim(text.where, _shown(text.value), GENERATED, name[0]) if name else None


def _remote(text: Text) -> Claim | None:
    if (text.place, text.name) != ("XMP", "provenance"):
        return None
    return Claim(text.where, f"a C2PA manifest on a server, which is not asked: {_shown(text.value, 60)}")


def _pairs(texts: Iterable[Text]) -> Iterator[Claim]:
    """Yield the claims that two fields make together: a camera, and xAI's signature."""
    values: dict[str, dict[str, str]] = {}
    for text in texts:
        values.setdefault(text.place, {}).setdefault(text.name.lower(), text.value.strip())
    for place, own in values.items():
        signature = own.get("imagedescription") or own.get("description") or own.get("caption") or ""
        author = own.get("artist") or own.get("author") or own.get("creator") or own.get("by-line") or ""
        if re.match(r"Signature: ?[A-Za-z0-9+/=]{64}", signature) and UUID.fullmatch(author):
            yield Claim(f"{place} description and author", "the signature that Grok writes", GENERATED, "Grok")
    exif = values.get("EXIF") or values.get("XMP") or {}
    make, model = exif.get("make", ""), exif.get("model", "")
    if model and not NAMES.search(make + model) and "{" not in make + model:  # ComfyUI writes JSON there
        camera = model if model.lower().startswith(make.lower().split(" ")[0]) else f"{make} {model}"
        yield Claim("EXIF" if "EXIF" in values else "XMP", _shown(camera, 80), CAPTURED)


# --- C2PA -----------------------------------------------------------------------------------------------------------

STORE = b"jumdc2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9bq"  # how the description of a manifest store begins
OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {"allowed_network_hosts": [], "allow_redirects": False, "decode_identity_assertions": False},
}
NO_TRUST = "signingCredential.untrusted"  # no list of trusted signers comes with fakedet
WHY = {
    "Hash.mismatch": "the file was changed after signing",
    "claimSignature.mismatch": "its signature is wrong",
    "outsideValidity": "it was signed outside of the certificate's time",
    "expired": "the certificate had expired",
}
MOST_JSON = 1 << 24  # signs of a report on a manifest


class Manifest(NamedTuple):
    """What is known of the C2PA manifest of a file."""

    state: str = ""  # as in Provenance.c2pa
    signer: str = ""
    note: str = ""  # a sentence on it, for where its claims are not told
    claims: tuple[Claim, ...] = ()


def _read_c2pa(data: bytes) -> Manifest:
    if STORE not in data:
        return Manifest()
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError):  # or its native library does not load
        return Manifest("unread", note=UNREAD)
    try:
        with c2pa.Context.from_dict(OFFLINE) as context, c2pa.Reader(None, io.BytesIO(data), context=context) as reader:
            report = reader.json()
        return _understood(json.loads(report if len(report) < MOST_JSON else "{}"))
    except Exception:  # the library has errors of many types, and hostile files reach all of them
        return _invalid("it cannot be read", ())


def _understood(report: Mapping[str, Any]) -> Manifest:
    """Put a report of the library's reader into words."""
    manifests, label = report["manifests"], report["active_manifest"]
    kind, says, generator = _origin(manifests, label, ())
    if report.get("validation_state") not in ("Valid", "Trusted"):
        codes = [str(problem.get("code")) for problem in report.get("validation_status") or ()]
        problems = [code for code in codes if code != NO_TRUST]
        why = next((words for code, words in WHY.items() for problem in problems if code in problem), "")
        note = why or _shown(", ".join(problems), 60) or "no reason is given"
        # A capture is not believed; "generated" needs no more proof here than it does in any other field.
        where = f"C2PA manifest that does not validate: {note}"
        return _invalid(note, (Claim(where, says, kind, generator, True),) if kind in WORDS else ())
    signature = manifests[label].get("signature_info") or {}
    signer = _shown(str(signature.get("issuer") or signature.get("common_name") or "somebody"), 60)
    trusted = report["validation_state"] == "Trusted"
    signed = f"signed by {signer}" + ("" if trusted else ", which cannot be checked here")
    note = f"Its C2PA manifest, {signed}, {f'says: {says}' if kind else 'does not say how the picture was made'}."
    claims = (Claim(f"C2PA manifest {signed}", says, kind, generator, True, True),) if kind else ()
    return Manifest("valid", signer, note, claims)


def _invalid(why: str, claims: tuple[Claim, ...]) -> Manifest:
    return Manifest("invalid", note=f"Its C2PA manifest does not validate ({why}): do not rely on it.", claims=claims)


def _origin(manifests: Mapping[str, Any], label: str, above: tuple[str, ...]) -> tuple[Kind, str, str]:
    """Return what a manifest and those of its ingredients say of the picture's making: kind, words, generator."""
    manifest = manifests.get(label)
    if manifest is None or label in above or len(above) > 8:
        return "", "", ""
    found = list(_told(manifest))
    for ingredient in manifest.get("ingredients") or ():
        kind, says, generator = _origin(manifests, str(ingredient.get("active_manifest")), (*above, label))
        relation = ingredient.get("relationship")
        if relation == "parentOf" or (relation == "componentOf" and kind in WORDS):
            kind = EDITED if relation == "componentOf" else kind
            found.append((kind, f"{says}, of a picture that it is made from", generator))
    order = (GENERATED, EDITED, CAPTURED, "")
    return min(found, key=lambda one: order.index(one[0]), default=("", "", ""))


def _told(manifest: Mapping[str, Any]) -> Iterator[tuple[Kind, str, str]]:
    """Yield what each action, and IPTC's metadata in a manifest, say of the picture's making."""
    makers = manifest.get("claim_generator_info") or [{}]
    for assertion in manifest.get("assertions") or ():
        data = assertion.get("data")
        if not isinstance(data, dict):
            continue
        steps = data.get("actions") or [{"digitalSourceType": data.get("Iptc4xmpExt:DigitalSourceType")}]
        for step in steps:
            word = str(step.get("digitalSourceType") or "").rpartition("/")[2]
            kind = SOURCE_TYPES.get(word.lower(), "")
            if kind == GENERATED and step.get("action") not in (None, "c2pa.created"):
                kind = EDITED  # a part was generated, in a picture that was there
            agent = step.get("softwareAgent")
            agent = agent.get("name") if isinstance(agent, dict) else agent
            name = _shown(str(agent or makers[0].get("name") or ""), 60)
            yield kind, _shown(word, 60) + (f" by {name}" if name else ""), name


# --- the sum --------------------------------------------------------------------------------------------------------


def _sum_up(claims: Iterable[Claim], manifest: Manifest) -> Provenance:
    """Decide what a file declares itself to be, and say it in a sentence."""
    # Fields made for it outweigh guesses by names, "generated" outweighs "edited", a signature outweighs none.
    order = (GENERATED, EDITED, CAPTURED, "")
    found = sorted(
        dict.fromkeys(claims),
        key=lambda claim: (claim.kind not in WORDS, not claim.kind, not claim.standard, order.index(claim.kind),
                           not claim.signed),
    )[:MOST_CLAIMS]  # fmt: skip
    first = found[0] if found else None
    generators = [claim.generator for claim in found if claim.kind in WORDS and claim.generator]
    sentence = _sentence(found)
    if manifest.note and not any(claim.where in sentence for claim in manifest.claims):
        sentence = manifest.note.replace("Its", "The file's") if sentence == NOTHING else f"{sentence} {manifest.note}"
    return Provenance(first.kind if first else "", generators[0] if generators else "", manifest.state,
                      manifest.signer, tuple(found), sentence)  # fmt: skip


def _sentence(found: list[Claim]) -> str:
    if not found:
        return NOTHING
    first, captured = found[0], next((claim for claim in found if claim.kind == CAPTURED), None)
    if first.kind in WORDS:
        told = f"The file says that it was {WORDS[first.kind]}: {first.says} ({first.where})."
        if first.kind == GENERATED and captured:
            told += f" That conflicts with another claim in it: captured, {captured.says} ({captured.where})."
        return told
    if first.signed:
        return f"A signature says that a camera took it: {first.says} ({first.where})."
    if first.kind == CAPTURED:
        named = f"A camera's EXIF ({first.says})" if first.where == "EXIF" else (
            f"The file says that a camera took it ({first.where}: {first.says})")  # fmt: skip
        return f"{named}; anybody can write that, so it proves nothing."
    return f"The file does not say how it was made; it names this: {first.says} ({first.where})."
