// exp() in a form that compilers turn into vector code.
//
// libm's expf is a call for each element, which keeps the loops around it from
// being vectorised. This one also does not change with the version of libm.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace trainer {

// The reference, used by the gradient check.
inline double exponential(double x) { return std::exp(x); }

// Relative error below 2e-7. Saturates at exp(-87) and exp(88), so that no
// subnormals and no infinities come out of it; NaN stays NaN.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // exp(x) = 2^n exp(r) with |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to an
  // integer, and leaves that integer in the low bits of the sum.
  const float shift = 12582912.0f;
  const float shifted = x * 1.44269504f + shift;
  const float n = shifted - shift;
  // ln(2) in two parts, the first short enough for n times it to be exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // the exponent field of 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace trainer
