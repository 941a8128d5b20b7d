"""What NeuroKit2 0.3.0 makes of the recording and of one with planted artefacts: writes golden.json beside itself.

usage: golden.py RRI.TXT        (needs neurokit2; nobody needs to run it, its result is checked in)"""

import json
import pathlib
import sys

import neurokit2 as nk
import numpy as np

rri = np.array([float(line.split()[0]) for line in open(sys.argv[1]) if line.strip() and not line.startswith("#")])
time = nk.hrv_time({"RRI": rri, "RRI_Time": np.cumsum(rri) / 1000}, sampling_rate=1000)
frequency = nk.hrv_frequency({"RRI": rri, "RRI_Time": np.cumsum(rri) / 1000}, sampling_rate=1000, normalize=False)

peaks = np.concatenate([[1000], 1000 + np.cumsum(rri)]).astype(int)
planted = list(peaks)
# From the end, so that places hold: a missed beat, one seen twice, one out of turn.
for place in (400, 300, 200):
    del planted[place]
for place in (350, 150):
    planted.insert(place, (planted[place - 1] + planted[place]) // 2)
for place in (100, 250):
    planted[place] -= 180
info, corrected = nk.signal_fixpeaks(np.array(planted), sampling_rate=1000, method="Kubios", iterative=True)
first, _ = nk.signal_fixpeaks(np.array(planted), sampling_rate=1000, method="Kubios", iterative=False)
golden = {
    "neurokit2": nk.__version__,
    "mean_nn": float(time["HRV_MeanNN"].iloc[0]),
    "sdnn": float(time["HRV_SDNN"].iloc[0]),
    "rmssd": float(time["HRV_RMSSD"].iloc[0]),
    "pnn50": float(time["HRV_pNN50"].iloc[0]),
    "lf": float(frequency["HRV_LF"].iloc[0]),
    "hf": float(frequency["HRV_HF"].iloc[0]),
    "lf_hf": float(frequency["HRV_LFHF"].iloc[0]),
    "planted": [int(peak) for peak in planted],
    "found": {kind: [int(place) for place in first[kind]] for kind in ("ectopic", "missed", "extra", "longshort")},
    "corrected": [int(peak) for peak in corrected],
}
pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(golden) + "\n")
