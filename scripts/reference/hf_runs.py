"""What Hugging Face in float32, or in a model's own 16 bits, is off by, over several runs of the same model that its libraries
round differently.

One run's error is a draw: where a single dimension is nearly the whole norm it can be luckily tiny. A gate set from one
run fails other runs of Hugging Face itself, so the fixtures hold the largest error over these.

The libraries read their environment when they load, so each run is a process of its own:

    python hf_runs.py KIND RUN FOLDER OUT < {sample name: token ids} as JSON
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MKL = {"MKL_CBWR": "COMPATIBLE"}  # float32 matrix products summed as on the oldest processors
ATEN = {"ATEN_CPU_CAPABILITY": "default"}  # means, softmax and SiLU without AVX
AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}  # 16-bit matrix products without dot products of bf16
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
# {kind: {run: (environment, in a batch with a longer sample, padded on the right)}}; the first is a plain one
RUNS = {
    "float32": {
        "plain": ({}, False),
        "padded": ({}, True),
        "mkl": (MKL, False),
        "aten": (ATEN, False),
        "mkl+aten": (MKL | ATEN, False),
    },
    "half": {
        "plain": ({}, False),
        "padded": ({}, True),
        "onednn-avx512": (AVX512, False),
        "onednn-avx2": (AVX2, False),
        "aten": (ATEN, False),
    },
}


def errors_of_runs(kind, folder, inputs):
    """{run: {sample: [points, 2]}}, relative L2."""
    results = {}
    unset = {name: value for name, value in os.environ.items() if name not in MKL | ATEN | AVX2}
    with tempfile.TemporaryDirectory() as scratch:
        for run, (environment, _) in RUNS[kind].items():
            out = Path(scratch) / f"{run}.npz"
            command = [sys.executable, __file__, kind, run, str(folder), str(out)]
            subprocess.run(command, input=json.dumps(inputs), text=True, env=unset | environment, check=True)
            results[run] = dict(np.load(out))
    return results


def one_run(kind, run, folder, out):
    from hf_reference import Reference, groups, hook_points, relative_error

    reference = Reference(folder)
    errors = {}
    for sample, ids in json.load(sys.stdin).items():
        truth, found = reference.truth(ids), getattr(reference, kind)(ids, padded=RUNS[kind][run][1])
        errors[sample] = np.array(
            [
                [relative_error(*pair) for pair in zip(groups(point, found[point]), groups(point, truth[point]))]
                for point in hook_points(reference.n_layers)
            ],
            np.float32,
        )
        assert truth.keys() == found.keys() and len(truth) == len(errors[sample])
    np.savez(out, **errors)


def gate(kind, shown):
    """The largest error allowed in a cell where Hugging Face shows `shown`."""
    return np.clip(2 * shown, 1e-6, 1e-5) if kind == "float32" else np.maximum(2.5 * shown, 2**-8)


def failures(kind, results):
    """A table: how many cells of each run fail the gate of each single run, and that of all the others' maximum."""
    runs = {run: np.concatenate(list(samples.values())) for run, samples in results.items()}
    lines = [f"| {kind}: of {runs['plain'].size} cells, run | " + " | ".join(runs) + " | all others |"]
    lines.append("|---" * (len(runs) + 2) + "|")
    for run, errors in runs.items():
        others = np.max([other for name, other in runs.items() if name != run], axis=0)
        limits = [gate(kind, other) if name != run else None for name, other in runs.items()] + [gate(kind, others)]
        counts = ["–" if limit is None else str((errors > limit).sum()) for limit in limits]
        lines.append(f"| {run} | " + " | ".join(counts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    one_run(*sys.argv[1:])
