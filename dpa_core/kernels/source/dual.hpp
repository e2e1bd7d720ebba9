// Dual numbers: a value and its derivative along one direction of the atoms' positions.
//
// The gradient of  a E + b·dE/dd  with respect to the weights is the derivative, along b, of the
// gradient of E (forward over reverse). So one code of first-order forward and backward passes,
// run on dual numbers, is all that a loss of energies and forces needs; run on plain numbers it
// gives the forces.
#pragma once
#include <cmath>

#include "gemm.hpp"

// A matrix of values and, on dual numbers, one of derivatives, with rows padded alike.
template <class F> struct Dual {
  F* v = nullptr;
  F* t = nullptr;
  ptrdiff_t ld = 0;
};

template <class F, bool D> inline Dual<F> take(Arena& arena, int rows, int columns) {
  const ptrdiff_t ld = stride<F>(columns);
  Dual<F> matrix{arena.take<F>(rows * ld), nullptr, ld};
  if constexpr (D) matrix.t = arena.take<F>(rows * ld);
  return matrix;
}

template <class F, bool D> inline void clear(Dual<F> x, int rows) {
  std::memset(x.v, 0, rows * x.ld * sizeof(F));
  if constexpr (D) std::memset(x.t, 0, rows * x.ld * sizeof(F));
}

// Weights, which have no derivative along the direction, and their transpose.
template <class F> struct Matrix {
  F* data = nullptr;
  ptrdiff_t ld = 0;
  F* transposed = nullptr;
  ptrdiff_t ld_transposed = 0;
};

// C (m, n) = A (m, depth) W.
template <class F, bool D>
inline void times(int m, int n, int depth, Dual<F> a, const F* w, ptrdiff_t ldw, Dual<F> c) {
  multiply<F>(m, n, depth, rows_of<F>(a.v, a.ld), w, ldw, c.v, c.ld);
  if constexpr (D) multiply<F>(m, n, depth, rows_of<F>(a.t, a.ld), w, ldw, c.t, c.ld);
}

// C (m, n) = A B with A (m, depth), or its transpose with A stored (depth, m).
template <class F, bool D, bool TRANSPOSED = false>
inline void product(int m, int n, int depth, Dual<F> a, Dual<F> b, Dual<F> c) {
  auto view = [&](const F* p) { return TRANSPOSED ? columns_of(p, a.ld) : rows_of(p, a.ld); };
  multiply<F>(m, n, depth, view(a.v), b.v, b.ld, c.v, c.ld);
  if constexpr (D) {
    multiply<F>(m, n, depth, view(a.t), b.v, b.ld, c.t, c.ld);
    multiply<F, true>(m, n, depth, view(a.v), b.t, b.ld, c.t, c.ld);
  }
}

// G (m, n) += derivative of Aᵀ B over `rows` rows: the gradient of weights from a layer's
// input A and the adjoint B of its output.
template <class F>
inline void accumulate(int m, int n, int rows, Dual<F> a, Dual<F> b, Matrix<F> g) {
  multiply<F, true>(m, n, rows, columns_of<F>(a.t, a.ld), b.v, b.ld, g.data, g.ld);
  multiply<F, true>(m, n, rows, columns_of<F>(a.v, a.ld), b.t, b.ld, g.data, g.ld);
}

template <class F, bool D> inline void transpose_dual(int m, int n, Dual<F> a, Dual<F> b) {
  transpose(m, n, a.v, a.ld, b.v, b.ld);
  if constexpr (D) transpose(m, n, a.t, a.ld, b.t, b.ld);
}

// A number with its derivative, for the geometry of a pair.
struct Number {
  double v, t;
};
inline Number constant(double v) { return {v, 0.0}; }
inline Number operator+(Number a, Number b) { return {a.v + b.v, a.t + b.t}; }
inline Number operator*(Number a, Number b) { return {a.v * b.v, a.t * b.v + a.v * b.t}; }
inline Number reciprocal(Number a) { return {1.0 / a.v, -a.t / (a.v * a.v)}; }
inline Number root(Number a) {
  const double r = std::sqrt(a.v);
  return {r, 0.5 * a.t / r};
}
