// The weights of a job, with padded rows and transposes; and gradients laid out alike.
#pragma once
#include <algorithm>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "attention.hpp"
#include "job.hpp"

template <class F> struct Model {
  std::vector<std::vector<Layer<F>>> embedding, fitting;
  std::vector<AttentionLayer<F>> attention;
  Matrix<F> first_weight, first_bias, factor;
};

// Where an array of the job goes: rows and columns come in blocks, each padded by itself.
template <class F> struct Place {
  int rows, columns, row_block, column_block;
  const void* source;
  void* gradient;
  bool shaped_like(const Place& o) const {
    return rows == o.rows && columns == o.columns && row_block == o.row_block
           && column_block == o.column_block;
  }
  int row(int i) const { return i / row_block * padded<F>(row_block) + i % row_block; }
  // Call each(packed position, position, length) for every run of neighbouring numbers.
  template <class Each> void runs(ptrdiff_t ld, Each each) const {
    for (int i = 0; i < rows; ++i)
      for (int k = 0; k < columns / column_block; ++k)
        each(row(i) * ld + k * padded<F>(column_block),
             ptrdiff_t(i) * columns + k * column_block, column_block);
  }
  int packed_rows() const { return rows == row_block ? rows : rows / row_block * padded<F>(row_block); }
  int packed_columns() const { return columns / column_block * padded<F>(column_block); }
};

// Give every array of the job its place in `model`; `each(Place, matrix&, with_transpose)` makes it.
template <class F, class Each> void for_each_array(const JobArgs& job, Model<F>& model, Each each) {
  auto vector = [&](int n, int block, const void* source, void* gradient, F*& target) {
    if (!source) return;
    Matrix<F> row;
    each(Place<F>{1, n, 1, block, source, gradient}, row, false);
    target = row.data;
  };
  auto net = [&](const NetArgs& args, std::vector<Layer<F>>& layers, int first_block) {
    layers.resize(args.layers);
    for (int k = 0; k < args.layers; ++k) {
      const LayerArgs& a = args.layer[k];
      Layer<F>& layer = layers[k];
      const int in = a.in, out = a.out, block = k == 0 && first_block ? first_block : in;
      const Place<F> weight{in, out, block, out, a.weight, a.g_weight};
      layer.in = weight.packed_rows(), layer.out = out, layer.copies = a.copies;
      each(weight, layer.weight, true);
      vector(out, out, a.bias, a.g_bias, layer.bias);
      vector(out, out, a.idt, a.g_idt, layer.idt);
    }
  };
  const int rows = job.first_rows, nets = job.nets, first = job.first_width, width = job.width;
  if (!job.table) {
    each(Place<F>{nets, first, nets, first, job.first_weight, job.g_first_weight},
         model.first_weight, false);
    each(Place<F>{rows, first, rows, first, job.first_bias, job.g_first_bias}, model.first_bias,
         false);
  }
  if (job.factor) {
    const int n = job.factor_rows;
    each(Place<F>{n, width, n, width, job.factor, job.g_factor}, model.factor, false);
  }
  model.embedding.resize(nets);
  for (int k = 0; k < nets; ++k) net(job.embedding[k], model.embedding[k], 0);
  model.attention.resize(job.attention_layers);
  for (int k = 0; k < job.attention_layers; ++k) {
    const AttentionArgs& a = job.attention[k];
    AttentionLayer<F>& layer = model.attention[k];
    const int hidden = job.hidden;
    each(Place<F>{width, 3 * hidden, width, hidden, a.in, a.g_in}, layer.in, true);
    vector(3 * hidden, hidden, a.in_bias, a.g_in_bias, layer.in_bias);
    each(Place<F>{hidden, width, hidden, width, a.out, a.g_out}, layer.out, true);
    vector(width, width, a.out_bias, a.g_out_bias, layer.out_bias);
    vector(width, width, a.gamma, a.g_gamma, layer.gamma);
    vector(width, width, a.beta, a.g_beta, layer.beta);
  }
  model.fitting.resize(job.fitting_nets);
  for (int k = 0; k < job.fitting_nets; ++k) net(job.fitting[k], model.fitting[k], job.axis);
}

// Memory and pointers of a model: copied weights, or zeros for gradients.
template <class F> class Storage {
public:
  Storage(const JobArgs& job, bool weights) {
    Arena counter;
    place(job, counter, weights, false);
    arena_ = std::make_unique<Arena>(counter.used());
    place(job, *arena_, weights, true);
  }
  Model<F> model;

  // Add gradients to the arrays of the job.
  void add_to(const JobArgs& job) const {
    Model<F> walk;
    size_t next = 0;
    for_each_array<F>(job, walk, [&](const Place<F>& p, Matrix<F>&, bool) {
      const Matrix<F> matrix = made_[next++].second;
      F* gradient = static_cast<F*>(p.gradient);
      if (!gradient) return;
      p.runs(matrix.ld, [&](ptrdiff_t from, ptrdiff_t to, int length) {
        for (int c = 0; c < length; ++c) gradient[to + c] += matrix.data[from + c];
      });
    });
  }

  // Whether these are the job's weights, bit for bit.
  bool holds(const JobArgs& job) const {
    Model<F> walk;
    size_t next = 0;
    bool same = true;
    for_each_array<F>(job, walk, [&](const Place<F>& p, Matrix<F>& matrix, bool) {
      same = same && next < made_.size() && made_[next].first.shaped_like(p);
      if (!same) return;
      matrix = made_[next++].second;
      p.runs(matrix.ld, [&](ptrdiff_t at, ptrdiff_t from, int length) {
        const F* source = static_cast<const F*>(p.source) + from;
        same = same && !std::memcmp(matrix.data + at, source, length * sizeof(F));
      });
    });
    return same && next == made_.size() && alike(walk.embedding, model.embedding)
           && alike(walk.fitting, model.fitting);
  }

private:
  std::unique_ptr<Arena> arena_;
  std::vector<std::pair<Place<F>, Matrix<F>>> made_;

  using Nets = std::vector<std::vector<Layer<F>>>;
  static bool alike(const Nets& a, const Nets& b) {
    const auto layers = [](const Layer<F>& x, const Layer<F>& y) {
      return x.in == y.in && x.out == y.out && x.copies == y.copies && x.bias == y.bias
             && x.idt == y.idt;
    };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](auto& x, auto& y) {
      return std::equal(x.begin(), x.end(), y.begin(), y.end(), layers);
    });
  }

  void place(const JobArgs& job, Arena& arena, bool weights, bool real) {
    for_each_array<F>(job, model, [&](const Place<F>& p, Matrix<F>& matrix, bool transposed) {
      const int rows = p.packed_rows(), columns = p.packed_columns();
      matrix.ld = stride<F>(columns);
      matrix.data = arena.take<F>(rows * matrix.ld);
      if (weights && transposed) {
        matrix.ld_transposed = stride<F>(rows);
        matrix.transposed = arena.take<F>(columns * matrix.ld_transposed);
      }
      if (!real) return;
      std::memset(matrix.data, 0, rows * matrix.ld * sizeof(F));
      made_.push_back({p, matrix});
      if (!weights) return;
      const F* source = static_cast<const F*>(p.source);
      p.runs(matrix.ld, [&](ptrdiff_t to, ptrdiff_t from, int length) {
        std::copy_n(source + from, length, matrix.data + to);
      });
      if (transposed)
        transpose(rows, columns, matrix.data, matrix.ld, matrix.transposed, matrix.ld_transposed);
    });
  }
};

// The weights of a job. Those of the latest models are kept, so that the steps of a trajectory
// and the two passes of a training step find them packed.
template <class F> std::shared_ptr<const Storage<F>> packed_weights(const JobArgs& job) {
  static std::mutex mutex;
  static std::list<std::shared_ptr<const Storage<F>>> kept; // the latest one first
  const size_t most = 4;
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto it = kept.begin(); it != kept.end(); ++it)
    if ((*it)->holds(job)) {
      kept.splice(kept.begin(), kept, it);
      return kept.front();
    }
  while (kept.size() >= most) kept.pop_back();
  kept.push_front(std::make_shared<const Storage<F>>(job, true));
  return kept.front();
}
