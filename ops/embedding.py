"""What a type embedding has learnt: principal components and a test for periodic order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from dpa_core.errors import DataError

if TYPE_CHECKING:
    from dpa_core.model import Potential

NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
MIN_ELEMENTS = 3


class EmbeddingPCA(NamedTuple):
    """Principal components of a type embedding.

    Attributes
    ----------
    elements
        Names of the T elements.
    points
        (T, 2) components.
    explained
        (2,) fractions of the variance.
    table
        (T, tebd_dim) the embedding.
    """

    elements: tuple[str, ...]
    points: NDArray[np.float64]
    explained: NDArray[np.float64]
    table: NDArray[np.float64]


def place_in_table(element: str) -> tuple[int, int]:
    """Return period and group (IUPAC 1 to 18); group 0 is the f block, La to Yb and Ac to No."""
    number = atomic_numbers.get(element, 0)
    if not 0 < number <= NOBLE[-1]:
        raise DataError(f"{element!r} is not a chemical element; its period is unknown")
    period = next(k for k, last in enumerate(NOBLE) if number <= last)
    column, length = number - NOBLE[period - 1], NOBLE[period] - NOBLE[period - 1]
    if element == "He":
        return period, 18
    if column <= 2:
        return period, column
    return period, 0 if length == 32 and column <= 16 else column + 18 - length


def embedding_pca(model: Potential, elements: Sequence[str] | None = None) -> EmbeddingPCA | None:
    """Return the type embedding of a model and its first two principal components.

    Parameters
    ----------
    model
        Any potential.
    elements
        Only these, e.g. those of the training data; all of the type map when None.

    Returns
    -------
    EmbeddingPCA or None
        None for a model without type embedding or with fewer than three elements.
    """
    import torch

    layer = getattr(model.descriptor, "type_embedding", None)
    chosen = [name for name in model.type_map if elements is None or name in elements]
    chosen = [name for name in chosen if name in atomic_numbers]
    if layer is None or len(chosen) < MIN_ELEMENTS:
        return None
    with torch.no_grad():
        table = layer().double().cpu().numpy()
    table = table[[model.type_map.index(name) for name in chosen]]
    centred = table - table.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    # the sign of a component is arbitrary: the largest weight is made positive
    sign = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
    components = u * s * sign
    points = np.zeros((len(chosen), 2))
    points[:, : min(2, components.shape[1])] = components[:, :2]
    variance = s**2 / max(float((s**2).sum()), 1e-300)
    explained = np.zeros(2)
    explained[: min(2, len(variance))] = variance[:2]
    return EmbeddingPCA(tuple(chosen), points, explained, table)


def periodic_order_test(
    model: Potential,
    n_permutations: int = 10000,
    seed: int = 0,
    elements: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """Test by permutation whether embedding distances follow the periodic table.

    Two statistics of the distances between the rows of the embedding, each compared with its
    values after shuffling the elements (Mantel's test); p = (1 + hits) / (1 + permutations).

    - group: mean distance of pairs of one group over that of the other pairs, f block left
      out; below 1 if elements of a group lie close together.
    - period: correlation of the distance with the difference of the periods; above 0 if
      elements of distant periods lie far apart.

    Parameters
    ----------
    model
        A potential with type embedding.
    n_permutations
        Number of shuffles.
    seed
        Of the shuffles.
    elements
        Only these; the whole type map when None.

    Returns
    -------
    dict or None
        elements, permutations, group and period, each with statistic, expected (mean of the
        shuffles) and p (None where there are no such pairs). None as in `embedding_pca`.
    """
    pca = embedding_pca(model, elements)
    if pca is None:
        return None
    return {
        "elements": len(pca.elements),
        "permutations": n_permutations,
        **order_statistics(pca.table, pca.elements, n_permutations, seed),
    }


def order_statistics(
    table: NDArray[np.float64], elements: Sequence[str], n_permutations: int, seed: int
) -> dict[str, Any]:
    """Return the statistics of `periodic_order_test` for a (T, d) table of vectors."""
    places = np.array([place_in_table(name) for name in elements])
    rng = np.random.default_rng(seed)
    inside = places[:, 1] > 0
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    same = (places[:, None, 1] == places[None, :, 1]).astype(float)[np.ix_(inside, inside)]
    apart = np.abs(places[:, None, 0] - places[None, :, 0]).astype(float)
    near = distances[np.ix_(inside, inside)]
    return {
        "group": _permute(near, same, _ratio, rng, n_permutations, sign=-1),
        "period": _permute(distances, apart, _correlation, rng, n_permutations, sign=1),
    }


def _permute(
    distances: NDArray[np.float64],
    labels: NDArray[np.float64],
    statistic: Any,
    rng: np.random.Generator,
    count: int,
    *,
    sign: int,
) -> dict[str, float] | None:
    """Compare a statistic with its shuffles; `sign` 1: large values are extreme, -1: small."""
    pairs = np.triu_indices(len(labels), k=1)
    if len(pairs[0]) == 0 or np.ptp(labels[pairs]) == 0:
        return None
    observed = statistic(distances[pairs], labels[pairs])
    shuffled = np.empty(count)
    for k in range(count):
        order = rng.permutation(len(labels))
        shuffled[k] = statistic(distances[pairs], labels[np.ix_(order, order)][pairs])
    hits = int((sign * shuffled >= sign * observed - 1e-12).sum())
    return {
        "statistic": float(observed),
        "expected": float(shuffled.mean()),
        "p": (1 + hits) / (1 + count),
    }


def _ratio(distances: NDArray[np.float64], same: NDArray[np.float64]) -> float:
    inner = (distances * same).sum() / same.sum()
    outer = (distances * (1 - same)).sum() / (1 - same).sum()
    return float(inner / outer) if outer > 0 else 1.0


def _correlation(distances: NDArray[np.float64], apart: NDArray[np.float64]) -> float:
    x, y = distances - distances.mean(), apart - apart.mean()
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0
