// Listens between the example trainer and libforgetscope: preloaded, it writes the raw numbers that the trainer hands
// over to the file FGS_TAP, and passes every call on. The test computes all statistics from that file again.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "forgetscope.h"

namespace {

struct Tensor {
    const float *gradient = nullptr, *value = nullptr;
    uint64_t numel = 0;
};
std::vector<Tensor> tensors;

FILE *tap() {
    static FILE *file = std::fopen(std::getenv("FGS_TAP"), "wb");
    if (!file) std::abort();
    return file;
}

template <class Function>
Function *next(Function *, const char *name) {
    return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}
#define NEXT(function) next(function, #function)

void word(uint64_t value) { std::fwrite(&value, sizeof value, 1, tap()); }
void number(double value) { std::fwrite(&value, sizeof value, 1, tap()); }
void text(const char *value) {
    word(std::strlen(value));
    std::fwrite(value, 1, std::strlen(value), tap());
}
void values(const float *Tensor::*which) {
    for (const Tensor &tensor : tensors) std::fwrite(tensor.*which, sizeof(float), tensor.numel, tap());
}
void event(char kind) { word(static_cast<uint64_t>(kind)); }

}  // namespace

extern "C" {

fgs_status fgs_register(fgs_scope *scope, const fgs_tensor *tensor, uint32_t *id) {
    const fgs_status status = NEXT(fgs_register)(scope, tensor, id);
    tensors.resize(*id + 1);
    tensors[*id].numel = tensor->numel;
    event('t'), text(tensor->name), word(tensor->numel);
    return status;
}

fgs_status fgs_bind(fgs_scope *scope, uint32_t id, uint32_t what, const fgs_dltensor *tensor) {
    (what == FGS_GRAD ? tensors[id].gradient : tensors[id].value) = static_cast<const float *>(tensor->data);
    return NEXT(fgs_bind)(scope, id, what, tensor);
}

fgs_status fgs_task_begin(fgs_scope *scope, const char *name) {
    event('b'), text(name);
    return NEXT(fgs_task_begin)(scope, name);
}

fgs_status fgs_task_end(fgs_scope *scope) {
    event('e'), values(&Tensor::value);
    return NEXT(fgs_task_end)(scope);
}

fgs_status fgs_reference_add(fgs_scope *scope, const char *task, uint64_t examples, double scale, void *stream) {
    event('r'), number(static_cast<double>(examples)), values(&Tensor::gradient);
    return NEXT(fgs_reference_add)(scope, task, examples, scale, stream);
}

fgs_status fgs_step_begin(fgs_scope *scope, uint64_t step) {
    event('s'), word(step), values(&Tensor::value);
    return NEXT(fgs_step_begin)(scope, step);
}

fgs_status fgs_gradients_ready(fgs_scope *scope, double scale, uint32_t flags, void *stream) {
    event('g'), number(scale), values(&Tensor::gradient);
    return NEXT(fgs_gradients_ready)(scope, scale, flags, stream);
}

fgs_status fgs_step_end(fgs_scope *scope, int32_t applied, void *stream) {
    event('a'), values(&Tensor::value);
    return NEXT(fgs_step_end)(scope, applied, stream);
}

fgs_status fgs_record_loss(fgs_scope *scope, const char *task, double value) {
    event('l'), text(task), number(value);
    return NEXT(fgs_record_loss)(scope, task, value);
}

fgs_status fgs_close(fgs_scope *scope) {
    std::fclose(tap());
    return NEXT(fgs_close)(scope);
}
}
