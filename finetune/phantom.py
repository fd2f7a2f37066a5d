"""Draw procedural chest radiographs ("phantoms"), so that the pipeline can be tried before any real data is at hand.

    python -m finetune.phantom --out runs/phantoms/chest_xray      # 720 images, under half a minute on one core

writes `{train,val,test}/{NORMAL,PNEUMONIA}/*.png`, 8-bit grey, with the layout, the imbalance and the patient-bearing
names of the Kaggle set "Chest X-Ray Images (Pneumonia)". A phantom is a crude projection of a child's chest: soft
tissue, bone and air add up to an attenuation, which a film curve turns into grey levels. PNEUMONIA differs from NORMAL
by opacities inside the lung fields and by nothing else: size, pose, exposure, collimation, marker and noise come from
the same distributions. Metrics on phantoms say that the pipeline works; they say nothing about patients.

Lengths are in half-widths of the rib cage: x grows towards the patient's left (image right), y downwards from the
apices of the lungs. `level` is y as a share of the lungs' height: 0 at the apices, 1 at the costophrenic angles.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finetune.data.records import SPLIT_NAMES, TEST, TRAIN, VAL
from xray_client.console import track
from xray_client.files import new_folder
from xray_client.parsing import parse_json

VERSION = 1  # raise it whenever the same seed would give other bytes or other names
MANIFEST = "phantoms.json"  # written last: a folder that holds it is a complete set of phantoms
SMALLEST_SET = 40
VALIDATION_IMAGES = 16  # 8 + 8, as in the Kaggle set
IMAGE_OF_PATIENT = (1, 1, 1, 2, 1, 1, 1, 2, 3)  # over and over within a split and class: patients of 1, 1, 2, 1, 1, 3

Field = NDArray[np.float32]  # (h, w), one value a pixel


@dataclass(frozen=True)
class PhantomSet:
    """Set of phantoms on disk.

    Attributes:
        path: Folder of the set.
        counts: Number of images, e.g. {"train": {"NORMAL": 151, "PNEUMONIA": 453}, "val": ..., "test": ...}.
        already_there: The same set existed, so nothing was drawn.
    """

    path: Path
    counts: dict[str, dict[str, int]]
    already_there: bool


@dataclass(frozen=True)
class PlannedImage:
    """Image to draw; `path` is relative to the folder of the set."""

    index: int
    pneumonia: bool
    patient: int
    path: Path


def _ramp(t: Field) -> Field:
    """Compute a smooth step, exactly 0 for t <= 0 and 1 for t >= 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _dome(squared: Field) -> Field:
    """Compute the path length through a round body at a squared relative distance from its axis: 1 on it, 0 outside."""
    return np.sqrt(np.clip(1 - squared, 0, None))


def _resize(field: Field, shape: tuple[int, int], how: Image.Resampling) -> Field:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(shape[::-1], how))


def _cloud(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Field:
    """Draw smooth noise of mean 0 and about unit variance, with blobs `cell` pixels wide."""
    coarse = rng.standard_normal((int(shape[0] / cell) + 3, int(shape[1] / cell) + 3), dtype=np.float32)
    return _resize(coarse, shape, Image.Resampling.BICUBIC)


def _limb(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], radius: float) -> Field:
    """Compute the path length (0..1) through a limb that tapers towards its end."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    t = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx**2 + dy**2), 0, 1)
    return _dome(((x - start[0] - t * dx) ** 2 + (y - start[1] - t * dy) ** 2) / (radius * (1 - 0.3 * t)) ** 2)


class _Chest:
    """Chest of one patient on the pixel grid of one radiograph; all fields are float32 (h, w).

    Anatomy is drawn from the generator `patient`, the variation between two radiographs of a patient from `image`.
    """

    def __init__(self, x: Field, y: Field, height: float, patient: np.random.Generator) -> None:
        self.x, self.y, self.height, self.side, self.level = x, y, height, np.abs(x), y / height
        side, level = self.side, self.level
        self.left = (x > 0).astype(np.float32)
        self.cage = 0.38 + 0.62 * np.sqrt(1 - (1 - np.clip(level, 0, 1)) ** patient.uniform(2.0, 2.8))  # half-width
        # The right dome of the diaphragm (image left) stands higher, over the liver.
        peak = patient.uniform(0.78, 0.86) + patient.uniform(0.02, 0.06) * self.left
        self.diaphragm = peak + (1 - peak) * ((side - 0.45) / 0.55) ** 2
        # The heart leans to the patient's left; the aortic knob sits above it.
        tilt, across, along = patient.uniform(0.4, 0.8), patient.uniform(0.32, 0.42), patient.uniform(0.42, 0.54)
        heart_x, heart_y = x - patient.uniform(0.08, 0.16), y - 0.68 * height
        heart = ((heart_x * math.cos(tilt) - heart_y * math.sin(tilt)) / across) ** 2
        heart += ((heart_x * math.sin(tilt) + heart_y * math.cos(tilt)) / along) ** 2
        knob = ((x - 0.14) / 0.12) ** 2 + ((y - 0.3 * height) / 0.18) ** 2
        self.heart = np.maximum(_dome(heart), 0.3 * _dome(knob))
        narrow = patient.uniform(0.15, 0.22)
        mediastinum = narrow + (0.38 - narrow) * np.exp(-np.clip(level, -0.1, 1) / 0.07)
        self.lungs = _ramp((self.cage - side) / 0.06) * _ramp((side - mediastinum) / 0.07)
        self.lungs *= _ramp((self.diaphragm - level) / 0.05) * _ramp((np.minimum(heart, knob) - 0.95) / 0.3)
        # The attenuation that air takes away; the lungs are thinner at their edges.
        self.air = 0.62 * self.lungs * (0.6 + 0.4 * _dome((side / (self.cage + 0.05)) ** 2))

    def soft_tissue(self, patient: np.random.Generator, image: np.random.Generator) -> Field:
        """Compute the attenuation of trunk, neck, arms, mediastinum, heart and abdomen."""
        x, y, level, side = self.x, self.y, self.level, self.side
        trunk = _dome((x / patient.uniform(1.12, 1.25)) ** 4 + (np.clip(0.55 - y, 0, None) / 0.72) ** 4)
        neck = _limb(x, y, (0, 0.2), (0, -0.6), 0.36) + _limb(x, y, (-0.1, -1.0), (0.1, -1.0), 0.5)
        raised = image.random() < 0.6  # children are often held by their arms
        elbow = (image.uniform(1.6, 2.2), image.uniform(-1.6, -0.6) if raised else image.uniform(2.0, 2.6))
        body: Field = np.maximum(np.maximum(0.95 * trunk, 0.8 * neck), 0.65 * _limb(side, y, (0.9, 0.2), elbow, 0.34))
        body += 0.2 * _limb(side, y, (1.02, 0.05), elbow, 0.1)  # humerus
        body += 0.1 * _limb(side, y, (1.0, 0.05), (0.85, 0.75), 0.2)  # scapula
        body += 0.3 * np.exp(-((x / 0.24) ** 2)) * trunk + 0.35 * self.heart
        body += 0.4 * _ramp((level - self.diaphragm) / 0.06) * _ramp((self.cage + 0.08 - side) / 0.15)
        if patient.random() < 0.4:  # gas in the stomach, under the left dome
            bubble = ((x - 0.45) / 0.24) ** 2 + ((y - 1.02 * self.height) / 0.12) ** 2
            body -= image.uniform(0.15, 0.4) * _dome(bubble)
        trachea = _ramp((0.06 - side) / 0.04) * _ramp((0.32 - level) / 0.05) * _ramp((level + 0.4) / 0.2)
        return body - 0.13 * trachea

    def bones(self, patient: np.random.Generator) -> Field:
        """Compute the attenuation of ribs, spine and clavicles."""
        level, side, edge = self.level, self.side, self.cage + 0.05
        turn = _dome((side / edge) ** 2)  # 1 at the spine, 0 where a rib turns forward at the chest wall
        spacing, drop = 1 / patient.uniform(8.5, 10.5), patient.uniform(0.14, 0.24)
        start, forward = patient.random(), patient.uniform(1.6, 2.2)

        def ribs(course: Field, half_width: float) -> Field:
            across: Field = (level - course - 0.08 * side) / spacing + start
            across = np.abs(across - np.round(across)) / half_width
            return _ramp((1 - across) / 0.25) * (0.6 + 0.5 * across**2)  # the cortex shows as brighter rims

        posterior = ribs(drop * (1 - turn), 0.23) * _ramp((side - 0.08) / 0.05)
        anterior = ribs(drop * (1 + forward * turn), 0.25) * _ramp((side - 0.42) / 0.3)  # cartilage casts no shadow
        bones: Field = 0.22 * posterior / (0.5 + 0.5 * turn) + 0.13 * anterior
        bones *= _ramp((edge - side) / 0.03) * _ramp((level + 0.02) / 0.06) * _ramp((1.35 - level) / 0.3)

        off_spine = np.abs(self.x - patient.uniform(-0.03, 0.03) * np.sin(math.pi * level))
        vertebra = np.cos(2 * math.pi * (level / spacing + start))
        bones += (0.2 + 0.06 * vertebra) * _ramp((0.115 + 0.01 * vertebra - off_spine) / 0.03)
        clavicle = 0.14 * self.height - patient.uniform(0.1, 0.35) * (side - 0.1) + 0.04 * np.sin(5 * side)
        shaft = _ramp((0.045 - np.abs(self.y - clavicle)) / 0.02) * _ramp((side - 0.1) / 0.04)
        return bones + 0.22 * shaft * _ramp((0.95 - side) / 0.1)

    def branches(self, rng: np.random.Generator) -> Field:
        """Draw lines (0..1) that fan out of both hila: vessels, or bronchi that still hold air."""
        dx, dy = self.side - 0.2, self.y - 0.45 * self.height
        radius = np.sqrt(dx**2 + dy**2)
        table = np.stack([_cloud(rng, (64, 512), 6), _cloud(rng, (64, 512), 6)])  # side, radius, angle
        angle = ((np.arctan2(dy, dx) / (2 * math.pi) + 0.5) * 511).astype(np.intp)
        fan = table[self.left.astype(np.intp), np.minimum(radius * 48, 63).astype(np.intp), angle]
        fading: Field = np.exp(-1.5 * radius)
        return fading * _ramp((fan + 0.2) / 2)

    def opacity(self, viral: bool, patient: np.random.Generator, image: np.random.Generator) -> Field:
        """Draw the share (0..1) of the lungs' air that pneumonia has replaced; 0 outside the lung fields."""
        shape = (self.x.shape[0], self.x.shape[1])
        unit = shape[1] / float(np.ptp(self.x))  # pixels per half-width
        subtle = image.random() < 0.15
        severity = image.uniform(0.3, 0.45) if subtle else image.uniform(0.55, 0.95)
        diffuse, focal = viral and patient.random() < 0.65, not viral and patient.random() < 0.75
        if diffuse:  # haze with a net of thickened septa, mostly in both lungs
            where = patient.random()
            lungs = self.left if where < 0.15 else 1 - self.left if where < 0.3 else 1
            haze = _ramp(0.75 + 0.3 * _cloud(image, shape, 0.35 * unit) - 0.35 * np.abs(self.level - 0.5))
            net = np.minimum(*(np.abs(_cloud(image, shape, cell * unit)) for cell in (0.07, 0.05)))
            return self.lungs * lungs * severity * haze * (0.6 + 0.4 * _ramp(1 - net / 0.6))
        filled = np.zeros(shape, np.float32)
        ragged = 0.28 * _cloud(image, shape, 0.16 * unit) + 0.1 * _cloud(image, shape, 0.05 * unit)
        for _ in range(1 if focal else int(patient.integers(3, 7))):
            sign, level = (1 if patient.random() < 0.5 else -1), patient.uniform(0.22, 0.78)
            # The heart covers the medial part of the left lower zone.
            x = sign * (patient.uniform(0.62, 0.85) if sign > 0 and level > 0.4 else patient.uniform(0.35, 0.75))
            radius = (patient.uniform(0.3, 0.5) if focal else patient.uniform(0.13, 0.22)) * image.uniform(0.85, 1.15)
            squeeze = patient.uniform(0.75, 1.3)
            squared = ((self.x - x) * squeeze) ** 2 + ((self.y - level * self.height) / squeeze) ** 2
            patch = _ramp((1.25 - np.sqrt(squared) / radius + ragged) / 0.8)
            filled = np.maximum(filled, patch * (self.left if sign > 0 else 1 - self.left))
        texture = 0.9 + 0.08 * _cloud(image, shape, 0.04 * unit) - 0.5 * self.branches(image)  # air bronchograms
        return self.lungs * np.clip(severity * filled * texture, 0, 1)


def _expose(attenuation: Field, image: np.random.Generator) -> NDArray[np.uint8]:
    """Turn attenuation into a radiograph, uint8 (h, w): quantum noise, film curve, collimation, side marker."""
    height, width = attenuation.shape
    noise = image.uniform(0.008, 0.03)
    grain = image.standard_normal(attenuation.shape, dtype=np.float32) + 0.7 * _cloud(image, (height, width), 2)
    exposure, contrast = image.uniform(0.7, 1.25), image.uniform(1.2, 2.2)
    grey = 1 - np.exp(-((np.clip(attenuation + noise * grain, 0, None) * exposure) ** contrast))
    grey = image.uniform(2, 14) + image.uniform(205, 240) * grey
    if image.random() < 0.45:  # lead shutters leave black borders
        left, right, bottom = image.uniform(0, 0.08), image.uniform(0.92, 1), image.uniform(0.86, 1)
        black = image.uniform(0, 6)
        grey[:, : int(left * width)] = grey[:, int(right * width) :] = grey[int(bottom * height) :] = black
    radiograph = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if image.random() < 0.5:
        letter, x = ("R", image.uniform(0.02, 0.08)) if image.random() < 0.75 else ("L", image.uniform(0.87, 0.93))
        font = ImageFont.load_default(size=height * image.uniform(0.05, 0.08))
        place = (x * width, image.uniform(0.05, 0.4) * height)
        ImageDraw.Draw(radiograph).text(place, letter, fill=245, font=font)
    return np.array(radiograph)


def is_viral(patient: int) -> bool:
    """Return True for viral (mostly diffuse), False for bacterial (mostly focal) pneumonia (Kermany et al. 2018)."""
    return patient % 3 == 0


def draw_phantom_with_opacity(
    seed: int, index: int, *, pneumonia: bool, patient: int
) -> tuple[NDArray[np.uint8], Field]:
    """Draw one radiograph, and the opacity that pneumonia adds to it.

    Anatomy and seat of the disease follow from (seed, patient); pose, exposure and extent from (seed, index). The
    healthy twin (`pneumonia=False`) has the same pixels wherever the opacity is 0.

    Returns:
        radiograph: uint8 (h, w), bright = dense; the long side has 320 to 576 pixels.
        opacity: float32 (h, w), the share 0..1 of the lungs' air replaced; all 0 for a normal.
    """
    streams = enumerate((patient, patient, index, index))
    anatomy, disease, image, extent = (np.random.default_rng([seed, stream, number]) for stream, number in streams)
    long_side = int(image.integers(320, 577))
    aspect = image.uniform(0.95, 1.1) if image.random() < 0.12 else image.uniform(1.1, 1.5)
    shape = (round(long_side / max(aspect, 1)), round(long_side * min(aspect, 1)))
    # Drawn on a coarser grid, for speed; its pitch is also the unsharpness of the radiograph.
    pitch = max(1.0, long_side / image.uniform(270, 340))
    grid = (round(shape[0] / pitch), round(shape[1] / pitch))

    height = anatomy.uniform(1.15, 1.6)
    unit = min(shape[1] * image.uniform(0.33, 0.42), shape[0] * image.uniform(0.64, 0.82) / height)
    centre = (shape[0] * image.uniform(0.1, 0.2) + unit * height / 2, shape[1] * image.uniform(0.45, 0.55))
    angle = math.radians(image.uniform(-6, 6))
    down = ((np.arange(grid[0], dtype=np.float32)[:, None] + 0.5) * (shape[0] / grid[0]) - centre[0]) / unit
    across = ((np.arange(grid[1], dtype=np.float32)[None, :] + 0.5) * (shape[1] / grid[1]) - centre[1]) / unit
    x = math.cos(angle) * across + math.sin(angle) * down
    y = math.cos(angle) * down - math.sin(angle) * across + height / 2

    chest = _Chest(x, y, height, anatomy)
    attenuation = chest.soft_tissue(anatomy, image) + chest.bones(anatomy) - chest.air
    attenuation += 0.3 * chest.lungs * chest.branches(anatomy)
    attenuation *= 1 + 0.025 * _cloud(image, grid, 12)
    attenuation = _resize(attenuation, shape, Image.Resampling.BICUBIC)
    opacity = np.zeros(shape, np.float32)
    if pneumonia:
        replaced = chest.opacity(is_viral(patient), disease, extent)
        # Bilinear: bicubic rings, and would leave traces of the disease outside the lungs.
        opacity = _resize(replaced, shape, Image.Resampling.BILINEAR)
        attenuation = attenuation + _resize(replaced * chest.air, shape, Image.Resampling.BILINEAR)
    return _expose(attenuation, image), opacity


def draw_phantom(seed: int, index: int, *, pneumonia: bool, patient: int) -> NDArray[np.uint8]:
    """Draw one radiograph, uint8 (h, w): see `draw_phantom_with_opacity`."""
    return draw_phantom_with_opacity(seed, index, pneumonia=pneumonia, patient=patient)[0]


def plan_phantoms(count: int) -> Iterator[PlannedImage]:
    """Assign split, class, patient and name to each index; a longer set begins with the shorter one.

    The first 16 images are `val`, 8 of each class. Then every seventh is `test` (2 normal : 3 pneumonia), the others
    are `train` (1 : 3, the imbalance of the Kaggle set). No patient has images in two splits.
    """
    seen: Counter[Any] = Counter()  # images so far, by split and by (split, pneumonia)
    patients: dict[tuple[str, bool], int] = {}
    new_patients = itertools.count(1)
    for index in range(count):
        split = VAL if index < VALIDATION_IMAGES else TEST if (index - VALIDATION_IMAGES) % 7 == 6 else TRAIN
        place = seen[split]
        pneumonia = {VAL: place % 2 == 1, TEST: place % 5 not in (0, 2), TRAIN: place % 4 != 0}[split]
        group = (split, pneumonia)
        image = IMAGE_OF_PATIENT[seen[group] % len(IMAGE_OF_PATIENT)]
        if image == 1:
            patients[group] = next(new_patients)
        patient = patients[group]
        seen.update([split, group])
        if pneumonia:
            name = f"PNEUMONIA/person{patient}_{'virus' if is_viral(patient) else 'bacteria'}_{index}.png"
        else:
            name = f"NORMAL/{'NORMAL2-' if patient // 2 % 2 else ''}IM-{patient:04d}-{image:04d}.png"
        yield PlannedImage(index, pneumonia, patient, Path(split, name))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `phantoms.json`; None if the folder holds no set of phantoms."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("made_by") == "finetune.phantom" else None


def write_phantoms(out: Path, *, count: int = 720, seed: int = 0, force: bool = False) -> PhantomSet:
    """Write `count` phantoms (at least 40) to the folder `out`, all of them or none.

    The same seed (0 or more) gives the same bytes with the same numpy and Pillow. If `out` already holds this set,
    nothing is drawn; `force` replaces another set of phantoms, never a folder without their manifest.

    Raises:
        click.ClickException: `out` holds something else.
        ValueError: `count` or `seed` is out of range.
    """
    if count < SMALLEST_SET or seed < 0:
        raise ValueError(f"count must be at least {SMALLEST_SET} and seed at least 0, not {count} and {seed}")
    planned = list(plan_phantoms(count))
    of_class = Counter(image.path.parent.as_posix() for image in planned)
    counts = {s: {c: of_class[f"{s}/{c}"] for c in ("NORMAL", "PNEUMONIA")} for s in SPLIT_NAMES}
    manifest = {"made_by": "finetune.phantom", "version": VERSION, "seed": seed, "count": count, "counts": counts}

    target = out.resolve()
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied:
        found = _read_manifest(target)
        if found == manifest and all((target / image.path).is_file() for image in planned):
            return PhantomSet(out, counts, already_there=True)
        if found is None:
            raise click.ClickException(f"{out} holds something other than phantoms; name another folder.")
        if not force:
            raise click.ClickException(f"{out} holds another set of phantoms; replace it with --force or name another.")

    with new_folder(target, replace=True, durable=False) as fresh:
        for image in track(planned, "drawing phantoms", total=len(planned)):
            (fresh / image.path.parent).mkdir(parents=True, exist_ok=True)
            pixels = draw_phantom(seed, image.index, pneumonia=image.pneumonia, patient=image.patient)
            Image.fromarray(pixels).save(fresh / image.path, compress_level=3)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return PhantomSet(out, counts, already_there=False)


@click.command(context_settings={"show_default": True})
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the set, with train, val and test."
)
@click.option("--count", type=click.IntRange(min=SMALLEST_SET), default=720, help="Number of images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed; the same seed draws the same images.")
@click.option("--force", is_flag=True, help="Replace another set of phantoms in the folder, never anything else.")
def main(out: Path, count: int, seed: int, force: bool) -> None:
    """Draw a set of procedural chest radiographs to try the pipeline on."""
    try:
        made = write_phantoms(out, count=count, seed=seed, force=force)
    except OSError as error:
        raise click.ClickException(f"cannot write {out}: {error}; name a folder that you may write to.") from error
    parts = [f"{split} {n['NORMAL']} normal + {n['PNEUMONIA']} pneumonia" for split, n in made.counts.items()]
    click.echo(f"{out} {'already holds' if made.already_there else 'now holds'} {count} phantoms: {', '.join(parts)}.")


if __name__ == "__main__":
    main()
