// Modules, functions, launches.
//
// A module is PTX as the program would give it to the driver. The double reads of it what a driver would refuse: its
// version, its target, its entries and the size of their parameters; what runs is the kernel of that name that was
// compiled into the double from the same source. So a PTX file that was not compiled anew after its source lost, renamed
// or resized something is refused here as well.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace {

constexpr int default_shared = 48 * 1024, most_shared = 227 * 1024;

// The newest PTX of each driver, as 10 * major + minor.
int newest_ptx(long long driver_version) {
    struct Pair {
        int driver, ptx;
    };
    constexpr Pair pairs[] = {{13000, 90}, {12090, 88}, {12080, 87}, {12060, 85}, {12040, 84}, {12030, 83},
                              {12020, 82}, {12010, 81}, {12000, 80}, {11080, 78}, {11040, 74}, {11000, 70}};
    for (const Pair& pair : pairs) {
        if (driver_version >= pair.driver) return pair.ptx;
    }
    return 65;
}

CUresult check_image(const char* image) {
    if (image == nullptr) return CUDA_ERROR_INVALID_VALUE;
    // Read up to the NUL: an image in binary is recognised by its first bytes.
    if (memcmp(image, "\x7f" "ELF", 4) == 0 || memcmp(image, "\x50\xed\x55\xba", 4) == 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    const char* version = strstr(image, ".version");
    const char* target = strstr(image, ".target");
    int major = 0, minor = 0, architecture = 0;
    if (version == nullptr || target == nullptr) return CUDA_ERROR_INVALID_IMAGE;
    if (sscanf(version, ".version %d.%d", &major, &minor) != 2) return CUDA_ERROR_INVALID_PTX;
    if (sscanf(target, ".target sm_%d", &architecture) != 1) return CUDA_ERROR_INVALID_PTX;
    if (10 * major + minor > newest_ptx(setting("FGS_FAKE_DRIVER", 12090))) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    return architecture > 90 ? CUDA_ERROR_NO_BINARY_FOR_GPU : CUDA_SUCCESS;
}

// The text from an entry's name on; null if the image has no such entry.
const char* find_entry(const std::string& image, const std::string& name) {
    for (size_t at = image.find(".entry"); at != std::string::npos; at = image.find(".entry", at + 1)) {
        const size_t begin = image.find_first_not_of(" \t\n", at + 6);
        if (begin == std::string::npos || image.compare(begin, name.size(), name) != 0) continue;
        const char after = image.c_str()[begin + name.size()];
        if (after == '(' || after == ' ' || after == '\n') return image.c_str() + begin;
    }
    return nullptr;
}

// Bytes of an entry's one parameter: `.param .align 8 .b8 scale_param_0[24]`. 0 if it is none of that form.
size_t param_bytes(const char* entry, const std::string& name) {
    const char* end = strchr(entry, ')');
    const std::string declared = name + "_param_0[";
    const char* found = strstr(entry, declared.c_str());
    if (end == nullptr || found == nullptr || found > end) return 0;
    return static_cast<size_t>(atol(found + declared.size()));
}

CUresult find_function(CUfunction function) {
    if (driver().functions.count(function) == 0 || !function->module->alive) return CUDA_ERROR_INVALID_HANDLE;
    return function->module->context->alive ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult load(CUcontext context, CUmodule* module, const void* image) {
    if (module == nullptr) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    RETURN_IF_REFUSED(check_image(static_cast<const char*>(image)));
    *module = new CUmod_st{context, static_cast<const char*>(image)};
    driver().modules.insert(*module);
    return CUDA_SUCCESS;
}

}  // namespace

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    ENTER(context);
    return load(call.context, module, image);
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
    ENTER(context);
    return load(call.context, module, image);
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
    ENTER(context);
    if (driver().modules.count(module) == 0 || !module->alive) return CUDA_ERROR_INVALID_HANDLE;
    RETURN_IF_REFUSED(refuse_if_unsafe());
    wait_for_context(call.lock, module->context);
    module->alive = false;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    ENTER(context);
    if (function == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (driver().modules.count(module) == 0 || !module->alive) return CUDA_ERROR_INVALID_HANDLE;
    const auto known = module->functions.find(name);
    if (known != module->functions.end()) {
        *function = known->second;
        return CUDA_SUCCESS;
    }
    const char* entry = find_entry(module->image, name);
    if (entry == nullptr) return CUDA_ERROR_NOT_FOUND;
    const emulation::Kernel* kernel = emulation::Kernel::find(name);
    if (kernel == nullptr || kernel->param_bytes != param_bytes(entry, name)) {
        fprintf(stderr, "libcuda double: the PTX of %s does not agree with its source: `make kernels`\n", name);
        return CUDA_ERROR_NOT_FOUND;
    }
    *function = new CUfunc_st{module, kernel, default_shared};
    driver().functions.insert(*function);
    module->functions[name] = *function;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ENTER(context);
    RETURN_IF_REFUSED(find_function(function));
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (value < 0 || value > most_shared) return CUDA_ERROR_INVALID_VALUE;
    function->max_dynamic_shared = value;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    ENTER(context);
    if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(find_function(function));
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = static_cast<int>(function->kernel->max_threads); break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION: *value = 80; break;
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 90; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function->max_dynamic_shared; break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA: *value = 0; break;
        case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = -1; break;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// By threads and shared memory alone: registers are not known here.
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t shared) {
    ENTER(context);
    if (blocks == nullptr || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    RETURN_IF_REFUSED(find_function(function));
    const size_t whole_warps = (static_cast<size_t>(threads) + 31) / 32 * 32;
    const bool fits = static_cast<unsigned>(threads) <= function->kernel->max_threads &&
                      shared <= static_cast<size_t>(function->max_dynamic_shared);
    const size_t room = std::min({size_t{32}, 2048 / whole_warps, size_t{228 * 1024} / (shared + 1024)});
    *blocks = fits ? static_cast<int>(room) : 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream handle, void** params,
                               void** extra) {
    ENTER(context);
    RETURN_IF_REFUSED(find_function(function));
    CUstream stream;
    RETURN_IF_REFUSED(find_stream(call.context, handle, Use::enqueue, stream));
    if (stream->context != call.context || function->module->context != call.context) return CUDA_ERROR_INVALID_HANDLE;
    const emulation::Dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    if (grid.count() == 0 || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (block.count() == 0 || block_x > 1024 || block_y > 1024 || block_z > 64) return CUDA_ERROR_INVALID_VALUE;
    if (block.count() > function->kernel->max_threads) return CUDA_ERROR_INVALID_VALUE;
    if (shared > static_cast<unsigned>(function->max_dynamic_shared)) return CUDA_ERROR_INVALID_VALUE;
    if (extra != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
    if (params == nullptr || params[0] == nullptr) return CUDA_ERROR_INVALID_VALUE;
    // The driver copies parameters inside the call. Aligned for any struct: 16 bytes are the most that CUDA's types ask.
    const emulation::Kernel* kernel = function->kernel;
    struct alignas(16) Chunk {
        unsigned char bytes[16];
    };
    std::vector<Chunk> copy((kernel->param_bytes + sizeof(Chunk) - 1) / sizeof(Chunk));
    memcpy(copy.data(), params[0], kernel->param_bytes);
    check_pointers(*kernel, call.context, copy.data());
    enqueue(stream, [kernel, grid, block, shared, copy = std::move(copy)] {
        emulation::run(*kernel, grid, block, shared, copy.data());
    });
    return CUDA_SUCCESS;
}
