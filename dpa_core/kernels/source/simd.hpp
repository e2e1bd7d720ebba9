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

// tanh(x) = x P(x²) / Q(x²) up to a limit where it is 1 to rounding; coefficients, highest first,
// by tests/reference/fit_tanh.py.
template <class F> struct Tanh;
template <> struct Tanh<float> {
  static constexpr float limit = 8.5f,
    P[] = {1.42692563e-8f, 2.12510626e-5f, 3.53402787e-3f, 1.34132477e-1f, 9.99999988e-1f},
    Q[] = {8.14513439e-7f, 3.34886653e-4f, 2.60227551e-2f, 4.67465705e-1f, 1.0f};
};
template <> struct Tanh<double> {
  static constexpr double limit = 19.0,
    P[] = {2.5244927087235308e-23, 7.462676494497763e-19, 3.0776225756747988e-15,
           4.1835524205029795e-12, 2.4451263016436266e-9, 6.8379678525079209e-7,
           9.3655599121758797e-5, 5.9761100169365904e-3, 1.5181470171239808e-1,
           9.9999999999999994e-1},
    Q[] = {6.2720531172264164e-21, 5.6626527909150519e-17, 1.2751451730789099e-13,
           1.1138223693050256e-10, 4.4697294708072438e-8, 8.7606293702153328e-6,
           8.2843434978182643e-4, 3.4358788365515164e-2, 4.851480350457306e-1, 1.0};
};

template <class F, int N> inline Vec<F> polynomial(Vec<F> z, const F (&coefficients)[N]) {
  Vec<F> value = Vec<F>{} + coefficients[0];
  for (int i = 1; i < N; ++i) value = value * z + coefficients[i];
  return value;
}

template <class F> inline Vec<F> tanh_of(Vec<F> x) {
  const F limit = Tanh<F>::limit;
  x = x > limit ? Vec<F>{} + limit : x;
  x = x < -limit ? Vec<F>{} - limit : x;
  const Vec<F> z = x * x;
  return x * polynomial<F>(z, Tanh<F>::P) / polynomial<F>(z, Tanh<F>::Q);
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
