// Every call to forgetscope, in the program that is linked with it. Without WITH_FORGETSCOPE there is none: then
// libforgetscope_preload.so sees what this program reduces and gathers.
#pragma once

#include <cstdint>
#include <string>

#include "reduction.hpp"

#ifdef WITH_FORGETSCOPE

#include <cstdio>

#include "forgetscope.h"

namespace mpi_trainer {

class Instrument {
 public:
  // Gradients are measured where they are reduced: all of them on the first rank, or each rank its part.
  // `flush`: every step waits for its records, so that none is left out.
  Instrument(const Reduction& reduction, bool flush) : flush_(flush) {
    say(fgs_open(nullptr, &scope_));
    for (const Bucket& bucket : reduction.buckets())
      for (const Placed& placed : bucket.tensors) add(bucket, placed, reduction);
  }
  Instrument(const Instrument&) = delete;
  Instrument& operator=(const Instrument&) = delete;
  ~Instrument() { say(fgs_close(scope_)); }

  void task_begin(const std::string& name) { say(fgs_task_begin(scope_, name.c_str())); }
  void task_end() { say(fgs_task_end(scope_)); }
  void step_begin(std::uint64_t step) { say(fgs_step_begin(scope_, step)); }
  void gradients_ready() { say(fgs_gradients_ready(scope_, 1.0, 0, nullptr)); }
  void step_end() {
    say(fgs_step_end(scope_, 1, nullptr));
    if (flush_) say(fgs_flush(scope_));
  }

 private:
  // Training goes on whatever the instrument says.
  static void say(fgs_status status) {
    if (status < 0) std::fprintf(stderr, "forgetscope: %s\n", fgs_last_error());
  }

  static fgs_dltensor tensor(float* data, std::int64_t* shape) {
    fgs_dltensor tensor{};
    tensor.data = data;
    tensor.device = {1, 0};  // host memory
    tensor.ndim = 2;
    tensor.dtype = {2, 32, 1};  // float32
    tensor.shape = shape;
    return tensor;
  }

  void add(const Bucket& bucket, const Placed& placed, const Reduction& reduction) {
    constexpr fgs_role roles[] = {FGS_ROLE_EMBEDDING, FGS_ROLE_POSITION, FGS_ROLE_NORM,    FGS_ROLE_QKV,
                                  FGS_ROLE_OUTPUT,    FGS_ROLE_MLP_IN,   FGS_ROLE_MLP_OUT, FGS_ROLE_LM_HEAD};
    const Parameter<float>& p = *placed.parameter;
    fgs_tensor spec = FGS_TENSOR_INIT;
    spec.name = p.name.c_str();
    spec.numel = p.size();
    spec.rows = static_cast<std::uint64_t>(p.rows), spec.cols = static_cast<std::uint64_t>(p.cols);
    spec.layer = p.layer;
    spec.role = roles[static_cast<int>(p.role)];
    spec.head_count = p.role == trainer::Role::attn_out && p.is_vector() ? 0 : static_cast<std::uint32_t>(p.heads);
    std::uint32_t id = 0;
    if (!reduction.is_sharded()) {
      spec.flags = reduction.ranks() > 1 ? FGS_TENSOR_REPLICATED : 0u;
      spec.replica = static_cast<std::uint32_t>(reduction.rank());
      std::int64_t shape[] = {p.rows, p.cols};
      const fgs_dltensor gradient = tensor(bucket.gradients.data() + placed.offset, shape), value = tensor(p.value, shape);
      say(fgs_register(scope_, &spec, &id));
      say(fgs_bind(scope_, id, FGS_GRAD, &gradient));
      say(fgs_bind(scope_, id, FGS_PARAM, &value));
      return;
    }
    say(fgs_register(scope_, &spec, &id));
    const std::size_t own = bucket.begin(reduction.rank());
    const std::size_t first = std::max(own, placed.offset);
    const std::size_t last = std::min(bucket.end(reduction.rank()), placed.offset + p.size());
    if (first >= last) return;
    std::int64_t shape[] = {1, static_cast<std::int64_t>(last - first)};
    const fgs_dltensor gradient = tensor(bucket.shard.data() + (first - own), shape);
    const fgs_dltensor value = tensor(bucket.values.data() + first, shape);
    fgs_shard shard = FGS_SHARD_INIT;
    shard.offset = first - placed.offset;
    say(fgs_bind_shard(scope_, id, FGS_GRAD, &gradient, &shard));
    say(fgs_bind_shard(scope_, id, FGS_PARAM, &value, &shard));
  }

  const bool flush_;
  fgs_scope* scope_ = nullptr;
};

}  // namespace mpi_trainer

#else

namespace mpi_trainer {

// Nothing.
class Instrument {
 public:
  Instrument(const Reduction&, bool) {}
  void task_begin(const std::string&) {}
  void task_end() {}
  void step_begin(std::uint64_t) {}
  void gradients_ready() {}
  void step_end() {}
};

}  // namespace mpi_trainer

#endif
