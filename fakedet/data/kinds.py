"""What a file is, by its first bytes and its name, in the words of the answer that it gets."""

from __future__ import annotations

import mimetypes
from pathlib import PurePath

NOT_LOOKED_AT = "not looked at"  # begins the answers about files that are plainly no images
FIRST = 1024  # Of a file's bytes; enough for :func:`what_is`
# Names with these endings are taken for images; their format is told by their content.
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
              ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".mpo", ".jxl"}  # fmt: skip
RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
OFFICE = {".docx", ".xlsx", ".pptx", ".docm", ".xlsm", ".pptm", ".odt", ".ods", ".odp", ".doc", ".xls", ".ppt"}
# What begins like this, at this place.
BEGINNINGS = (
    (0, b"\xff\xd8\xff", "a JPEG image"), (0, b"\x89PNG\r\n\x1a\n", "a PNG image"), (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"), (0, b"II*\0", "a TIFF image"), (0, b"MM\0*", "a TIFF image"),
    (0, b"\xff\x0a", "a JPEG XL image"), (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"), (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop file"), (0, b"%PDF-", "a PDF"), (0, b"%!PS", "a PostScript file"),
    (0, b"PK\x03\x04", "a ZIP archive"), (0, b"\x1f\x8b", "an archive"), (0, b"7z\xbc\xaf\x27\x1c", "an archive"),
    (0, b"Rar!", "an archive"), (0, b"\xd0\xcf\x11\xe0", "an Office document"), (0, b"{\\rtf", "a text document"),
    (0, b"SQLite format 3", "a database"), (0, b"MZ", "a program"), (0, b"\x7fELF", "a program"),
    (0, b"ID3", "a sound file"), (0, b"fLaC", "a sound file"), (8, b"WAVE", "a sound file"),
    (0, b"OggS", "a sound file"), (8, b"AVI ", "a video (AVI)"), (0, b"\x1a\x45\xdf\xa3", "a video (Matroska)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"), (0, b"\0\0\1\xb3", "a video (MPEG)"), (0, b"FLV\1", "a video (Flash)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)"), (4, b"moov", "a video (QuickTime)"),
    (4, b"mdat", "a video (QuickTime)"), (4, b"wide", "a video (QuickTime)"),
)  # fmt: skip
# The brand in the first box of files of the MP4 family; others are videos.
BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image"), b"qt  ": "a video (QuickTime)",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC image"),
    **dict.fromkeys((b"M4A ", b"M4B ", b"F4A "), "a sound file"), b"crx ": "a camera's raw file",
}  # fmt: skip


def is_named_like_an_image(name: str) -> bool:
    """Return whether a name has the ending of an image."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def what_is(data: bytes, name: str = "") -> str:
    """Say what a file is, such as "a PDF", by its beginning (:data:`FIRST` bytes) and where that says nothing its name.

    Images are called "a JPEG image", "a HEIC image", ..., videos "a video (MP4)", ...; "" where neither tells.
    """
    ending = PurePath(name).suffix.lower()
    if not data:
        return "an empty file"
    if ending in RAW:
        return "a camera's raw file"
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video (MP4)")
    found = next((what for place, begins, what in BEGINNINGS if data.startswith(begins, place)), "")
    if found == "a ZIP archive" and ending in OFFICE:
        return "an Office document"
    if found == "a video (Matroska)" and b"webm" in data[:64]:
        return "a video (WebM)"
    return found or _text(data) or _by_name(name, ending)


def _text(data: bytes) -> str:
    """Say which text a file holds; "" if it holds none."""
    text = data[:FIRST].decode("utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text[:-3] or any(sign < " " and sign not in "\t\n\r\f\x1b" for sign in text):
        return ""
    start = text.lstrip().lower()
    if "<svg" in start:
        return "a drawing (SVG)"
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page"
    return "a text file"


def _by_name(name: str, ending: str) -> str:
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    words = {"text": "a text file", "audio": "a sound file", "video": f"a video ({ending[1:].upper()})"}
    return words.get(kind, "")


def not_looked_at(data: bytes, name: str) -> str:
    """Say why a file is not looked at: neither its name nor its beginning is that of an image; "" if it may be one."""
    ending, what = PurePath(name).suffix.lower(), what_is(data, name)
    if is_named_like_an_image(name) or what.endswith(" image"):
        return ""
    if what == "a camera's raw file":
        return f"{NOT_LOOKED_AT}: {what} is no finished picture; export it as JPEG or PNG"
    known = what or (f"a file named {ending}" if ending else "")
    return f"{NOT_LOOKED_AT}: {known} is no image" if known else f"{NOT_LOOKED_AT}: it is no image"
