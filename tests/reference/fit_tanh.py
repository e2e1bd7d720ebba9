"""Print the coefficients of tanh in `dpa_core/kernels/source/simd.hpp`.

`python -m tests.reference.fit_tanh`: tanh(x) = x P(x²) / Q(x²) for |x| <= limit, with the
smallest largest relative error (Remez's algorithm, in 60 digits). Beyond the limit tanh(limit)
is one to rounding.
"""

from __future__ import annotations

import sys

from mpmath import lu_solve, matrix, mp, mpf, pi, polyval, sin, tanh

FITS = {"float": (4, "8.5"), "double": (9, "19")}
"""Type: degree of both polynomials, and the limit."""


@mp.workdps(60)
def fit(degree: int, limit: str) -> tuple[list[mpf], list[mpf], mpf]:
    """Coefficients of P and Q in x², lowest first (Q's is 1), and the relative error."""
    end, unknowns = mpf(limit), 2 * degree + 2
    points = [end * sin(pi / 2 * mpf(2 * k + 1) / (2 * unknowns)) for k in range(unknowns)]
    grid = [end * mpf(k) / 3000 for k in range(1, 3001)]
    grid = sorted(set(grid + [end * sin(pi / 2 * mpf(k) / 2000) ** 2 for k in range(1, 2001)]))
    q = [mpf(1)] + [mpf(0)] * degree
    for _ in range(60):
        p, q, level = _level(points, degree, end, q)
        errors = [x * _at(p, x / end) / _at(q, x / end) / tanh(x) - 1 for x in grid]
        highest = _alternating(errors, unknowns)
        points = [grid[i] for i in highest]
        largest = max(abs(e) for e in errors)
        if largest < abs(level) * mpf("1.02"):
            break
    else:
        raise ArithmeticError(f"the largest errors are not level after 60 rounds: {largest}")
    scale = [end ** (2 * k) for k in range(degree + 1)]
    return [a / s for a, s in zip(p, scale)], [a / s for a, s in zip(q, scale)], largest


def _at(coefficients: list[mpf], x: mpf) -> mpf:
    return polyval(coefficients[::-1], x * x)


def _level(points: list[mpf], degree: int, end: mpf, q: list[mpf]):
    """P, Q and e so that the relative error is e, -e, e, ... at the points."""
    n = 2 * degree + 2
    for _ in range(8):  # e Q is linearised about the last Q
        system, right = matrix(n, n), matrix(n, 1)
        for i, x in enumerate(points):
            z, t = (x / end) ** 2, tanh(x)
            for k in range(degree + 1):
                system[i, k] = x * z**k / t
            for k in range(1, degree + 1):
                system[i, degree + k] = -(z**k)
            system[i, n - 1] = -((-1) ** i) * _at(q, x / end)
            right[i] = mpf(1)
        s = lu_solve(system, right)
        q = [mpf(1)] + [s[degree + k] for k in range(1, degree + 1)]
    return [s[k] for k in range(degree + 1)], q, s[n - 1]


def _alternating(errors: list[mpf], count: int) -> list[int]:
    """Places of the largest errors of alternating sign."""
    places, current = [], [0]
    for i in range(1, len(errors)):
        if (errors[i] > 0) != (errors[current[-1]] > 0):
            places.append(max(current, key=lambda j: abs(errors[j])))
            current = []
        current.append(i)
    places.append(max(current, key=lambda j: abs(errors[j])))
    if len(places) < count:
        changes = len(places) - 1
        raise ArithmeticError(f"the error changes its sign {changes} times, not {count - 1}")
    while len(places) > count:
        places.pop(0 if abs(errors[places[0]]) < abs(errors[places[-1]]) else -1)
    return places


def line(name: str, kind: str, coefficients: list[mpf]) -> str:
    """C++: the coefficients, highest first."""
    digits, end = (9, "f") if kind == "float" else (17, "")
    numbers = [mp.nstr(a, digits, min_fixed=0, max_fixed=1) + end for a in coefficients[::-1]]
    return f"constexpr {kind} {name}[] = {{{', '.join(numbers)}}};"


def main() -> None:
    for kind, (degree, limit) in FITS.items():
        p, q, error = fit(degree, limit)
        about = f"// relative error {mp.nstr(error, 2)} before rounding"
        sys.stdout.write("\n".join([about, line("P", kind, p), line("Q", kind, q), ""]))


if __name__ == "__main__":
    main()
