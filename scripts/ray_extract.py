#!/usr/bin/env python3
"""Extracts a dataset on a Ray cluster: one worker per GPU, or per few CPU cores, each running `streamgauge extract` on slices of it.

    scripts/ray_extract.py --out runs/resid --model M --data corpus.jsonl --tap 'blocks.*.hook_resid_post'
    scripts/ray_extract.py --out runs/resid --resume …       after whatever ended it, on any number of workers

Flags that are not listed below go to `streamgauge extract` as they are. Every node must see the model, the dataset, the binary and OUT by
the same paths. Slices lie in OUT.slices/ while they are made. One whose process or node died, or failed, is gone on with from its last durable batch, by any
worker; in the end all are merged into OUT, with the bits of one run. Exit status: 0 done; 1 a slice failed for good (the rest is kept, and
--resume goes on); 2 usage; 130, 143 stopped.
"""

import argparse
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))

import slices  # noqa: E402

try:
    import ray
except ImportError:
    sys.exit("error: Ray is not installed: pip install 'ray>=2.9'")

OURS = ("--shard", "--device", "--devices", "--quiet", "--json", "--progress")
USAGE = 2
EVERY_S = 10
PATIENCE_S = 10
# What workers have for committing when they are told to stop.
FAREWELL_S = 60


def end_with_parent():
    """In a child, before it runs: the kernel is to kill it when the actor dies, so that the slice is free for the next worker."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Worker:
    """A place in the cluster that runs one slice at a time."""

    def __init__(self, directory, cores):
        self.directory, self.cores = directory, cores
        self.process, self.stopping = None, False

    def extract(self, command):
        """Runs it. Yields progress as it comes, and last how it ended."""
        environment = dict(os.environ)
        if self.cores:
            environment.setdefault("RAYON_NUM_THREADS", str(self.cores))
        try:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, errors="replace", preexec_fn=end_with_parent,
            )  # fmt: skip
        except OSError as error:
            yield {"status": USAGE, "said": f"{command[0]} cannot be run on {ray.util.get_node_ip_address()}: {error}"}
            return
        if self.stopping:  # it came between
            self.process.terminate()
        said = []
        for line in self.process.stderr:
            if line.startswith("{"):
                yield {"progress": json.loads(line)}
            else:
                said.append(line.strip())
        yield {"status": self.process.wait(), "said": "; ".join(said[-3:]).removeprefix("error: ")}

    def stop(self):
        """Has it commit what it has and end."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()

    def drop(self):
        """Ends at once what may still run here of a slice that the driver has lost sight of."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Run:
    """The slices that are still to do, and how far they are. Shared by a thread per worker."""

    def __init__(self, count, tries):
        self.todo = queue.Queue()
        for i in range(count):
            self.todo.put(i)
        self.lock = threading.Lock()
        self.count, self.tries = count, tries
        self.failures = [0] * count
        self.progress = [{} for _ in range(count)]
        self.done, self.lost, self.stopped, self.refused, self.away = set(), {}, None, False, 0
        self.ended = threading.Event()

    def next(self):
        """The slice to do next; none once all have ended, or a stop was asked for."""
        while not self.ended.is_set() and self.stopped is None:
            try:
                return self.todo.get(timeout=0.2)
            except queue.Empty:
                continue  # one that is under way may fail, and come back
        return None

    def note(self, i, event):
        """What a worker told of slice i. Whether that was its end."""
        if "progress" in event:
            self.progress[i] = event["progress"]
            return False
        status = event["status"]
        with self.lock:
            if status == 0:
                self.done.add(i)
            elif self.stopped is None and not self.ended.is_set():
                self._failed(i, status, event["said"])
            if len(self.done) + len(self.lost) == self.count:
                self.ended.set()
        return True

    def _failed(self, i, status, said):
        how = said or (f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}")
        self.failures[i] += 1
        if status == USAGE or self.failures[i] >= self.tries:
            self.lost[i] = how
            tell(f"slice {i}/{self.count} failed for good: {how}")
            if status == USAGE:
                self.refused = True  # as every other would be
                self.ended.set()
        else:
            tell(f"slice {i}/{self.count} goes on from its last durable batch: {how}")
            self.todo.put(i)

    def line(self):
        total = {key: sum(p.get(key) or 0 for p in self.progress) for key in ("samples", "tokens", "bytes", "tokens_per_s")}
        away = f"  workers that wait for room in the cluster: {self.away}" if self.away else ""
        return (
            f"{len(self.done)} of {self.count} slices done  {total['samples']:,} samples  "
            f"{total['tokens_per_s']:,.0f} tokens/s  {total['bytes'] / 1e9:.2f} GB{away}"
        )


def tell(line):
    print(line, file=sys.stderr, flush=True)


def drive(run, worker, command):
    """Gives a worker slice after slice, while it is there: one that Ray has no room for must not sit on a slice."""
    held = None
    while reach(run, worker, held) and (i := run.next()) is not None:
        held = None
        run.progress[i] = {}
        try:
            events = worker.extract.remote(command(i))
            if not any(run.note(i, ray.get(event)) for event in events):
                run.note(i, {"status": 1, "said": "its worker ended without a word"})
        except ray.exceptions.RayError as error:
            held = i, {"status": 1, "said": f"its worker died ({type(error).__name__})"}


def reach(run, worker, held):
    """Waits until a worker answers: Ray begins an actor, and one that died anew, where there is room. The slice that it was at when it was lost
    goes back as soon as nobody can be at it any more, or the worker has been away for long. Whether the run still goes on."""
    since, asked, is_away = time.monotonic(), None, False
    try:
        while not run.ended.is_set() and run.stopped is None:
            asked = asked or worker.drop.remote()
            if ray.wait([asked], timeout=1)[0]:
                try:
                    ray.get(asked)
                    return True
                except ray.exceptions.RayError:
                    asked = None
                    time.sleep(1)
            if not is_away and time.monotonic() - since > PATIENCE_S:
                is_away = True
                run.away += 1
                if held:
                    run.note(*held)
                    held = None
        return False
    finally:
        run.away -= is_away
        if held:
            run.note(*held)


def workers_of(arguments):
    """Actors for the whole cluster: as many as were asked for, else one for each GPU, else for each share of a node's CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = arguments.cpus_per_worker
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if arguments.device == "cuda" else 0
    room = gpus if arguments.device == "cuda" else sum(int(node.get("CPU", 0)) // cpus for node in nodes)
    number = arguments.workers or room
    if number < 1 or number > room:
        raise slices.Refused(f"the cluster has room for {room} workers on {arguments.device} of {cpus} CPU cores each, not for {max(number, 1)}")
    # A second method may run beside the long one: `stop`.
    options = {"num_gpus": int(arguments.device == "cuda"), "num_cpus": cpus, "max_restarts": -1, "max_concurrency": 2}
    # On a GPU the cores are for tokenising and checksums, as many as there are.
    cores = cpus if arguments.device == "cpu" else None
    return [ray.remote(**options)(Worker).remote(os.getcwd(), cores) for _ in range(number)]


def extract(arguments, flags):
    if slices.is_whole(arguments.out):
        return recheck(arguments)
    ray.init(address=arguments.address, log_to_driver=False, logging_level="warning")
    workers = workers_of(arguments)
    place = slices.Slices(arguments.out, arguments.slices or len(workers), arguments.resume)
    run = Run(place.count, arguments.tries)

    def command(i):
        own = ["--out", str(place.store(i)), "--shard", f"{i}/{place.count}", "--resume", "--device", arguments.device, "--progress", "json"]
        return [arguments.bin, "extract", *flags, *own]

    def stop(number, _frame):
        run.stopped = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    tell(f"{len(workers)} workers, {place.count} slices")
    threads = [threading.Thread(target=drive, args=(run, worker, command), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    told = time.monotonic()
    while not run.ended.wait(0.2) and run.stopped is None:
        if time.monotonic() - told >= EVERY_S:
            told = time.monotonic()
            tell(run.line())
    return end(arguments, place, run, workers, threads)


def end(arguments, place, run, workers, threads):
    if run.stopped is not None or run.lost:
        for worker in workers:
            worker.stop.remote()
        until = time.monotonic() + FAREWELL_S
        for thread in threads:
            thread.join(timeout=max(0, until - time.monotonic()))
        place.leave()
    if run.stopped is not None:
        tell(f"error: stopped; what was done is kept in {place.dir}: the same command with --resume goes on")
        return 128 + run.stopped
    if run.refused:
        tell(f"error: {'; '.join(run.lost.values())}")
        return USAGE
    if run.lost:
        which = "; ".join(f"slice {i}/{run.count}: {how}" for i, how in sorted(run.lost.items()))
        tell(f"error: {len(run.done)} of {run.count} slices are done, and kept in {place.dir}; {which}. Mend that, then the same command with --resume")
        return 1
    place.merge(arguments.bin)
    print(place.out)
    return 0


def recheck(arguments):
    """The store is whole already: its checksums are."""
    if not arguments.resume:
        raise slices.Refused(f"{arguments.out} is a store already: pass --resume to have it rechecked, or name another --out")
    return subprocess.run([arguments.bin, "verify", arguments.out]).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", required=True, metavar="DIR", help="where the store goes: a directory that is empty or not there")
    parser.add_argument("--resume", action="store_true", help="go on with what a run that ended left; recheck what is complete")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="a GPU for each worker (default), or CPU cores")
    parser.add_argument("--workers", type=int, metavar="N", help="default: as many as the cluster has room for")
    parser.add_argument("--cpus-per-worker", type=int, default=1, metavar="N", help="cores that a worker takes (1); it computes on so many, if on no GPU")
    parser.add_argument("--slices", type=int, metavar="N", help="parts of the dataset (default: a worker each); with more of them, less waits for a worker that is lost")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="how often a slice may fail before it is given up (3)")
    parser.add_argument("--address", default="auto", help="the cluster's (default: the one that `ray start` began here)")
    parser.add_argument("--bin", default="streamgauge", help="the binary, by a name or path that every node knows")
    arguments, flags = parser.parse_known_args()
    for flag in flags:
        if flag.split("=")[0] in OURS:
            parser.error(f"{flag}: is given by this script")
    try:
        return extract(arguments, flags)
    except (slices.Refused, ConnectionError) as error:
        tell(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
