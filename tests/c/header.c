/* Everything that a header can get wrong by itself. Compiled as C and as C++, in every standard, with every warning. */

#ifdef WITH_DLPACK
#include "dlpack_stub.h"
#endif
#include <forgetscope.h>
#include <forgetscope.h> /* twice is as good as once */

#if FGS_VERSION < 100
#error "FGS_VERSION is a number that the preprocessor can compare"
#endif

/* Initialisers are constant expressions, in C and in C++. */
static const fgs_options static_options = FGS_OPTIONS_INIT;
static const fgs_tensor static_tensor = FGS_TENSOR_INIT;
static const fgs_shard static_shard = FGS_SHARD_INIT;

fgs_status use_the_header(fgs_scope *scope, fgs_dltensor *data);

fgs_status use_the_header(fgs_scope *scope, fgs_dltensor *data)
{
    fgs_options options = FGS_OPTIONS_INIT;
    fgs_tensor tensor = FGS_TENSOR_INIT;
    fgs_shard shard = FGS_SHARD_INIT;
    uint32_t id = 0;
    options.every = static_options.every;
    tensor.role = FGS_ROLE_QKV;
    tensor.head_layout = FGS_HEADS_INTERLEAVED;
    tensor.flags = FGS_TENSOR_REPLICATED | FGS_TENSOR_EXPERT;
    tensor.group = static_tensor.group;
    shard.offset = static_shard.offset;
    if (fgs_open(&options, &scope) != FGS_OK || fgs_register(scope, &tensor, &id) < 0)
        return FGS_ERROR_INTERNAL;
    if (data->device.device_type == 1 && data->dtype.lanes == 1 && data->ndim > 0 && data->shape[0] > 0)
        return fgs_bind_shard(scope, id, FGS_MASTER, data, &shard);
    return fgs_gradients_ready(scope, 1.0, FGS_GRADIENTS_UNREDUCED, NULL);
}

#ifdef WITH_DLPACK
/* DLPack's own type is accepted as it is. */
fgs_status use_dlpack(fgs_scope *scope, const DLTensor *data);

fgs_status use_dlpack(fgs_scope *scope, const DLTensor *data)
{
    return fgs_bind(scope, 0, FGS_GRAD, data);
}
#endif
