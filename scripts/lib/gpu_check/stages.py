"""The stages, each a function of the check and of the dictionary that it fills as it goes: what a failed stage had found is kept."""

import json
import os
import re
import shutil

from . import aims, timeline as own
from . import fidelity as compare
from .check import Skipped

RESIDUALS = ["hook_embed", "blocks.*.hook_resid_post"]
BRANCHES = ["hook_resid_mid", "hook_attn_out", "hook_mlp_out", *(f"attn.hook_{letter}" for letter in "qkvz")]
ALL = [*RESIDUALS, *(f"blocks.*.{point}" for point in BRANCHES)]


def middle(check):
    return check.sizes["num_hidden_layers"] // 2


def machine(check, found):
    """What there is, and what it reaches at most."""
    found["doctor"] = check.streamgauge("doctor")
    ceilings = check.args.out / "ceilings.json"
    found["ceilings"] = check.streamgauge(
        "bench", "ceilings", "--device", check.device, "--dir", check.args.disk, "--out", ceilings
    )
    device = found["ceilings"]["device"]
    found["table"] = [f"{device['device']}, products by {device['gemm_library']}"]
    found["table"] += [f"{dtype:5} {flops / 1e12:8.1f} TFLOP/s" for dtype, flops in device["gemm_flops"].items()]
    for what in ("copy", "upload", "copy_out", "copy_out_registered"):
        rate = device[f"{what}_bytes_per_s"]
        found["table"].append(f"{what:20} {(rate or 0) / 1e9:8.1f} GB/s")
    found["ceilings"]["fio_bytes_per_s"] = fio(check)
    found["table"] += [f"registers {r['memory']}: {r['why_not'] or 'yes'}" for r in found["doctor"]["cuda"]["registers"]]
    if not check.dry and not found["doctor"]["backends"]["cuda"]:
        found["failures"] = [str(found["doctor"]["cuda"]["why_no_gpu"] or "no kernels")]


def fio(check):
    """Bytes a second that fio writes as the engine does: io_uring, past the page cache, 1 MiB at a time, 64 at once; None without it."""
    program = shutil.which("fio")
    if not program:
        return None
    file = check.args.disk / "fio"
    job = ["--name=disk", f"--filename={file}", "--rw=write", "--direct=1", "--ioengine=io_uring", "--bs=1M", "--iodepth=64"]
    size = "16M" if check.dry else "4G"
    try:
        said = check.run(program, *job, f"--size={size}", "--end_fsync=1", "--output-format=json")
    except RuntimeError as error:  # its own affair: an old one without io_uring, a disk without direct I/O
        print(f"fio: {error}")
        return None
    finally:
        file.unlink(missing_ok=True)
    return json.loads(said)["jobs"][0]["write"]["bw_bytes"]


def kernel_tests(check):
    if check.args.kernel_tests:
        return check.args.kernel_tests
    built = (check.args.bin.parent / "deps").glob("kernels-*")
    built = sorted((p for p in built if os.access(p, os.X_OK) and not p.suffix), key=lambda p: p.stat().st_mtime)
    if not built:
        raise Skipped("no kernel tests beside the binary: pass --kernel-tests")
    return built[-1]


def kernels(check, found):
    """The kernels' own tests on the device, and again under compute-sanitizer, where it is there."""
    tests = kernel_tests(check)
    env = {**os.environ, "STREAMGAUGE_TEST_DEVICE": check.args.device}
    if check.dry:
        env.pop("STREAMGAUGE_TEST_DEVICE")
    few = ["add::", "rope::"]
    # On a GPU one at a time: each test opens it. What is said of the compiled code needs the compiler and the sources, and no GPU.
    every = ["--skip", "report::", "--test-threads", "1"]
    said = check.run(tests, *(few if check.dry else every), env=env)
    passed = re.search(r"test result: ok\. (\d+) passed", said)
    found["passed"] = int(passed[1]) if passed else 0
    if not found["passed"]:
        raise RuntimeError("no kernel test ran")
    found["table"] = [f"{found['passed']} kernel tests passed"]
    sanitizer = shutil.which("compute-sanitizer")
    if check.dry or not sanitizer:
        found["sanitizer"] = "not there"
        return
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", tests, *few, "--test-threads", "1"]
        check.run(*command, env=env, timeout=400)
        found[tool] = "clean"
        found["table"].append(f"{tool} clean")


def fidelity(check, found):
    """Every hook point against float64, beside Hugging Face; and the same job twice, packed in two ways."""
    model = check.model()
    lengths = [7, 33, 12] if check.dry else [200, 61, 120]
    data = check.tokens("fidelity", lengths)
    store = check.args.work / "fidelity"
    points = [p for p in compare.POINTS if not p.endswith("hook_result")]
    # One shard, however much the points of all layers are.
    check.extract(model, data, points, store, "--shard-size", "64GiB")
    again = check.args.work / "again"
    check.extract(model, data, points, again, "--shard-size", "64GiB", "--batch-tokens", max(lengths))
    found["two_packings"] = compare.same_bits(store, again)
    checked = check.streamgauge("verify", store, "--recompute", "2")
    found["recomputed"] = checked["recomputed"]
    if not found["two_packings"] or not checked["recomputed"]["exact"] or not checked["ok"]:
        found["failures"] = ["a sample's bits hang on its batch"]
        return
    found["table"] = ["two packings and a run of samples alone: the same bits"]
    if check.dry:
        on_cpu = check.streamgauge("verify", store, "--recompute", "2", "--device", "cpu")
        found["on_cpu"] = on_cpu["recomputed"]
    samples = [json.loads(line)["tokens"] for line in data.read_text().splitlines()]
    cells = compare.cells(model, samples, store)
    if cells is None:
        found["table"].append("not compared with Hugging Face: python3 has no torch or no transformers")
        if not check.dry:
            raise Skipped("python3 has no torch or no transformers")
        return
    found["points"], found["failures"] = compare.gates(cells)
    worst = max(found["points"].items(), key=lambda point: point[1]["rms_ratio"])
    found["table"].append(f"worst root mean square beside Hugging Face's: {worst[1]['rms_ratio']:.2f} at {worst[0]}")
    worst = max(found["points"].items(), key=lambda point: point[1]["cell_ratio"])
    found["table"].append(f"worst cell beside Hugging Face's: {worst[1]['cell_ratio']:.2f} at {worst[0]}")


def throughput(check, found):
    """Tokens a second by length and taps, as shares of what the products' rate allows, and beside Hugging Face."""
    model = check.model()
    ceilings = check.args.out / "ceilings.json"
    one = [f"blocks.{middle(check)}.hook_resid_post"]
    # What stays on the GPU, as means of a sample's rows; what goes to memory; what goes to a disk.
    where = {"gpu": check.args.work / "gpu", "tmpfs": check.args.work / "store", "disk": check.args.disk / "store"}
    runs = [("none", [f"{one[0]}@last"], "tmpfs", 1)]
    runs += [("1", one, place, 1) for place in where]
    runs += [("33", RESIDUALS, place, 4) for place in where]
    runs += [("all", ALL, "tmpfs", 16)]
    lengths, total = ((16,), 48) if check.dry else ((512, 2048, 4096), 262_144)
    found["runs"], found["table"] = [], []
    for length in lengths:
        for taps, points, place, share in runs:
            data = check.tokens(f"length-{length}", [length] * max(1, total // share // length))
            chosen = [f"{p}|mean" for p in points] if place == "gpu" else points
            run = measure(check, model, data, chosen, where[place], ceilings)
            run = {"length": length, "taps": taps, "to": place, **run}
            found["runs"].append(run)
            line = f"{length:5} {taps:>4} taps to {place:5} {run['tokens_per_s']:10.0f} tokens/s"
            found["table"].append(f"{line}  {run['share_of_limit']:.3f} of the limit")
    aims.of_runs(found, found["runs"], check.kept(1).get("ceilings", {}))
    beside_hf(check, found, model, where["tmpfs"])
    found["table"] += aims.table(found)


def measure(check, model, data, taps, store, ceilings):
    job = [word for tap in taps for word in ("--tap", tap)]
    plan = check.streamgauge(
        "plan", "--quiet", "--model", model, "--data", data, "--tokens-field", "tokens", "--device", check.device,
        "--ceilings", ceilings, *job,
    )
    done = check.extract(model, data, taps, store)
    shutil.rmtree(store)
    limit = plan["gemm_gflops"] * 1e9 * plan["tokens"] / plan["flops_total"]
    rate = done["tokens"] / done["wall_s"]
    return {
        "tokens": done["tokens"],
        "tokens_per_s": rate,
        "limit_tokens_per_s": limit,
        "share_of_limit": rate / limit,
        "bytes_per_s": done["activation_bytes"] / done["wall_s"],
        "upload_bytes_per_s": done["upload_bytes_per_s"],
        "compute_s": done["compute_s"],
        "wall_s": done["wall_s"],
        "waited_for_disk_s": done["waited_for_disk_s"],
        "waited_for_tokeniser_s": done["waited_for_tokeniser_s"],
        "planned": {key: plan[key] for key in ("limiter", "expected_s")},
    }


def beside_hf(check, found, model, store):
    """The same weights and texts, ragged, by Hugging Face with padding and saving."""
    try:
        from . import hf
    except ImportError as missing:
        found["table"].append(f"not compared with Hugging Face: python3 has no {missing.name}")
        return
    steps = (3, 9, 27, 5) if check.dry else (16, 900, 130, 64, 400, 1024, 33, 250)
    data = check.tokens("ragged", list(steps) * (1 if check.dry else 16))
    rows = [json.loads(line)["tokens"] for line in data.read_text().splitlines()]
    batches = [rows[i : i + 16] for i in range(0, len(rows), 16)]
    for name, taps, layers in (("1", [f"blocks.{middle(check)}.hook_resid_post"], [middle(check)]), ("33", RESIDUALS, None)):
        done = check.extract(model, data, taps, store)
        ours = done["tokens"] / done["wall_s"]
        shutil.rmtree(store)
        saved = check.args.work / "hf"
        theirs = hf.throughput(model, batches, layers, saved)
        shutil.rmtree(saved)
        found[f"beside_hf_{name}"] = {"tokens_per_s": ours, "hf_tokens_per_s": theirs, "ratio": ours / theirs}
        found["table"].append(f"ragged, {name} taps to tmpfs: {ours:.0f} tokens/s, Hugging Face {theirs:.0f}: {ours / theirs:.2f} times")
        aims.aim(found, f"ragged text, {name} taps to tmpfs, times Hugging Face's rate", ours / theirs, aims.BESIDE_HF[name])


def timeline(check, found):
    """A run with 33 taps: our own timeline of it, and nsys's where that is there."""
    model, store = check.model(), check.args.work / "store"
    data = check.tokens("timeline", [16] * 3 if check.dry else [2048] * 16)
    trace = check.args.out / "timeline.json"
    done = check.extract(model, data, RESIDUALS, store, "--trace", trace)
    shutil.rmtree(store)
    found["own"] = seen = own.summary(trace, done["activation_bytes"])
    ops = ", ".join(f"{name} {share:.0%}" for name, share in list(seen["ops"].items())[:6])
    found["table"] = [
        f"launches cover {seen['launches_busy']:.1%} of {seen['device_s']:.2f} s; {ops}",
        f"{seen['copies']} copies out at {seen['copied_bytes_per_s'] / 1e9:.2f} GB/s, {seen['copies_beside_launches']:.0%} of them beside launches",
    ]
    registered = check.kept(1).get("ceilings", {}).get("device", {}).get("copy_out_registered_bytes_per_s")
    share = seen["copied_bytes_per_s"] / registered if registered else None
    aims.aim(found, "copies out, share of the rate to registered memory", share, aims.COPIES)
    found["table"] += aims.table(found)
    by_nsys(check, found, model, data, store)


def by_nsys(check, found, model, data, store):
    """Which kernels and copies took the time of the same run, as nsys tells it."""
    nsys = shutil.which("nsys")
    if check.dry or not nsys:
        found["nsys"] = "not there" if not nsys else "not in a dry run"
        return
    report = check.args.out / "timeline"
    taps = [word for tap in RESIDUALS for word in ("--tap", tap)]
    job = ["extract", "--quiet", "--model", model, "--data", data, "--tokens-field", "tokens", "--device", check.device]
    profile = [nsys, "profile", "--trace", "cuda,nvtx,osrt", "--force-overwrite", "true", "-o", report]
    check.run(*profile, check.args.bin, *job, *taps, "--out", store)
    shutil.rmtree(store)
    for table in ("cuda_gpu_kern_sum", "cuda_gpu_mem_time_sum"):
        said = check.run(nsys, "stats", "--force-export", "true", "--format", "csv", "--report", table, f"{report}.nsys-rep")
        lines = said[said.index("Time (%)") :].splitlines()
        found[table] = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:] if line]
        found["table"].append(f"{table}: {lines[1] if len(lines) > 1 else 'nothing'}"[:120])
