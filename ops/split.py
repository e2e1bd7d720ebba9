"""Divide frames into training, validation and test parts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt

from dpa_core.config import Config
from dpa_core.errors import DataError

PARTS = ("train", "valid", "test")


class Split(Config):
    """Sizes of the parts.

    Training frames come from the front of a seeded permutation, test and validation frames
    from its end: growing `train` alone keeps the smaller draw inside the larger one and the
    test set as it is.
    """

    train: NonNegativeFloat | None = None
    """Size of the training part; null: all that the others leave."""
    valid: NonNegativeFloat = 0.0
    """Size of the validation part."""
    test: NonNegativeFloat | None = 0.0
    """Size of the test part; null: all that the others leave."""
    unit: Literal["fraction", "frames"] = "fraction"
    """What the sizes count."""
    by: Literal["random", "composition"] = "random"
    """composition: frames of one reduced formula never sit in two parts."""
    seed: NonNegativeInt = 1
    """Seed of the permutation."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Split:
        sizes = [self.train or 0.0, self.valid, self.test or 0.0]
        if self.train is None and self.test is None:
            raise ValueError("only one of train and test can be null (all that is left)")
        if self.unit == "fraction" and sum(sizes) > 1 + 1e-9:
            raise ValueError(f"fractions train, valid, test sum to {sum(sizes):g}; at most 1")
        if self.unit == "frames" and any(size != int(size) for size in sizes):
            raise ValueError(f"sizes in frames must be whole numbers, got {sizes}")
        if self.unit == "frames" and self.by == "composition":
            raise ValueError("by: composition needs unit: fraction (whole formulas are moved)")
        return self

    def counts(self, total: int) -> tuple[int, int, int]:
        """Numbers of train, valid and test frames out of `total`; DataError if too few."""
        scale = total if self.unit == "fraction" else 1
        valid = round(self.valid * scale)
        train = None if self.train is None else round(self.train * scale)
        test = None if self.test is None else round(self.test * scale)
        left = total - valid - (train or 0) - (test or 0)
        # rounding fractions up on all sides may ask for a frame too many
        if self.unit == "fraction" and left < 0 and train is not None:
            train, left = train + left, 0
        if left < 0:
            raise DataError(
                f"split asks for train {self.train}, valid {self.valid}, test {self.test} frames,"
                f" only {total} were kept; ask for fewer or loosen the filters"
            )
        return (left if train is None else train, valid, left if test is None else test)


def assign(formulas: Sequence[str], split: Split) -> list[str]:
    """Choose the part of every frame.

    Parameters
    ----------
    formulas
        Reduced formula of every frame.
    split
        Sizes and rule.

    Returns
    -------
    list[str]
        "train", "valid", "test" or "unused" for every frame.

    Raises
    ------
    DataError
        Too few frames, or too few formulas, for the sizes asked for.
    """
    total = len(formulas)
    ntrain, nvalid, ntest = split.counts(total)
    bounds = [(ntrain, "train"), (total - nvalid - ntest, "unused"), (total - ntest, "valid")]
    bounds.append((total, "test"))
    if split.by == "random":
        order = np.random.default_rng(split.seed).permutation(total)
        sizes = np.ones(total, dtype=np.int64)
        members = [[int(k)] for k in order]
    else:
        groups: dict[str, list[int]] = defaultdict(list)
        for k, formula in enumerate(formulas):
            groups[formula].append(k)
        # Order by hash: adding a formula leaves the order of the others as it was.
        names = sorted(groups, key=lambda f: hashlib.sha256(f"{split.seed}:{f}".encode()).digest())
        members = [groups[name] for name in names]
        sizes = np.array([len(group) for group in members])
    middles = np.cumsum(sizes) - sizes / 2
    parts = [""] * total
    for group, middle in zip(members, middles, strict=True):
        part = next(name for bound, name in bounds if middle <= bound)
        for k in group:
            parts[k] = part
    wanted = dict(zip(PARTS, (ntrain, nvalid, ntest), strict=True))
    if missing := [p for p in PARTS if wanted[p] and p not in parts]:
        raise DataError(
            f"split by {split.by}: {', '.join(missing)} got no frames, {len(members)} formulas "
            "are too few for these fractions; change split.seed, the fractions, or by: random"
        )
    return parts


def draw(total: int, count: int, seed: int) -> list[int]:
    """Draw `count` of `total` frames; of one seed, a smaller draw lies inside a larger one.

    Raises
    ------
    DataError
        Fewer frames than asked for.
    """
    if count > total:
        raise DataError(f"max_frames: {count} frames asked for, the data hold {total}")
    return [int(k) for k in np.random.default_rng(seed).permutation(total)[:count]]
