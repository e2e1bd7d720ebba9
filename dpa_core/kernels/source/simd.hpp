// Vectors of the machine's width, the functions of them that networks need, and scratch memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(TEST_VECTOR_BYTES) // to test other widths than the machine's
constexpr int VECTOR_BYTES = TEST_VECTOR_BYTES, TILE_ROWS = TEST_VECTOR_BYTES == 64 ? 12 : 6;
#elif defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 12;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 6;
#endif

template <class F> struct Simd;
template <> struct Simd<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES), may_alias));
  typedef int32_t I __attribute__((vector_size(VECTOR_BYTES), may_alias));
};
template <> struct Simd<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES), may_alias));
  typedef int64_t I __attribute__((vector_size(VECTOR_BYTES), may_alias));
};
template <class F> using Vec = typename Simd<F>::V;
template <class F> constexpr int LANES = VECTOR_BYTES / int(sizeof(F));

template <class F> inline Vec<F>& vec(F* p) { return *reinterpret_cast<Vec<F>*>(p); }
template <class F> inline const Vec<F>& vec(const F* p) {
  return *reinterpret_cast<const Vec<F>*>(p);
}
template <class F> inline F sum(Vec<F> x) {
  F total = 0;
  for (int i = 0; i < LANES<F>; ++i) total += x[i];
  return total;
}

// n rounded up to whole vectors: what loops over a row cover. Padding holds zeros.
template <class F> constexpr int padded(int n) { return (n + LANES<F> - 1) / LANES<F> * LANES<F>; }

// Distance of two rows of n numbers: whole cache lines and an odd number of them, so that the
// rows of a matrix spread over all sets of a cache.
template <class F> constexpr int stride(int n) {
  const int line = 64 / int(sizeof(F));
  return ((n + line - 1) / line | 1) * line;
}

// exp(x) with a relative error of about one rounding; x is taken within the type's range.
inline Vec<float> exp(Vec<float> x) {
  typedef Simd<float>::I I;
  const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? Vec<float>{} - 87.0f : x;
  x = x > 88.0f ? Vec<float>{} + 88.0f : x;
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> k = shifted - magic;
  const Vec<float> r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec<float> p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I power = (((I)shifted) << 23) + (127 << 23);
  return p * (Vec<float>)power;
}

inline Vec<double> exp(Vec<double> x) {
  typedef Simd<double>::I I;
  const double magic = 6755399441055744.0; // 1.5 * 2^52
  x = x < -700.0 ? Vec<double>{} - 700.0 : x;
  x = x > 700.0 ? Vec<double>{} + 700.0 : x;
  const Vec<double> shifted = x * 1.4426950408889634074 + magic;
  const Vec<double> k = shifted - magic;
  const Vec<double> r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  Vec<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0; // Taylor to r^13, |r| < 0.35
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  const I power = (((I)shifted) << 52) + (int64_t(1023) << 52);
  return p * (Vec<double>)power;
}

// tanh(x): near 0 the approximations of the Cephes library, else by exp.
inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> size = x < 0.0f ? -x : x, z = x * x;
  Vec<float> p = -5.70498872745e-3f * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Vec<float> small = p * z * x + x;
  const Vec<float> large = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
  return size < 0.625f ? small : (x < 0.0f ? -large : large);
}

inline Vec<double> tanh(Vec<double> x) {
  const Vec<double> size = x < 0.0 ? -x : x, z = x * x;
  const Vec<double> p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z
                        - 1.61468768441708447952e3;
  const Vec<double> q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z
                        + 4.84406305325125486048e3;
  const Vec<double> small = x + x * (z * p / q);
  const Vec<double> large = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
  return size < 0.625 ? small : (x < 0.0 ? -large : large);
}

// Scratch memory that is handed out in order and taken back as a whole.
class Arena {
public:
  // Without memory it only counts what would be taken.
  Arena() : room_(SIZE_MAX) {}
  explicit Arena(size_t bytes)
      : room_(bytes), base_(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {}
  ~Arena() { ::operator delete(base_, std::align_val_t(64)); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T> T* take(size_t count) {
    T* place = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    if (used_ > room_) __builtin_trap(); // the size is computed beforehand: a defect
    return place;
  }
  size_t used() const { return used_; }
  void release(size_t mark) { used_ = mark; }

private:
  size_t room_, used_ = 0;
  char* base_ = nullptr;
};
