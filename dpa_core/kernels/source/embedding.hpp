// Embedding of an atom's neighbours: G and its derivative, by nets of one number per neighbour.
//
// Always on dual numbers. For energies the direction is s itself, so the derivative is the slope
// dG/ds, and a backward pass through the nets is not needed.
#pragma once
#include "model.hpp"

// Consecutive rows that pass the same net.
struct Block {
  int start, count, net;
};

template <class F> struct EmbeddingSaved {
  std::vector<Dual<F>> y, x; // activations and outputs of the layers, for the backward pass
  Dual<F> g;                 // what the descriptor sees
  Dual<F> n;                 // N(s): G, or what strip mode's factors multiply
  F *s, *ds;                 // (rows) input and its derivative
};

template <class F>
EmbeddingSaved<F> take_embedding(const JobArgs& job, Arena& arena, int rows) {
  EmbeddingSaved<F> saved;
  saved.s = arena.take<F>(rows);
  saved.ds = arena.take<F>(rows);
  saved.g = take<F, true>(arena, rows, int(job.width));
  saved.n = job.factor ? take<F, true>(arena, rows, int(job.width)) : saved.g;
  return saved;
}

// Take the memory of the nets' layers; the output of the last one is N(s).
template <class F>
void take_layers(const JobArgs& job, Arena& arena, int rows, EmbeddingSaved<F>& saved) {
  saved.y.clear(), saved.x.clear();
  if (job.table) return;
  const NetArgs& net = job.embedding[0];
  for (int k = 0; k <= net.layers; ++k) {
    const int width = int(k == 0 ? job.first_width : net.layer[k - 1].out);
    saved.y.push_back(take<F, true>(arena, rows, width));
    saved.x.push_back(k == net.layers ? saved.n : take<F, true>(arena, rows, width));
  }
}

template <class F> inline Dual<F> rows_from(Dual<F> x, int row) {
  return {x.v + row * x.ld, x.t ? x.t + row * x.ld : nullptr, x.ld};
}

// The first layer's tanh(s w + b), b from the row of the pair of types.
template <class F>
void first_layer(const Model<F>& model, const Block& block, const int* row,
                 const EmbeddingSaved<F>& saved, int width) {
  const F* w = model.first_weight.data + block.net * model.first_weight.ld;
  for (int i = block.start; i < block.start + block.count; ++i) {
    const F* b = model.first_bias.data + row[i] * model.first_bias.ld;
    const Dual<F> y = rows_from(saved.y[0], i), x = rows_from(saved.x[0], i);
    for (int c = 0; c < padded<F>(width); c += LANES<F>) {
      const Vec<F> value = tanh_of<F>(saved.s[i] * vec<F>(w + c) + vec<F>(b + c));
      const Vec<F> slope = (1 - value * value) * vec<F>(w + c) * saved.ds[i];
      vec<F>(y.v + c) = vec<F>(x.v + c) = value;
      vec<F>(y.t + c) = vec<F>(x.t + c) = slope;
    }
  }
}

// Nets of all blocks: fills saved.n.
template <class F>
void embed(const Model<F>& model, const std::vector<Block>& blocks, const int* row,
           const EmbeddingSaved<F>& saved, int first_width) {
  for (const Block& block : blocks) {
    first_layer(model, block, row, saved, first_width);
    const auto& layers = model.embedding[block.net];
    for (size_t k = 0; k < layers.size(); ++k) {
      const Saved<F> own{rows_from(saved.x[k], block.start), rows_from(saved.y[k + 1], block.start)};
      forward<F, true>(layers[k], block.count, own, rows_from(saved.x[k + 1], block.start));
    }
  }
}

// Value and slope of polynomials with coefficients c (6, width) at x.
template <class F>
void quintic(const F* c, int width, F x, F dx, F* value, F* slope) {
  auto term = [&](int power, int at) {
    Vec<F> coefficients; // rows of the table are not aligned
    std::memcpy(&coefficients, c + power * width + at, sizeof coefficients);
    return coefficients;
  };
  int at = 0;
  for (; at + LANES<F> <= width; at += LANES<F>) {
    Vec<F> v = term(5, at), d = v;
    for (int power = 4; power > 0; --power) {
      v = v * x + term(power, at);
      d = d * x + v;
    }
    vec<F>(value + at) = v * x + term(0, at);
    vec<F>(slope + at) = d * dx;
  }
  for (; at < width; ++at) {
    F v = c[5 * width + at], d = v;
    for (int power = 4; power > 0; --power) {
      v = v * x + c[power * width + at];
      d = d * x + v;
    }
    value[at] = v * x + c[at];
    slope[at] = d * dx;
  }
}

// Tables in place of nets: fills saved.n.
template <class F>
void look_up(const JobArgs& job, int rows, const int* row, const EmbeddingSaved<F>& saved) {
  const int width = int(job.width);
  const double lower = job.table_lower, step = job.table_stride;
  const double upper = lower + step * double(job.table_bins);
  const Dual<F> out = saved.n;
  for (int i = 0; i < rows; ++i) {
    // Written so that NaN takes the first bin: it comes out as NaN, not as an address.
    const double s = saved.s[i], inside = s > lower ? std::min(s, upper) : lower;
    const int64_t bin = std::min(int64_t((inside - lower) / step), job.table_bins - 1);
    const double beyond = s - inside, t = 1 + beyond * beyond / (step * step);
    const double x = inside - (lower + step * double(bin)) + beyond / std::sqrt(t);
    const int64_t table = job.factor ? 0 : row[i];
    F *value = out.v + i * out.ld, *slope = out.t + i * out.ld;
    for (int c = width; c < padded<F>(width); ++c) value[c] = slope[c] = 0;
    quintic<F>(static_cast<const F*>(job.table) + (table * job.table_bins + bin) * 6 * width, width,
               F(x), F(1 / (t * std::sqrt(t))) * saved.ds[i], value, slope);
  }
}

// Gradients of the nets' weights from the adjoint of their output, which is overwritten.
template <class F>
void embed_backward(const Model<F>& model, Model<F>& gradient, const std::vector<Block>& blocks,
                    const int* row, const EmbeddingSaved<F>& saved, int first_width, Arena& arena,
                    Dual<F> bar) {
  for (const Block& block : blocks) {
    const size_t mark = arena.used();
    const auto& layers = model.embedding[block.net];
    const int n = block.count;
    Dual<F> out = rows_from(bar, block.start);
    for (int k = int(layers.size()) - 1; k >= 0; --k) {
      const Saved<F> own{rows_from(saved.x[k], block.start), rows_from(saved.y[k + 1], block.start)};
      const Dual<F> u_bar = take<F, true>(arena, n, layers[k].out);
      const Dual<F> x_bar = take<F, true>(arena, n, layers[k].in);
      backward<F, true>(layers[k], gradient.embedding[block.net][k], n, own, out, u_bar, x_bar);
      out = x_bar;
    }
    F* g_weight = gradient.first_weight.data + block.net * gradient.first_weight.ld;
    Layer<F> first;
    first.out = first_width;
    const Dual<F> u_bar = take<F, true>(arena, n, first_width);
    const Dual<F> y = rows_from(saved.y[0], block.start);
    backward_activation<F, true>(first, first, n, y, out, u_bar, [&](int i, const F* du) {
      const int at = block.start + i;
      add_to(gradient.first_bias.data + row[at] * gradient.first_bias.ld, du, padded<F>(first_width));
      for (int c = 0; c < padded<F>(first_width); c += LANES<F>)
        vec<F>(g_weight + c) +=
            saved.s[at] * vec<F>(du + c) + saved.ds[at] * vec<F>(u_bar.v + i * u_bar.ld + c);
    });
    arena.release(mark);
  }
}

// Strip mode: G = N(s) (1 + factor sw). `smooth` is false if the factor is not switched off.
// With DIRECTION the derivative is along the atoms' direction, else it is the slope in s.
template <class F, bool DIRECTION>
void apply_factor(const Model<F>& model, const int* row, int rows, bool smooth, const F* sw,
                  const F* dsw, const EmbeddingSaved<F>& saved, int width) {
  const Dual<F> n = saved.n;
  for (int i = 0; i < rows; ++i) {
    const F* factor = model.factor.data + row[i] * model.factor.ld;
    const F w = smooth ? sw[i] : F(1), dw = DIRECTION && smooth ? dsw[i] : F(0);
    for (int c = 0; c < padded<F>(width); c += LANES<F>) {
      const Vec<F> f = vec<F>(factor + c), scale = 1 + f * w, value = vec<F>(n.v + i * n.ld + c);
      vec<F>(saved.g.v + i * saved.g.ld + c) = value * scale;
      vec<F>(saved.g.t + i * saved.g.ld + c) = vec<F>(n.t + i * n.ld + c) * scale + value * f * dw;
    }
  }
}

// Adjoint of G -> of N(s), in place, and the gradient of the factor.
template <class F>
void factor_backward(const Model<F>& model, Model<F>& gradient, const int* row, int rows,
                     bool smooth, const F* sw, const F* dsw, const EmbeddingSaved<F>& saved,
                     int width, Dual<F> bar) {
  const Dual<F> n = saved.n;
  for (int i = 0; i < rows; ++i) {
    const F* factor = model.factor.data + row[i] * model.factor.ld;
    F* g_factor = gradient.factor.data + row[i] * gradient.factor.ld;
    const F w = smooth ? sw[i] : F(1), dw = smooth ? dsw[i] : F(0);
    for (int c = 0; c < padded<F>(width); c += LANES<F>) {
      const Vec<F> f = vec<F>(factor + c), value = vec<F>(n.v + i * n.ld + c);
      const Vec<F> slope = vec<F>(n.t + i * n.ld + c), scale = 1 + f * w;
      const Vec<F> b = vec<F>(bar.v + i * bar.ld + c), db = vec<F>(bar.t + i * bar.ld + c);
      vec<F>(g_factor + c) += (db * value + b * slope) * w + b * value * dw;
      vec<F>(bar.v + i * bar.ld + c) = b * scale;
      vec<F>(bar.t + i * bar.ld + c) = db * scale + b * f * dw;
    }
  }
}
