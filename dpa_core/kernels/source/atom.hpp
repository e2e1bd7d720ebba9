// One atom: its rows (neighbours and empty slots), their geometry, and the descriptor.
#pragma once
#include <algorithm>

#include "embedding.hpp"

// Geometry of a pair (dpa_core/env_mat.py), for the backward pass.
struct PairGeometry {
  double d[3], r, inverse, sw, slope; // slope: of the switch
};

template <class F> struct Atom {
  int64_t id;
  int rows, extra;              // neighbours; rows that stand for empty slots
  std::vector<int> slot;        // of the neighbours, in the table
  std::vector<int> row;         // first_bias (and factor) row of the pair of types, all rows
  std::vector<Block> blocks;
  std::vector<PairGeometry> pair;
  Dual<F> env;                  // (rows + extra, 4) normalised, divided by nnei
  Dual<F> sigma, direction;     // (1, rows) switch, (3, rows) unit vectors times sigma
  F* present;
  F empty;
  EmbeddingSaved<F> embedding;
  std::vector<AttentionSaved<F>> attention;
  std::vector<Dual<F>> g;       // input of every attention layer, and the last one's output
  Dual<F> x;                    // (4, width)
  int all() const { return rows + extra; }
};

// What is the same for all atoms of a job.
template <class F> struct Shape {
  const JobArgs& job;
  AttentionShape<F> attention;
  bool padded_rows; // davg is not 0, so that empty slots have rows
  int max_rows() const {
    return int(job.slots) + (padded_rows ? (job.sel ? int(job.ntypes) : 1) : 0);
  }
};

// w(r) = u³(-6u² + 15u - 10) + 1, u = (r - rcut_smth)/(rcut - rcut_smth), and its slope.
inline Number switch_of(Number r, const JobArgs& job, double& slope) {
  const double width = job.rcut - job.rcut_smth;
  const double u = std::min(std::max((r.v - job.rcut_smth) / width, 0.0), 1.0);
  slope = -30 * u * u * (u - 1) * (u - 1) / width;
  return {u * u * u * (-6 * u * u + 15 * u - 10) + 1, slope * r.t};
}

// Rows of empty slots: `count` of type `type`, together one row.
template <class F>
void add_empty_row(const Shape<F>& shape, Atom<F>& atom, int type, double count) {
  const JobArgs& job = shape.job;
  const int64_t centre = job.atype[atom.id], pair = centre * job.ntypes + type;
  const int i = atom.all();
  ++atom.extra;
  atom.row.push_back(int(job.row_of[pair]));
  atom.blocks.push_back({i, 1, int(job.net_of[pair])});
  for (int a = 0; a < 4; ++a) {
    const double value = -job.davg[4 * centre + a] / job.dstd[4 * centre + a];
    atom.env.v[4 * i + a] = F(value * count / double(job.nnei));
    if (atom.env.t) atom.env.t[4 * i + a] = 0;
    if (a == 0) atom.embedding.s[i] = F(value);
  }
  atom.embedding.ds[i] = 0;
}

// A neighbour that counts, and its vector from the centre.
struct Neighbor {
  int net, slot;
  int64_t type;
  double d[3];
};

// r_j + shift·box - r_i.
inline void neighbor_vector(const JobArgs& job, int64_t id, int64_t at, double* d) {
  const double *from = job.coord + 3 * id, *to = job.coord + 3 * job.index[at];
  const double *shift = job.shift + 3 * at, *box = job.box + 9 * job.frame[id];
  for (int a = 0; a < 3; ++a)
    d[a] = to[a] + (shift[0] * box[a] + shift[1] * box[3 + a] + shift[2] * box[6 + a]) - from[a];
}

// The derivative of a loss with respect to dE/dd, from those with respect to forces and virials:
// F_i = Σ_j g_ij - Σ_k g_ki and W = -Σ_ij g_ij ⊗ d_ij with g_ij = dE/dd_ij.
inline void direction_of(const JobArgs& job, int64_t id, int64_t at, const double* d, double* direction) {
  const double *here = job.force_bar + 3 * id, *there = job.force_bar + 3 * job.index[at];
  const double* virial = job.virial_bar + 9 * job.frame[id];
  for (int a = 0; a < 3; ++a, virial += 3)
    direction[a] = here[a] - there[a] - (virial[0] * d[0] + virial[1] * d[1] + virial[2] * d[2]);
}

// One neighbour's row; on dual numbers with its derivative along the loss's direction.
template <class F, bool D>
void add_neighbor(const Shape<F>& shape, Atom<F>& atom, int i, const Neighbor& neighbor) {
  const JobArgs& job = shape.job;
  const int64_t centre = job.atype[atom.id];
  double direction[3] = {};
  if constexpr (D)
    direction_of(job, atom.id, atom.id * job.slots + neighbor.slot, neighbor.d, direction);
  Number d[3];
  for (int a = 0; a < 3; ++a) d[a] = {neighbor.d[a], direction[a]};
  PairGeometry pair;
  const Number r = root(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
  const Number w = switch_of(r, job, pair.slope);
  const Number inverse = reciprocal(r + constant(job.protection)), along = reciprocal(r);
  const Number radial = w * inverse, angular = radial * inverse;
  const double *average = job.davg + 4 * centre, *deviation = job.dstd + 4 * centre;
  for (int a = 0; a < 4; ++a) {
    const Number raw = a == 0 ? radial : angular * d[a - 1];
    const double value = (raw.v - average[a]) / deviation[a];
    atom.env.v[4 * i + a] = F(value / double(job.nnei));
    if constexpr (D) atom.env.t[4 * i + a] = F(raw.t / deviation[a] / double(job.nnei));
    if (a == 0) {
      atom.embedding.s[i] = F(value);
      atom.embedding.ds[i] = D ? F(raw.t / deviation[a]) : F(1);
    }
  }
  const Number sigma = job.smooth ? w : constant(1);
  atom.sigma.v[i] = F(sigma.v);
  if constexpr (D) atom.sigma.t[i] = F(sigma.t);
  for (int a = 0; a < 3; ++a) {
    const Number h = d[a] * along * sigma;
    pair.d[a] = d[a].v;
    atom.direction.v[a * atom.direction.ld + i] = F(h.v);
    if constexpr (D) atom.direction.t[a * atom.direction.ld + i] = F(h.t);
  }
  atom.present[i] = 1;
  pair.r = r.v, pair.inverse = inverse.v, pair.sw = w.v;
  atom.pair.push_back(pair);
  atom.slot.push_back(neighbor.slot);
  atom.row.push_back(int(job.row_of[centre * job.ntypes + neighbor.type]));
  if (atom.blocks.empty() || atom.blocks.back().net != neighbor.net)
    atom.blocks.push_back({i, 0, neighbor.net});
  ++atom.blocks.back().count;
}

// Take the memory of an atom with at most `rows` rows.
template <class F, bool D> void take_atom(const Shape<F>& shape, Arena& arena, int all, Atom<F>& atom) {
  const JobArgs& job = shape.job;
  atom.env = {arena.take<F>(4 * all), D ? arena.take<F>(4 * all) : nullptr, 4};
  atom.sigma = take<F, D>(arena, 1, all);
  atom.direction = take<F, D>(arena, 3, all);
  atom.present = arena.take<F>(atom.sigma.ld);
  atom.embedding = take_embedding<F>(job, arena, all);
  if constexpr (D) take_layers(job, arena, all, atom.embedding);
  atom.g = {atom.embedding.g};
  atom.attention.clear();
  for (int k = 0; k < job.attention_layers; ++k) {
    atom.attention.push_back(take_attention<F, D>(arena, shape.attention, all, all));
    atom.g.push_back(take<F, D>(arena, all, int(job.width)));
  }
  atom.x = take<F, D>(arena, 4, int(job.width));
}

// Whether `sel` has too little room for neighbours of these types.
inline bool is_crowded(const JobArgs& job, const std::vector<int64_t>& near) {
  int64_t total = 0;
  for (int t = 0; t < job.ntypes; ++t) {
    total += near[t];
    if (job.sel && near[t] > job.sel[t]) return true;
  }
  return total > job.nnei;
}

// Neighbours that count, ordered by net; `occupied`: slots that are not empty, by type.
template <class F>
std::vector<Neighbor> visible(const Shape<F>& shape, int64_t id, double* occupied) {
  const JobArgs& job = shape.job;
  const int64_t centre = job.atype[id];
  std::vector<Neighbor> found;
  found.reserve(job.slots);
  std::vector<int64_t> near(job.ntypes, 0);
  for (int slot = 0; slot < job.slots; ++slot) {
    const int64_t at = id * job.slots + slot;
    if (!job.mask[at]) continue;
    const int64_t type = job.atype[job.index[at]], pair = centre * job.ntypes + type;
    Neighbor neighbor{int(job.net_of[pair]), slot, type, {}};
    double* d = neighbor.d;
    neighbor_vector(job, id, at, d);
    if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= job.rcut * job.rcut) continue;
    ++near[type];
    if (!job.interacts[pair]) continue;
    occupied[type] += 1;
    if (job.allowed[pair]) found.push_back(neighbor);
  }
  if (job.nets > 1)
    std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.net < b.net; });
  if (job.crowded && is_crowded(job, near)) __atomic_store_n(job.crowded, 1, __ATOMIC_RELAXED);
  return found;
}

// Rows, geometry, embedding, attention and the descriptor's factor X of atom `id`.
template <class F, bool D>
void describe(const Shape<F>& shape, const Model<F>& model, Arena& arena, int64_t id, Atom<F>& atom) {
  const JobArgs& job = shape.job;
  std::vector<double> occupied(job.ntypes, 0.0);
  const auto neighbors = visible(shape, id, occupied.data());
  const int extra = shape.padded_rows ? (job.sel ? int(job.ntypes) : 1) : 0;
  const int rows = int(neighbors.size()), width = int(job.width);
  atom.id = id, atom.rows = rows, atom.extra = 0;
  atom.slot.clear(), atom.row.clear(), atom.blocks.clear(), atom.pair.clear();
  take_atom<F, D>(shape, arena, rows + extra, atom);
  clear<F, D>(atom.sigma, 1);
  clear<F, D>(atom.direction, 3);
  std::memset(atom.present, 0, atom.sigma.ld * sizeof(F));
  for (int i = 0; i < rows; ++i) add_neighbor<F, D>(shape, atom, i, neighbors[i]);
  double total = 0;
  for (double n : occupied) total += n;
  if (shape.padded_rows && job.sel) {
    for (int t = 0; t < job.ntypes; ++t) add_empty_row(shape, atom, t, double(job.sel[t]) - occupied[t]);
  } else if (shape.padded_rows) {
    add_empty_row(shape, atom, int(job.pad_type[id]), double(job.nnei) - total);
  }
  atom.empty = job.smooth ? F(double(job.nnei) - rows) : F(0);
  const size_t mark = arena.used();
  if constexpr (!D) take_layers(job, arena, atom.all(), atom.embedding); // for the time being
  if (job.table) look_up(job, atom.all(), atom.row.data(), atom.embedding);
  else embed(model, atom.blocks, atom.row.data(), atom.embedding, int(job.first_width));
  arena.release(mark);
  if (job.factor)
    apply_factor<F, D>(model, atom.row.data(), atom.all(), job.smooth, atom.sigma.v, atom.sigma.t,
                       atom.embedding, width);
  const Gating<F> gating{rows, atom.extra, atom.empty, atom.present, atom.sigma, atom.direction,
                         nullptr, nullptr};
  for (int k = 0; k < job.attention_layers; ++k)
    attention_forward<F, D>(shape.attention, model.attention[k], gating, arena, atom.g[k],
                            atom.attention[k], atom.g[k + 1]);
  product<F, D, true>(4, width, atom.all(), atom.env, atom.g.back(), atom.x);
}

// D = XᵀX[:, :axis] of an atom, flat, rows padded to whole vectors.
template <class F, bool D> void contract(const JobArgs& job, const Atom<F>& atom, Dual<F> row) {
  row.ld = padded<F>(int(job.axis));
  product<F, D, true>(int(job.width), int(job.axis), 4, atom.x, atom.x, row);
}

// Adjoint of X from that of D.
template <class F, bool D>
Dual<F> contract_backward(const JobArgs& job, const Atom<F>& atom, Arena& arena, Dual<F> bar) {
  const int width = int(job.width), axis = int(job.axis), lanes = LANES<F>;
  const Dual<F> flipped = take<F, D>(arena, axis, width), x_bar = take<F, D>(arena, 4, width);
  const Dual<F> other = take<F, D>(arena, 4, axis);
  bar.ld = padded<F>(axis);
  transpose_dual<F, D>(width, axis, bar, flipped);
  product<F, D>(4, width, axis, atom.x, flipped, x_bar);
  product<F, D>(4, axis, width, atom.x, bar, other);
  for (int a = 0; a < 4; ++a)
    for (int c = 0; c < padded<F>(axis); c += lanes) {
      vec<F>(x_bar.v + a * x_bar.ld + c) += vec<F>(other.v + a * other.ld + c);
      if constexpr (D) vec<F>(x_bar.t + a * x_bar.ld + c) += vec<F>(other.t + a * other.ld + c);
    }
  return x_bar;
}

// dE/dd of a neighbour from the adjoints of its row, embedding input, switch and direction.
template <class F>
void vector_gradient(const JobArgs& job, const PairGeometry& p, const double* deviation,
                     const double* env_bar, double s_bar, double sw_bar, const double* h_bar,
                     double* gradient) {
  const double radial = p.sw * p.inverse, angular = radial * p.inverse;
  double along[3], dot = 0, rows_dot = 0;
  const double sigma = job.smooth ? p.sw : 1.0, radial_row = (env_bar[0] + s_bar) / deviation[0];
  double rows[3];
  for (int a = 0; a < 3; ++a) {
    along[a] = p.d[a] / p.r;
    rows[a] = env_bar[a + 1] / deviation[a + 1];
    rows_dot += rows[a] * p.d[a];
    dot += h_bar[a] * along[a];
  }
  sw_bar = job.smooth ? sw_bar + dot : 0; // h = sigma times the unit vector; or sigma is 1
  const double radial_bar = radial_row + p.inverse * rows_dot;
  const double inverse_bar = radial * rows_dot + radial_bar * p.sw;
  const double r_bar =
      -p.inverse * p.inverse * inverse_bar + p.slope * (sw_bar + radial_bar * p.inverse);
  for (int a = 0; a < 3; ++a)
    gradient[a] = angular * rows[a] + sigma * (h_bar[a] - along[a] * dot) / p.r + r_bar * along[a];
}

// dE/dd (slots, 3) of all neighbours of an atom, from the adjoint of its X. Plain numbers.
template <class F>
void differentiate(const Shape<F>& shape, const Model<F>& model, Arena& arena, const Atom<F>& atom,
                   Dual<F> x_bar, double* gradient) {
  const JobArgs& job = shape.job;
  const int width = int(job.width), rows = atom.rows, lanes = LANES<F>;
  const size_t mark = arena.used();
  const ptrdiff_t ld = atom.sigma.ld;
  F* bars = arena.take<F>(4 * ld); // of sigma and of the three directions
  std::memset(bars, 0, 4 * ld * sizeof(F));
  Dual<F> g_bar; // of the embedding; without attention it is made in passing
  if (job.attention_layers) {
    g_bar = take<F, false>(arena, atom.all(), width);
    product<F, false>(atom.all(), width, 4, atom.env, x_bar, g_bar);
  }
  const Gating<F> gating{rows, atom.extra, atom.empty, atom.present, atom.sigma, atom.direction,
                         bars, bars + ld};
  for (int k = int(job.attention_layers) - 1; k >= 0; --k)
    attention_backward<F, false>(shape.attention, model.attention[k], {}, gating, arena, atom.g[k],
                                 atom.attention[k], g_bar);
  const Dual<F> g = atom.g.back(), n = atom.embedding.n, slope = atom.embedding.g;
  std::memset(gradient, 0, job.slots * 3 * sizeof(double));
  for (int i = 0; i < rows; ++i) {
    Vec<F> sums[4] = {}, s_sum{}, sw_sum{};
    const F* factor = job.factor ? model.factor.data + atom.row[i] * model.factor.ld : nullptr;
    for (int c = 0; c < padded<F>(width); c += lanes) {
      const Vec<F> value = vec<F>(g.v + i * g.ld + c);
      Vec<F> b{};
      for (int a = 0; a < 4; ++a) {
        const Vec<F> x = vec<F>(x_bar.v + a * x_bar.ld + c);
        sums[a] += value * x;
        b += atom.env.v[4 * i + a] * x;
      }
      if (g_bar.v) b = vec<F>(g_bar.v + i * g_bar.ld + c);
      s_sum += b * vec<F>(slope.t + i * slope.ld + c);
      if (factor && job.smooth) sw_sum += b * vec<F>(n.v + i * n.ld + c) * vec<F>(factor + c);
    }
    double env_bar[4], h_bar[3];
    for (int a = 0; a < 4; ++a) env_bar[a] = double(sum<F>(sums[a])) / double(job.nnei);
    for (int a = 0; a < 3; ++a) h_bar[a] = bars[(a + 1) * ld + i];
    vector_gradient<F>(job, atom.pair[i], job.dstd + 4 * job.atype[atom.id], env_bar,
                       sum<F>(s_sum), double(bars[i]) + sum<F>(sw_sum), h_bar,
                       gradient + 3 * atom.slot[i]);
  }
  arena.release(mark);
}

// Gradients of the weights of attention and embedding, from the adjoint of X. Dual numbers.
template <class F>
void differentiate_weights(const Shape<F>& shape, const Model<F>& model, Model<F>& gradient,
                           Arena& arena, const Atom<F>& atom, Dual<F> x_bar) {
  const JobArgs& job = shape.job;
  const int width = int(job.width);
  const size_t mark = arena.used();
  const Dual<F> g_bar = take<F, true>(arena, atom.all(), width);
  product<F, true>(atom.all(), width, 4, atom.env, x_bar, g_bar);
  const Gating<F> gating{atom.rows, atom.extra, atom.empty, atom.present, atom.sigma,
                         atom.direction, nullptr, nullptr};
  for (int k = int(job.attention_layers) - 1; k >= 0; --k)
    attention_backward<F, true>(shape.attention, model.attention[k], gradient.attention[k], gating,
                                arena, atom.g[k], atom.attention[k], g_bar);
  if (job.factor)
    factor_backward(model, gradient, atom.row.data(), atom.all(), job.smooth, atom.sigma.v,
                    atom.sigma.t, atom.embedding, width, g_bar);
  if (!job.table)
    embed_backward(model, gradient, atom.blocks, atom.row.data(), atom.embedding,
                   int(job.first_width), arena, g_bar);
  arena.release(mark);
}
