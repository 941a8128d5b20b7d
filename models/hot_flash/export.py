#!/usr/bin/env python3
"""Trains and exports the hot-flash model of this directory.

    python3 -m venv V && V/bin/pip install numpy onnx onnxruntime==1.20.1
    V/bin/python models/hot_flash/export.py          (from the repository's root; writes into models/hot_flash)
    V/bin/python models/hot_flash/export.py --check  (the same, and compares instead of writing)

What it is: a network of 12 features, 8 tanh units and one logistic output, some hundred numbers in all. It is asked
about a window of 60 s, every 5 s. The features are those of crates/inference (src/features.rs defines each in words);
this script computes them in numpy from the same samples, and `golden.json` holds windows with the features and the
outputs found here, so that a test can show that both sides agree.

What it was trained on: windows made by this script, and nothing else but the two recordings named below, as
negatives. Positives follow the published course of a hot flash: sternal skin conductance rises by 2 to 8 µS within
30 s to two minutes, heart rate by 5 to 15 bpm, skin temperature by some tenths of a degree, with their delays
(Freedman RR, Psychophysiology 1989; Kronenberg F, Ann NY Acad Sci 1990). Negatives: rest, skin conductance responses,
slow warmth, excitement (conductance and heart rate without warmth), exercise and its recovery, walking about, a
device that was just put on, an electrode that slips, and the two recordings: a real resting EDA with its rises, and
real heart-beat intervals.

What it is not: validated. No woman's hot flash was in it. It shows that a model can be made, packaged, verified,
loaded and run on the wearable's windows, and it keeps silent on a palm's EDA rise where the bare rule does not.
It predicts nothing ahead of the rise. Do not read its probability as one.

Deterministic: fixed seeds, float64 training in a fixed order, weights rounded to 1e-6.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
RECORDINGS = HERE.parent.parent / "tests" / "recordings" / "inference"
NAME, VERSION = "hot_flash", "1.0.0"
LENGTH_S, STEP_S = 60, 5
HIDDEN, CLIP, THRESHOLD = 8, 6.0, 0.9
# name, needed (without it the model is not asked)
FEATURES = [
    ("eda_level", True),
    ("eda_slope", True),
    ("eda_rise", True),
    ("scr_count", True),
    ("heart_rate_mean", True),
    ("heart_rate_change", True),
    ("rmssd", False),
    ("sdnn", False),
    ("pnn50", False),
    ("temperature_level", True),
    ("temperature_slope", True),
    ("motion", False),
]

# ---------------------------------------------------------------- features, as crates/inference defines them


def slope(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def seconds(samples):
    """Means over whole seconds; nan where a second has no sample."""
    sums, counts = np.zeros(LENGTH_S), np.zeros(LENGTH_S)
    for ticks, value in samples:
        sums[ticks // 1000] += value
        counts[ticks // 1000] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


# 0.05 µS, less what single precision loses: a rise of exactly 0.05 counts on both sides.
RESPONSE_US = 0.04999
# Smaller falls are rounding: a mean of four samples has steps of 0.00025 µS.
LEVEL_US = 0.0001


def responses(values):
    count, low, last = 0, np.inf, np.inf
    for value in values:
        if value < last - LEVEL_US:
            count += int(np.isfinite(last) and last - low >= RESPONSE_US)
            low = value
        else:
            low = min(low, value)
        last = value
    return count + int(np.isfinite(last) and last - low >= RESPONSE_US)


def normal_intervals(values):
    normal, differences, before, before_normal = [], [], None, False
    for value in values:
        if not 300 <= value <= 2000:
            before, before_normal = None, False
            continue
        close = before is None or abs(value - before) <= 0.2 * before
        if close:
            if before is not None and before_normal:
                differences.append(value - before)
            normal.append(value)
        before, before_normal = value, close
    return np.array(normal), np.array(differences)


def features_of(window):
    """A window is {signal: [(ticks from the window's start, value)]}; absent features are None."""
    out = dict.fromkeys(name for name, _ in FEATURES)
    eda = seconds(window["eda"])
    there = ~np.isnan(eda)
    if there.sum() * 5 >= len(eda) * 4:
        at = np.arange(len(eda))
        out["eda_level"] = eda[there].mean()
        recent = there & (at >= LENGTH_S - 30)
        out["eda_slope"] = slope(at[recent], eda[recent])
        late = eda[recent]
        out["eda_rise"] = max(late[i] - late[: i + 1].min() for i in range(len(late)))
        out["scr_count"] = responses(eda[there])
    rate = window["heart_rate"]
    if len(rate) >= LENGTH_S * 0.5:
        out["heart_rate_mean"] = np.mean([v for _, v in rate])
        first = [v for t, v in rate if t < 15000]
        last = [v for t, v in rate if t >= (LENGTH_S - 15) * 1000]
        if first and last:
            out["heart_rate_change"] = np.mean(last) - np.mean(first)
    normal, differences = normal_intervals([v for _, v in window["rr_interval"]])
    if len(differences) >= 20:
        out["rmssd"] = np.sqrt((differences**2).mean())
        out["pnn50"] = (np.abs(differences) > 50).mean()
        out["sdnn"] = normal.std(ddof=1)
    temperature = window["skin_temperature"]
    if len(temperature) >= LENGTH_S * 0.5:
        out["temperature_level"] = np.mean([v for _, v in temperature])
        out["temperature_slope"] = 60 * slope([t / 1000 for t, _ in temperature], [v for _, v in temperature])
    if window["activity"]:
        out["motion"] = 2 * np.mean([v for _, v in window["activity"]])
    return {k: None if v is None else float(v) for k, v in out.items()}


# ---------------------------------------------------------------- windows


def quantised(values, step):
    return np.round(np.asarray(values) / step) * step


def rise(t, onset, duration):
    """0 before the onset, then smoothly to 1 over the duration."""
    x = np.clip((t - onset) / duration, 0, 1)
    return x * x * (3 - 2 * x)


def responses_curve(rng, t, rate, size):
    out = np.zeros_like(t)
    for onset in np.cumsum(rng.exponential(1 / rate, 40)) - 30:
        x = np.maximum(t - onset, 0)
        out += rng.lognormal(np.log(size), 0.5) * 2.0 * (np.exp(-x / 8.0) - np.exp(-x / 1.5)) * (x > 0)
    return out


def window_of(rng, kind, real):
    t = np.arange(0, LENGTH_S, 0.25)
    s = np.arange(0, LENGTH_S, 1.0)
    eda = rng.uniform(0.8, 9.0) + rng.normal(0, 0.004) * (t - 30) + responses_curve(rng, t, rng.uniform(0.01, 0.12), 0.12)
    heart = rng.uniform(52, 92) + np.cumsum(rng.normal(0, 0.25, len(s))) * 0.5
    warmth = rng.uniform(31.0, 36.2) + rng.normal(0, 0.03) * s / 60
    counts = rng.gamma(0.6, 40)
    variability = np.exp(rng.normal(np.log(28), 0.5))
    if kind == "flash":
        # Where the window's end stands in the course: 18 s to 75 s after the onset.
        onset = LENGTH_S - rng.uniform(18, 75)
        duration = rng.uniform(30, 70)
        # At least 2 µS in the steepest 30 s.
        steepest = np.max(rise(np.arange(0, 200, 1.0) + 30, 60, duration) - rise(np.arange(0, 200, 1.0), 60, duration))
        eda = eda + rng.uniform(2.2, 6.5) / steepest * rise(t, onset, duration)
        heart = heart + rng.uniform(4, 15) * rise(s, onset - rng.uniform(0, 10), rng.uniform(25, 60))
        warmth = warmth + rng.uniform(0.15, 1.0) * rise(s, onset + rng.uniform(0, 12), rng.uniform(50, 120))
        variability *= 0.8
    elif kind == "arousal":
        onset = rng.uniform(-20, 50)
        eda = eda + rng.uniform(0.3, 2.6) * rise(t, onset, rng.uniform(4, 15)) * np.exp(-np.maximum(t - onset - 10, 0) / 40)
        heart = heart + rng.uniform(2, 18) * rise(s, onset, rng.uniform(5, 15))
        warmth = warmth - rng.uniform(0, 0.2) * rise(s, onset, 40)
    elif kind == "warm":
        eda = eda + rng.uniform(0.2, 1.6) * t / 60
        warmth = warmth + rng.uniform(0.05, 0.5) * s / 60
    elif kind == "exercise":
        counts = rng.uniform(900, 4500)
        eda = eda + rng.uniform(0.2, 5.0) * t / 60
        heart = heart + rng.uniform(10, 60) + rng.uniform(0, 15) * s / 60
        warmth = warmth + rng.uniform(-0.3, 0.4) * s / 60
    elif kind == "recovery":
        # After exercise: the heart slows by up to 60 bpm in a minute or two, the skin warms again.
        counts = rng.uniform(80, 1900)
        heart = heart + rng.uniform(10, 90) * np.exp(-s / rng.uniform(20, 90))
        eda = eda - rng.uniform(0, 0.8) * t / 60
        warmth = warmth + rng.uniform(0.1, 1.4) * s / 60
    elif kind == "stir":
        # Getting up, walking about: heart and conductance a little up, with motion.
        counts = rng.uniform(60, 1200)
        onset = rng.uniform(-10, 45)
        heart = heart + rng.uniform(3, 28) * rise(s, onset, rng.uniform(10, 45))
        eda = eda + rng.uniform(0.1, 1.6) * rise(t, onset, rng.uniform(15, 60))
        warmth = warmth + rng.uniform(-0.1, 0.2) * s / 60
    elif kind == "donned":
        # Just put on: the sensor warms towards the skin.
        counts = rng.uniform(20, 1200)
        warmth = warmth - rng.uniform(1, 9) * np.exp(-(s + rng.uniform(0, 60)) / rng.uniform(20, 120))
        heart = heart + rng.uniform(0, 40) + rng.uniform(-8, 8) * s / 60
        eda = eda + rng.uniform(-0.2, 0.6) * t / 60
    elif kind == "slip":
        eda = eda + rng.uniform(-3, 5) * (t > rng.uniform(0, 55))
        counts = rng.gamma(1.0, 150)
    elif kind == "palm":
        eda = real["eda"](rng)
    beat, beats = 0.0, []
    if kind == "palm" or rng.random() < 0.15:
        start = rng.integers(0, len(real["rr"]) - 130)
        intervals = real["rr"][start : start + 130]
        heart = 60000 / np.interp(s, np.cumsum(intervals) / 1000, intervals)
    else:
        phase = rng.uniform(0, 6.28)
        intervals = [
            60000 / heart[min(59, i // 2)] + variability * (np.sin(phase + 1.6 * i * 0.8) + rng.normal(0, 0.5))
            for i in range(200)
        ]
    for interval in quantised(intervals, 1.0):
        beat += interval
        if beat >= LENGTH_S * 1000:
            break
        beats.append((int(beat), float(interval)))
    eda = np.maximum(eda + rng.normal(0, 0.01, len(t)), 0.06)
    eda = [(int(x * 1000), float(v)) for x, v in zip(t, quantised(eda, 0.001))]
    heart = [(int(x * 1000), float(v)) for x, v in zip(s, quantised(heart + rng.normal(0, 0.4, len(s)), 0.1))]
    warmth = [(int(x * 1000), float(v)) for x, v in zip(s, quantised(warmth + rng.normal(0, 0.01, len(s)), 0.01))]
    # Dropouts: now and then some samples are missing, or a signal's second half.
    if rng.random() < 0.1:
        eda = [x for x in eda if rng.random() > 0.1]
        heart = [x for x in heart if rng.random() > 0.2]
    if rng.random() < 0.1:
        beats = beats[: len(beats) // 4]
    activity = [(29000, float(round(counts / 2))), (59000, float(round(counts / 2 * rng.uniform(0.7, 1.3))))]
    return {"eda": eda, "heart_rate": heart, "rr_interval": beats, "skin_temperature": warmth, "activity": activity}


def recordings():
    def column(name):
        return np.array([float(x) for x in (RECORDINGS / name).read_text().splitlines() if x.strip() and not x.startswith("#")])

    eda, rr = column("resting_eda_4hz_us.txt"), column("resting_rr_ms.txt")

    def some_eda(rng):
        # 150 s of a palm, at the level of a palm or brought down to that of a chest.
        at = rng.integers(0, len(eda) - 240)
        part = eda[at : at + 240]
        return part if rng.random() < 0.5 else part - part.min() + rng.uniform(1, 8)

    return {"eda": some_eda, "rr": rr}


KINDS = [
    ("flash", 0.3),
    ("rest", 0.16),
    ("arousal", 0.11),
    ("warm", 0.06),
    ("exercise", 0.08),
    ("recovery", 0.08),
    ("stir", 0.07),
    ("donned", 0.04),
    ("slip", 0.04),
    ("palm", 0.06),
]


def dataset(seed, count, real):
    rng = np.random.default_rng(seed)
    windows, labels = [], []
    for _ in range(count):
        kind = rng.choice([k for k, _ in KINDS], p=[p for _, p in KINDS])
        windows.append(window_of(rng, kind, real))
        labels.append(kind)
    return windows, labels


# ---------------------------------------------------------------- training


def matrix(windows):
    rows = [features_of(w) for w in windows]
    return np.array([[np.nan if r[n] is None else r[n] for n, _ in FEATURES] for r in rows])


def normalised(x, mean, scale):
    return np.clip(np.nan_to_num((x - mean) / scale, nan=0.0), -CLIP, CLIP)


def forward(x, w1, b1, w2, b2):
    hidden = np.tanh(x @ w1 + b1)
    return hidden, 1 / (1 + np.exp(-(hidden @ w2 + b2)))


def train(x, y):
    rng = np.random.default_rng(7)
    weights = [
        rng.normal(0, 1 / np.sqrt(x.shape[1]), (x.shape[1], HIDDEN)),
        np.zeros(HIDDEN),
        rng.normal(0, 1 / np.sqrt(HIDDEN), (HIDDEN, 1)),
        np.zeros(1),
    ]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, 4001):
        hidden, p = forward(x, *weights)
        error = (p - y) / len(x)
        back = (error @ weights[2].T) * (1 - hidden**2)
        gradients = [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
        for i, gradient in enumerate(gradients):
            gradient = gradient + (1e-4 * weights[i] if weights[i].ndim == 2 else 0)
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            rate = 0.02 / (1 + step / 1000)
            weights[i] -= rate * (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
    return [np.round(w, 6).astype(np.float32) for w in weights]


def onnx_model(weights):
    names = ["w1", "b1", "w2", "b2"]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "w1", "b1"], ["h"]),
            helper.make_node("Tanh", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["probability"]),
        ],
        NAME,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, len(FEATURES)])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(w, n) for w, n in zip(weights, names)],
    )
    model = helper.make_model(graph, producer_name="kinara", opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def manifest(digest, mean, scale, report):
    lines = [
        "# Written by export.py; change that.",
        "format = 1",
        f'name = "{NAME}"',
        f'version = "{VERSION}"',
        'event = "hot_flash"',
        'description = """',
        "Hot flash in the last minute, from sternal EDA, heart rate and skin temperature.",
        "Trained on synthetic windows after the published course; real resting recordings as negatives. Not validated",
        "on people: a demonstration of the way a model takes, not a medical device.",
        f"On 4,000 other synthetic windows, threshold {THRESHOLD}: {report}",
        '"""',
        "",
        "[file]",
        'path = "model.onnx"',
        f'sha256 = "{digest}"',
        "",
        "[window]",
        f"length_ms = {LENGTH_S * 1000}",
        f"step_ms = {STEP_S * 1000}",
        "",
        "[input]",
        'tensor = "features"',
        f"clip = {CLIP}",
    ]
    for (name, required), m, s in zip(FEATURES, mean, scale):
        lines += ["", "[[input.features]]", f'name = "{name}"', f"mean = {m:.6f}", f"scale = {s:.6f}"]
        lines += [f"required = {'true' if required else 'false'}"]
    lines += ["", "[output]", 'tensor = "probability"', f"threshold = {THRESHOLD}", ""]
    return "\n".join(lines)


def main():
    real = recordings()
    windows, labels = dataset(1, 8000, real)
    x = matrix(windows)
    y = np.array([[float(k == "flash")] for k in labels])
    mean, scale = np.round(np.nanmean(x, 0), 6), np.round(np.nanstd(x, 0), 6)
    weights = train(normalised(x, mean, scale), y)

    other, kinds = dataset(2, 4000, real)
    _, p = forward(normalised(matrix(other), mean, scale), *[w.astype(float) for w in weights])
    fired, kinds = p[:, 0] >= THRESHOLD, np.array(kinds)
    shares = [f"{k} {fired[kinds == k].mean():.3f}" for k, _ in KINDS]
    report = "share of windows above it: " + ", ".join(shares) + "."
    print(report, file=sys.stderr)

    model = onnx_model(weights)
    text = manifest(hashlib.sha256(model).hexdigest(), mean, scale, report)

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    golden = []
    rng = np.random.default_rng(3)
    for kind in ["flash", "flash"] + [k for k, _ in KINDS]:
        window = window_of(rng, kind, real)
        found = features_of(window)
        row = np.array([[np.nan if found[n] is None else found[n] for n, _ in FEATURES]])
        given = normalised(row, mean, scale).astype(np.float32)
        output = float(session.run(None, {"features": given})[0][0, 0])
        golden.append(
            {
                "kind": str(kind),
                "window": {k: [[t, round(v, 6)] for t, v in samples] for k, samples in window.items()},
                "features": found,
                "input": [float(v) for v in given[0]],
                "output": output,
            }
        )
    files = {
        "model.onnx": model,
        "manifest.toml": text.encode(),
        "golden.json": ("[\n" + ",\n".join(json.dumps(g, separators=(",", ":")) for g in golden) + "\n]\n").encode(),
    }
    for name, content in files.items():
        path = HERE / name
        if "--check" in sys.argv:
            same = path.exists() and path.read_bytes() == content
            print(f"{name}: {'as checked in' if same else 'DIFFERS'}")
        else:
            path.write_bytes(content)
            print(f"{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
