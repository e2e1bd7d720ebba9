// Matrix products of one thread: C (+)= A B, row-major, B and C with padded rows.
//
// A is addressed by two strides, so that it may be a transpose; B and C start at vector
// boundaries and are read and written in whole vectors (padding of B is zero, so that of C is).
#pragma once
#include "simd.hpp"

template <class F> struct View {
  const F* data;
  ptrdiff_t row, column;
};
template <class F> inline View<F> rows_of(const F* a, ptrdiff_t ld) { return {a, ld, 1}; }
template <class F> inline View<F> columns_of(const F* a, ptrdiff_t ld) { return {a, 1, ld}; }

template <class F, int ROWS, int WIDTH, bool ADD>
static inline void tile(View<F> a, const F* b, ptrdiff_t ldb, F* c, ptrdiff_t ldc, int depth) {
  Vec<F> sums[ROWS][WIDTH];
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < WIDTH; ++j) sums[i][j] = Vec<F>{};
  const F* left = a.data;
  for (int k = 0; k < depth; ++k, left += a.column, b += ldb) {
    Vec<F> right[WIDTH];
#pragma GCC unroll 2
    for (int j = 0; j < WIDTH; ++j) right[j] = vec<F>(b + j * LANES<F>);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < WIDTH; ++j) sums[i][j] += left[i * a.row] * right[j];
  }
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < WIDTH; ++j) {
      Vec<F>& target = vec<F>(c + i * ldc + j * LANES<F>);
      if constexpr (ADD) target += sums[i][j];
      else target = sums[i][j];
    }
}

template <class F, int WIDTH, bool ADD, int ROWS>
static inline void last_rows(int rows, View<F> a, const F* b, ptrdiff_t ldb, F* c, ptrdiff_t ldc,
                             int depth) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) tile<F, ROWS, WIDTH, ADD>(a, b, ldb, c, ldc, depth);
    else last_rows<F, WIDTH, ADD, ROWS - 1>(rows, a, b, ldb, c, ldc, depth);
  }
}

template <class F, int WIDTH, bool ADD>
static inline void strip(int m, View<F> a, const F* b, ptrdiff_t ldb, F* c, ptrdiff_t ldc,
                         int depth) {
  int i = 0;
  for (; i + TILE_ROWS <= m; i += TILE_ROWS)
    tile<F, TILE_ROWS, WIDTH, ADD>({a.data + i * a.row, a.row, a.column}, b, ldb, c + i * ldc, ldc,
                                   depth);
  last_rows<F, WIDTH, ADD, TILE_ROWS - 1>(m - i, {a.data + i * a.row, a.row, a.column}, b, ldb,
                                          c + i * ldc, ldc, depth);
}

// C (m, n) = A (m, depth) B (depth, n), or += with ADD.
template <class F, bool ADD = false>
static void multiply(int m, int n, int depth, View<F> a, const F* b, ptrdiff_t ldb, F* c,
                     ptrdiff_t ldc) {
  const int lanes = LANES<F>;
  int j = 0;
  for (; j + lanes < n; j += 2 * lanes) strip<F, 2, ADD>(m, a, b + j, ldb, c + j, ldc, depth);
  if (j < n) strip<F, 1, ADD>(m, a, b + j, ldb, c + j, ldc, depth);
}

// B (n, m) = A (m, n) transposed; the padding of B's rows is set to zero.
template <class F>
static void transpose(int m, int n, const F* a, ptrdiff_t lda, F* b, ptrdiff_t ldb) {
  const int block = LANES<F>, covered = padded<F>(m);
  for (int i = 0; i < covered; i += block)
    for (int j = 0; j < n; j += block)
      for (int jj = j; jj < j + block && jj < n; ++jj) {
        F* target = b + jj * ldb + i;
        for (int ii = 0; ii < block; ++ii) target[ii] = i + ii < m ? a[(i + ii) * lda + jj] : F(0);
      }
}
