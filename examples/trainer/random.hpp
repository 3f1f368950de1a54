// Random numbers as a pure function of a key: what a run draws at one place does
// not depend on what it drew, or skipped, elsewhere.
#pragma once

#include <cmath>
#include <cstdint>

namespace trainer {

// SplitMix64: a counter passed through a mixing function.
class Random {
 public:
  explicit Random(std::uint64_t key) : state_(key) {}

  // A generator of its own for each of several keys, e.g. (seed, task, step).
  template <class... Keys>
  static Random keyed(std::uint64_t key, Keys... more) {
    ((key = mix(key + increment) ^ static_cast<std::uint64_t>(more)), ...);
    return Random(mix(key));
  }

  std::uint64_t next() { return mix(state_ += increment); }

  // Uniform in [0, bound). The bias of the remainder is below bound / 2^64.
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }

  // Uniform in (0, 1].
  double uniform() { return static_cast<double>((next() >> 11) + 1) * 0x1p-53; }

  // Box-Muller; std::normal_distribution may differ between standard libraries.
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  static constexpr std::uint64_t increment = 0x9e3779b97f4a7c15;

  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

}  // namespace trainer
