"""Runs scripts/ray_extract.py on a Ray cluster of two nodes on this machine, and kills in the middle. See scripts/test-ray."""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import ray
from ray.cluster_utils import Cluster
from store_rows import digests, write_tokens

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "tests/fixtures/models/mistral-window4"
PATIENCE_S = 300


class Check:
    def __init__(self, arguments, work, cluster):
        self.binary, self.work, self.cluster = arguments.binary.resolve(), work, cluster
        self.drivers = []
        self.data = work / "data.jsonl"
        # Long enough to be hit in the middle, with a commit after every batch.
        write_tokens(self.data, samples=4_000, longest=24, vocabulary=159)
        taps = ["--tap", "blocks.*.hook_resid_post", "blocks.1.attn.hook_pattern"]
        self.flags = ["--model", MODEL, "--data", self.data, "--shard-size", "400kB", "--batch-tokens", 64, "--commit-every", 0, *taps]
        self.flags = [str(flag) for flag in self.flags]
        whole = work / "whole"
        subprocess.run([self.binary, "extract", "--quiet", "--device", "cpu", "--out", whole, *self.flags], check=True)
        self.whole = digests(whole)

    def start(self, out, *more, flags=None):
        script = [sys.executable, ROOT / "scripts/ray_extract.py", "--address", self.cluster.address, "--bin", self.binary, "--device", "cpu"]
        command = [*script, "--out", out, *more, *(self.flags if flags is None else flags)]
        self.drivers.append(subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True))
        return self.drivers[-1]

    def finish(self, process, status):
        said = process.communicate(timeout=PATIENCE_S)[1]
        print("".join(f"    {line}\n" for line in said.splitlines()), end="")
        assert process.returncode == status, f"exit status {process.returncode}, not {status}"
        return said

    def same(self, out):
        assert digests(out) == self.whole, f"{out} has other rows than the uninterrupted run"
        assert not out.with_name(out.name + ".slices").exists()

    def midway(self, process, out, seen=(), raylet=None):
        """The process id of a worker (on the node of that raylet) that has committed something and is not done, and its slice."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            assert process.poll() is None, f"it ended before it could be hit: {process.communicate()[1]}"
            for journal in out.with_name(out.name + ".slices").glob("*/.partial/*.journal"):
                try:
                    if journal.parent.parent.name not in seen and journal.stat().st_size > 0:
                        pid = int((journal.parent / "lock").read_text())
                        if raylet in (None, parent_of(parent_of(pid))):
                            return pid, journal.parent.parent.name
                except (OSError, ValueError):
                    pass  # it has just ended
            time.sleep(0.005)
        raise AssertionError("no worker got anywhere")


def parent_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def workers_are_killed(check):
    """A streamgauge process, then an actor's process, then a node."""
    out = check.work / "killed"
    process = check.start(out, "--slices", "8")
    pid, first = check.midway(process, out)
    os.kill(pid, signal.SIGKILL)
    pid, second = check.midway(process, out, {first})
    os.kill(parent_of(pid), signal.SIGKILL)
    check.midway(process, out, {first, second}, raylet=check.second_node.all_processes["raylet"][0].process.pid)
    check.cluster.remove_node(check.second_node, allow_graceful=False)
    said = check.finish(process, 0)
    assert said.count("goes on from its last durable batch") >= 3, said
    check.same(out)


def a_stopped_run_goes_on(check):
    out = check.work / "stopped"
    process = check.start(out, "--slices", "3")
    check.midway(process, out)
    process.send_signal(signal.SIGINT)
    assert "--resume" in check.finish(process, 130)
    assert not out.exists()
    refused = check.finish(check.start(out), 1)
    assert "--resume" in refused, refused
    # On other workers than before; of slices as many as were begun.
    said = check.finish(check.start(out, "--resume", "--workers", "1"), 0)
    assert "1 workers, 3 slices" in said, said
    check.same(out)
    check.finish(check.start(out, "--resume"), 0)


def what_fails_for_good_is_told(check):
    out = check.work / "refused"
    said = check.finish(check.start(out, flags=[*check.flags, "--no-such-flag"]), 2)
    assert "--no-such-flag" in said, said
    bad = check.work / "bad.jsonl"
    bad.write_text(check.data.read_text() + '{"tokens": [999999]}\n')
    flags = [str(bad) if flag == str(check.data) else flag for flag in check.flags]
    said = check.finish(check.start(out, "--resume", "--slices", "2", "--tries", "2", flags=flags), 1)
    assert "slice 1/2" in said and "999999" in said and "--resume" in said, said


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    arguments = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="test-ray-"))
    cluster, check = Cluster(initialize_head=True, head_node_args={"num_cpus": 2}), None
    try:
        node = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        check = Check(arguments, work, cluster)
        check.second_node = node
        for part in (workers_are_killed, a_stopped_run_goes_on, what_fails_for_good_is_told):
            began = time.monotonic()
            print(f"== {part.__name__.replace('_', ' ')}", flush=True)
            part(check)
            print(f"-- {time.monotonic() - began:.0f} s", flush=True)
    finally:
        for driver in check.drivers if check else []:
            driver.kill()
        ray.shutdown()
        cluster.shutdown()
    shutil.rmtree(work)
    print("every store has the uninterrupted run's rows, bit for bit")


main()
