"""Functions of vectors in the kernels: exp and tanh against an independent code, at every width."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from dpa_core.kernels.build import _OPTIONS, SOURCE
from tests.reference import fit_tanh

PROGRAM = """
#include "simd.hpp"
#define EACH(name, F, function) \\
  extern "C" void name(const F* x, F* y, long n) { \\
    for (long i = 0; i < n; i += LANES<F>) vec<F>(y + i) = function(vec<F>(x + i)); }
EACH(tanh_float32, float, tanh_of<float>)
EACH(tanh_float64, double, tanh_of<double>)
EACH(exp_float32, float, exp)
EACH(exp_float64, double, exp)
"""


@pytest.fixture(scope="module", params=[16, 32, 64], ids=lambda width: f"{width} bytes")
def functions(request: Any, tmp_path_factory: Any) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("functions")
    (folder / "functions.cpp").write_text(PROGRAM)
    command = [
        "g++", *_OPTIONS, "-march=native", "-w", f"-DTEST_VECTOR_BYTES={request.param}",
        f"-I{SOURCE}", "functions.cpp", "-o", "functions.so",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "functions.so"))


def aligned(values: np.ndarray) -> np.ndarray:
    raw = np.zeros(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + values.nbytes].view(values.dtype)
    array[:] = values
    return array


def call(library: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    x = aligned(x)
    y = aligned(np.zeros_like(x))
    function = getattr(library, f"{name}_{x.dtype}")
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (x, y)), ctypes.c_long(len(x)))
    return y


def everywhere(limit: float, precision: str) -> np.ndarray:
    """Both signs, from tiny to beyond the limit; a multiple of all widths."""
    small = np.geomspace(1e-30, 1, 2048)
    return np.concatenate([np.linspace(-limit, limit, 65536), small, -small]).astype(precision)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative one; numpy's long double is the independent code."""
    wrong = np.abs(found - expected)
    return float((wrong / np.maximum(np.abs(expected), np.finfo(found.dtype).tiny)).max())


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 3.5e-7), ("float64", 1e-15)])
def test_tanh(functions: ctypes.CDLL, precision: str, allowed: float) -> None:
    x = everywhere(25, precision)
    assert error(call(functions, "tanh", x), np.tanh(x.astype(np.longdouble))) < allowed


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1.3e-7), ("float64", 4e-16)])
def test_exp(functions: ctypes.CDLL, precision: str, allowed: float) -> None:
    x = everywhere(80, precision)
    assert error(call(functions, "exp", x), np.exp(x.astype(np.longdouble))) < allowed


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_tanh_of_what_is_no_number(functions: ctypes.CDLL, precision: str) -> None:
    x = np.zeros(16, precision)
    x[:3] = np.nan, np.inf, -np.inf
    y = call(functions, "tanh", x)
    assert np.isnan(y[0])
    np.testing.assert_allclose(y[1:4], [1, -1, 0], rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", fit_tanh.FITS)
def test_the_coefficients_are_those_of_the_script(kind: str) -> None:
    p, q, _ = fit_tanh.fit(*fit_tanh.FITS[kind])
    text = (SOURCE / "simd.hpp").read_text()
    struct = text[text.index(f"struct Tanh<{kind}>") :]
    limit, *rest = re.findall(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?", struct[: struct.index("};\n}")])
    assert limit.rstrip("0").rstrip(".") == fit_tanh.FITS[kind][1]
    rounding = 1e-8 if kind == "float" else 4e-16
    expected = [float(a) for a in (*p[::-1], *q[::-1])]
    np.testing.assert_allclose([float(a) for a in rest], expected, rtol=rounding, atol=0)
