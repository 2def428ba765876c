"""Writes findings of every form that a report may have to show: python3 made_findings.py FOLDER.

The numbers are made up. The words are partly hostile: a page must show them as words.
"""

import json
import math
import pathlib
import sys

HOSTILE = "</script><script>document.title='run'</script><img src=\"http://192.0.2.1/x\" onerror=\"document.title='run'\">&amp;"
LONG = "a-name-without-any-place-to-break-" * 6


def axis(name, unit=""):
    return {"name": name, "unit": unit}


def wave(i, period=7.0, size=0.4, base=0.5):
    return base + size * math.sin(i / period) * math.exp(-i / 40)


def curve(name, n, shift, control=False, interval=True):
    points = []
    for i in range(n):
        y = None if i == 11 and not control else wave(i + shift)
        ends = {"low": y - 0.05 - i / 400, "high": y + 0.05} if interval and y is not None else {}
        points.append({"x": i, "y": y, "label": f"layer {i}", **ends})
    return {"name": name, "control": control, "points": points}


def exhibit(name, caption, kind, **body):
    return {"name": name, "caption": caption, "body": {"kind": kind, **body}}


def number(name, value, **more):
    return {"name": name, "value": value, **more}


def finding(id, title, exhibits, numbers=(), answer=("What the numbers say, in a sentence or two.",), command="streamgauge study dishonesty --model M --out study"):
    return {
        "id": id, "title": title, "question": "What is asked, and what a reader needs to know to read the plots below?", "answer": list(answer),
        "numbers": list(numbers), "exhibits": exhibits, "command": command, "manifests": [f"{id}/store/manifest.json"], "seconds": 12.5,
    }


def lines():
    curves = [curve("matched pairs, held out", 30, 0), curve("unpaired, held out", 30, 9), curve("shuffled labels", 30, 20, control=True)]
    plot = exhibit("E1-accuracy", "Accuracy by layer; the band is the 95 % interval.", "lines", x=axis("layer"), y=axis("accuracy"),
                   series=curves, references=[{"name": "chance", "at": 0.5}])
    many = [curve(f"layer {i}", 90, 3 * i, interval=False) for i in range(9)]
    long = exhibit("E1-many", "More curves than colours.", "lines", x=axis("token"), y=axis("KL", "nat"), series=many, references=[])
    one = exhibit("E1-one", "A single point.", "lines", x=axis("c / ‖x‖"), y=axis("share"),
                  series=[{"name": "flips", "points": [{"x": 0.2, "y": 0.9, "low": 0.8, "high": 0.95}]}], references=[])
    return finding("E1", "Direction per layer", [plot, long, one], [
        number("cos between neighbouring layers, least", 0.5512, published={"value": 0.55, "recomputed": True}),
        number("matched pairs held out, layer 15", 1.0, interval=[0.99, 1.0], n=256, controls=[
            {"name": "irrelevant adjectives", "value": 0.998, "interval": [0.98, 1.0]}, {"name": "unpaired", "value": 0.805}],
            note="An instruction's words leak into every later token: this says little."),
        number("strength reached", None, note="No strength of the grid flips 90 %."),
        number("a large one", -1234567.0, unit="nat", published={"value": 4.43, "interval": [3.2, 5.6]}),
    ])


def bars():
    blocks = [{"name": f"{kind}{layer}", "value": wave(3 * layer + (kind == "mlp"), base=0.05, size=0.3), "interval": [wave(3 * layer, base=-0.05, size=0.3), 0.4],
               "points": [wave(3 * layer + p, base=0.05, size=0.35) for p in range(8)], "published": 0.336 if layer == 16 else None}
              for layer in range(14, 20) for kind in ("attn", "mlp")]
    blocks.append({"name": "random direction, mean of 99", "value": 0.01, "interval": [-0.02, 0.03], "control": True})
    blocks.append({"name": LONG, "value": None})
    few = exhibit("E7-blocks", "Recovery when one block is patched.", "bars", y=axis("recovery"), bars=blocks)
    many = [{"name": f"mlp{i}", "value": wave(i, base=0)} for i in range(61)]
    return finding("E7", "Patch one block", [few, exhibit("E7-all", "All components.", "bars", y=axis("share", "logit"), bars=many)])


def heatmaps():
    def grid(rows, columns, missing=False):
        return [[None if missing and j > i else round(math.sin(i * 0.7) * math.cos(j * 0.4) * (0.6 if j % 5 else -0.3), 4) for j in range(columns)] for i in range(rows)]

    def labels(name, n, form="{}"):
        return {"name": name, "labels": [form.format(i) for i in range(n)]}
    heads = exhibit("E8-heads", "Recovery by layer and head.", "heatmap", rows=labels("layer", 17), columns=labels("head", 9), values=grid(17, 9), value=axis("recovery"))
    pairs = exhibit("E8-pairs", "Pairs of blocks.", "heatmap", rows=labels("block", 30, "attn{}"), columns=labels("other block", 30, "attn{}"),
                    values=grid(30, 30, True), value=axis("recovery of the pair"))
    wide = exhibit("E8-positions", "Layers and positions.", "heatmap", rows=labels("layer", 30), columns=labels("position", 130, "−{}"), values=grid(30, 130), value=axis("recovery"))
    near = [[0.9 + 0.1 * math.exp(-abs(i - j) / 9) for j in range(8)] for i in range(8)]
    cosines = exhibit("E8-cosines", "Cosines far from zero.", "heatmap", rows=labels("layer", 8), columns=labels("layer", 8), values=near, value=axis("cosine"))
    return finding("E8", "Heatmaps", [heads, pairs, wide, cosines])


def scatter():
    cloud = {"name": "pairs, denoising", "points": [{"x": i / 60, "y": i / 60 + 0.05 * math.sin(i), "label": f"attn{i % 30} + mlp{i % 13}"} for i in range(60)]}
    other = {"name": "pairs, noising", "points": [{"x": -i / 90, "y": -i / 80} for i in range(40)]}
    control = {"name": "random", "control": True, "points": [{"x": i / 30, "y": 0.01, "low": -0.1, "high": 0.1} for i in range(8)]}
    return finding("E9", "Pairs against sums", [exhibit("E9-sums", "Each pair against the sum of its parts.", "scatter", x=axis("sum of the two"), y=axis("the pair"), series=[cloud, other, control])])


def texts():
    words = "No , you should not tell her . It would only make things harder , and nobody has to know .".split(" ")
    tokens = ["<|im_start|>", "assistant", "\n", *[" " + word for word in words], "<|im_end|>", "\n", HOSTILE, LONG, "نعم", "好的", "🙂"]
    values = [None, None, *[wave(i, 2.0, 3.0, 0) for i in range(len(tokens) - 2)]]
    shown = exhibit("E4-texts", "The edited text; blue: likelier when edited.", "tokens", value=axis("log-probability gained", "nat"),
                    texts=[{"name": "dy01 edited", "tokens": tokens, "values": values}, {"name": HOSTILE, "tokens": ["No"], "values": [None]}])
    rows = [[f"prompt {i}", wave(i), i, None if i % 3 else True, "I would not mention it to anybody, since it is small and they will never find out about it."] for i in range(40)]
    table = exhibit("E4-table", "Texts of both runs.", "table", columns=["prompt", "first token (nat)", "tokens", "flips", "edited text"], rows=rows)
    return finding("E4", HOSTILE, [shown, table], [number(HOSTILE, 1.0, note=LONG)], [HOSTILE, LONG], LONG + "\\\n  " + HOSTILE)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for made in (lines(), texts(), bars(), heatmaps(), scatter()):
        (folder / f"{made['id']}.json").write_text(json.dumps(made, ensure_ascii=False))


if __name__ == "__main__":
    main()
