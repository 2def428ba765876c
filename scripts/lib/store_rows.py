"""What a store holds per tap, as digests that hang on neither shards nor slices. Standard library only."""

import hashlib
import json
import pathlib
import random
import struct


def digests(store):
    """{tap: {tensor: SHA-256 of its bytes, over all shards in their order}}."""
    store = pathlib.Path(store)
    manifest = json.loads((store / "manifest.json").read_text())
    if manifest["state"] != "complete":
        raise ValueError(f"{store} is {manifest['state']}")
    found = {}
    for shard in manifest["shards"]:
        for tap in shard["taps"]:
            of_tap = found.setdefault(tap["tap"], {})
            with open(store / tap["file"], "rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                for name, tensor in header.items():
                    begin, end = tensor["data_offsets"]
                    file.seek(8 + length + begin)
                    of_tap.setdefault(name, hashlib.sha256()).update(file.read(end - begin))
    return {tap: {name: digest.hexdigest() for name, digest in sorted(of_tap.items())} for tap, of_tap in found.items()}


def write_tokens(path, samples, longest, vocabulary, seed=1):
    """A dataset of token ids, for which no tokenizer is needed."""
    draw = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(samples):
            tokens = [draw.randrange(3, vocabulary) for _ in range(draw.randrange(1, longest + 1))]
            file.write(json.dumps({"tokens": tokens}) + "\n")
