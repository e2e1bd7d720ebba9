// Gated attention of one atom (formulas: dpa_core/attention.py), forward and backward.
//
// Rows are the atom's real neighbours; `extra` rows behind them stand for empty slots, which
// attend to nothing and only pass the bias and the layer norm. Empty slots enter the neighbours'
// softmax as a number: each adds exp(-shift) to every denominator.
#pragma once
#include "net.hpp"

// Weights, or the place where their gradients are added up.
template <class F> struct AttentionLayer {
  Matrix<F> in, out;
  F *in_bias, *out_bias, *gamma, *beta;
};

// What all layers and atoms share.
template <class F> struct AttentionShape {
  int hidden, width;           // width: of the neighbours' embedding
  F scale, shift, eps, floor;  // shift 20 with smooth attention, else 0
  bool gated;                  // cosines of the angles (attn_dotr)
  const F* columns;            // (padded width) 1, and 0 in the padding
  int block() const { return padded<F>(hidden); } // columns of q, of k and of v
};

// What all layers of an atom share. Arrays over neighbours are padded with zeros.
template <class F> struct Gating {
  int rows, extra;
  F empty;           // empty slots in the softmax
  const F* present;  // 1, and 0 in the padding
  Dual<F> sigma;     // (1, rows) the switch, or 1 without smooth attention
  Dual<F> h;         // (3, rows) the directions times sigma
  F *sigma_bar, *h_bar; // adjoints like sigma and h, on plain numbers
};

template <class F> struct AttentionSaved {
  Dual<F> qkv, logits, p, weight, o, normed;
  F *inverse, *drift;      // (rows, 3): 1/norm of q, k, v and the relative derivative of the norm
  F *deviation, *spread;   // (rows): 1/std of the layer norm and its relative derivative
};

template <class F, bool D>
AttentionSaved<F> take_attention(Arena& arena, const AttentionShape<F>& shape, int rows, int all) {
  AttentionSaved<F> s;
  s.qkv = take<F, D>(arena, rows, 3 * shape.block());
  s.logits = take<F, D>(arena, rows, rows);
  s.p = take<F, D>(arena, rows, rows);
  s.weight = take<F, D>(arena, rows, rows);
  s.o = take<F, D>(arena, rows, shape.hidden);
  s.normed = take<F, D>(arena, all, shape.width);
  s.inverse = arena.take<F>(3 * rows);
  s.drift = arena.take<F>(3 * rows);
  s.deviation = arena.take<F>(all);
  s.spread = arena.take<F>(all);
  return s;
}

template <class F> inline Dual<F> columns_from(Dual<F> x, int column) {
  return {x.v + column, x.t ? x.t + column : nullptr, x.ld};
}

// Add the bias to q, k and v and divide each by its norm.
template <class F, bool D>
void normalize(const AttentionShape<F>& shape, const AttentionLayer<F>& layer, int rows,
               AttentionSaved<F>& s) {
  const int block = shape.block(), lanes = LANES<F>;
  for (int i = 0; i < rows; ++i)
    for (int part = 0; part < 3; ++part) {
      F *v = s.qkv.v + i * s.qkv.ld + part * block, *t = s.qkv.t + i * s.qkv.ld + part * block;
      const F* bias = layer.in_bias + part * block;
      Vec<F> squares{}, mixed{};
      for (int c = 0; c < block; c += lanes) {
        const Vec<F> u = vec<F>(v + c) + vec<F>(bias + c);
        vec<F>(v + c) = u;
        squares += u * u;
        if constexpr (D) mixed += u * vec<F>(t + c);
      }
      const F square = std::max(sum<F>(squares), shape.floor), inverse = 1 / std::sqrt(square);
      const F drift = D ? sum<F>(mixed) / square : F(0);
      s.inverse[3 * i + part] = inverse;
      s.drift[3 * i + part] = drift;
      for (int c = 0; c < block; c += lanes) {
        vec<F>(v + c) *= inverse;
        if constexpr (D) vec<F>(t + c) = vec<F>(t + c) * inverse - vec<F>(v + c) * drift;
      }
    }
}

// q, k, v adjoints of the unit vectors -> of the vectors before normalisation, in place.
template <class F, bool D>
void normalize_backward(const AttentionShape<F>& shape, int rows, const AttentionSaved<F>& s,
                        Dual<F> bar) {
  const int block = shape.block(), lanes = LANES<F>;
  for (int i = 0; i < rows; ++i)
    for (int part = 0; part < 3; ++part) {
      const F *v = s.qkv.v + i * s.qkv.ld + part * block, *t = s.qkv.t + i * s.qkv.ld + part * block;
      F *bv = bar.v + i * bar.ld + part * block, *bt = bar.t + i * bar.ld + part * block;
      Vec<F> along{}, dalong{};
      for (int c = 0; c < block; c += lanes) {
        along += vec<F>(v + c) * vec<F>(bv + c);
        if constexpr (D)
          dalong += vec<F>(t + c) * vec<F>(bv + c) + vec<F>(v + c) * vec<F>(bt + c);
      }
      const F p = sum<F>(along), inverse = s.inverse[3 * i + part];
      const F dp = D ? sum<F>(dalong) : F(0), drift = s.drift[3 * i + part];
      for (int c = 0; c < block; c += lanes) {
        const Vec<F> a = vec<F>(bv + c), u = (a - vec<F>(v + c) * p) * inverse;
        vec<F>(bv + c) = u;
        if constexpr (D)
          vec<F>(bt + c) = (vec<F>(bt + c) - vec<F>(t + c) * p - vec<F>(v + c) * dp) * inverse
                           - u * drift;
      }
    }
}

// Gate of a pair of neighbours: sigma_j sigma_k cos, and its derivative.
template <class F, bool D> struct Pair {
  Vec<F> h, dh;
  Pair(const AttentionShape<F>& shape, const Gating<F>& g, int j, int c) {
    h = dh = Vec<F>{};
    const Dual<F> x = shape.gated ? g.h : g.sigma;
    for (int a = 0; a < (shape.gated ? 3 : 1); ++a) {
      const F* row = x.v + a * x.ld;
      h += row[j] * vec<F>(row + c);
      if constexpr (D) {
        const F* drow = x.t + a * x.ld;
        dh += row[j] * vec<F>(drow + c) + drow[j] * vec<F>(row + c);
      }
    }
  }
};

// q·k -> logits, softmax and gated weights.
template <class F, bool D>
void softmax(const AttentionShape<F>& shape, const Gating<F>& g, AttentionSaved<F>& s) {
  const int width = padded<F>(g.rows), lanes = LANES<F>;
  const F *sigma = g.sigma.v, *dsigma = g.sigma.t, shift = shape.shift;
  const F empty = g.empty * std::exp(-shift);
  for (int j = 0; j < g.rows; ++j) {
    F *tv = s.logits.v + j * s.logits.ld, *tt = s.logits.t + j * s.logits.ld;
    F *pv = s.p.v + j * s.p.ld, *pt = s.p.t + j * s.p.ld;
    F *wv = s.weight.v + j * s.weight.ld, *wt = s.weight.t + j * s.weight.ld;
    Vec<F> total{}, dtotal{};
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> t = vec<F>(tv + c) * shape.scale + shift, both = sigma[j] * vec<F>(sigma + c);
      const Vec<F> e = exp(t * both - shift) * vec<F>(g.present + c);
      vec<F>(tv + c) = t;
      vec<F>(pv + c) = e;
      total += e;
      if constexpr (D) {
        const Vec<F> dt = vec<F>(tt + c) * shape.scale;
        const Vec<F> da = dt * both + t * (dsigma[j] * vec<F>(sigma + c) + sigma[j] * vec<F>(dsigma + c));
        vec<F>(tt + c) = dt;
        vec<F>(pt + c) = da;
        dtotal += e * da;
      }
    }
    const F inverse = 1 / (sum<F>(total) + empty), mean = D ? sum<F>(dtotal) * inverse : F(0);
    for (int c = 0; c < width; c += lanes) {
      const Pair<F, D> gate(shape, g, j, c);
      const Vec<F> p = vec<F>(pv + c) * inverse;
      vec<F>(pv + c) = p;
      vec<F>(wv + c) = p * gate.h;
      if constexpr (D) {
        const Vec<F> dp = p * (vec<F>(pt + c) - mean);
        vec<F>(pt + c) = dp;
        vec<F>(wt + c) = dp * gate.h + p * gate.dh;
      }
    }
  }
}

// Adjoint of the gated weights -> adjoint of q·k, in place. On plain numbers the adjoints of
// sigma and h are added to.
template <class F, bool D>
void softmax_backward(const AttentionShape<F>& shape, const Gating<F>& g,
                      const AttentionSaved<F>& s, Dual<F> bar) {
  const int width = padded<F>(g.rows), lanes = LANES<F>;
  const F *sigma = g.sigma.v, *dsigma = g.sigma.t;
  const Dual<F> x = shape.gated ? g.h : g.sigma;
  F* x_bar = shape.gated ? g.h_bar : g.sigma_bar;
  const int axes = shape.gated ? 3 : 1;
  for (int j = 0; j < g.rows; ++j) {
    F *bv = bar.v + j * bar.ld, *bt = bar.t + j * bar.ld;
    const F *pv = s.p.v + j * s.p.ld, *pt = s.p.t + j * s.p.ld, *tv = s.logits.v + j * s.logits.ld;
    Vec<F> mean{}, dmean{};
    Vec<F> own[3] = {};
    for (int c = 0; c < width; c += lanes) {
      const Pair<F, D> gate(shape, g, j, c);
      const Vec<F> w = vec<F>(bv + c), p = vec<F>(pv + c), pbar = w * gate.h;
      vec<F>(bv + c) = pbar;
      mean += p * pbar;
      if constexpr (D) {
        const Vec<F> dpbar = vec<F>(bt + c) * gate.h + w * gate.dh;
        vec<F>(bt + c) = dpbar;
        dmean += vec<F>(pt + c) * pbar + p * dpbar;
      } else {
        const Vec<F> hbar = w * p;
        for (int a = 0; a < axes; ++a) {
          own[a] += hbar * vec<F>(x.v + a * x.ld + c);
          vec<F>(x_bar + a * x.ld + c) += hbar * x.v[a * x.ld + j];
        }
      }
    }
    const F m = sum<F>(mean), dm = D ? sum<F>(dmean) : F(0);
    if constexpr (!D)
      for (int a = 0; a < axes; ++a) x_bar[a * x.ld + j] += sum<F>(own[a]);
    Vec<F> own_sigma{};
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> p = vec<F>(pv + c), above = vec<F>(bv + c) - m, abar = p * above;
      const Vec<F> both = sigma[j] * vec<F>(sigma + c) * shape.scale;
      vec<F>(bv + c) = abar * both;
      if constexpr (D) {
        const Vec<F> dabar = vec<F>(pt + c) * above + p * (vec<F>(bt + c) - dm);
        const Vec<F> dboth =
            (dsigma[j] * vec<F>(sigma + c) + sigma[j] * vec<F>(dsigma + c)) * shape.scale;
        vec<F>(bt + c) = dabar * both + abar * dboth;
      } else if (shape.shift != 0) {
        const Vec<F> pull = abar * vec<F>(tv + c);
        own_sigma += pull * vec<F>(sigma + c);
        vec<F>(g.sigma_bar + c) += pull * sigma[j];
      }
    }
    if constexpr (!D)
      if (shape.shift != 0) g.sigma_bar[j] += sum<F>(own_sigma);
  }
}

// g + attention + bias -> layer norm. `out` holds o W_out in its first rows.
template <class F, bool D>
void layer_norm(const AttentionShape<F>& shape, const AttentionLayer<F>& layer, int rows, int all,
                Dual<F> g, AttentionSaved<F>& s, Dual<F> out) {
  const int width = padded<F>(shape.width), lanes = LANES<F>;
  const F n = 1 / F(shape.width);
  for (int i = 0; i < all; ++i) {
    F *ov = out.v + i * out.ld, *ot = out.t + i * out.ld;
    F *xv = s.normed.v + i * s.normed.ld, *xt = s.normed.t + i * s.normed.ld;
    Vec<F> first{}, dfirst{};
    for (int c = 0; c < width; c += lanes) {
      Vec<F> z = vec<F>(g.v + i * g.ld + c) + vec<F>(layer.out_bias + c);
      if (i < rows) z += vec<F>(ov + c);
      vec<F>(xv + c) = z;
      first += z;
      if constexpr (D) {
        Vec<F> dz = vec<F>(g.t + i * g.ld + c);
        if (i < rows) dz += vec<F>(ot + c);
        vec<F>(xt + c) = dz;
        dfirst += dz;
      }
    }
    const F mean = sum<F>(first) * n, dmean = D ? sum<F>(dfirst) * n : F(0);
    Vec<F> second{}, dsecond{};
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> x = (vec<F>(xv + c) - mean) * vec<F>(shape.columns + c);
      vec<F>(xv + c) = x;
      second += x * x;
      if constexpr (D) {
        vec<F>(xt + c) = (vec<F>(xt + c) - dmean) * vec<F>(shape.columns + c);
        dsecond += x * vec<F>(xt + c);
      }
    }
    const F variance = sum<F>(second) * n + shape.eps, deviation = 1 / std::sqrt(variance);
    const F spread = D ? -sum<F>(dsecond) * n / variance : F(0);
    s.deviation[i] = deviation;
    s.spread[i] = spread;
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> x = vec<F>(xv + c) * deviation;
      vec<F>(xv + c) = x;
      vec<F>(ov + c) = x * vec<F>(layer.gamma + c) + vec<F>(layer.beta + c);
      if constexpr (D) {
        const Vec<F> dx = vec<F>(xt + c) * deviation + x * spread;
        vec<F>(xt + c) = dx;
        vec<F>(ot + c) = dx * vec<F>(layer.gamma + c);
      }
    }
  }
}

// Adjoint behind the layer norm -> before it, in place; gradients of its weights and out_bias.
template <class F, bool D>
void layer_norm_backward(const AttentionShape<F>& shape, const AttentionLayer<F>& layer,
                         const AttentionLayer<F>& gradient, int all, const AttentionSaved<F>& s,
                         Dual<F> bar) {
  const int width = padded<F>(shape.width), lanes = LANES<F>;
  const F n = 1 / F(shape.width);
  for (int i = 0; i < all; ++i) {
    F *bv = bar.v + i * bar.ld, *bt = bar.t + i * bar.ld;
    const F *xv = s.normed.v + i * s.normed.ld, *xt = s.normed.t + i * s.normed.ld;
    Vec<F> first{}, second{}, dfirst{}, dsecond{};
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> y = vec<F>(bv + c), x = vec<F>(xv + c), b = y * vec<F>(layer.gamma + c);
      vec<F>(bv + c) = b;
      first += b;
      second += b * x;
      if constexpr (D) {
        const Vec<F> dy = vec<F>(bt + c), dx = vec<F>(xt + c), db = dy * vec<F>(layer.gamma + c);
        vec<F>(gradient.gamma + c) += dx * y + x * dy;
        vec<F>(gradient.beta + c) += dy;
        vec<F>(bt + c) = db;
        dfirst += db;
        dsecond += db * x + b * dx;
      }
    }
    const F m1 = sum<F>(first) * n, m2 = sum<F>(second) * n, deviation = s.deviation[i];
    const F dm1 = D ? sum<F>(dfirst) * n : F(0), dm2 = D ? sum<F>(dsecond) * n : F(0);
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> x = vec<F>(xv + c), columns = vec<F>(shape.columns + c);
      const Vec<F> z = (vec<F>(bv + c) - m1 - x * m2) * columns * deviation;
      vec<F>(bv + c) = z;
      if constexpr (D) {
        const Vec<F> dz = (vec<F>(bt + c) - dm1 - vec<F>(xt + c) * m2 - x * dm2) * columns * deviation
                          + z * s.spread[i];
        vec<F>(bt + c) = dz;
        vec<F>(gradient.out_bias + c) += dz;
      }
    }
  }
}

// One layer: g (rows + extra, width) -> out, which may not be g.
template <class F, bool D>
void attention_forward(const AttentionShape<F>& shape, const AttentionLayer<F>& layer,
                       const Gating<F>& gating, Arena& arena, Dual<F> g, AttentionSaved<F>& s,
                       Dual<F> out) {
  const int rows = gating.rows, block = shape.block();
  const size_t mark = arena.used();
  times<F, D>(rows, 3 * block, shape.width, g, layer.in.data, layer.in.ld, s.qkv);
  normalize<F, D>(shape, layer, rows, s);
  const Dual<F> k = take<F, D>(arena, shape.hidden, rows);
  transpose_dual<F, D>(rows, shape.hidden, columns_from(s.qkv, block), k);
  product<F, D>(rows, rows, shape.hidden, s.qkv, k, s.logits);
  softmax<F, D>(shape, gating, s);
  product<F, D>(rows, shape.hidden, rows, s.weight, columns_from(s.qkv, 2 * block), s.o);
  times<F, D>(rows, shape.width, shape.hidden, s.o, layer.out.data, layer.out.ld, out);
  layer_norm<F, D>(shape, layer, rows, rows + gating.extra, g, s, out);
  arena.release(mark);
}

// Adjoint of the layer's output -> of its input, in place.
template <class F, bool D>
void attention_backward(const AttentionShape<F>& shape, const AttentionLayer<F>& layer,
                        const AttentionLayer<F>& gradient, const Gating<F>& gating, Arena& arena, Dual<F> g,
                        const AttentionSaved<F>& s, Dual<F> bar) {
  const int rows = gating.rows, block = shape.block(), hidden = shape.hidden, width = shape.width;
  const size_t mark = arena.used();
  layer_norm_backward<F, D>(shape, layer, gradient, rows + gating.extra, s, bar);
  const Dual<F> o_bar = take<F, D>(arena, rows, hidden), v = take<F, D>(arena, hidden, rows);
  const Dual<F> pair_bar = take<F, D>(arena, rows, rows);
  const Dual<F> qkv_bar = take<F, D>(arena, rows, 3 * block);
  if constexpr (D) accumulate(hidden, width, rows, s.o, bar, gradient.out);
  times<F, D>(rows, hidden, width, bar, layer.out.transposed, layer.out.ld_transposed, o_bar);
  transpose_dual<F, D>(rows, hidden, columns_from(s.qkv, 2 * block), v);
  product<F, D>(rows, rows, hidden, o_bar, v, pair_bar);
  product<F, D, true>(rows, hidden, rows, s.weight, o_bar, columns_from(qkv_bar, 2 * block));
  softmax_backward<F, D>(shape, gating, s, pair_bar);
  product<F, D>(rows, hidden, rows, pair_bar, columns_from(s.qkv, block), qkv_bar);
  product<F, D, true>(rows, hidden, rows, pair_bar, s.qkv, columns_from(qkv_bar, block));
  normalize_backward<F, D>(shape, rows, s, qkv_bar);
  if constexpr (D) {
    accumulate(width, 3 * block, rows, g, qkv_bar, gradient.in);
    for (int i = 0; i < rows; ++i) add_to(gradient.in_bias, qkv_bar.t + i * qkv_bar.ld, 3 * block);
  }
  multiply<F, true>(rows, width, 3 * block, rows_of<F>(qkv_bar.v, qkv_bar.ld), layer.in.transposed,
                    layer.in.ld_transposed, bar.v, bar.ld);
  if constexpr (D)
    multiply<F, true>(rows, width, 3 * block, rows_of<F>(qkv_bar.t, qkv_bar.ld), layer.in.transposed,
                      layer.in.ld_transposed, bar.t, bar.ld);
  arena.release(mark);
}
