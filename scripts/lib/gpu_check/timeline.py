"""What a timeline of our own (`extract --trace`) says of a device."""

import json

LAUNCHES, COPIES = "device: launches", "device: copies out"


def read(path):
    """Spans of the device's launches and of its copies: (begin, end, name), in µs, in their order."""
    events = json.loads(path.read_text())["traceEvents"]
    spans = {LAUNCHES: [], COPIES: []}
    for event in events:
        if event["ph"] == "X" and event["cat"] in spans:
            spans[event["cat"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    return sorted(spans[LAUNCHES]), sorted(spans[COPIES])


def merged(spans):
    """The time that any of the spans covers, as intervals apart from each other."""
    found = []
    for begin, end, *_ in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(end, found[-1][1])
        else:
            found.append([begin, end])
    return found


def length(intervals):
    return sum(end - begin for begin, end in intervals)


def common(one, other):
    """The time that both cover."""
    total, j = 0.0, 0
    for begin, end in one:
        while j < len(other) and other[j][1] <= begin:
            j += 1
        k = j
        while k < len(other) and other[k][0] < end:
            total += min(end, other[k][1]) - max(begin, other[k][0])
            k += 1
    return total


def shares(launches):
    """Of the launches' time, what each op took, largest first: by the hook point that it writes, layers together."""
    by_point = {}
    for begin, end, name in launches:
        point = ".".join(word for word in name.split(".") if word != "blocks" and not word.isdigit())
        by_point[point] = by_point.get(point, 0.0) + end - begin
    whole = sum(by_point.values()) or 1.0
    return {point: time / whole for point, time in sorted(by_point.items(), key=lambda item: -item[1])}


def summary(path, copied_bytes):
    """How busy the device was between its first op and its last, what its ops took, and how its copies went."""
    launches, copies = read(path)
    busy, copying = merged(launches), merged(copies)
    whole = (busy[-1][1] - busy[0][0]) or 1.0
    return {
        "device_s": whole / 1e6,
        "launches_busy": length(busy) / whole,
        "ops": shares(launches),
        "copies": len(copies),
        "copies_s": length(copying) / 1e6,
        "copied_bytes_per_s": copied_bytes / (length(copying) / 1e6) if copies else None,
        "copies_beside_launches": common(copying, busy) / (length(copying) or 1.0) if copies else None,
    }
