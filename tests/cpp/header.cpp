// forgetscope.hpp by itself, in two translation units' worth of inclusion, with every template used once.
#include <forgetscope.hpp>
#include <forgetscope.hpp>

#include <vector>

// A type of the trainer's own, as CUDA's __nv_bfloat16 would be.
struct brain {
    std::uint16_t bits;
};
template <>
struct forgetscope::dtype_of<brain> {
    static constexpr DType value = bfloat16;
};

// A temporary's elements would be gone before they are read.
static_assert(!forgetscope::Elements<std::vector<float>> && forgetscope::Elements<std::vector<float>&>);
static_assert(forgetscope::Elements<std::span<const float>> && !forgetscope::Elements<std::span<const int>>);

int main() {
    const std::vector<brain> values(6);
    const fgs_dltensor tensor = forgetscope::View(values, {2, 3}, forgetscope::cuda(1)).c();
    const bool is_right = tensor.dtype.code == 4 && tensor.dtype.bits == 16 && tensor.device.device_type == 2 &&
                          tensor.device.device_id == 1 && tensor.ndim == 2;
    // A shape of another size is a mistake, which the call that gets it refuses.
    const bool is_refused = forgetscope::View(values, {2, 2}).c().ndim < 0;
    forgetscope::Scope scope;
    const forgetscope::Status status = scope.curvature(FGS_CURVATURE_INIT, "a", [](bool) { return 0.0; });
    return is_right && is_refused && status.code() == FGS_ERROR_NULL ? 0 : 1;
}
