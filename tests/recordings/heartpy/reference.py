"""Makes ppg.txt and reference.txt out of HeartPy's example data3.csv (version 1.2.6 of heartpy, numpy).

usage: reference.py data3.csv      writes beside itself.

ppg.txt: the recording's counts, one a line; the first line says how many there are a second. reference.txt: a line for
each 10 s window: its number, HeartPy's beats a minute, and how many beats HeartPy rejected in it; `-` where it refused
the window as a whole."""

import csv
import datetime
import pathlib
import sys

import heartpy
import numpy

HERE = pathlib.Path(__file__).parent
WINDOW_S = 10


def moment(text):
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in text else "%Y-%m-%d %H:%M:%S"
    return datetime.datetime.strptime(text, form)


with open(sys.argv[1]) as file:
    rows = list(csv.reader(file))[1:]
counts = numpy.array([float(row[1]) for row in rows])
seconds = (moment(rows[-1][0]) - moment(rows[0][0])).total_seconds()
rate = (len(counts) - 1) / seconds
with open(HERE / "ppg.txt", "w") as file:
    file.write(f"# samples a second: {rate:.5f}\n")
    file.writelines(f"{int(count)}\n" for count in counts)
with open(HERE / "reference.txt", "w") as file:
    file.write("# window of 10 s, beats a minute, rejected beats\n")
    for window in range(int(len(counts) / rate / WINDOW_S)):
        first = round(window * WINDOW_S * rate)
        part = counts[first : first + int(WINDOW_S * rate)]
        try:
            working, measures = heartpy.process(part, rate)
            file.write(f"{window} {measures['bpm']:.2f} {len(working['removed_beats'])}\n")
        except heartpy.exceptions.BadSignalWarning:
            file.write(f"{window} - -\n")
