"""The slices of one dataset beside the store that they become: OUT.slices/0-of-4, OUT.slices/1-of-4, … Standard library only.

`extract --devices`, scripts/ray_extract.py and scripts/slurm/ keep them in the same place, so what one began another goes on with.
"""

import fcntl
import os
import pathlib
import re
import shutil
import subprocess

NAME = re.compile(r"([0-9]+)-of-([0-9]+)")


class Refused(Exception):
    """What the caller has to see to."""


def is_whole(out):
    """Whether there is a store: that of all slices comes to its place complete."""
    return (pathlib.Path(out) / "manifest.json").is_file()


class Slices:
    """OUT.slices/, held by this process until it ends."""

    def __init__(self, out, wanted, resume):
        self.out = pathlib.Path(os.path.abspath(out))
        self.dir = self.out.with_name(self.out.name + ".slices")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise Refused(f"{self.out} is not empty: name another --out")
        if self.dir.exists() and not resume:
            raise Refused(f"{self.dir} holds the slices of a run that was not finished: pass --resume to go on with it, or remove it")
        self.dir.mkdir(parents=True, exist_ok=True)
        self._hold()
        self.count = self._begun() or wanted
        for i in range(self.count):
            self.store(i).mkdir(exist_ok=True)

    def store(self, i):
        return self.dir / f"{i}-of-{self.count}"

    def merge(self, binary):
        """Joins the finished slices to the store, which appears complete or not at all, and removes them."""
        whole = self.dir / "whole"
        if whole.exists():
            shutil.rmtree(whole)  # of a merge that did not come to its end
        stores = [str(self.store(i)) for i in range(self.count)]
        done = subprocess.run([binary, "merge", "--quiet", str(whole), *stores], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Refused(done.stderr.strip().removeprefix("error: "))
        os.rename(whole, self.out)
        shutil.rmtree(self.dir)

    def leave(self):
        """Removes the place again if nothing has come of it."""
        if not any(entry for i in range(self.count) for entry in self.store(i).iterdir()):
            shutil.rmtree(self.dir)

    def _hold(self):
        self._lock = open(self.dir / "lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise Refused(f"{self.dir} is being worked on by process {self._lock.read().strip() or '?'}") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _begun(self):
        """How many slices an earlier run made of the dataset: that cannot change any more."""
        counts = {int(match[2]) for entry in self.dir.iterdir() if (match := NAME.fullmatch(entry.name))}
        if len(counts) > 1:
            raise Refused(f"{self.dir} holds slices of {' and of '.join(map(str, sorted(counts)))}: remove what is not of this run")
        return counts.pop() if counts else None
