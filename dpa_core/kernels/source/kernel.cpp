// Energies, forces and virials, and gradients of a loss of them: threads over groups of atoms.
//
// A group is as many atoms as fit the scratch memory of a thread; its atoms pass the fitting net
// together. Nothing outlives a group, so memory does not grow with the number of atoms.
#include <atomic>
#include <exception>

#include "assemble.hpp"

namespace {

template <class F> Shape<F> shape_of(const JobArgs& job, const F* columns) {
  bool shifted = false;
  for (int64_t i = 0; i < 4 * job.ntypes; ++i) shifted = shifted || job.davg[i] != 0;
  AttentionShape<F> attention;
  attention.hidden = int(job.hidden);
  attention.width = int(job.width);
  attention.scale = F(job.scale);
  attention.shift = job.smooth ? F(20) : F(0);
  attention.eps = F(job.epsilon);
  attention.floor = F(1e-24);
  attention.gated = job.gated;
  attention.columns = columns;
  return {job, attention, shifted};
}

struct Group {
  int64_t start, count;
};

// Runs of the order with equal fitting nets, cut to `size`.
std::vector<Group> groups_of(const JobArgs& job, int64_t size) {
  std::vector<Group> groups;
  for (int64_t i = 0; i < job.active; ++i) {
    const bool fits = !groups.empty() && groups.back().count < size
                      && job.which[job.order[i]] == job.which[job.order[i - 1]];
    if (fits) ++groups.back().count;
    else groups.push_back({i, 1});
  }
  return groups;
}

// Layers of the fitting net for the atoms of a group.
template <class F> struct FittingSaved {
  Dual<F> d;                    // (atoms, width * axis) descriptors
  std::vector<Dual<F>> y, x;
};

template <class F, bool D>
FittingSaved<F> take_fitting(const JobArgs& job, Arena& arena, int atoms) {
  FittingSaved<F> saved;
  saved.d = take<F, D>(arena, atoms, int(job.width) * padded<F>(int(job.axis)));
  for (int k = 0; k + 1 < job.fitting[0].layers; ++k) {
    saved.y.push_back(take<F, D>(arena, atoms, int(job.fitting[0].layer[k].out)));
    saved.x.push_back(take<F, D>(arena, atoms, int(job.fitting[0].layer[k].out)));
  }
  return saved;
}

template <class F> const F* first_of(const JobArgs& job, int head, int64_t atom) {
  const int64_t row = job.first_row[head * job.natoms + atom];
  return static_cast<const F*>(job.first) + row * job.fitting[0].layer[0].out;
}

// Energies of a group, and the adjoint of its descriptors (into `d_bar`).
template <class F, bool D>
void fit(const JobArgs& job, const std::vector<Layer<F>>& net, std::vector<Layer<F>>* gradient,
         int head, const std::vector<Atom<F>>& atoms, int count, Arena& arena,
         const FittingSaved<F>& saved, Dual<F> d_bar) {
  const int hidden = int(net.size()) - 1, first = net[0].out;
  const size_t mark = arena.used();
  F* bias = arena.take<F>(count * stride<F>(first));
  std::memset(bias, 0, count * stride<F>(first) * sizeof(F));
  for (int i = 0; i < count; ++i)
    std::copy_n(first_of<F>(job, head, atoms[i].id), first, bias + i * stride<F>(first));
  times<F, D>(count, first, net[0].in, saved.d, net[0].weight.data, net[0].weight.ld, saved.y[0]);
  finish_layer<F, D>(net[0], count, saved.d, saved.y[0], saved.x[0],
                     [&](int i) { return bias + i * stride<F>(first); });
  for (int k = 1; k < hidden; ++k)
    forward<F, D>(net[k], count, {saved.x[k - 1], saved.y[k]}, saved.x[k]);
  const Layer<F>& last = net[hidden];
  const Dual<F> h = saved.x.back();
  Dual<F> bar = take<F, D>(arena, count, last.in);
  for (int i = 0; i < count; ++i) { // energy = h·w + b, with adjoint 1, whose derivative is `energy_bar`
    const F a = D ? F(job.energy_bar[atoms[i].id]) : F(0);
    F energy = last.bias ? last.bias[0] : F(0);
    for (int c = 0; c < last.in; ++c) energy += h.v[i * h.ld + c] * last.weight.data[c * last.weight.ld];
    if constexpr (!D) job.energy[head * job.natoms + atoms[i].id] = double(energy);
    for (int c = 0; c < padded<F>(last.in); ++c) {
      const F w = c < last.in ? last.weight.data[c * last.weight.ld] : F(0);
      bar.v[i * bar.ld + c] = w;
      if constexpr (D) bar.t[i * bar.ld + c] = a * w;
    }
    if constexpr (D) {
      Layer<F>& g = (*gradient)[hidden];
      if (g.bias) g.bias[0] += a;
      for (int c = 0; c < last.in; ++c)
        g.weight.data[c * g.weight.ld] += h.t[i * h.ld + c] + a * h.v[i * h.ld + c];
    }
  }
  for (int k = hidden - 1; k > 0; --k) {
    const Dual<F> u_bar = take<F, D>(arena, count, net[k].out), x_bar = take<F, D>(arena, count, net[k].in);
    backward<F, D>(net[k], D ? (*gradient)[k] : net[k], count, {saved.x[k - 1], saved.y[k]}, bar, u_bar, x_bar);
    bar = x_bar;
  }
  const Dual<F> u_bar = take<F, D>(arena, count, first);
  F* g_first = static_cast<F*>(job.g_first);
  backward_activation<F, D>(net[0], D ? (*gradient)[0] : net[0], count, saved.y[0], bar, u_bar,
                            [&](int i, const F* row) {
                              if (!g_first) return;
                              F* target = g_first + job.first_row[head * job.natoms + atoms[i].id] * first;
                              for (int c = 0; c < first; ++c) target[c] += row[c];
                            });
  if constexpr (D) accumulate(net[0].in, first, count, saved.d, u_bar, (*gradient)[0].weight);
  times<F, D>(count, net[0].in, first, u_bar, net[0].weight.transposed, net[0].weight.ld_transposed, d_bar);
  arena.release(mark);
}

// All of one group. With D the gradients of the weights, else energies and dE/dd.
template <class F, bool D>
void run_group(const Shape<F>& shape, const Model<F>& model, Model<F>* gradient,
               const PairGradients* pairs, Arena& arena, Group group, std::vector<Atom<F>>& atoms) {
  const JobArgs& job = shape.job;
  const size_t start = arena.used();
  const int count = int(group.count);
  const FittingSaved<F> saved = take_fitting<F, D>(job, arena, count);
  for (int i = 0; i < count; ++i) {
    describe<F, D>(shape, model, arena, job.order[group.start + i], atoms[i]);
    contract<F, D>(job, atoms[i], rows_from(saved.d, i));
  }
  std::vector<Dual<F>> d_bars;
  for (int head = 0; head < job.heads; ++head) {
    const int64_t net = job.which[head * job.natoms + atoms[0].id];
    d_bars.push_back(take<F, D>(arena, count, int(job.width) * padded<F>(int(job.axis))));
    fit<F, D>(job, model.fitting[net], D ? &gradient->fitting[net] : nullptr, head, atoms, count,
              arena, saved, d_bars.back());
  }
  for (int i = 0; i < (D && job.frozen ? 0 : count); ++i)
    for (int head = 0; head < job.heads; ++head) {
      const size_t mark = arena.used();
      const Dual<F> x_bar =
          contract_backward<F, D>(job, atoms[i], arena, rows_from(d_bars[head], i));
      if constexpr (D) {
        differentiate_weights(shape, model, *gradient, arena, atoms[i], x_bar);
      } else {
        differentiate(shape, model, arena, atoms[i], x_bar, pairs->of(head, atoms[i].id));
        pairs->sum(head, atoms[i]);
      }
      arena.release(mark);
    }
  arena.release(start);
}

// Bytes of scratch memory: what one atom keeps, and what a group needs besides.
template <class F, bool D> size_t atom_bytes(const Shape<F>& shape) {
  Arena counter;
  Atom<F> atom;
  take_atom<F, D>(shape, counter, shape.max_rows(), atom);
  return counter.used();
}

template <class F, bool D> size_t shared_bytes(const Shape<F>& shape, int count) {
  const JobArgs& job = shape.job;
  const int rows = shape.max_rows(), width = int(job.width);
  Arena counter;
  EmbeddingSaved<F> layers = take_embedding<F>(job, counter, rows);
  take_layers(job, counter, rows, layers);
  for (int64_t k = 0; k < job.heads + 1; ++k) take_fitting<F, D>(job, counter, count);
  for (int k = 0; k < job.fitting[0].layers; ++k) {
    take<F, D>(counter, 2 * count, int(job.fitting[0].layer[k].out));
    take<F, D>(counter, count, int(job.fitting[0].layer[k].in) * (k ? 1 : 2));
  }
  take<F, D>(counter, 2 * width, int(job.axis) + 16);
  take<F, D>(counter, 16, width);
  take<F, D>(counter, 3, rows + width);
  if (job.attention_layers) {
    const int block = shape.attention.block();
    for (int k = 0; k < 2; ++k) take<F, D>(counter, block + rows, std::max(rows, block));
    take<F, D>(counter, rows, 3 * block);
    take<F, D>(counter, rows, rows);
  }
  take<F, D>(counter, 5 * rows, width);
  return counter.used() + 65536;
}

template <class F, bool D> int run(const JobArgs& job) {
  const std::unique_ptr<Arena> ones = std::make_unique<Arena>(stride<F>(int(job.width)) * sizeof(F));
  F* columns = ones->template take<F>(stride<F>(int(job.width)));
  for (int c = 0; c < stride<F>(int(job.width)); ++c) columns[c] = c < job.width ? F(1) : F(0);
  const Shape<F> shape = shape_of<F>(job, columns);
  const std::shared_ptr<const Storage<F>> weights = packed_weights<F>(job);
  const size_t one = atom_bytes<F, D>(shape);
  int64_t size = int64_t(job.group_bytes / one) / TILE_ROWS * TILE_ROWS;
  const int64_t share = (job.active / (4 * job.threads) + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  size = std::max<int64_t>(std::min({size, share, int64_t(96)}), TILE_ROWS);
  const std::vector<Group> groups = groups_of(job, size);
  const size_t scratch = one * size_t(size) + shared_bytes<F, D>(shape, int(size));
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(job.threads, int64_t(groups.size()))));
  std::vector<std::unique_ptr<Storage<F>>> gradients(threads);
  // Memory comes from this thread, whose allocator keeps what is freed; others' goes with them.
  std::vector<std::unique_ptr<Arena>> arenas(threads);
  for (int k = 0; k < threads; ++k) {
    arenas[k] = std::make_unique<Arena>(scratch);
    if constexpr (D) gradients[k] = std::make_unique<Storage<F>>(job, false);
  }
  const std::unique_ptr<PairGradients> pairs(D ? nullptr : new PairGradients(job));
  std::atomic<int> failures{0};
  std::atomic<size_t> next{0};
  auto work = [&](int thread) {
    try {
      Arena& arena = *arenas[thread];
      std::vector<Atom<F>> atoms(size);
      if constexpr (D) { // fixed shares, so that sums come in the same order every time
        for (size_t k = thread; k < groups.size(); k += threads)
          run_group<F, true>(shape, weights->model, &gradients[thread]->model, nullptr, arena, groups[k], atoms);
      } else {
        for (size_t k = next++; k < groups.size(); k = next++)
          run_group<F, false>(shape, weights->model, nullptr, pairs.get(), arena, groups[k], atoms);
      }
    } catch (const std::exception&) {
      ++failures;
    }
  };
  std::vector<std::thread> others;
  for (int k = 1; k < threads; ++k) others.emplace_back(work, k);
  work(0);
  for (std::thread& other : others) other.join();
  if (failures) return -1;
  if constexpr (D)
    for (auto& gradient : gradients) gradient->add_to(job);
  else pairs->finish();
  return 0;
}

template <class F, bool D> int guarded(const JobArgs* job) {
  try {
    return run<F, D>(*job);
  } catch (const std::exception&) {
    return -1;
  }
}

} // namespace

// Compiled once for each precision of the networks.
extern "C" {
int energies(const JobArgs* job) { return guarded<PRECISION, false>(job); }
int parameters(const JobArgs* job) { return guarded<PRECISION, true>(job); }
}
