// Checks that the trainer computes what it claims to: products, gradients,
// optimizer, data split, and the same bits at every repetition.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw.hpp"
#include "data.hpp"
#include "exponential.hpp"
#include "matmul.hpp"
#include "model.hpp"

namespace trainer {
namespace {

class Checks {
 public:
  void expect(bool good, const std::string& what) {
    std::printf("%s  %s\n", good ? "ok  " : "FAIL", what.c_str());
    failures_ += !good;
  }
  // `error` must be at most `limit`; NaN is not.
  void below(double error, double limit, const std::string& what) {
    char text[64];
    std::snprintf(text, sizeof text, ": error %.1e (limit %.0e)", error, limit);
    expect(error <= limit, what + text);
  }
  int failures() const { return failures_; }

 private:
  int failures_ = 0;
};

std::vector<std::uint8_t> random_text(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> text(size);
  for (auto& byte : text) byte = static_cast<std::uint8_t>(random.next());
  return text;
}

// Text with something to learn: each byte follows from the one before it.
std::vector<std::uint8_t> cyclic_text(std::size_t size) {
  std::vector<std::uint8_t> text(size);
  for (std::size_t i = 0; i < size; ++i) text[i] = "catastrophe "[i % 12];
  return text;
}

Batch random_batch(int sequences, int context, std::uint64_t seed) {
  const std::size_t size = static_cast<std::size_t>(sequences) * context;
  return {sequences, context, random_text(size, seed), random_text(size, seed + 1)};
}

// Weights in general position: as initialized, gains are 1, biases 0 and attention
// nearly uniform, which would hide mistakes.
template <class Scalar>
void scatter(const Model<Scalar>& model) {
  Random random(7);
  for (const auto& p : model.parameters())
    for (std::size_t j = 0; j < p.size(); ++j)
      p.value[j] += Scalar((p.is_vector() ? 0.3 : 0.25) * random.normal());
}

template <class Scalar>
void check_products(Checks& checks, const std::string& type, double limit) {
  struct Size {
    int m, n, k;
  };
  double worst = 0;
  for (const Size s : {Size{1, 1, 1}, Size{7, 5, 3}, Size{16, 64, 32}, Size{37, 300, 19},
                       Size{9, 33, 600}, Size{70, 257, 259}})
    for (int transposes = 0; transposes < 8; ++transposes) {
      const bool ta = transposes & 1, tb = transposes & 2, add = transposes & 4;
      std::vector<Scalar> a(s.m * s.k), b(s.k * s.n), c(s.m * s.n), expected(s.m * s.n);
      Random random(3);
      for (auto* values : {&a, &b, &c})
        for (auto& value : *values) value = Scalar(random.uniform() - 0.5);
      const auto view = [](const std::vector<Scalar>& data, int rows, int cols, bool transposed) {
        return transposed ? transpose_of(data.data(), rows) : rows_of(data.data(), cols);
      };
      const View<Scalar> va = view(a, s.m, s.k, ta), vb = view(b, s.k, s.n, tb);
      for (int i = 0; i < s.m; ++i)
        for (int j = 0; j < s.n; ++j) {
          double sum = add ? static_cast<double>(c[i * s.n + j]) : 0.0;
          for (int k = 0; k < s.k; ++k) sum += static_cast<double>(va(i, k)) * vb(k, j);
          expected[i * s.n + j] = Scalar(sum);
        }
      multiply(s.m, s.n, s.k, va, vb, c.data(), s.n, add ? Store::add : Store::overwrite);
      for (std::size_t i = 0; i < c.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(c[i] - expected[i])));
    }
  checks.below(worst, limit, "products of ragged sizes and all transposes, " + type);
}

void check_exponential(Checks& checks) {
  double worst = 0;
  for (double x = -86.9; x < 87.9; x += 0.00137) {
    const double exact = std::exp(static_cast<double>(static_cast<float>(x)));
    worst = std::max(worst, std::abs(exponential(static_cast<float>(x)) / exact - 1));
  }
  checks.below(worst, 2e-7, "exponential in float against libm");
  checks.expect(std::isnan(exponential(std::nanf(""))), "exponential of NaN is NaN");
}

// Every tensor: the 24 largest entries of its gradient and 24 others.
void check_gradients(Checks& checks) {
  ModelShape shape;
  shape.layers = 2, shape.heads = 3, shape.width = 12, shape.context = 7, shape.sequences = 3;
  Model<double> model(shape, 5);
  scatter(model);
  const Batch batch = random_batch(3, 7, 11);
  model.zero_gradients();
  model.forward(batch);
  model.backward(batch, 1.0);

  for (const auto& p : model.parameters()) {
    std::vector<std::size_t> order(p.size());
    for (std::size_t j = 0; j < order.size(); ++j) order[j] = j;
    std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
      return std::abs(p.gradient[x]) > std::abs(p.gradient[y]);
    });
    const double largest = std::abs(p.gradient[order[0]]);
    Random random(13);
    for (std::size_t j = 24; j < std::min<std::size_t>(48, order.size()); ++j)
      std::swap(order[j], order[j + random.below(order.size() - j)]);
    order.resize(std::min<std::size_t>(48, order.size()));

    double worst = 0;
    for (const std::size_t j : order) {
      const double kept = p.value[j], h = 1e-5;
      p.value[j] = kept + h;
      const double above = model.forward(batch).loss;
      p.value[j] = kept - h;
      const double under = model.forward(batch).loss;
      p.value[j] = kept;
      worst = std::max(worst, std::abs((above - under) / (2 * h) - p.gradient[j]) / largest);
    }
    checks.below(worst, 1e-6, "gradient of " + p.name);
  }
}

// The float model runs other code (vector exponential, other tiles), at sizes that
// fill whole tiles and go over the edges of blocks.
void check_float_against_double(Checks& checks) {
  ModelShape shape;
  shape.layers = 2, shape.heads = 2, shape.width = 72, shape.context = 37, shape.sequences = 3;
  Model<float> single(shape, 5);
  Model<double> exact(shape, 5);
  scatter(single);
  for (std::size_t i = 0; i < exact.parameters().size(); ++i) {
    const auto& from = single.parameters()[i];
    std::copy(from.value, from.value + from.size(), exact.parameters()[i].value);
  }
  const Batch batch = random_batch(3, 37, 17), half = random_batch(2, 20, 23);
  const double loss = single.forward(batch).loss;
  checks.below(std::abs(loss / exact.forward(batch).loss - 1), 1e-5,
               "loss in float against double");
  // Two batches of different sizes, so that gradients accumulate.
  single.backward(batch, 0.5f);
  exact.backward(batch, 0.5);
  single.forward(half), single.backward(half, 0.5f);
  exact.forward(half), exact.backward(half, 0.5);
  double worst = 0;
  for (std::size_t i = 0; i < exact.parameters().size(); ++i) {
    const auto& p = single.parameters()[i];
    const auto& q = exact.parameters()[i];
    double error = 0, norm = 0;
    for (std::size_t j = 0; j < p.size(); ++j) {
      error += std::pow(p.gradient[j] - q.gradient[j], 2);
      norm += std::pow(q.gradient[j], 2);
    }
    worst = std::max(worst, std::sqrt(error / norm));
  }
  checks.below(worst, 1e-4, "accumulated gradients in float against double");
}

// With a constant gradient both moments are exact from the first step, and
//   w_n = w_0 q^n - rate * g / (|g| + epsilon) * (1 + q + ... + q^(n-1)),
// where q = 1 - rate * decay for a matrix and 1 for a vector.
void check_adamw(Checks& checks) {
  AdamWOptions options;
  options.learning_rate = 0.02, options.weight_decay = 0.3, options.epsilon = 1e-3;
  Buffer<double> value(12), gradient(12);
  for (int j = 0; j < 12; ++j) value[j] = 0.5 - 0.1 * j, gradient[j] = std::pow(-0.4, j);
  for (const int cols : {1, 4}) {
    const std::vector<Parameter<double>> parameters = {
        {"p", Role::mlp_in, 12 / cols, cols, 0, 0, value.data(), gradient.data()}};
    const std::vector<double> start(value.data(), value.data() + 12);
    AdamW<double> optimizer(parameters, options);
    const double q = cols == 1 ? 1.0 : 1 - 0.5 * options.learning_rate * options.weight_decay;
    double power = 1, series = 0, worst = 0;
    for (int step = 0; step < 5; ++step) {
      optimizer.step(parameters, 0.5);
      series += power;
      power *= q;
      for (int j = 0; j < 12; ++j) {
        const double g = gradient[j];
        const double expected = start[j] * power - 0.5 * options.learning_rate * g /
                                                       (std::abs(g) + options.epsilon) * series;
        worst = std::max(worst, std::abs(value[j] - expected));
      }
    }
    checks.below(worst, 1e-12, std::string("AdamW against its closed form, ") +
                                   (cols == 1 ? "vector" : "matrix"));
  }
}

void check_clipping(Checks& checks) {
  Buffer<float> value(8), gradient(8);
  for (int j = 0; j < 8; ++j) gradient[j] = 3.0f;
  const std::vector<Parameter<float>> parameters = {
      {"p", Role::mlp_in, 2, 4, 0, 0, value.data(), gradient.data()}};
  const double norm = gradient_norm(parameters);
  checks.below(std::abs(norm - std::sqrt(72.0)), 1e-12, "gradient norm");
  scale_gradients(parameters, clip_scale(norm, 2.0));
  checks.below(std::abs(gradient_norm(parameters) - 2), 1e-6, "gradient norm after clipping to 2");
  checks.expect(clip_scale(norm, 0) == 1 && clip_scale(norm, 100) == 1,
                "no clipping below the limit");
}

// In random text eight bytes name their place.
void check_split(Checks& checks) {
  const int context = 50;
  const auto text = random_text(100'000, 31);
  const Corpus corpus("random", "random", text, context);
  const auto places = [&](const std::vector<Batch>& batches) {
    std::vector<bool> covered(text.size());
    for (const Batch& batch : batches)
      for (int i = 0; i < batch.sequences; ++i) {
        const auto window = batch.inputs.begin() + i * context;
        const auto found = std::search(text.begin(), text.end(), window, window + 8);
        std::fill_n(covered.begin() + (found - text.begin()), context + 1, true);
      }
    return covered;
  };
  const auto held_out = places(corpus.held_out_batches(1000, 16));
  std::vector<Batch> batches;
  for (int i = 0; i < 100; ++i) batches.push_back(corpus.training_batch(16, Random(i)));
  const auto trained = places(batches);
  int both = 0;
  for (std::size_t i = 0; i < text.size(); ++i) both += held_out[i] && trained[i];
  const auto share = [&](const std::vector<bool>& covered) {
    return static_cast<double>(std::count(covered.begin(), covered.end(), true)) / text.size();
  };
  checks.expect(both == 0, "no byte is both trained on and held out");
  checks.expect(share(held_out) > 0.09 && share(held_out) < 0.11, "a tenth is held out");
  checks.expect(share(trained) > 0.4, "training windows reach all over the rest");
  bool refused = false;
  try {
    Corpus("short", "short", random_text(10 * (context + 1) - 1, 1), context);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  checks.expect(refused, "a text that is too short is refused");
  const Corpus smallest("small", "small", random_text(10 * (context + 1), 1), context);
  checks.expect(smallest.held_out_batches(4, 4).size() == 1 &&
                    smallest.training_batch(4, Random(1)).sequences == 4,
                "the shortest text gives training and held-out windows");
}

std::vector<double> short_run(int threads) {
  omp_set_num_threads(threads);
  ModelShape shape;
  shape.layers = 2, shape.heads = 2, shape.width = 40, shape.context = 24, shape.sequences = 5;
  Model<float> model(shape, 2);
  AdamWOptions options;
  options.learning_rate = 3e-3;
  AdamW<float> optimizer(model.parameters(), options);
  const Corpus corpus("cycle", "cycle", cyclic_text(10'000), shape.context);
  std::vector<double> losses;
  for (int step = 0; step < 40; ++step) {
    const Batch batch = corpus.training_batch(shape.sequences, Random::keyed(1, step));
    model.zero_gradients();
    losses.push_back(model.forward(batch).loss);
    model.backward(batch, 1.0f);
    scale_gradients(model.parameters(), clip_scale(gradient_norm(model.parameters()), 1.0));
    optimizer.step(model.parameters(), 1.0);
  }
  return losses;
}

void check_training(Checks& checks) {
  const int threads = omp_get_max_threads();
  const auto one = short_run(1), two = short_run(2), again = short_run(2), five = short_run(5);
  omp_set_num_threads(threads);
  char text[80];
  std::snprintf(text, sizeof text, "the loss goes down: %.3f to %.3f in 40 steps", one.front(),
                one.back());
  checks.expect(one.back() < 0.2 * one.front(), text);
  checks.expect(two == again, "two runs give the same bits");
  checks.expect(one == two && one == five, "1, 2 and 5 threads give the same bits");
}

}  // namespace
}  // namespace trainer

int main() {
  using namespace trainer;
  Checks checks;
  check_products<float>(checks, "float", 1e-5);
  check_products<double>(checks, "double", 1e-13);
  check_exponential(checks);
  check_gradients(checks);
  check_float_against_double(checks);
  check_adamw(checks);
  check_clipping(checks);
  check_split(checks);
  check_training(checks);
  std::printf("%d failed\n", checks.failures());
  return checks.failures() > 0;
}
