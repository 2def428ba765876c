"""SHA-256 sums of a folder's files, in the format of `sha256sum`. Standard library only."""

import hashlib
from pathlib import Path


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def recorded(sums):
    """The {file name: digest} that the file `sums` lists."""
    lines = Path(sums).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}


def problems(folder, sums):
    """One line for each file of `sums` that is missing from `folder` or differs."""
    found = []
    for name, digest in recorded(sums).items():
        path = Path(folder) / name
        if not path.is_file():
            found.append(f"{path} is missing")
        elif (actual := sha256(path)) != digest:
            found.append(f"{path} has SHA-256 {actual}, expected {digest}")
    return found


def record(folder, sums):
    names = sorted(path.name for path in Path(folder).iterdir())
    Path(sums).write_text("".join(f"{sha256(Path(folder) / name)}  {name}\n" for name in names), encoding="utf-8")
