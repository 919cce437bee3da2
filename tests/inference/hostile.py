"""Files that strangers send: every one that reliability.md's table names, as bytes, with the answer that is expected.

builders (``png``, ``tiff``, ``zipped``, ``tarred`` …) ──▶ ``CASES`` (row, file, expected answer) ──▶ pure functions
                                                                                               ├──▶ the decoder's child
                                                                                               └──▶ the whole service

A case is made when it is asked for: some take seconds and a hundred megabytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Files = Iterable[tuple[str, bytes]]
Kind = Literal["picture", "mask", "archive"]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 112, 64
"""Of the pictures here: the default model's smallest size, so that none is cropped."""

RED, WHITE, BLACK, GREEN = (255, 0, 0), (255, 255, 255), (0, 0, 0), (0, 128, 0)
MOST_MAPS = 25
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        row: Its row in the table.
        name: What it is, in words.
        kind: Which field it is for.
        make: Makes its bytes.
        error: The type of the error that is expected, as fal writes it; None if the file is to be read.
        colour: What its upper left corner looks like once it is read; None where that is not told.
        maps: How many maps it holds, if it is an archive that is to be read.
    """

    row: int
    name: str
    kind: Kind
    make: Callable[[], bytes]
    error: str | None = None
    colour: Colour | None = None
    maps: int = 1

    def __str__(self) -> str:
        return f"{self.row} {self.name}"


# ---------------------------------------------------------------- pictures


def image_bytes(picture: Image.Image | None = None, format: str = "PNG", **options: Any) -> bytes:
    """A picture as a file; a red one of 32x24 pixels unless told otherwise."""
    buffer = io.BytesIO()
    (picture or Image.new("RGB", (32, 24), "red")).save(buffer, format, **options)
    return buffer.getvalue()


def scene(size: tuple[int, int] = (WIDTH, HEIGHT), corner: Any = "red") -> Image.Image:
    """Green, with another colour in its upper left quarter: what is turned, or cropped, can be told."""
    picture = Image.new("RGB", size, GREEN)
    picture.paste(corner, (0, 0, size[0] // 2, size[1] // 2))
    return picture


def noise(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture that no packer makes small."""
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(width * height * 3))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG whose header says anything."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """An uncompressed RGB picture of 32x32 pixels, unless its tags say otherwise."""
    wanted: dict[int, int | tuple[int, ...]] = {256: 32, 257: 32, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 278: 32}
    wanted |= {273: 0, 279: len(data)} | tags
    behind = 8 + 2 + 12 * len(wanted) + 4
    lists = b""
    entries = b""
    for tag, value in sorted(wanted.items()):
        values = value if isinstance(value, tuple) else (value,)
        place = struct.pack("<I", behind + len(lists)) if len(values) > 1 else struct.pack("<I", *values)
        lists += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    entries = entries.replace(struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, behind + len(lists)))
    return b"II*\0" + struct.pack("<IH", 8, len(wanted)) + entries + bytes(4) + lists + data


def webp(**chunks: bytes) -> bytes:
    """A WEBP of any chunks."""
    content = b"".join(name.encode() + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks.items())
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def large_by_its_header(format: str) -> bytes:
    """A small file that says that it has more pixels than are read."""
    canvas = struct.pack("<I", 2) + (16_382).to_bytes(3, "little") * 2
    frame = image_bytes(Image.new("RGB", (32, 32)), "WEBP", lossless=True)[12:]
    bmp = struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "PNG": png(30_000, 30_000, 8, 2),
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"\x2c" + bytes(9) + b"\x02",
        "WEBP": webp(VP8X=canvas, ANIM=bytes(6), ANMF=bytes(6) + b"\x1f\0\0" * 2 + bytes(4) + frame),
        "BMP": b"BM" + bmp,
        "TIFF": tiff({256: 30_000, 257: 30_000}, b""),
    }[format]


def png_bomb(side: int = 30_000) -> bytes:
    """A true PNG of one colour and of many pixels: 900 million of them in 110 KB."""
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 1)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb_beside_the_pixels(kind: bytes, megabytes: int = 64) -> bytes:
    """A PNG with a text or a profile that inflates to so many megabytes."""
    data = image_bytes(scene())
    return data[:33] + chunk(kind, b"k\0\0" + zlib.compress(bytes(megabytes * 2**20))) + data[33:]


def animated_png(frames: int = 10_000) -> bytes:
    """A PNG of one good frame and many broken ones."""
    data = image_bytes(scene(), save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "blue")])
    control = struct.pack(">IIIIIHHBB", 1, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)
    frame = chunk(b"fcTL", control) + chunk(b"fdAT", b"broken")
    end = data.index(b"fcTL", data.index(b"IDAT")) - 4
    return data[:end] + frame * frames + data[-12:]


def many_pages(pages: int = 10_000) -> bytes:
    """A TIFF of one good page, and many that are said to be immense."""
    data = bytearray(tiff({}, bytes([255, 0, 0] * 32 * 32)))
    [entries] = struct.unpack_from("<H", data, 8)
    link = 10 + 12 * entries
    for _ in range(pages):
        struct.pack_into("<I", data, link, len(data))
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 2**31, 0)
        link = len(data) - 4
    return bytes(data)


def gif_bomb(frames: int = 1_000_000) -> bytes:
    """A GIF of one good frame and a great many beginnings of others."""
    pages = [scene(), Image.new("RGB", (WIDTH, HEIGHT), "blue")]
    data = image_bytes(pages[0], "GIF", save_all=True, append_images=pages[1:])
    second = data.index(b"\x21\xf9", data.index(b"\x2c"))
    return data[:second] + b"\x21\xf9" * frames


def tile_bomb() -> bytes:
    """A TIFF of 64x64 pixels in one tile of a gigabyte."""
    return tiff({256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32_768, 323: 32_768, 324: 0, 325: 10}, b"")


def deflated_strip(side: int = 8000) -> bytes:
    """A TIFF of 64 million pixels, deflated to some KB."""
    strip = zlib.compress(bytes(3 * side * side), 9)
    return tiff({256: side, 257: side, 259: 8, 278: side}, strip)


def countless_scans(scans: int = 100_000, side: int = 4000) -> bytes:
    """A JPEG that is gone over as often: hours of work."""
    data = image_bytes(Image.new("L", (side, side)), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def largest(mode: str = "RGB", format: str = "PNG", side: int = 8000, **options: Any) -> bytes:
    """As many pixels as are read, of one colour."""
    picture = Image.new(mode, (side, side), {"RGB": "red", "RGBA": (255, 0, 0, 128)}.get(mode, 128))
    return image_bytes(picture, format, **options)


def animation(format: str) -> bytes:
    """Three frames; the first is the scene."""
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("blue", "yellow")]
    return image_bytes(scene(), format, save_all=True, append_images=others)


def to_lab(picture: Image.Image) -> Image.Image:
    """The same in CIE Lab."""
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return lab


STORED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "1": ("PNG", lambda picture: picture.convert("1")),
    "L": ("PNG", lambda picture: picture.convert("L")),
    "LA": ("PNG", lambda picture: picture.convert("LA")),
    "I;16": ("PNG", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)),
    "I;16B": ("TIFF", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(">u2") * 257)),
    "F": ("TIFF", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)),
    "P": ("PNG", lambda picture: picture.convert("P", palette=Image.Palette.ADAPTIVE)),
    "PA": ("TIFF", lambda picture: picture.convert("P", palette=Image.Palette.ADAPTIVE).convert("PA")),
    "RGB": ("PNG", lambda picture: picture),
    "RGBA": ("WEBP", lambda picture: picture.convert("RGBA")),
    "YCbCr": ("TIFF", lambda picture: picture.convert("YCbCr")),
    "CMYK": ("TIFF", lambda picture: picture.convert("CMYK")),
    "LAB": ("TIFF", to_lab),
}
"""Every mode that a file can have: which format has it, and how a picture gets it."""

STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture lies in a file of each orientation."""


def stored(mode: str, level: int = 200) -> bytes:
    """A scene of greys in a mode; its corner is as bright as ``level``."""
    format, store = STORED[mode]
    picture = Image.new("RGB", (WIDTH, HEIGHT), "black")
    picture.paste((level,) * 3, (0, 0, WIDTH // 2, HEIGHT // 2))
    return image_bytes(store(picture), format, **({"lossless": True} if format == "WEBP" else {}))


def turned(orientation: int, format: str = "JPEG") -> bytes:
    """A scene that its Exif data turns upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED_AS[orientation]
    return image_bytes(scene() if turn is None else scene().transpose(turn), format, exif=exif)


def transparent(format: str = "PNG", **options: Any) -> bytes:
    """A scene whose corner is not there."""
    picture = scene().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT // 2))
    return image_bytes(picture, format, **options)


def palette_with_a_transparent_colour(format: str = "PNG") -> bytes:
    """As above, by a colour of the palette."""
    picture = Image.new("P", (WIDTH, HEIGHT), 1)
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.paste(0, (0, 0, WIDTH // 2, HEIGHT // 2))
    return image_bytes(picture, format, transparency=0)


def halved(format: str) -> bytes:
    """The first half of a file."""
    data = image_bytes(noise(), format)
    return data[: len(data) // 2]


def wrong_checksum() -> bytes:
    """A PNG with a header that has changed on the way."""
    data = bytearray(image_bytes(scene()))
    data[20] ^= 1
    return bytes(data)


# ---------------------------------------------------------------- colour profiles

WHITE_POINT = (0.9642, 1.0, 0.8249)
RED_XYZ, GREEN_XYZ, BLUE_XYZ = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


def profile(kind: bytes, colours: bytes, connection: bytes, **tags: bytes) -> bytes:
    """An ICC profile of some tags."""
    table, content = b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name.encode(), 132 + 12 * len(tags) + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    length = 132 + len(table) + len(content)
    head = (length, 0x02400000, kind, colours, connection, b"acsp", struct.pack(">3i", *_fixed(WHITE_POINT)), len(tags))
    return struct.pack(">I4xI4s4s4s12x4s28x12s48xI", *head) + table + content


def _fixed(numbers: tuple[float, ...]) -> list[int]:
    return [round(number * 65536) for number in numbers]


def xyz(place: tuple[float, ...]) -> bytes:
    """A colour, as a profile writes it."""
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *_fixed(place))


def gamma(exponent: float) -> bytes:
    """A curve, as a profile writes it."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def rgb_profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """A screen's profile by its primaries."""
    curves = {name: gamma(2.2) for name in ("rTRC", "gTRC", "bTRC")}
    places = {"wtpt": xyz(WHITE_POINT), "rXYZ": xyz(red), "gXYZ": xyz(green), "bXYZ": xyz(blue)}
    return profile(b"mntr", b"RGB ", b"XYZ ", **places, **curves)


def cmyk_profile() -> bytes:
    """White paper, black ink, and whatever has cyan in it is Lab (60, 56, 0), a pink."""
    white, black, pink = b"\xff\x80\x80", b"\x00\x80\x80", b"\x99\xb8\x80"
    inks = itertools.product((0, 1), repeat=4)
    nodes = b"".join(black if k else pink if c else white for c, _, _, k in inks)
    matrix = struct.pack(">9i", *_fixed((1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + nodes + ramp * 3
    return profile(b"prtr", b"CMYK", b"Lab ", wtpt=xyz(WHITE_POINT), A2B0=table)


P3 = rgb_profile((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SWAPPED = rgb_profile(GREEN_XYZ, BLUE_XYZ, RED_XYZ)
"""Its red is green."""

LINEAR_GREY = profile(b"mntr", b"GRAY", b"XYZ ", wtpt=xyz(WHITE_POINT), kTRC=gamma(1))


# ---------------------------------------------------------------- files of other formats

SVG = b"<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink'>"
XXE = b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM '%s'>]>" + SVG + b"<text>&e;</text></svg>"
HTML = b"<!doctype html><title>Log in</title><body><svg viewBox='0 0 1 1'></svg>"


def svg(href: str) -> bytes:
    """A drawing that refers to something else."""
    return SVG + b"<image xlink:href='%s'/></svg>" % href.encode()


def xxe(href: str) -> bytes:
    """A drawing whose document type includes something else."""
    return XXE % href.encode()


FOREIGN = {
    "SVG": svg("file:///etc/passwd"),
    "SVG with a prologue": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg:svg xmlns:svg='x'/>",
    "XXE": xxe("file:///etc/passwd"),
    "PDF": image_bytes(format="PDF"),
    "EPS": image_bytes(format="EPS"),
    "PostScript": b"%!PS-Adobe-3.0\n(%pipe%id) (r) file",
    "DOS EPS": b"\xc5\xd0\xd3\xc6" + bytes(26),
    "PSD": b"8BPS\0\x01" + bytes(20),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(18),
    "WMF without a header": b"\x01\0\x09\0\0\x03" + bytes(12),
    "EMF": b"\x01\0\0\0" + bytes(36) + b" EMF",
    "DICOM": b"\n" * 128 + b"DICM",
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC of another brand": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    "JPEG 2000": image_bytes(format="JPEG2000"),
    "JPEG 2000 without a box": b"\xff\x4f\xff\x51" + bytes(40),
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG XL in a box": b"\0\0\0\x0cJXL \r\n\x87\n",
    "ICO": image_bytes(format="ICO"),
    "ICNS": image_bytes(format="ICNS"),
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "PPM": image_bytes(format="PPM"),
    "MP4": b"\0\0\0\x18ftypisom\0\0\0\0",
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(20),
    "AVI": b"RIFF\0\0\0\0AVI LIST",
}
"""Pictures that no decoder of ours reads."""

NO_PICTURE = {
    "nothing": b"",
    "zeros": b"\0" * 300,
    "every byte": bytes(range(256)) * 2,
    "a text": b"a poem",
    "a page": HTML,
    "a page of XML": b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><svg/></html>",
    "a zip": b"PK\x03\x04" + bytes(30),
    "a GIF's first bytes": b"GIF89a",
    "a PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "a JPEG's first bytes": b"\xff\xd8\xff",
    "a WEBP's first bytes": b"RIFF\0\0\0\0WEBP",
    "an AVIF's first bytes": b"\0\0\0\x18ftypavif\0\0\0\0",
}
"""What is no picture at all."""


# ---------------------------------------------------------------- archives


def grey(level: int, format: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    """A depth map of one grey."""
    return image_bytes(Image.new("L", size, level), format)


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED, **options: Any) -> bytes:
    """A zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            with archive.open(zip_entry(name, compression), "w", **options) as stream:
                stream.write(content)
    return buffer.getvalue()


def zip_entry(name: str, compression: int) -> zipfile.ZipInfo:
    """An entry of any name."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = compression
    return entry


def tarred(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar."""
    return tar_of(((tar_entry(name, size=len(content)), content) for name, content in files), format)


def tar_of(entries: Iterable[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of any entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content) if content else None)
    return buffer.getvalue()


def tar_entry(name: str, **attributes: Any) -> tarfile.TarInfo:
    """An entry with any attributes."""
    entry = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


def tar_gz(files: Files) -> bytes:
    """A gzipped tar."""
    return gzip.compress(tarred(files))


PACKERS = {"zip": zipped, "tar": tarred, "tar.gz": tar_gz}


def maps(count: int) -> list[tuple[str, bytes]]:
    """So many depth maps, from dark to bright."""
    return [(f"{index:06}.png", grey(index % 256)) for index in range(count)]


def piped_zip(files: Files) -> bytes:
    """A zip with its sizes behind its files, as who writes into a pipe makes it."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return bytes(pipe.written)


class _Pipe(io.RawIOBase):
    """What cannot be sought gets a descriptor behind each file."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.written += piece
        return len(piece)


def with_64_bit_directory(data: bytes) -> bytes:
    """The same zip as if it were too large for the old kind of directory."""
    count, size, start = struct.unpack("<HII", data[-12:-2])
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    old = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:-22] + end + locator + old


def encrypted_zip() -> bytes:
    """A zip whose one map is said to be encrypted."""
    data = bytearray(zipped([("1.png", grey(1))]))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def lying_zip(content: bytes, said: int) -> bytes:
    """A zip of one map whose directory tells another size."""
    data = bytearray(zipped([("1.png", content)]))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, said)
    return bytes(data)


def doubled_zip(copies: int = 2) -> bytes:
    """A zip whose directory leads to the same bytes again and again."""
    data = zipped([("1.png", grey(1))])
    start = data.index(b"PK\1\2")
    entry = data[start:-22]
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, copies, copies, copies * len(entry), start, 0)
    return data[:start] + entry * copies + end


def inside_zip() -> bytes:
    """A zip one file of which lies inside of another."""
    inner = zipped([("2.png", grey(2))], zipfile.ZIP_STORED)
    data = zipped([("1.txt", inner[: inner.index(b"PK\1\2")])], zipfile.ZIP_STORED)
    start = data.index(b"PK\1\2")
    inside = bytearray(inner[inner.index(b"PK\1\2") : -22])
    struct.pack_into("<I", inside, 42, 35)
    entries = data[start:-22] + inside
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(entries), start, 0)
    return data[:start] + entries + end


def flat_bomb(files: int = MOST_MAPS, kernel_bytes: int = 16 * 2**20) -> bytes:
    """A zip in which every file quotes the next one's header and goes on with its bytes: files times kernel, in KB."""
    packer = zlib.compressobj(9, wbits=-15)
    body = packer.compress(bytes(kernel_bytes)) + packer.flush()
    size, checksum, pieces, headers = kernel_bytes, zlib.crc32(bytes(kernel_bytes)), [body], []
    length = len(body)
    for number in reversed(range(files)):
        name = f"{number:04}.png".encode()
        about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, checksum, length, size, len(name), 0)
        header = b"PK\3\4" + about + name
        headers.append((about, name))
        pieces.insert(0, header)
        if number:
            checksum = zlib.crc32(bytes(kernel_bytes), zlib.crc32(header)) if number == files - 1 else 0
            pieces.insert(0, b"\0" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF))
            length, size = length + len(header) + 5, size + len(header)
    return _with_directory(pieces, list(reversed(headers)))


def _with_directory(pieces: list[bytes], headers: list[tuple[bytes, bytes]]) -> bytes:
    data, places = b"", []
    for piece in pieces:
        if piece.startswith(b"PK\3\4"):
            places.append(len(data))
        data += piece
    directory = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, place) + name
        for (about, name), place in zip(headers, places, strict=True)
    )
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(headers), len(headers), len(directory), len(data), 0)
    return data + directory + end


def nested_zip(depth: int = 5, width: int = 16) -> bytes:
    """Zips in zips, as 42.zip: 16 to the fifth files of a megabyte."""
    data = zipped([("0.png", bytes(2**20))])
    for _ in range(depth):
        data = zipped((f"{index}.zip", data) for index in range(width))
    return data


def gzip_bomb(megabytes: int = 300) -> bytes:
    """A gzip of zeros."""
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def sparse_terabyte() -> bytes:
    """A tar with a file that is said to be a terabyte of holes, and a map."""
    pax = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**40)}
    return tar_of([(tar_entry("0.png", pax_headers=pax), b""), _one_map()])


def _one_map() -> tuple[tarfile.TarInfo, bytes]:
    return tar_entry("1.png", size=len(grey(1)), mode=0o6777, uid=0), grey(1)


def endless_tar() -> bytes:
    """A negative size leads back to its own header; some versions of Python go there again and again."""
    header = bytearray(tarred([("1.txt", b"")])[:512])
    first = bytes(header)
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return first + bytes(header) + bytes(1024)


TAR_SPECIALS = {
    "a link to /etc/passwd": tar_entry("2.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a link to a map": tar_entry("2.png", type=tarfile.SYMTYPE, linkname="1.png"),
    "a hard link to a map": tar_entry("2.png", type=tarfile.LNKTYPE, linkname="1.png"),
    "a hard link to /etc/passwd": tar_entry("2.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a character device": tar_entry("2.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a block device": tar_entry("2.png", type=tarfile.BLKTYPE, devmajor=8),
    "a FIFO": tar_entry("2.png", type=tarfile.FIFOTYPE),
    "a folder": tar_entry("2.png", type=tarfile.DIRTYPE),
}
"""What a tar may hold that is no plain file."""

JUNK = {
    "__MACOSX/a.png": b"junk",
    "__MACOSX/depth/._1.png": b"junk",
    "._1.png": b"junk",
    ".DS_Store": b"junk",
    ".png": b"junk",
    ".cache/thumbnail.png": b"junk",
    "depth/": b"",
    "depth.png/": b"",
    "notes.txt": b"junk",
    "no extension": b"junk",
    "png": b"junk",
    "1.png.bak": b"junk",
    "1.avif": b"junk",
    "inner.zip": zipped([("1.png", grey(99))]),
    "inner.tar": tarred([("1.png", grey(99))]),
    "inner.tar.gz": tar_gz([("1.png", grey(99))]),
    "../../etc/cron.d/x.png": b"junk",
    "/etc/x.png": b"junk",
}
"""Members that are no maps."""

NO_ARCHIVE = {
    "nothing": b"",
    "a text": b"a poem\n" * 200,
    "a picture": grey(0, size=(100, 100)),
    "a zip's first bytes": b"PK\3\4",
    "a gzipped text": gzip.compress(b"a poem\n" * 200),
    "RAR": b"Rar!\x1a\7\1\0" + bytes(600),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(600),
    "tar.bz2": b"BZh91AY&SY" + bytes(600),
    "tar.xz": b"\xfd7zXZ\0" + bytes(600),
}
"""What is no archive that is read."""

ODD_NAMES = {
    "one letter in two forms": ["e\u0301.png", "z.png", "\u00e9.png"],
    "two cases": ["A.png", "a.png"],
    "10 before 9": ["10.png", "9.png"],
    "pairs of surrogates": ["\U0001f600.png", "\U0001f601.png"],
    "beyond the first plane": ["\uffff.png", "\U00010000.png"],
    "4 KB": ["x" * 4000 + "1.png", "x" * 4000 + "2.png"],
    "a backslash": ["a\\b.png", "ab.png"],
    "folders": ["a/b.png", "b/a.png"],
    "a dot": ["./1.png", "0.png"],
}
"""Names of maps, in the order in which they count."""


def odd_names(names: Iterable[str], pack: Callable[[Files], bytes] = zipped) -> bytes:
    """An archive of maps of these names, put into it the other way round; the first is the darkest."""
    files = [(name, grey(10 + index)) for index, name in enumerate(names)]
    return pack(reversed(files))


# ---------------------------------------------------------------- the table


def _of(value: bytes) -> Callable[[], bytes]:
    return lambda: value


def _picture(row: int, name: str, make: Callable[[], bytes], error: str | None = None, **more: Any) -> Case:
    return Case(row, name, "picture", make, error, **more)


def _archive(row: int, name: str, make: Callable[[], bytes], error: str | None = None, **more: Any) -> Case:
    return Case(row, name, "archive", make, error, **more)


BROKEN, FOREIGN_TYPE, SMALL, LARGE = (
    "image_load_error",
    "unsupported_image_format",
    "image_too_small",
    "image_too_large",
)
INVALID, NO_MAP = "invalid_archive", "archive_file_count_below_minimum"
TOO_MANY = "archive_file_count_exceeds_maximum"


def _scene(**options: Any) -> Callable[[], bytes]:
    return lambda: image_bytes(scene(), **options)


def _sized(width: int, height: int) -> Callable[[], bytes]:
    return lambda: image_bytes(Image.new("L", (width, height), 90))


_PICTURES = [
    _picture(38, "a login page", _of(HTML), BROKEN),
    _picture(39, "a JPEG, whatever it is called", _scene(format="JPEG", quality=95), colour=RED),
    *(_picture(39, f"a good {format}", _scene(format=format), colour=RED) for format in FORMATS),
    *(_picture(41, name, _of(data), BROKEN) for name, data in NO_PICTURE.items()),
    _picture(42, "SVG that links to a file", partial(svg, "file:///etc/passwd"), FOREIGN_TYPE),
    _picture(42, "SVG that links to a host", partial(svg, "http://169.254.169.254/latest"), FOREIGN_TYPE),
    _picture(42, "XXE of a file", partial(xxe, "file:///etc/passwd"), FOREIGN_TYPE),
    _picture(42, "XXE of a host", partial(xxe, "http://169.254.169.254/latest"), FOREIGN_TYPE),
    *(_picture(43, name, _of(data), FOREIGN_TYPE) for name, data in FOREIGN.items()),
    _picture(43, "MPO", partial(animation, "MPO"), colour=RED),
    _picture(44, "a PNG of 900 million pixels in 110 KB", png_bomb, LARGE),
    *(
        _picture(44, f"{format} that is immense by its header", partial(large_by_its_header, format), LARGE)
        for format in ("PNG", "GIF", "WEBP", "BMP", "TIFF")
    ),
    _picture(44, "a PNG of the largest numbers", partial(png, 2**31 - 1, 2**31 - 1, 8, 2), LARGE),
    _picture(44, "a tile of a gigabyte", tile_bomb, LARGE),
    _picture(45, "zTXt of 64 MB", partial(bomb_beside_the_pixels, b"zTXt"), BROKEN),
    _picture(45, "iCCP of 64 MB", partial(bomb_beside_the_pixels, b"iCCP"), BROKEN),
    _picture(45, "APNG of 10,000 frames", animated_png, colour=RED),
    _picture(45, "TIFF of 10,000 pages", many_pages, colour=RED),
    _picture(45, "GIF of a million frames", gif_bomb, colour=RED),
    _picture(45, "TIFF of 64 million pixels in a deflated strip", deflated_strip, colour=BLACK),
    _picture(45, "JPEG of 100,000 scans", countless_scans, BROKEN),
    *(_picture(46, f"{w}x{h}", _sized(w, h), SMALL) for w, h in ((1, 1), (10, 1), (15, 63), (64, 15))),
    _picture(46, "64x63", _sized(64, 63), colour=(90, 90, 90)),
    _picture(47, "10000x1", _sized(10_000, 1), SMALL),
    _picture(47, "16 lines of four million", partial(png, 4_000_000, 16, 8, 0), LARGE),
    _picture(47, "16000x16", _sized(16_000, 16), colour=(90, 90, 90)),
    *(
        _picture(48, f"animated {format}", partial(animation, format), colour=RED)
        for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
    ),
    *(
        _picture(49, f"mode {mode}", partial(stored, mode, 255 if mode == "1" else 200), colour=colour)
        for mode in STORED
        for colour in [WHITE if mode == "1" else (200, 200, 200)]
    ),
    _picture(49, "inks in a JPEG", lambda: image_bytes(scene().convert("CMYK"), "JPEG", quality=95), colour=RED),
    _picture(
        49,
        "inks with a profile",
        lambda: image_bytes(Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), "TIFF", icc_profile=cmyk_profile()),
        colour=(231, 97, 147),
    ),
    _picture(
        49, "colours of P3", lambda: image_bytes(scene(corner=(200, 100, 50)), icc_profile=P3), colour=(216, 93, 24)
    ),
    _picture(49, "a broken profile", _scene(icc_profile=b"broken" * 100), colour=RED),
    _picture(49, "transparent PNG", transparent, colour=WHITE),
    _picture(49, "transparent WEBP", partial(transparent, "WEBP", lossless=True), colour=WHITE),
    _picture(49, "palette with a transparent colour", palette_with_a_transparent_colour, colour=WHITE),
    _picture(49, "GIF with a transparent colour", partial(palette_with_a_transparent_colour, "GIF"), colour=WHITE),
    *(_picture(50, f"orientation {number}", partial(turned, number), colour=RED) for number in STORED_AS),
    *(_picture(50, f"TIFF, orientation {number}", partial(turned, number, "TIFF"), colour=RED) for number in STORED_AS),
    *(
        _picture(51, f"half a {format}", partial(halved, format), BROKEN)
        for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
    ),
    _picture(51, "a wrong checksum", wrong_checksum, BROKEN),
    _picture(51, "no bytes", _of(b""), BROKEN),
    _picture(52, "GIF and JAR", lambda: image_bytes(scene(), "GIF") + zipped([("X.class", b"junk")]), colour=RED),
    _picture(52, "JPEG and zip", lambda: image_bytes(scene(), "JPEG") + zipped([("1.png", grey(1))]), colour=RED),
    _picture(52, "JPEG and script", _scene(format="JPEG", comment=b"*/=alert(document.domain);/*"), colour=RED),
    _picture(52, "PNG and page", lambda: image_bytes(scene()) + b"<script>alert(1)</script>", colour=RED),
]

_MASKS = [
    Case(53, "a mask of another size", "mask", lambda: image_bytes(Image.new("L", (300, 7), 255)), colour=WHITE),
    Case(53, "a mask in colours", "mask", lambda: image_bytes(scene(corner="yellow")), colour=WHITE),
    Case(53, "white paint on nothing", "mask", lambda: image_bytes(_paint()), colour=WHITE),
    Case(53, "all black", "mask", lambda: image_bytes(Image.new("L", (WIDTH, HEIGHT), 0)), colour=BLACK),
    Case(53, "all white", "mask", lambda: image_bytes(Image.new("L", (WIDTH, HEIGHT), 255)), colour=WHITE),
    Case(53, "one pixel", "mask", lambda: image_bytes(Image.new("L", (1, 1), 255)), colour=WHITE),
    Case(53, "a mask that is none", "mask", _of(HTML), BROKEN),
    Case(53, "a mask of 900 million pixels", "mask", png_bomb, LARGE),
    Case(53, "a drawing", "mask", _of(FOREIGN["SVG"]), FOREIGN_TYPE),
]


def _paint() -> Image.Image:
    paint = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    paint.paste((255, 255, 255, 255), (0, 0, WIDTH // 2, HEIGHT // 2))
    return paint


_ARCHIVES = [
    *(_archive(54, name, _of(data), INVALID) for name, data in NO_ARCHIVE.items()),
    _archive(54, "an encrypted zip", encrypted_zip, INVALID),
    _archive(54, "a zip packed by bzip2", lambda: zipped(maps(1), zipfile.ZIP_BZIP2), INVALID),
    _archive(54, "a zip packed by LZMA", lambda: zipped(maps(1), zipfile.ZIP_LZMA), INVALID),
    _archive(54, "a zip of 64 bits", lambda: zipped(maps(1), force_zip64=True)),
    _archive(54, "a zip with a directory of 64 bits", lambda: with_64_bit_directory(zipped(maps(2))), maps=2),
    _archive(54, "a zip out of a pipe", lambda: piped_zip(maps(2)), maps=2),
    *(_archive(54, f"a good {name}", partial(pack, maps(2)), maps=2) for name, pack in PACKERS.items()),
    *(_archive(55, f"an empty {name}", partial(pack, []), NO_MAP) for name, pack in PACKERS.items()),
    _archive(55, "nothing but a text", lambda: zipped([("notes.txt", b"junk")]), NO_MAP),
    _archive(55, "nothing but junk", lambda: zipped(JUNK.items()), NO_MAP),
    _archive(55, "nothing but junk in a tar", lambda: tarred(JUNK.items()), NO_MAP),
    _archive(56, "one map", lambda: zipped(maps(1))),
    _archive(56, "the most maps", lambda: zipped(maps(MOST_MAPS)), maps=MOST_MAPS),
    _archive(56, "one too many", lambda: zipped(maps(MOST_MAPS + 1)), TOO_MANY),
    _archive(56, "a thousand", lambda: tar_gz((f"{index}.png", b"junk") for index in range(1000)), TOO_MANY),
    _archive(56, "100,000", lambda: zipped(((f"{i}.png", b"") for i in range(100_000)), zipfile.ZIP_STORED), TOO_MANY),
    _archive(56, "100,001 folders", lambda: zipped((f"{i}/", b"") for i in range(100_001)), INVALID),
    _archive(57, "zips in zips", nested_zip, NO_MAP),
    _archive(58, "a flat bomb", flat_bomb, INVALID),
    _archive(58, "the same bytes 25 times", partial(doubled_zip, MOST_MAPS), INVALID),
    _archive(58, "a file inside of another", inside_zip, INVALID),
    _archive(58, "larger than it is said to be", lambda: lying_zip(bytes(2**25), 10), INVALID),
    _archive(58, "smaller than it is said to be", lambda: lying_zip(grey(1), len(grey(1)) + 1), INVALID),
    _archive(58, "said to be 4 GB", lambda: lying_zip(grey(1), 2**32 - 2), INVALID),
    _archive(58, "a map of 21 MB in 21 KB", lambda: zipped([("1.png", grey(1) + bytes(21 * 2**20))]), INVALID),
    _archive(
        58, "108 MB in 108 KB", lambda: zipped((f"{i}.png", grey(1) + bytes(18 * 2**20)) for i in range(6)), INVALID
    ),
    _archive(58, "a map as immense as a picture", lambda: zipped([("1.png", png_bomb())]), INVALID),
    *(
        _archive(59, name, lambda entry=entry: tar_of([(entry, b""), _one_map()]))
        for name, entry in TAR_SPECIALS.items()
    ),
    _archive(59, "a name that leads outside", lambda: tarred([("../../etc/x.png", b"junk"), ("1.png", grey(1))])),
    _archive(59, "an absolute name", lambda: tarred([("/etc/x.png", b"junk"), ("1.png", grey(1))])),
    _archive(59, "names that lead outside, in a zip", lambda: zipped([("../x.png", b"junk"), ("1.png", grey(1))])),
    _archive(59, "nothing but a name that leads outside", lambda: tarred([("../x.png", grey(1))]), NO_MAP),
    _archive(59, "a terabyte of holes", sparse_terabyte),
    _archive(59, "a tar without an end", endless_tar, INVALID),
    *(
        _archive(60, f"{name} in a {packer}", partial(odd_names, names, pack), colour=(10, 10, 10), maps=len(names))
        for name, names in ODD_NAMES.items()
        for packer, pack in PACKERS.items()
    ),
    _archive(60, "a name in another encoding", lambda: tarred([("\udcff.png", grey(7))], tarfile.GNU_FORMAT)),
    _archive(60, "one name twice", lambda: tarred([("1.png", grey(1)), ("1.png", grey(2))]), maps=2),
    _archive(60, "a NUL in a name", lambda: zipped([("1.png", grey(1))]).replace(b"1.png", b"\x001.pn"), NO_MAP),
    _archive(
        61,
        "maps of many sizes and modes",
        lambda: zipped([("1.png", grey(9, size=(40, 20))), ("2.png", stored("RGB")), ("3.tif", stored("LAB"))]),
        colour=(9, 9, 9),
        maps=3,
    ),
    _archive(61, "one broken map", lambda: zipped([("1.png", grey(1)), ("2.png", grey(2)[:40])]), INVALID),
    _archive(61, "one map that is a PDF", lambda: zipped([("1.png", FOREIGN["PDF"])]), INVALID),
    _archive(61, "one map that is too small", lambda: zipped([("1.png", grey(1, size=(4, 4)))]), INVALID),
    _archive(62, "a gzip bomb", gzip_bomb, INVALID),
    _archive(62, "a bzip2 bomb", lambda: bz2.compress(bytes(2**25)), INVALID),
    _archive(62, "an xz bomb", lambda: lzma.compress(bytes(2**25)), INVALID),
    _archive(62, "a gzip bomb that is a tar", lambda: _bomb_of_a_tar(), INVALID),
]


def _bomb_of_a_tar() -> bytes:
    header = tar_entry("1.png", size=2**30).tobuf(tarfile.GNU_FORMAT)
    packer = zlib.compressobj(wbits=31)
    return packer.compress(header) + b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()


CASES: list[Case] = [*_PICTURES, *_MASKS, *_ARCHIVES]
