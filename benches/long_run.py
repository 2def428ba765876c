#!/usr/bin/env python3
"""Whether a long extraction stays as small and as fast as a short one, and as large on the disk as `plan` said.

    benches/long_run.py [--binary target/release/streamgauge] [--tokens 1000000] [--parts 10] [--json FILE]

The text is Django's documentation (BSD licence): its pinned source archive from PyPI, fetched once. Its pages, in a fixed random order, are cut
into parts of about the same number of tokens. One residual stream of SmolLM2-135M-Instruct is extracted on the CPU

- from all parts, in one long run, and
- from single parts, in short runs: while a short run is on its way the long one is stopped (SIGSTOP), after which it goes on with the
  part that the short one had. So neither disturbs the other, and a machine that is slow for a while is slow for both.

Memory is read from /proc twenty times a second: anonymous pages (RssAnon) apart from pages of mapped files (weights, shards). A second table tells
how fast each stretch of the long run was beside the short run of the same text. Needs Linux and Python 3.9, nothing else.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHIVE = "Django-5.2.tar.gz"
ARCHIVE_SHA256 = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"
EVERY_S = 0.05


def archive(folder):
    path = folder / ARCHIVE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", folder, "django==5.2"], check=True)
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != ARCHIVE_SHA256:
        sys.exit(f"error: {path} has SHA-256 {digest}, expected {ARCHIVE_SHA256}; delete it and run again")
    return path


def pages(folder):
    """The documentation's pages, in a fixed random order."""
    texts = []
    with tarfile.open(archive(folder)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.name.split("/")[1:2] == ["docs"] and member.name.endswith(".txt"):
                texts.append(tar.extractfile(member).read().decode("utf-8"))
    random.Random(0).shuffle(texts)
    return texts


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def memory(pid):
    """{what: bytes} of a process now; none once it has ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    names = ("RssAnon", "RssFile", "RssShmem", "VmHWM")
    return {name: int(fields[name].split()[0]) << 10 for name in names if name in fields}


class Extraction:
    """A run of `extract`, watched."""

    def __init__(self, bench, data, name):
        self.out = bench.scratch / name
        shutil.rmtree(self.out, ignore_errors=True)
        command = bench.job("extract", data) + ["--out", self.out, "--quiet", "--progress", "json"]
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        self.peaks = {}
        self.tokens = 0
        self.said = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            try:
                self.tokens = json.loads(line)["tokens"]
            except ValueError:
                self.said.append(line)

    def watch_until(self, tokens):
        """Samples memory until so many tokens are done, or the run is. (tokens, seconds) since it was last looked at."""
        before, began = self.tokens, time.monotonic()
        while self.process.poll() is None and self.tokens < tokens:
            for name, size in memory(self.process.pid).items():
                self.peaks[name] = max(size, self.peaks.get(name, 0))
            time.sleep(EVERY_S)
        seconds = time.monotonic() - began
        if self.process.poll() is not None:
            self.reader.join()
            if self.process.returncode:
                sys.exit("error: the extraction failed: " + "".join(self.said))
        return self.tokens - before, seconds

    def on_disk(self):
        """Bytes of the store's tap files, as they lie there."""
        manifest = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))
        files = [tap["file"] for shard in manifest["shards"] for tap in shard["taps"]]
        return sum((self.out / file).stat().st_size for file in files), len(manifest["shards"])


class Bench:
    def __init__(self, args):
        self.args = args
        self.scratch = args.scratch
        self.scratch.mkdir(parents=True, exist_ok=True)

    def job(self, command, data):
        job = [self.args.binary, command, "--model", self.args.model, "--tap", f"blocks.{self.args.layer}.hook_resid_post"]
        job += ["--shard-size", self.args.shard_size, "--max-length", "1024", "--on-long", "chunk", "--device", "cpu", "--store-dtype", "f32"]
        for path in data:
            job += ["--data", path]
        return job

    def plan(self, data):
        command = [str(part) for part in [*self.job("plan", data), "--json", "--quiet"]]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    def parts(self):
        """Files of about the same number of tokens each, and each one's plan."""
        texts = pages(self.scratch)
        everything = self.scratch / "all.jsonl"
        write(everything, texts)
        per_character = self.plan([everything])["tokens"] / sum(map(len, texts))
        if self.args.tokens > per_character * sum(map(len, texts)):
            sys.exit("error: the text has not so many tokens; ask for fewer by --tokens")
        wanted = self.args.tokens / self.args.parts / per_character
        parts, page = [], 0
        for number in range(self.args.parts):
            mine = []
            while sum(map(len, mine)) < wanted and page < len(texts):
                # A page that reaches over the end is cut there; the next part begins with the next page.
                mine.append(texts[page][: int(wanted) - sum(map(len, mine)) + 1])
                page += 1
            path = self.scratch / f"part-{number}.jsonl"
            write(path, mine)
            parts.append((path, self.plan([path])))
        return parts

    def run(self):
        parts = self.parts()
        paths = [path for path, _ in parts]
        whole = self.plan(paths)
        long, stretches, shorts = None, [], []
        done = 0
        for number, (path, plan) in enumerate(parts):
            beside = ""
            if number % self.args.short_every == 0:
                short = Extraction(self, [path], "short")
                shorts.append((number, short, plan, short.watch_until(plan["tokens"] + 1)))
                self.check(short, plan)
                beside = f"short {told(shorts[-1][3])}, "
            if long is None:
                long = Extraction(self, paths, "long")
            else:
                long.process.send_signal(signal.SIGCONT)
            done += plan["tokens"]
            last = number == len(parts) - 1
            stretches.append(long.watch_until(done + 1 if last else done))
            if not last:
                long.process.send_signal(signal.SIGSTOP)
            print(f"part {number + 1} of {len(parts)}: {beside}long {told(stretches[-1])}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        self.check(long, whole)
        return long, whole, stretches, shorts

    @staticmethod
    def check(run, plan):
        if (found := run.on_disk()) != (plan["bytes"], plan["shards"]):
            sys.exit(f"error: {run.out} has {found[0]} bytes in {found[1]} shards, and the plan was {plan['bytes']} in {plan['shards']}")


def told(stretch):
    tokens, seconds = stretch
    return f"{tokens / seconds:.0f} tokens/s"


def report(args, long, whole, stretches, shorts):
    rate = lambda stretch: stretch[0] / stretch[1]
    ratios = [rate(stretches[number]) / rate(short) for number, _, _, short in shorts]
    peak = lambda run: run.peaks["RssAnon"]
    short_peaks = [peak(short) for _, short, _, _ in shorts]
    weights = sum(path.stat().st_size for path in pathlib.Path(args.model).glob("*.safetensors"))
    found = {
        "tokens": whole["tokens"],
        "short_tokens": [plan["tokens"] for _, _, plan, _ in shorts],
        "planned_bytes": whole["bytes"],
        "bytes": long.on_disk()[0],
        "shards": whole["shards"],
        "short_shards": shorts[0][2]["shards"],
        "weights_bytes": weights,
        "peaks": long.peaks,
        "short_peaks": [short.peaks for _, short, _, _ in shorts],
        "anonymous_ratio": peak(long) / max(short_peaks),
        "anonymous_ratio_to_median": peak(long) / statistics.median(short_peaks),
        "stretches": stretches,
        "short_stretches": [(number, *short) for number, _, _, short in shorts],
        "rate_ratios": ratios,
        "load": os.getloadavg(),
    }
    mb = lambda n: f"{n / 1e6:.1f} MB"
    print(f"{whole['tokens']} tokens in {whole['shards']} shards, {len(shorts)} short runs of {min(found['short_tokens'])} to {max(found['short_tokens'])}")
    print(f"disk: {found['bytes']} bytes, {found['planned_bytes']} planned; each short run's as planned too")
    print(f"peak of anonymous memory: {mb(peak(long))}, short runs {mb(min(short_peaks))} to {mb(max(short_peaks))}; long / median short {found['anonymous_ratio_to_median']:.3f}, / largest {found['anonymous_ratio']:.3f}")
    hwm = [short.peaks["VmHWM"] for _, short, _, _ in shorts]
    print(f"peak of resident memory: {mb(long.peaks['VmHWM'])}, short runs {mb(min(hwm))} to {mb(max(hwm))}; weights' file {mb(weights)}")
    print(f"tokens/s, long / short of the same text: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=ROOT / "target/release/streamgauge", type=pathlib.Path)
    arguments.add_argument("--model", default=ROOT / ".models/SmolLM2-135M-Instruct", type=pathlib.Path, help="as scripts/fetch-model leaves it")
    arguments.add_argument("--tokens", type=int, default=1_000_000)
    arguments.add_argument("--parts", type=int, default=10, help="stretches of the long run")
    arguments.add_argument("--short-every", type=int, default=1, help="a short run beside every so many-th stretch only")
    arguments.add_argument("--layer", type=int, default=14)
    arguments.add_argument("--shard-size", default="32MB")
    arguments.add_argument("--scratch", type=pathlib.Path, default=ROOT / "runs/long-run")
    arguments.add_argument("--json", type=pathlib.Path)
    args = arguments.parse_args()
    report(args, *Bench(args).run())


main()
