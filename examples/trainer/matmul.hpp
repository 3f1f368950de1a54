// Dense matrix product, C = A B or C += A B, for any mixture of transposes.
//
// The classic three-level scheme. The innermost kernel keeps a small tile of C
// in vector registers and walks along the shared dimension, one broadcast of A
// and one vector of B per multiply-add. B is first copied ("packed") into the exact
// order in which the kernel reads it, and so is A unless its rows lie contiguous.
// Packing absorbs transposes and ragged edges, so that there is a single kernel and
// no edge cases in it.
#pragma once

#include <cstddef>
#include <cstring>

#include "parallel.hpp"

namespace trainer {

// As many sums as fit the vector registers. Where this differs between machines,
// the order of additions does not.
#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64, tile_rows = 8;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32, tile_rows = 6;
#else
inline constexpr int vector_bytes = 16, tile_rows = 6;
#endif
inline constexpr int tile_vectors = 2;   // a tile of C is tile_rows x (2 vectors)
inline constexpr int depth_block = 256;  // so that a packed strip of B stays in L1/L2
inline constexpr int column_block = 256;

// A read-only matrix: element (i, j) lies at data[i * row_stride + j * column_stride].
template <class Scalar>
struct View {
  const Scalar* data;
  std::size_t row_stride, column_stride;

  const Scalar& operator()(int i, int j) const { return data[i * row_stride + j * column_stride]; }
};

template <class Scalar>
View<Scalar> rows_of(const Scalar* data, std::size_t stride) {
  return {data, stride, 1};
}

template <class Scalar>
View<Scalar> transpose_of(const Scalar* data, std::size_t stride) {
  return {data, 1, stride};
}

enum class Store { overwrite, add };

namespace detail {

template <class Scalar>
struct Simd {
  typedef Scalar Vector __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / sizeof(Scalar);
  static constexpr int tile_columns = lanes * tile_vectors;

  static Vector load(const Scalar* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static void store(Scalar* to, Vector v) { std::memcpy(to, &v, sizeof v); }
};

// One full tile: c[tile_rows, tile_columns] = (or +=) a b over `depth` terms,
// where a is [tile_rows, depth], in any order, and b is packed [depth, tile_columns].
template <class Scalar>
void tile_kernel(int depth, View<Scalar> a, const Scalar* b, Scalar* c, std::size_t c_stride,
                 Store store) {
  using S = Simd<Scalar>;
  typename S::Vector sum[tile_rows][tile_vectors] = {};
  for (int k = 0; k < depth; ++k, b += S::tile_columns) {
    const typename S::Vector b0 = S::load(b), b1 = S::load(b + S::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < tile_rows; ++i) {
      sum[i][0] += a(i, k) * b0;
      sum[i][1] += a(i, k) * b1;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i, c += c_stride) {
    if (store == Store::add) {
      sum[i][0] += S::load(c);
      sum[i][1] += S::load(c + S::lanes);
    }
    S::store(c, sum[i][0]);
    S::store(c + S::lanes, sum[i][1]);
  }
}

// Packs `width` columns of the matrix that starts at `from` as [depth, padded
// width], zeros after the last column. Rows of A are packed as columns of A^T.
template <int padded_width, class Scalar>
void pack(View<Scalar> from, int depth, int width, Scalar* to) {
  if (width < padded_width) std::memset(to, 0, sizeof(Scalar) * padded_width * depth);
  if (from.column_stride == 1) {
    for (int k = 0; k < depth; ++k) {
      const Scalar* row = &from(k, 0);
      Scalar* packed = to + k * padded_width;
      if (width == padded_width)  // a constant size: a few vector moves, no call
        std::memcpy(packed, row, sizeof(Scalar) * padded_width);
      else
        std::memcpy(packed, row, sizeof(Scalar) * width);
    }
  } else {
    for (int j = 0; j < width; ++j)
      for (int k = 0; k < depth; ++k) to[k * padded_width + j] = from(k, j);
  }
}

}  // namespace detail

// C[m, n] (rows c_stride apart) = or += A[m, k] B[k, n], on the calling thread.
template <class Scalar>
void multiply_serial(int m, int n, int k, View<Scalar> a, View<Scalar> b, Scalar* c,
                     std::size_t c_stride, Store store) {
  using S = detail::Simd<Scalar>;
  constexpr int tile_columns = S::tile_columns;
  alignas(64) Scalar packed_a[depth_block * tile_rows];
  alignas(64) Scalar packed_b[depth_block * column_block];
  alignas(64) Scalar edge[tile_rows * tile_columns];

  for (int n0 = 0; n0 < n; n0 += column_block) {
    const int columns = std::min(column_block, n - n0);
    for (int k0 = 0; k0 < k; k0 += depth_block) {
      const int depth = std::min(depth_block, k - k0);
      const Store how = k0 > 0 ? Store::add : store;
      for (int j = 0; j < columns; j += tile_columns)
        detail::pack<tile_columns>(View<Scalar>{&b(k0, n0 + j), b.row_stride, b.column_stride},
                                   depth, std::min(tile_columns, columns - j),
                                   packed_b + depth * j);
      for (int i = 0; i < m; i += tile_rows) {
        const int rows = std::min(tile_rows, m - i);
        View<Scalar> band{&a(i, k0), a.row_stride, a.column_stride};
        if (rows < tile_rows || a.column_stride != 1) {
          detail::pack<tile_rows>(View<Scalar>{band.data, a.column_stride, a.row_stride}, depth,
                                  rows, packed_a);
          band = transpose_of<Scalar>(packed_a, tile_rows);
        }
        for (int j = 0; j < columns; j += tile_columns) {
          Scalar* tile = c + i * c_stride + n0 + j;
          const int width = std::min(tile_columns, columns - j);
          if (rows == tile_rows && width == tile_columns) {
            detail::tile_kernel(depth, band, packed_b + depth * j, tile, c_stride, how);
            continue;
          }
          detail::tile_kernel(depth, band, packed_b + depth * j, edge, tile_columns,
                              Store::overwrite);
          for (int r = 0; r < rows; ++r)
            for (int x = 0; x < width; ++x) {
              Scalar& out = tile[r * c_stride + x];
              out = how == Store::add ? out + edge[r * tile_columns + x]
                                      : edge[r * tile_columns + x];
            }
        }
      }
    }
  }
}

// The same on all threads, each of which owns a band of rows of C. Every thread
// packs B for itself: redundant, but cheaper than a barrier at these sizes.
template <class Scalar>
void multiply(int m, int n, int k, View<Scalar> a, View<Scalar> b, Scalar* c,
              std::size_t c_stride, Store store) {
  parallel_ranges(m, tile_rows, [&](int begin, int end) {
    multiply_serial(end - begin, n, k, View<Scalar>{&a(begin, 0), a.row_stride, a.column_stride},
                    b, c + begin * c_stride, c_stride, store);
  });
}

}  // namespace trainer
