"""What every stage of a GPU check uses: the binary, the model, the datasets, and where results go."""

import json
import pathlib
import random
import subprocess
import time

# Mistral-7B-v0.1's sizes.
MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "sliding_window": 8,
}
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


class Skipped(Exception):
    """What a stage needs is not there."""


class Check:
    def __init__(self, root, args):
        self.root, self.args, self.dry = root, args, args.dry_run
        self.device = "interpreter" if self.dry else args.device
        self.sizes = TINY if self.dry else MISTRAL_7B
        # Commands run in the root, whatever these were told from.
        for name in ("bin", "kernel_tests", "out", "work", "disk"):
            path = getattr(args, name)
            setattr(args, name, path and path.resolve())
        if self.dry:
            # Nothing of a dry run may stand among what was measured.
            args.out, args.work, args.disk = (pathlib.Path(str(p) + "-dry") for p in (args.out, args.work, args.disk))
        for folder in (args.out, args.work, args.disk):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, number, found):
        path = self.args.out / f"stage-{number}.json"
        path.write_text(json.dumps({"written_unix": int(time.time()), "dry_run": self.dry, **found}, indent=1) + "\n")

    def kept(self, number):
        """What an earlier stage wrote, perhaps in an earlier run."""
        path = self.args.out / f"stage-{number}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def run(self, *command, timeout=600, env=None):
        """A command's standard output; an error that holds the end of what it said if it fails."""
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=timeout, env=env, cwd=self.root
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-600:]
            raise RuntimeError(f"{pathlib.Path(str(command[0])).name} {command[1]}: exit {done.returncode}: {said}")
        return done.stdout

    def streamgauge(self, *words, **how):
        return json.loads(self.run(self.args.bin, *words, "--json", **how))

    def extract(self, model, data, taps, store, *flags):
        self.run("rm", "-rf", store)
        taps = [word for tap in taps for word in ("--tap", tap)]
        job = ["--quiet", "--model", model, "--data", data, "--tokens-field", "tokens", "--device", self.device]
        return self.streamgauge("extract", *job, *taps, "--out", store, *flags)

    def tokens(self, name, lengths, seed=1):
        """A dataset of random token ids."""
        draw = random.Random(seed)
        path = self.args.work / f"{name}.jsonl"
        with path.open("w") as file:
            for length in lengths:
                ids = [1] + [draw.randrange(3, self.sizes["vocab_size"]) for _ in range(length - 1)]
                file.write(json.dumps({"tokens": ids}) + "\n")
        return path

    def model(self):
        """A folder with a model of these sizes and random weights, in bf16; made once. Without torch a dry run takes the tests' one."""
        try:
            from . import hf
        except ImportError as missing:
            if self.dry:
                return self.root / "tests/fixtures/models/mistral-bf16-h64"
            raise Skipped(f"python3 has no {missing.name}") from None
        folder = self.args.work / "model"
        if not (folder / "config.json").is_file():
            hf.make_model(folder, {**CONFIG, **self.sizes})
        return folder
