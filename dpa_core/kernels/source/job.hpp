// What Python hands over: one job = one call. Mirrored by dpa_core/kernels/job.py, field by field.
//
// Numbers of the networks (`void*`) are float or double; everything is contiguous. Sizes:
// N atoms of F frames, M slots, T types, C width of the embedding, H heads.
#pragma once
#include <cstdint>

extern "C" {

struct LayerArgs {
  int64_t in, out, copies;
  const void *weight, *bias, *idt;       // (in, out), (out) or null, (out) or null
  void *g_weight, *g_bias, *g_idt;       // gradients, added to
};

// An embedding net without its first layer, or a fitting net.
struct NetArgs {
  int64_t layers;
  const LayerArgs* layer;
};

struct AttentionArgs {
  const void *in, *in_bias, *out, *out_bias, *gamma, *beta; // (C, 3 hidden), (3 hidden), ...
  void *g_in, *g_in_bias, *g_out, *g_out_bias, *g_gamma, *g_beta;
};

struct JobArgs {
  int64_t natoms, nframes, slots, ntypes, heads, active, threads, group_bytes;
  int64_t frozen; // no gradients of the descriptor's weights are wanted
  // Neighbourhoods (dpa_core/frames.py). `order` names the atoms to work on, those of one fitting
  // net together.
  const int64_t *order, *atype, *pad_type, *frame; // (active), (N), (N), (N)
  const int64_t* index;                            // (N, M)
  const uint8_t *mask, *interacts;                 // (N, M), (T, T): pairs that are not excluded
  const double *coord, *box, *shift;               // (N, 3), (F, 3, 3), (N, M, 3)
  // Derivatives of a loss with respect to atomic energies, forces and virials.
  const double *energy_bar, *force_bar, *virial_bar; // (N), (N, 3), (F, 3, 3)
  // Descriptor.
  double rcut, rcut_smth, protection;
  int64_t nnei, width, axis;
  const double *davg, *dstd;         // (T, 4)
  const uint8_t* allowed;            // (T, T)
  const int64_t* sel;                // (T), or null if neighbours of all types count together
  // Embedding: first layer tanh(s first_weight[net] + first_bias[row]), then `embedding`.
  int64_t nets, first_width, first_rows;
  const int64_t *net_of, *row_of;    // (T, T) [centre, neighbour]
  const void *first_weight, *first_bias;
  void *g_first_weight, *g_first_bias;
  const NetArgs* embedding;          // (nets)
  // Compressed models: no nets but tables (dpa_core/tables.py), (tables, bins, 6, C); table of the
  // pair of types = row_of, or the first one in strip mode. They are constants.
  int64_t table_bins;
  double table_lower, table_stride;
  const void* table;
  // Strip mode: G = N(s) (1 + factor[row_of] [w(r)]); null without.
  int64_t factor_rows;
  const void* factor;
  void* g_factor;
  // Attention.
  int64_t attention_layers, hidden, smooth, gated;
  double scale, epsilon;
  const AttentionArgs* attention;
  // Fitting: which[h, atom] is a net; its first layer adds first[first_row[h, atom]], (rows, F1).
  int64_t fitting_nets;
  const int64_t *which, *first_row;
  const NetArgs* fitting;
  const void* first;
  void* g_first;
  // Results, added to zeros; the last one may be null.
  double *energy, *force, *virial, *atom_virial; // (H, N), (H, N, 3), (H, F, 3, 3), (H, N, 3, 3)
  int32_t* crowded; // set to 1 if an atom has more neighbours within rcut than `sel` has room for
};

// Energies, forces and virials; 0, or -1 without memory.
int energies(const JobArgs*);
// Gradients of  Σ energy_bar E + Σ force_bar·F + Σ virial_bar:W  with respect to all that has a
// `g_`; in each row of `first` one atom only.
int parameters(const JobArgs*);
}
