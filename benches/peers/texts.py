"""The two datasets, as JSONL with a field `tokens` (both sides read the same ids; neither is timed tokenising).

*ragged*: sections of the Docutils manual (public domain; its pinned source archive from PyPI, fetched once), in an order
drawn at random, each as long as it happens to be, up to 1,024 tokens.
*equal*: the same text end to end, cut into rows of 256 tokens.
"""

import hashlib
import json
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from tokenizers import Tokenizer

ARCHIVE = "docutils-0.21.2.tar.gz"
ARCHIVE_SHA256 = "3a6b18732edf182daa3cd12775bbb338cf5691468f91eeeb109deff6ebfa986f"
ROW = 256
LONGEST = 1024
# A line of text, then its underline: a reStructuredText title.
TITLE = re.compile(r"(?m)^(?=\S[^\n]*\n([=\-~`'^\"+*#.])\1{3,}$)")


def archive(folder):
    path = folder / ARCHIVE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", folder, "docutils==0.21.2"]
        subprocess.run(command, check=True)
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != ARCHIVE_SHA256:
        sys.exit(f"error: {path} has SHA-256 {digest}, expected {ARCHIVE_SHA256}; delete it and run again")
    return path


def sections(folder):
    """The manual's sections, in a fixed random order."""
    texts = []
    with tarfile.open(archive(folder)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if "/docs/" in member.name and member.name.endswith(".txt"):
                text = tar.extractfile(member).read().decode("utf-8")
                texts += [part.strip() for part in TITLE.split(text) if part and len(part.strip()) >= 40]
    random.Random(0).shuffle(texts)
    return texts


def write(path, rows):
    path.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows), encoding="utf-8")


def make(model, folder, tokens):
    """{name: (path, [sample lengths])}, each dataset of about `tokens` tokens."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    ragged, stream = [], []
    for text in sections(folder):
        ids = tokenizer.encode(text).ids
        stream += ids
        if sum(map(len, ragged)) < tokens:
            ragged.append(ids[:LONGEST])
    equal = [stream[i * ROW : (i + 1) * ROW] for i in range(min(max(tokens // ROW, 1), len(stream) // ROW))]
    made = {}
    for name, rows in (("equal", equal), ("ragged", ragged)):
        path = folder / f"{name}.jsonl"
        write(path, rows)
        made[name] = (path, [len(row) for row in rows])
    return made
