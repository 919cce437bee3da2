"""Where finished files live, and the addresses they have.

    a local file ──────────── put ───────▶┐                              ┌── stat, read ──▶ pieces
    pieces as they arrive ─── write ─────▶├── key, length and SHA-256 ───┼── verify ───────▶ as it was stored, or error
    pieces of part n ── write_part ─ join ▶┘                             └── signed_url ───▶ a bucket's own address

A file's key is a path such as ``b/<random>/clip.mp4``; its URL is ``<public URL>/files/<key>``. The key is the right to
read the file, so it holds a random part, which no log shows. obstore (the Rust ``object_store`` behind many databases)
keeps the bytes, in a directory or in a bucket of an S3 service. Nothing is seen under a key before it is whole.

    addresses.py which URLs are ours, and which file each means
    keys.py      what a key may be, and what a file's name says of it
    files.py     FileStorage
    pieces.py    bytes on their way in
    bucket.py    how an S3 service is reached, and what is made of obstore's errors
    folder.py    what a directory needs beside obstore
"""

from deployments.storage.files import CHECK_SECONDS, File, FileStorage, Stat, Stored
from deployments.storage.keys import disposition_of, new_key, type_of, without_secrets

__all__ = [
    "CHECK_SECONDS",
    "File",
    "FileStorage",
    "Stat",
    "Stored",
    "disposition_of",
    "new_key",
    "type_of",
    "without_secrets",
]
