// From dE/dd of the pairs to forces and virials. With g_ij = dE/dd_ij:
//
//   F_i = Σ_j g_ij - Σ_k g_ki,   W = -Σ_ij g_ij ⊗ d_ij,   atomic virials W_j = -Σ_i g_ij ⊗ d_ij
//
// Sums come in the same order whatever the number of threads.
#pragma once
#include <thread>

#include "atom.hpp"

// dE/dd of all pairs, and each centre's share of the virial.
class PairGradients {
public:
  explicit PairGradients(const JobArgs& job)
      : job_(job), pairs_(new double[job.heads * job.natoms * job.slots * 3]),
        virials_(new double[job.heads * job.natoms * 9]) {}

  double* of(int64_t head, int64_t atom) const {
    return pairs_.get() + (head * job_.natoms + atom) * job_.slots * 3;
  }

  // Sum up what atom `id` says of itself: its own force, and its share of the virial.
  template <class F> void sum(int64_t head, const Atom<F>& atom) const {
    const int64_t at = head * job_.natoms + atom.id;
    const double* gradient = of(head, atom.id);
    double *force = job_.force + 3 * at, *virial = virials_.get() + 9 * at;
    std::fill_n(virial, 9, 0.0);
    for (int i = 0; i < atom.rows; ++i) {
      const double *g = gradient + 3 * atom.slot[i], *d = atom.pair[i].d;
      for (int a = 0; a < 3; ++a) {
        force[a] += g[a];
        for (int b = 0; b < 3; ++b) virial[3 * a + b] -= g[a] * d[b];
      }
    }
  }

  // Forces on neighbours, and virials, when all atoms are done.
  void finish() const {
    for (int64_t head = 0; head < job_.heads; ++head)
      for (int64_t k = 0; k < job_.active; ++k) {
        const int64_t at = head * job_.natoms + job_.order[k];
        double* virial = job_.virial + (head * job_.nframes + job_.frame[job_.order[k]]) * 9;
        for (int c = 0; c < 9; ++c) virial[c] += virials_[9 * at + c];
      }
    const int64_t enough = 1 << 17; // pairs that are worth a thread
    const int64_t pairs = job_.active * job_.slots;
    const int threads = int(std::clamp<int64_t>(pairs / enough, 1, job_.threads));
    std::vector<std::thread> others;
    for (int k = 1; k < threads; ++k) others.emplace_back([=] { scatter(k, threads); });
    scatter(0, threads);
    for (std::thread& other : others) other.join();
  }

private:
  const JobArgs& job_;
  std::unique_ptr<double[]> pairs_, virials_;

  // What pairs do to neighbours in this thread's share of the atoms.
  void scatter(int thread, int threads) const {
    const int64_t begin = job_.natoms * thread / threads, end = job_.natoms * (thread + 1) / threads;
    for (int64_t head = 0; head < job_.heads; ++head)
      for (int64_t k = 0; k < job_.active; ++k) {
        const int64_t id = job_.order[k], *index = job_.index + id * job_.slots;
        const double* g = of(head, id);
        for (int64_t slot = 0; slot < job_.slots; ++slot, g += 3) {
          const int64_t j = index[slot];
          if (j < begin || j >= end || !job_.mask[id * job_.slots + slot]) continue;
          double* force = job_.force + (head * job_.natoms + j) * 3;
          for (int a = 0; a < 3; ++a) force[a] -= g[a];
          if (job_.atom_virial) add_virial(id, id * job_.slots + slot, g, head * job_.natoms + j);
        }
      }
  }

  void add_virial(int64_t id, int64_t at, const double* g, int64_t target) const {
    double d[3], *virial = job_.atom_virial + 9 * target;
    neighbor_vector(job_, id, at, d);
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) virial[3 * a + b] -= g[a] * d[b];
  }
};
