// Work sharing between threads, and the memory they share.
//
// The one rule of this trainer: a number never depends on how the work was
// split. Every output element is computed by one thread, in an order fixed by
// the shapes alone, so a run gives the same bits at any thread count. There are
// no atomics and no reductions across threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

namespace trainer {

// Calls body(begin, end) on disjoint ranges that cover [0, count), at most one
// range a thread. A body that needs scratch memory makes it once per range.
// `granule` keeps range boundaries on multiples of itself.
template <class Body>
void parallel_ranges(int count, int granule, const Body& body) {
  const long granules = (count + granule - 1) / granule;
#pragma omp parallel
  {
    const long threads = omp_get_num_threads();
    const long self = omp_get_thread_num();
    const int begin = static_cast<int>(granules * self / threads) * granule;
    const int end = std::min(count, static_cast<int>(granules * (self + 1) / threads) * granule);
    if (begin < end) body(begin, end);
  }
}

// Calls body(i) for every i in [0, count).
template <class Body>
void parallel_for(int count, const Body& body) {
  parallel_ranges(count, 1, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) body(i);
  });
}

// A fixed-size, zeroed, cache-line aligned array. Never resized, so that
// pointers into it stay good for as long as it lives or is moved.
template <class Scalar>
class Buffer {
 public:
  static constexpr std::size_t alignment = 64;

  Buffer() = default;
  explicit Buffer(std::size_t size)
      : data_(static_cast<Scalar*>(
            ::operator new(size * sizeof(Scalar), std::align_val_t(alignment)))),
        size_(size) {
    zero();
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t(alignment)); }
  Buffer(const Buffer& other) : Buffer(other.size_) {
    if (size_ > 0) std::memcpy(data_, other.data_, size_ * sizeof(Scalar));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer other) noexcept {
    swap(other);
    return *this;
  }

  void zero() { std::memset(data_, 0, size_ * sizeof(Scalar)); }
  Scalar* data() const { return data_; }
  std::size_t size() const { return size_; }
  Scalar& operator[](std::size_t i) const { return data_[i]; }

  // How many elements to set aside for `size` of them so that the next tensor
  // of an arena starts on a cache line again.
  static std::size_t padded(std::size_t size) {
    const std::size_t line = alignment / sizeof(Scalar);
    return (size + line - 1) / line * line;
  }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  Scalar* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace trainer
