"""How raters heard the pieces of CMU-MOSEI: as its SDK keeps it (.csd, which is HDF5), or by rater (.csv).

A .csd knows a piece by its times, a table by its number. Of both the .csd is taken.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.corpora.corpus import files_below
from shards.corpora.lines import rows
from shards.manifest import Reject

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # in the order of `Ratings.of`

_TABLES = ("5000_batch_raw.csv", "Batch_2980374_batch_results.csv", "pom_extra_sqa_mono_results.csv")
_ANSWERS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")
_DIMENSIONS = ("sentiment", *EMOTIONS)
_SAME_TIME_S = 1e-3  # a transcript has its times in decimals
_MAX_PIECES = 10_000  # of one video

Strengths = tuple[float, ...]


@dataclass
class Ratings:
    """The mean over the raters, from 0 to 3 in each of EMOTIONS."""

    by_clip: dict[tuple[str, str], Strengths] = field(default_factory=dict)
    by_time: dict[str, list[tuple[float, float, Strengths]]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    def of(self, video: str, clip: str, start_s: float, end_s: float) -> Strengths | None:
        """Those of a piece, None if nobody has rated it."""
        for start, end, strengths in self.by_time.get(video, ()):
            if abs(start - start_s) <= _SAME_TIME_S and abs(end - end_s) <= _SAME_TIME_S:
                return strengths
        return self.by_clip.get((video, clip))


def read_ratings(root: Path, raw: Path) -> Ratings:
    """Raises ValueError when there are no labels, or a .csd that cannot be read."""
    containers = sorted(path for path in files_below(root) if path.suffix == ".csd" and "label" in path.name.lower())
    tables = [path for name in _TABLES if (path := raw / "Labels" / name).is_file()]
    if containers:
        return _read_container(containers[0])
    if tables:
        return _read_tables(tables)
    raise ValueError(
        f"{root}: no CMU_MOSEI_Labels.csd and no Raw/Labels/{_TABLES[0]}; download one of them with the makers' "
        "CMU-MultimodalSDK"
    )


def _read_tables(tables: Sequence[Path]) -> Ratings:
    ratings, given = Ratings(), defaultdict[tuple[str, str], list[Strengths]](list)
    columns = ("Input.VIDEO_ID", "Input.CLIP", *(f"Answer.{name}" for name in _ANSWERS))
    for table in tables:
        for row in rows(table, columns, ",", quoted=True, others=("cp1252", "latin-1")):
            if isinstance(row, Reject):
                ratings.rejects.append(row)
                continue
            source, cells = row
            strengths = _numbers(cells[f"Answer.{name}"] for name in _ANSWERS)
            if strengths is None:
                ratings.rejects.append(Reject(source, "bad_line", "a strength is missing, or no number"))
            else:
                given[cells["Input.VIDEO_ID"].strip(), cells["Input.CLIP"].strip()].append(strengths)
    for place, ratings_of_it in given.items():
        ratings.by_clip[place] = tuple(
            round(sum(values) / len(values), 4) for values in zip(*ratings_of_it, strict=True)
        )
    return ratings


def _read_container(path: Path) -> Ratings:
    try:
        import h5py  # an extra
    except ImportError:
        raise ValueError(f"{path}: labels in .csd are read through h5py: pip install 'blsp-emo[csd]'") from None
    ratings = Ratings()
    try:
        with h5py.File(path, "r") as file:
            top = file["All Labels"] if "All Labels" in file else file[next(iter(file))]
            order = _order(top)
            for video in top["data"]:
                pieces = _pieces(top["data"][video], order)
                if pieces is None:
                    ratings.rejects.append(Reject(f"{path}:{video}", "bad_line", "features and intervals do not fit"))
                else:
                    ratings.by_time[video] = pieces
    except (OSError, KeyError, AttributeError, TypeError, StopIteration, RuntimeError) as error:
        raise ValueError(f"{path}: not labels of CMU-MOSEI ({error}); download it again") from None
    return ratings


def _order(top: Any) -> list[int]:
    """At which places of a row the EMOTIONS stand."""
    try:
        names = json.loads(top["metadata"]["dimension names"][0])
        return [names.index(name) for name in EMOTIONS]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return [_DIMENSIONS.index(name) for name in EMOTIONS]


def _pieces(group: Mapping[str, Any], order: Sequence[int]) -> list[tuple[float, float, Strengths]] | None:
    features, intervals = group["features"], group["intervals"]
    number = len(features)
    if features.shape != (number, len(_DIMENSIONS)) or intervals.shape != (number, 2) or number > _MAX_PIECES:
        return None
    found = []
    for values, (start, end) in zip(features[:], intervals[:], strict=True):
        strengths = tuple(round(float(values[place]), 4) for place in order)
        if all(map(math.isfinite, strengths)):
            found.append((float(start), float(end), strengths))
    return found


def _numbers(cells: Iterator[str]) -> Strengths | None:
    try:
        found = tuple(float(cell) for cell in cells)
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None
