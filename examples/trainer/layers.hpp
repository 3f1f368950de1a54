// The layers other than attention: embedding, linear, LayerNorm, GELU, and the
// loss. Each layer's forward and backward stand side by side.
//
// Shapes: N = tokens of a batch (sequences * context), C = width of the model.
// Conventions: d_x is the gradient of the loss with respect to x. Gradients of
// parameters are added to, so that several batches may accumulate; gradients of
// activations are overwritten, unless a name says `add`.
#pragma once

#include <cmath>
#include <cstdint>

#include "exponential.hpp"
#include "matmul.hpp"
#include "parallel.hpp"
#include "parameter.hpp"

namespace trainer {

inline std::size_t at(int row, int cols) { return static_cast<std::size_t>(row) * cols; }

// How many columns a thread takes at least when work is split by columns: one
// cache line, so that threads do not write to the same one.
inline constexpr int column_granule = 16;

// ---- Embedding: x[n] = token_table[token[n]] + position_table[n mod T] --------

template <class Scalar>
void embedding_forward(Scalar* x, const std::uint8_t* tokens, int count, int context,
                       const Parameter<Scalar>& token_table,
                       const Parameter<Scalar>& position_table) {
  const int width = token_table.cols;
  parallel_for(count, [&](int n) {
    const Scalar* token = token_table.value + at(tokens[n], width);
    const Scalar* position = position_table.value + at(n % context, width);
    Scalar* row = x + at(n, width);
    for (int c = 0; c < width; ++c) row[c] = token[c] + position[c];
  });
}

// Many tokens add to the same row of a table, so threads share out the columns
// and each goes through the tokens in order.
template <class Scalar>
void embedding_backward(const Scalar* d_x, const std::uint8_t* tokens, int count, int context,
                        const Parameter<Scalar>& token_table,
                        const Parameter<Scalar>& position_table) {
  const int width = token_table.cols;
  parallel_ranges(width, column_granule, [&](int begin, int end) {
    for (int n = 0; n < count; ++n) {
      const Scalar* d_row = d_x + at(n, width);
      Scalar* d_token = token_table.gradient + at(tokens[n], width);
      Scalar* d_position = position_table.gradient + at(n % context, width);
      for (int c = begin; c < end; ++c) {
        d_token[c] += d_row[c];
        d_position[c] += d_row[c];
      }
    }
  });
}

// ---- Linear: y[N, out] = x[N, in] weight[out, in]^T + bias[out] + residual ----

// bias and residual[N, out] may be null.
template <class Scalar>
void linear_forward(Scalar* y, const Scalar* x, const Parameter<Scalar>& weight,
                    const Parameter<Scalar>* bias, const Scalar* residual, int count) {
  const int out = weight.rows, in = weight.cols;
  const bool addend = bias != nullptr || residual != nullptr;
  if (addend) {
    parallel_for(count, [&](int n) {
      Scalar* row = y + at(n, out);
      for (int j = 0; j < out; ++j) row[j] = bias ? bias->value[j] : Scalar(0);
      if (residual)
        for (int j = 0; j < out; ++j) row[j] += residual[at(n, out) + j];
    });
  }
  multiply(count, out, in, rows_of(x, in), transpose_of<Scalar>(weight.value, in), y, out,
           addend ? Store::add : Store::overwrite);
}

template <class Scalar>
void linear_backward(Scalar* d_x, const Scalar* d_y, const Scalar* x,
                     const Parameter<Scalar>& weight, const Parameter<Scalar>* bias, int count) {
  const int out = weight.rows, in = weight.cols;
  multiply(count, in, out, rows_of(d_y, out), rows_of<Scalar>(weight.value, in), d_x, in,
           Store::overwrite);
  multiply(out, in, count, transpose_of(d_y, out), rows_of(x, in), weight.gradient, in,
           Store::add);
  if (!bias) return;
  parallel_ranges(out, column_granule, [&](int begin, int end) {
    for (int n = 0; n < count; ++n) {
      const Scalar* row = d_y + at(n, out);
      for (int j = begin; j < end; ++j) bias->gradient[j] += row[j];
    }
  });
}

// ---- LayerNorm: y = (x - mean) / sqrt(variance + epsilon) * gain + shift ------

// Keeps mean[N] and inverse_deviation[N] for the backward pass.
template <class Scalar>
void norm_forward(Scalar* y, Scalar* mean, Scalar* inverse_deviation, const Scalar* x,
                  const Parameter<Scalar>& gain, const Parameter<Scalar>& shift, int count) {
  const int width = gain.rows;
  const Scalar epsilon = Scalar(1e-5);
  parallel_for(count, [&](int n) {
    const Scalar* row = x + at(n, width);
    Scalar sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < width; ++c) sum += row[c];
    const Scalar m = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < width; ++c) squares += (row[c] - m) * (row[c] - m);
    const Scalar s = 1 / std::sqrt(squares / width + epsilon);
    for (int c = 0; c < width; ++c)
      y[at(n, width) + c] = (row[c] - m) * s * gain.value[c] + shift.value[c];
    mean[n] = m;
    inverse_deviation[n] = s;
  });
}

// Adds to d_x: the residual stream passes the norm by, and its gradient is there.
// With u = (x - mean) * s and g = d_y * gain:
//   d_x = s * (g - average(g) - u * average(g * u)).
template <class Scalar>
void norm_backward_add(Scalar* d_x, const Scalar* d_y, const Scalar* x, const Scalar* mean,
                       const Scalar* inverse_deviation, const Parameter<Scalar>& gain,
                       const Parameter<Scalar>& shift, int count) {
  const int width = gain.rows;
  parallel_for(count, [&](int n) {
    const Scalar* row = x + at(n, width);
    const Scalar* d_row = d_y + at(n, width);
    const Scalar m = mean[n], s = inverse_deviation[n];
    Scalar g_sum = 0, gu_sum = 0;
#pragma omp simd reduction(+ : g_sum, gu_sum)
    for (int c = 0; c < width; ++c) {
      const Scalar g = d_row[c] * gain.value[c];
      g_sum += g;
      gu_sum += g * ((row[c] - m) * s);
    }
    const Scalar g_average = g_sum / width, gu_average = gu_sum / width;
    for (int c = 0; c < width; ++c) {
      const Scalar u = (row[c] - m) * s;
      d_x[at(n, width) + c] += s * (d_row[c] * gain.value[c] - g_average - u * gu_average);
    }
  });
  parallel_ranges(width, column_granule, [&](int begin, int end) {
    for (int n = 0; n < count; ++n) {
      const Scalar* row = x + at(n, width);
      const Scalar* d_row = d_y + at(n, width);
      const Scalar m = mean[n], s = inverse_deviation[n];
      for (int c = begin; c < end; ++c) {
        gain.gradient[c] += d_row[c] * ((row[c] - m) * s);
        shift.gradient[c] += d_row[c];
      }
    }
  });
}

// ---- GELU, by the tanh formula of GPT-2, elementwise over [N, width] ----------
//
//   gelu(x) = x/2 (1 + tanh(u)) = x / (1 + exp(-2u)),  u = sqrt(2/pi) (x + a x^3).

inline constexpr double gelu_scale = 0.7978845608028654;
inline constexpr double gelu_cubic = 0.044715;

template <class Scalar>
void gelu_forward(Scalar* y, const Scalar* x, int count, int width) {
  const Scalar scale = Scalar(-2 * gelu_scale), cubic = Scalar(gelu_cubic);
  parallel_for(count, [&](int n) {
    const Scalar* row = x + at(n, width);
    Scalar* out = y + at(n, width);
#pragma omp simd
    for (int c = 0; c < width; ++c) {
      const Scalar v = row[c];
      out[c] = v / (1 + exponential(scale * (v + cubic * v * v * v)));
    }
  });
}

// In place: d holds d_y on entry and d_x on return.
template <class Scalar>
void gelu_backward(Scalar* d, const Scalar* x, int count, int width) {
  const Scalar scale = Scalar(2 * gelu_scale), cubic = Scalar(gelu_cubic);
  parallel_for(count, [&](int n) {
    const Scalar* row = x + at(n, width);
    Scalar* d_row = d + at(n, width);
#pragma omp simd
    for (int c = 0; c < width; ++c) {
      const Scalar v = row[c];
      const Scalar gate = 1 / (1 + exponential(-scale * (v + cubic * v * v * v)));
      const Scalar slope = scale * (1 + 3 * cubic * v * v);
      d_row[c] *= gate + v * gate * (1 - gate) * slope;
    }
  });
}

// ---- Loss: cross-entropy of softmax(logits[N, V]) against the targets[N] ------

// Turns logits into probabilities in place. Writes each token's loss in nats, and
// whether its target was the likeliest byte.
template <class Scalar>
void loss_forward(Scalar* logits, const std::uint8_t* targets, Scalar* losses,
                  std::uint8_t* correct, int count, int vocabulary) {
  parallel_for(count, [&](int n) {
    Scalar* row = logits + at(n, vocabulary);
    Scalar largest = row[0], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int v = 0; v < vocabulary; ++v) largest = row[v] > largest ? row[v] : largest;
    const Scalar target = row[targets[n]];
#pragma omp simd reduction(+ : sum)
    for (int v = 0; v < vocabulary; ++v) {
      row[v] = exponential(row[v] - largest);
      sum += row[v];
    }
    for (int v = 0; v < vocabulary; ++v) row[v] *= 1 / sum;
    losses[n] = std::log(sum) - (target - largest);
    correct[n] = target == largest;
  });
}

// In place: probabilities become d_logits of scale * (sum of the tokens' losses).
template <class Scalar>
void loss_backward(Scalar* probabilities, const std::uint8_t* targets, Scalar scale, int count,
                   int vocabulary) {
  parallel_for(count, [&](int n) {
    Scalar* row = probabilities + at(n, vocabulary);
    row[targets[n]] -= 1;
    for (int v = 0; v < vocabulary; ++v) row[v] *= scale;
  });
}

}  // namespace trainer
