// Causal multi-head attention.
//
// For each sequence b and head h, with Q, K, V [T, S] cut out of the fused
// projection qkv [B T, 3 C] (columns: heads of Q | heads of K | heads of V):
//   P = softmax(Q K^T / sqrt(S)), masked above the diagonal       [T, T]
//   out[b, :, h] = P V                                            [T, S]
// Threads share out the (b, h) pairs, which write to disjoint places.
#pragma once

#include <cmath>

#include "exponential.hpp"
#include "matmul.hpp"
#include "parallel.hpp"

namespace trainer {

struct AttentionShape {
  int sequences, context, width, heads;

  int pairs() const { return sequences * heads; }
  int head_size() const { return width / heads; }
  int stride() const { return 3 * width; }  // between the rows of qkv
  // Where the first row of pair (b, h) starts, in qkv and in out.
  std::size_t qkv_offset(int pair) const {
    return static_cast<std::size_t>(pair / heads) * context * stride() +
           pair % heads * head_size();
  }
  std::size_t out_offset(int pair) const {
    return static_cast<std::size_t>(pair / heads) * context * width + pair % heads * head_size();
  }
  std::size_t square() const { return static_cast<std::size_t>(context) * context; }
};

// Keeps P in probabilities [B, heads, T, T]. The products go over whole squares, and
// what they do above the diagonal is wasted: 7 % of the arithmetic of a step at the
// default size, for having no special cases.
template <class Scalar>
void attention_forward(Scalar* out, Scalar* probabilities, const Scalar* qkv,
                       const AttentionShape& shape) {
  const int context = shape.context, size = shape.head_size(), stride = shape.stride();
  const Scalar scale = 1 / std::sqrt(Scalar(size));
  parallel_for(shape.pairs(), [&](int pair) {
    const Scalar* q = qkv + shape.qkv_offset(pair);
    const Scalar* k = q + shape.width;
    const Scalar* v = k + shape.width;
    Scalar* p = probabilities + pair * shape.square();
    multiply_serial(context, context, size, rows_of(q, stride), transpose_of(k, stride), p, context,
                    Store::overwrite);
    for (int t = 0; t < context; ++t) {
      Scalar* row = p + static_cast<std::size_t>(t) * context;
      Scalar largest = row[0], sum = 0;
#pragma omp simd reduction(max : largest)
      for (int s = 0; s <= t; ++s) largest = row[s] > largest ? row[s] : largest;
#pragma omp simd reduction(+ : sum)
      for (int s = 0; s <= t; ++s) {
        row[s] = exponential((row[s] - largest) * scale);
        sum += row[s];
      }
      const Scalar normalize = 1 / sum;
      for (int s = 0; s <= t; ++s) row[s] *= normalize;
      for (int s = t + 1; s < context; ++s) row[s] = 0;
    }
    multiply_serial(context, size, context, rows_of<Scalar>(p, context), rows_of(v, stride),
                    out + shape.out_offset(pair), shape.width, Store::overwrite);
  });
}

// d_P = d_out V^T,  d_S = P * (d_P - rowsum(P * d_P)) / sqrt(S), which is zero
// wherever P is, so that the mask needs no second mention;
// d_Q = d_S K,  d_K = d_S^T Q,  d_V = P^T d_out.
template <class Scalar>
void attention_backward(Scalar* d_qkv, const Scalar* d_out, const Scalar* probabilities,
                        const Scalar* qkv, const AttentionShape& shape) {
  const int context = shape.context, size = shape.head_size(), stride = shape.stride();
  const int width = shape.width;
  const Scalar scale = 1 / std::sqrt(Scalar(size));
  parallel_ranges(shape.pairs(), 1, [&](int begin, int end) {
    Buffer<Scalar> scores(shape.square());
    Scalar* d_s = scores.data();
    for (int pair = begin; pair < end; ++pair) {
      const Scalar* q = qkv + shape.qkv_offset(pair);
      const Scalar *k = q + width, *v = k + width;
      Scalar* d_q = d_qkv + shape.qkv_offset(pair);
      Scalar *d_k = d_q + width, *d_v = d_k + width;
      const Scalar* p = probabilities + pair * shape.square();
      const View<Scalar> d_o = rows_of(d_out + shape.out_offset(pair), width);

      multiply_serial(context, size, context, transpose_of(p, context), d_o, d_v, stride,
                      Store::overwrite);
      multiply_serial(context, context, size, d_o, transpose_of(v, stride), d_s, context,
                      Store::overwrite);
      for (int t = 0; t < context; ++t) {
        Scalar* row = d_s + static_cast<std::size_t>(t) * context;
        const Scalar* weights = p + static_cast<std::size_t>(t) * context;
        Scalar dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int s = 0; s <= t; ++s) dot += weights[s] * row[s];
        for (int s = 0; s < context; ++s) row[s] = weights[s] * (row[s] - dot) * scale;
      }
      multiply_serial(context, size, context, rows_of<Scalar>(d_s, context), rows_of(k, stride),
                      d_q, stride, Store::overwrite);
      multiply_serial(context, size, context, transpose_of<Scalar>(d_s, context),
                      rows_of(q, stride), d_k, stride, Store::overwrite);
    }
  });
}

}  // namespace trainer
