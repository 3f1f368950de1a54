// AdamW with decoupled weight decay, and the gradient norm for clipping.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.hpp"
#include "parameter.hpp"

namespace trainer {

struct AdamWOptions {
  double learning_rate = 2e-3;
  double beta1 = 0.9, beta2 = 0.99;
  double epsilon = 1e-8;
  double weight_decay = 0.1;  // of matrices; norms and biases are left alone
};

template <class Scalar>
class AdamW {
 public:
  AdamW(const std::vector<Parameter<Scalar>>& parameters, const AdamWOptions& options)
      : options_(options) {
    for (const auto& p : parameters) {
      first_.emplace_back(p.size());
      second_.emplace_back(p.size());
    }
  }

  // m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
  // w <- w - lr * decay * w - lr * m^ / (sqrt(v^) + epsilon),
  // where m^ and v^ have their zero start divided out. `warm_up` in [0, 1]
  // multiplies the learning rate.
  void step(const std::vector<Parameter<Scalar>>& parameters, double warm_up) {
    ++steps_;
    const double rate = options_.learning_rate * warm_up;
    const Scalar beta1 = Scalar(options_.beta1), beta2 = Scalar(options_.beta2);
    const Scalar step_size = Scalar(rate / (1 - std::pow(options_.beta1, steps_)));
    const Scalar second_scale = Scalar(1 / (1 - std::pow(options_.beta2, steps_)));
    const Scalar epsilon = Scalar(options_.epsilon);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Parameter<Scalar>& p = parameters[i];
      const Scalar keep = p.is_vector() ? Scalar(1) : Scalar(1 - rate * options_.weight_decay);
      Scalar *w = p.value, *g = p.gradient, *m = first_[i].data(), *v = second_[i].data();
      parallel_ranges(static_cast<int>(p.size()), 64, [&](int begin, int end) {
#pragma omp simd
        for (int j = begin; j < end; ++j) {
          m[j] = beta1 * m[j] + (1 - beta1) * g[j];
          v[j] = beta2 * v[j] + (1 - beta2) * g[j] * g[j];
          w[j] = w[j] * keep - step_size * m[j] / (std::sqrt(v[j] * second_scale) + epsilon);
        }
      });
    }
  }

 private:
  AdamWOptions options_;
  int steps_ = 0;
  std::vector<Buffer<Scalar>> first_, second_;  // moments, one buffer a parameter
};

// The Euclidean norm of all gradients together. Rows are summed on their own and
// then in order, so that the sum does not depend on the number of threads.
template <class Scalar>
double gradient_norm(const std::vector<Parameter<Scalar>>& parameters) {
  double total = 0;
  for (const auto& p : parameters) {
    const int width = p.is_vector() ? p.rows : p.cols;
    std::vector<double> rows(p.size() / width);
    parallel_for(static_cast<int>(rows.size()), [&](int r) {
      const Scalar* g = p.gradient + static_cast<std::size_t>(r) * width;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int c = 0; c < width; ++c) sum += static_cast<double>(g[c]) * g[c];
      rows[r] = sum;
    });
    for (const double row : rows) total += row;
  }
  return std::sqrt(total);
}

// What to multiply the gradients by so that their norm is at most `limit`; a limit
// of 0 means no clipping.
inline double clip_scale(double norm, double limit) {
  return limit > 0 && norm > limit ? limit / norm : 1.0;
}

template <class Scalar>
void scale_gradients(const std::vector<Parameter<Scalar>>& parameters, double scale) {
  if (scale == 1.0) return;
  for (const auto& p : parameters)
    parallel_ranges(static_cast<int>(p.size()), 64, [&](int begin, int end) {
      for (int j = begin; j < end; ++j) p.gradient[j] *= Scalar(scale);
    });
}

}  // namespace trainer
