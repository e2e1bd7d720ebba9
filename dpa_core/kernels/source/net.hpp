// Layers y = tanh(x W + b) [* idt] [+ x or + (x, x)], forward and backward on dual numbers.
#pragma once
#include "dual.hpp"

// Weights, or the place where their gradients are added up (which has no transpose).
template <class F> struct Layer {
  int in = 0, out = 0;
  int copies = 0; // how often the input is added to the output: 0, 1 or 2 times side by side
  Matrix<F> weight;
  F* bias = nullptr; // null: none
  F* idt = nullptr;  // null: 1
};

// What a layer's backward pass needs: its input and tanh(x W + b).
template <class F> struct Saved {
  Dual<F> x, y;
};

// From x W (in y) to y = tanh(x W + b) and out = y idt + skip. `bias(row)` is added to each row.
template <class F, bool D, class Bias>
void finish_layer(const Layer<F>& layer, int rows, Dual<F> x, Dual<F> y, Dual<F> out, Bias bias) {
  const int width = padded<F>(layer.out), lanes = LANES<F>;
  for (int i = 0; i < rows; ++i) {
    F *yv = y.v + i * y.ld, *yt = y.t + i * y.ld, *ov = out.v + i * out.ld, *ot = out.t + i * out.ld;
    const F* b = bias(i);
    for (int c = 0; c < width; c += lanes) {
      Vec<F> u = vec<F>(yv + c);
      if (b) u += vec<F>(b + c);
      const Vec<F> value = tanh_of<F>(u);
      const Vec<F> factor = layer.idt ? vec<F>(layer.idt + c) : Vec<F>{} + F(1);
      vec<F>(yv + c) = value;
      vec<F>(ov + c) = value * factor;
      if constexpr (D) {
        const Vec<F> slope = vec<F>(yt + c) * (1 - value * value);
        vec<F>(yt + c) = slope;
        vec<F>(ot + c) = slope * factor;
      }
    }
    for (int copy = 0; copy < layer.copies; ++copy)
      for (int c = 0; c < layer.in; ++c) {
        ov[copy * layer.in + c] += x.v[i * x.ld + c];
        if constexpr (D) ot[copy * layer.in + c] += x.t[i * x.ld + c];
      }
  }
}

template <class F, bool D>
void forward(const Layer<F>& layer, int rows, Saved<F> saved, Dual<F> out) {
  times<F, D>(rows, layer.out, layer.in, saved.x, layer.weight.data, layer.weight.ld, saved.y);
  finish_layer<F, D>(layer, rows, saved.x, saved.y, out, [&](int) { return layer.bias; });
}

// Adjoint of x W + b from that of the output; `each(row, adjoint row)` sees its derivatives.
template <class F, bool D, class Each>
void backward_activation(const Layer<F>& layer, const Layer<F>& gradient, int rows, Dual<F> y,
                         Dual<F> bar, Dual<F> u_bar, Each each) {
  const int width = padded<F>(layer.out), lanes = LANES<F>;
  for (int i = 0; i < rows; ++i) {
    for (int c = 0; c < width; c += lanes) {
      const Vec<F> value = vec<F>(y.v + i * y.ld + c), out = vec<F>(bar.v + i * bar.ld + c);
      const Vec<F> factor = layer.idt ? vec<F>(layer.idt + c) : Vec<F>{} + F(1);
      const Vec<F> slope = 1 - value * value;
      vec<F>(u_bar.v + i * u_bar.ld + c) = out * factor * slope;
      if constexpr (D) {
        const Vec<F> dy = vec<F>(y.t + i * y.ld + c), dout = vec<F>(bar.t + i * bar.ld + c);
        vec<F>(u_bar.t + i * u_bar.ld + c) = (dout * slope - 2 * out * value * dy) * factor;
        if (gradient.idt) vec<F>(gradient.idt + c) += dy * out + value * dout;
      }
    }
    if constexpr (D) each(i, u_bar.t + i * u_bar.ld);
  }
}

template <class F> inline void add_to(F* target, const F* row, int width) {
  for (int c = 0; c < width; c += LANES<F>) vec<F>(target + c) += vec<F>(row + c);
}

// Adjoint of the input from that of the output; on dual numbers also the weights' gradients.
// `u_bar` is scratch (rows, out).
template <class F, bool D>
void backward(const Layer<F>& layer, const Layer<F>& gradient, int rows, Saved<F> saved,
              Dual<F> bar, Dual<F> u_bar, Dual<F> x_bar) {
  backward_activation<F, D>(layer, gradient, rows, saved.y, bar, u_bar, [&](int, const F* row) {
    if (gradient.bias) add_to(gradient.bias, row, padded<F>(layer.out));
  });
  if constexpr (D) accumulate(layer.in, layer.out, rows, saved.x, u_bar, gradient.weight);
  times<F, D>(rows, layer.in, layer.out, u_bar, layer.weight.transposed, layer.weight.ld_transposed,
              x_bar);
  for (int i = 0; i < rows; ++i)
    for (int copy = 0; copy < layer.copies; ++copy)
      for (int c = 0; c < layer.in; ++c) {
        x_bar.v[i * x_bar.ld + c] += bar.v[i * bar.ld + copy * layer.in + c];
        if constexpr (D) x_bar.t[i * x_bar.ld + c] += bar.t[i * bar.ld + copy * layer.in + c];
      }
}
