"""What throughput is to reach, and whether it did. A figure that is missed is told and fails nothing: it is a result too."""

# Tokens a second as shares of what the measured rate of products allows, by tokens of a sample: the first rung, the next, the aim.
RUNGS = {512: (0.75, 0.80, 0.85), 2048: (0.74, 0.80, 0.85), 4096: (0.71, 0.77, 0.83)}
# Of the rate without taps, what taps may cost: one residual that stays on the GPU, all of them to a tmpfs.
COST = {("1", "gpu"): 0.01, ("33", "tmpfs"): 0.03}
# Of the rate that copies to registered memory reach, and of what fio writes.
COPIES, DISK = 0.9, 0.9
# Times Hugging Face's rate on ragged text, by residuals that are saved.
BESIDE_HF = {"1": 4.0, "33": 8.0}


def aim(found, what, value, least=None, most=None):
    """Notes a figure beside what it is to be at least, or at most; None where it could not be had."""
    reached = None if value is None else value >= least if most is None else value <= most
    found.setdefault("aims", []).append({"what": what, "value": value, "least": least, "most": most, "reached": reached})


def of_runs(found, runs, ceilings):
    """The aims of a set of runs: `length`, `taps`, `to`, and what was measured of each."""
    plain = {run["length"]: run["tokens_per_s"] for run in runs if run["taps"] == "none"}
    for run in runs:
        length, key = run["length"], (run["taps"], run["to"])
        if run["taps"] == "none":
            for rung, least in zip(("first rung", "next rung", "aim"), RUNGS.get(length, ())):
                aim(found, f"{length} tokens, no taps, share of the limit ({rung})", run["share_of_limit"], least)
        if key in COST:
            cost = 1 - run["tokens_per_s"] / plain[length]
            aim(found, f"{length} tokens, {key[0]} taps to {key[1]}, share of the rate that they cost", cost, most=COST[key])
        if key == ("33", "disk"):
            fio = ceilings.get("fio_bytes_per_s")
            share = run["bytes_per_s"] / fio if fio else None
            # A run that computing bounds says nothing of the disk.
            if run["planned"]["limiter"] == "disk":
                aim(found, f"{length} tokens, 33 taps to disk, share of fio's rate", share, DISK)


def table(found):
    """A line for each aim, for a person."""
    lines = []
    for each in found.get("aims", []):
        bound = f"at least {each['least']}" if each["most"] is None else f"at most {each['most']}"
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[each["reached"]]
        value = "–" if each["value"] is None else f"{each['value']:.3f}"
        lines.append(f"{each['what']}: {value}, to be {bound}: {verdict}")
    return lines
