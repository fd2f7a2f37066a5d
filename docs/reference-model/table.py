"""Table of what the reference model is trained on: the split of one set, and copies of its training images in another.

    python docs/reference-model/table.py runs/split/latest/splits.csv chest_xray_224 chest_xray_640 > reference.csv

A radiograph's copy in the second set keeps its aspect ratio on disk and goes through our own resampling, which
is a tenth sharper than that of the first set: the network should know both. Copies of radiographs of validation are
written to the file that --validation names, to judge by.
"""

import argparse
import csv
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("splits", type=Path, help="splits.csv of a run on the first set")
parser.add_argument("first", type=Path)
parser.add_argument("second", type=Path)
parser.add_argument("--validation", type=Path, help="table of the copies of validation's radiographs")
given = parser.parse_args()

COLUMNS = ("path", "label", "patient", "split")
copies = {path.name: path.resolve() for path in sorted(given.second.rglob("*.jpeg"))}
with given.splits.open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"] in ("train", "val", "validation")]
table = csv.writer(sys.stdout)
table.writerow(COLUMNS)
held_out = []
for row in rows:
    path = (given.first / row["file"]).resolve()
    table.writerow([path, row["label"], row["patient"], row["split"]])
    if path.name in copies:
        copy = [copies[path.name], row["label"], row["patient"], row["split"]]
        if row["split"] == "train":
            table.writerow(copy)
        else:
            held_out.append(copy)
if given.validation:
    with given.validation.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *held_out])
