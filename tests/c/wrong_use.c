/* Wrong use, call by call: the status, a sentence that names the argument, nothing changed, and a scope that goes on. */

#include "check.h"

enum { SIZE = 12, ID = 0, UNKNOWN_ID = 999 };

static float gradient[SIZE], parameters[SIZE], kept_gradient[SIZE], kept_parameters[SIZE];
static fgs_scope *scope;
static char too_long[5001];
static const char NOT_UTF8[] = "caf\xe9";

/* Training's memory is as it was. */
static int is_untouched(void)
{
    return memcmp(gradient, kept_gradient, sizeof gradient) == 0 &&
           memcmp(parameters, kept_parameters, sizeof parameters) == 0;
}

#define BAD(call, status, word)                                                                                        \
    do {                                                                                                               \
        REFUSED(call, status, word);                                                                                   \
        CHECK(is_untouched());                                                                                         \
    } while (0)

/* A name or path that is no string to be taken. */
#define BAD_TEXT(call_with, argument)                                                                                  \
    do {                                                                                                               \
        BAD(call_with(NULL), FGS_ERROR_NULL, argument);                                                                \
        BAD_UNLESS_NULL(call_with, argument);                                                                          \
    } while (0)
#define BAD_UNLESS_NULL(call_with, argument)                                                                           \
    do {                                                                                                               \
        BAD(call_with(NOT_UTF8), FGS_ERROR_INVALID, argument);                                                         \
        BAD(call_with(too_long), FGS_ERROR_INVALID, argument);                                                         \
    } while (0)

/* ---- fgs_open ---- */

static void check_open(void)
{
    fgs_scope *opened = (fgs_scope *)&opened;
#define OPEN(change, status, word)                                                                                     \
    do {                                                                                                               \
        fgs_options options = FGS_OPTIONS_INIT;                                                                        \
        change;                                                                                                        \
        opened = (fgs_scope *)&opened;                                                                                 \
        BAD(fgs_open(&options, &opened), status, word);                                                                \
        CHECK(opened == NULL);                                                                                         \
    } while (0)
    BAD(fgs_open(NULL, NULL), FGS_ERROR_NULL, "out");
    OPEN(memset(&options, 0xab, sizeof options), FGS_ERROR_STRUCT, "FGS_OPTIONS_INIT");
    OPEN(memset(&options, 0, sizeof options), FGS_ERROR_STRUCT, "FGS_OPTIONS_INIT");
    OPEN(options.size += 8, FGS_ERROR_STRUCT, "fgs_options.size");
    OPEN(options.run = NOT_UTF8, FGS_ERROR_INVALID, "options.run");
    OPEN(options.run = too_long, FGS_ERROR_INVALID, "options.run");
    OPEN(options.ring_path = NOT_UTF8, FGS_ERROR_INVALID, "options.ring_path");
    OPEN(options.ring_path = "/nonexistent/ring", FGS_ERROR_RING, "/nonexistent/ring");
    OPEN(options.ring_path = "/proc/self/exe", FGS_ERROR_RING, "/proc/self/exe");
    OPEN(options.include = NOT_UTF8, FGS_ERROR_INVALID, "options.include");
    OPEN(options.include = "(", FGS_ERROR_CONFIG, "fgs_options.include");
    OPEN(options.exclude = NOT_UTF8, FGS_ERROR_INVALID, "options.exclude");
    OPEN(options.exclude = "[", FGS_ERROR_CONFIG, "fgs_options.exclude");
    OPEN(options.ring_slots = 0, FGS_ERROR_CONFIG, "ring_slots");
    OPEN(options.ring_slots = UINT64_MAX - 1, FGS_ERROR_CONFIG, "ring_slots");
    OPEN(options.reference_budget = 1.5, FGS_ERROR_CONFIG, "reference_budget");
    OPEN(options.reference_budget = NAN, FGS_ERROR_CONFIG, "reference_budget");
    OPEN(options.threads = 100000, FGS_ERROR_CONFIG, "threads");
    OPEN(options.rank = 2; options.world_size = 2, FGS_ERROR_CONFIG, "rank");
    OPEN(options.world_size = 0, FGS_ERROR_CONFIG, "rank");
    OPEN(options.sketch_head = 100, FGS_ERROR_CONFIG, "sketch_head");
    OPEN(options.sketch_matrix = 0, FGS_ERROR_CONFIG, "sketch_matrix");
    OPEN(options.window = 5000, FGS_ERROR_CONFIG, "window");
    setenv("FGS_EVERY", "often", 1);
    OPEN((void)0, FGS_ERROR_CONFIG, "FGS_EVERY");
    unsetenv("FGS_EVERY");
    setenv("FGS_CONFIG", "/nonexistent.toml", 1);
    OPEN((void)0, FGS_ERROR_CONFIG, "/nonexistent.toml");
    unsetenv("FGS_CONFIG");
#undef OPEN
}

/* ---- a scope that is NULL, as fgs_open leaves it when it fails ---- */

static void check_null_scope(void)
{
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "weight";
    tensor.numel = SIZE;
    fgs_dltensor data = F32(gradient, SIZE);
    const char *path;
    uint32_t id;
    int stream;
    BAD(fgs_register(NULL, &tensor, &id), FGS_ERROR_NULL, "scope");
    BAD(fgs_bind(NULL, ID, FGS_GRAD, &data), FGS_ERROR_NULL, "scope");
    BAD(fgs_bind_shard(NULL, ID, FGS_GRAD, &data, NULL), FGS_ERROR_NULL, "scope");
    const uint32_t known = ID;
    int32_t sampled = 1;
    BAD(fgs_rebind(NULL, FGS_GRAD, &known, &data.data, 1), FGS_ERROR_NULL, "scope");
    BAD(fgs_step_sampled(NULL, &sampled), FGS_ERROR_NULL, "scope");
    CHECK(sampled == 0);
    BAD(fgs_step_sampled(NULL, NULL), FGS_ERROR_NULL, "sampled");
    BAD(fgs_set_every(NULL, 1), FGS_ERROR_NULL, "scope");
    BAD(fgs_task_begin(NULL, "task"), FGS_ERROR_NULL, "scope");
    BAD(fgs_task_end(NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_reference_add(NULL, "task", 1, 1.0, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_reference_feed(NULL, "task", ID, &data, NULL, 1.0, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_snapshot(NULL, "task", &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_step_begin(NULL, 0), FGS_ERROR_NULL, "scope");
    BAD(fgs_gradient_feed(NULL, ID, &data, NULL, 1.0, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_gradients_ready(NULL, 1.0, 0, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_step_end(NULL, 1, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_record_loss(NULL, "task", 1.0), FGS_ERROR_NULL, "scope");
    BAD(fgs_record_eval(NULL, "task", "accuracy", 1.0, 1), FGS_ERROR_NULL, "scope");
    fgs_probe probe = FGS_PROBE_INIT;
    probe.task = "task";
    fgs_attention attention = FGS_ATTENTION_INIT;
    attention.probabilities = &data;
    BAD(fgs_probe_begin(NULL, &probe), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_batch(NULL, 1, 1, NULL, 0), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_hidden(NULL, 0, &data, NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_attention(NULL, 0, &attention, NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_head_output(NULL, 0, 1, 0, &data, NULL, NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_router(NULL, 0, &data, 1, NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_end(NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_probe_abandon(NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_head_effect(NULL, "task", 0, 0, 1.0, 1.0, 0.1), FGS_ERROR_NULL, "scope");
    fgs_curvature curvature = FGS_CURVATURE_INIT;
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
    BAD(fgs_curvature_begin(NULL, &curvature), FGS_ERROR_NULL, "scope");
    BAD(fgs_curvature_next(NULL, &request), FGS_ERROR_NULL, "scope");
    BAD(fgs_curvature_submit(NULL, 1.0, 1.0, &stream), FGS_ERROR_NULL, "scope");
    BAD(fgs_curvature_end(NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_flush(NULL), FGS_ERROR_NULL, "scope");
    BAD(fgs_ring_path(NULL, &path), FGS_ERROR_NULL, "scope");
    BAD(fgs_ring_path(scope, NULL), FGS_ERROR_NULL, "path");
}

/* ---- fgs_register ---- */

static void check_register(void)
{
    uint32_t id = NONE;
#define REGISTER(change, status, word)                                                                                 \
    do {                                                                                                               \
        fgs_tensor t = FGS_TENSOR_INIT;                                                                                \
        t.name = "refused";                                                                                            \
        t.numel = 24;                                                                                                  \
        change;                                                                                                        \
        BAD(fgs_register(scope, &t, &id), status, word);                                                               \
        CHECK(id == NONE);                                                                                             \
    } while (0)
    fgs_tensor good = FGS_TENSOR_INIT;
    good.name = "refused";
    good.numel = 24;
    BAD(fgs_register(scope, NULL, &id), FGS_ERROR_NULL, "tensor");
    BAD(fgs_register(scope, &good, NULL), FGS_ERROR_NULL, "id");
    REGISTER(memset(&t, 0xab, sizeof t), FGS_ERROR_STRUCT, "FGS_TENSOR_INIT");
    REGISTER(memset(&t, 0, sizeof t), FGS_ERROR_STRUCT, "FGS_TENSOR_INIT");
    REGISTER(t.size -= 4, FGS_ERROR_STRUCT, "fgs_tensor.size");
    REGISTER(t.name = NULL, FGS_ERROR_NULL, "tensor.name");
    REGISTER(t.name = "", FGS_ERROR_INVALID, "tensor.name");
    REGISTER(t.name = NOT_UTF8, FGS_ERROR_INVALID, "tensor.name");
    REGISTER(t.name = too_long, FGS_ERROR_INVALID, "tensor.name");
    REGISTER(t.name = "weight", FGS_ERROR_INVALID, "registered already");
    REGISTER(t.numel = 0, FGS_ERROR_INVALID, "tensor.numel");
    REGISTER(t.numel = UINT64_MAX, FGS_ERROR_INVALID, "tensor.numel");
    REGISTER(t.rows = 5; t.cols = 5, FGS_ERROR_INVALID, "tensor.rows");
    REGISTER(t.rows = 24, FGS_ERROR_INVALID, "tensor.rows");
    REGISTER(t.rows = UINT64_MAX; t.cols = 2, FGS_ERROR_INVALID, "tensor.rows");
    REGISTER(t.role = 16, FGS_ERROR_INVALID, "tensor.role");
    REGISTER(t.role = UINT32_MAX, FGS_ERROR_INVALID, "tensor.role");
    REGISTER(t.head_layout = 6, FGS_ERROR_INVALID, "tensor.head_layout");
    REGISTER(t.head_layout = FGS_HEADS_SEPARATE, FGS_ERROR_INVALID, "tensor.head_count");
    REGISTER(t.role = FGS_ROLE_QUERY; t.head_count = 2; t.head_axis = 2, FGS_ERROR_INVALID, "tensor.head_axis");
    REGISTER(t.role = FGS_ROLE_QUERY; t.head_count = 1 << 17, FGS_ERROR_INVALID, "tensor.head_count");
    REGISTER(t.role = FGS_ROLE_QUERY; t.head_count = 2; t.head_offset = UINT32_MAX, FGS_ERROR_INVALID, "tensor.head_count");
    REGISTER(t.role = FGS_ROLE_QKV; t.head_count = 2; t.kv_head_offset = UINT32_MAX, FGS_ERROR_INVALID, "kv_head_count");
    REGISTER(t.role = FGS_ROLE_QUERY; t.head_count = 5, FGS_ERROR_INVALID, "head_count");
    REGISTER(t.role = FGS_ROLE_QKV; t.head_count = 4; t.kv_head_count = 4; t.rows = 8; t.cols = 3, FGS_ERROR_INVALID,
             "head_count");
    REGISTER(t.role = FGS_ROLE_QKV; t.head_count = 2; t.kv_head_count = 3, FGS_ERROR_INVALID, "kv_head_count");
    REGISTER(t.flags = 8, FGS_ERROR_INVALID, "tensor.flags");
    REGISTER(t.flags = FGS_TENSOR_TIED, FGS_ERROR_INVALID, "tensor.tied_to");
    REGISTER(t.tied_to = ID, FGS_ERROR_INVALID, "tensor.tied_to");
    REGISTER(t.flags = FGS_TENSOR_TIED; t.tied_to = UNKNOWN_ID, FGS_ERROR_INVALID, "tensor.tied_to");
    REGISTER(t.replica = 1, FGS_ERROR_INVALID, "tensor.replica");
    REGISTER(t.layer_count = 0, FGS_ERROR_INVALID, "tensor.layer_count");
    REGISTER(t.layer_count = 1 << 20, FGS_ERROR_INVALID, "tensor.layer_count");
    REGISTER(t.layer_count = 2; t.layer = 0, FGS_ERROR_INVALID, "{layer}");
    REGISTER(t.layer_count = 2; t.name = "h{layer}", FGS_ERROR_INVALID, "tensor.layer_count");
#undef REGISTER
}

/* ---- data: the same for all functions that take a tensor ---- */

typedef enum { BIND, BIND_SHARD, GRADIENT_FEED, REFERENCE_FEED, WAYS } way;

/* Feeding a step needs one that has begun; a reference is fed between steps. */
static fgs_status hand_over(way how, uint32_t id, const fgs_dltensor *tensor, const fgs_shard *shard, double scale, void *stream)
{
    fgs_status status;
    switch (how) {
    case BIND: return fgs_bind(scope, id, FGS_GRAD, tensor);
    case BIND_SHARD: return fgs_bind_shard(scope, id, FGS_GRAD, tensor, shard);
    case GRADIENT_FEED:
        OK(fgs_step_begin(scope, 1));
        status = fgs_gradient_feed(scope, id, tensor, shard, scale, stream);
        OK(fgs_step_end(scope, 0, NULL));
        return status;
    default: return fgs_reference_feed(scope, "first", id, tensor, shard, scale, stream);
    }
}

static void check_data(void)
{
    int64_t shape[9] = {3, 2, 2, 1, 1, 1, 1, 1, 1}, strides[9] = {100, 10, 2, 1, 1, 1, 1, 1, 1};
#define DATA(change, status, word)                                                                                     \
    for (int how = BIND; how < WAYS; how++) {                                                                          \
        fgs_dltensor t = F32(gradient, SIZE);                                                                          \
        change;                                                                                                        \
        BAD(hand_over((way)how, ID, &t, NULL, 1.0, NULL), status, word);                                               \
    }
    DATA(t.data = NULL, FGS_ERROR_NULL, "tensor.data")
    DATA(t.data = (char *)gradient + 2, FGS_ERROR_INVALID, "tensor.data")
    DATA(t.byte_offset = 1, FGS_ERROR_INVALID, "tensor.data")
    DATA(t.device.device_type = 2, FGS_ERROR_UNSUPPORTED, "tensor.device")
    DATA(t.device.device_type = 0, FGS_ERROR_UNSUPPORTED, "tensor.device")
    DATA(t.device.device_type = -7, FGS_ERROR_UNSUPPORTED, "tensor.device")
    DATA(t.dtype.code = 0, FGS_ERROR_UNSUPPORTED, "tensor.dtype")
    DATA(t.dtype.bits = 8, FGS_ERROR_UNSUPPORTED, "tensor.dtype")
    DATA(t.dtype.bits = 0, FGS_ERROR_UNSUPPORTED, "tensor.dtype")
    DATA(t.dtype.lanes = 4, FGS_ERROR_UNSUPPORTED, "tensor.dtype")
    DATA(t.dtype.code = 4, FGS_ERROR_UNSUPPORTED, "tensor.dtype")
    DATA(t.ndim = -1, FGS_ERROR_INVALID, "tensor.ndim")
    DATA(t.ndim = 9; t.shape = shape, FGS_ERROR_INVALID, "tensor.ndim")
    DATA(t.shape = NULL, FGS_ERROR_NULL, "tensor.shape")
    DATA(t.shape = (int64_t[]){-12}, FGS_ERROR_INVALID, "tensor.shape")
    DATA(t.ndim = 2; t.shape = ((int64_t[]){INT64_MAX, 2}), FGS_ERROR_INVALID, "tensor.shape")
    DATA(t.shape = (int64_t[]){INT64_MAX}, FGS_ERROR_INVALID, "tensor.shape")
    DATA(t.shape = (int64_t[]){SIZE - 1}, FGS_ERROR_INVALID, "tensor.shape")
    DATA(t.shape = (int64_t[]){SIZE + 1}, FGS_ERROR_INVALID, "tensor.shape")
    DATA(t.strides = (int64_t[]){0}, FGS_ERROR_UNSUPPORTED, "tensor.strides")
    DATA(t.strides = (int64_t[]){-1}, FGS_ERROR_UNSUPPORTED, "tensor.strides")
    DATA(t.ndim = 3; t.shape = shape; t.strides = strides, FGS_ERROR_UNSUPPORTED, "tensor.strides")
#undef DATA

    fgs_dltensor data = F32(gradient, SIZE), half = F32(gradient, SIZE / 2);
    int stream;
    for (int how = BIND; how < WAYS; how++)
        BAD(hand_over((way)how, UNKNOWN_ID, &data, NULL, 1.0, NULL), FGS_ERROR_NOT_FOUND, "999");
    for (int how = GRADIENT_FEED; how < WAYS; how++) {
        static const double scales[] = {0.0, -1.0, NAN, INFINITY, -INFINITY};
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
            BAD(hand_over((way)how, ID, &data, NULL, scales[i], NULL), FGS_ERROR_INVALID, "scale");
        BAD(hand_over((way)how, ID, NULL, NULL, 1.0, NULL), FGS_ERROR_NULL, "tensor");
        BAD(hand_over((way)how, ID, &data, NULL, 1.0, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    }
    /* No elements are no tensor, whatever else the shape says. */
    int64_t empty[3] = {0, INT64_MAX, INT64_MAX};
    fgs_dltensor nothing = F32(gradient, 0);
    nothing.ndim = 3;
    nothing.shape = empty;
    BAD(hand_over(GRADIENT_FEED, ID, &nothing, NULL, 1.0, NULL), FGS_ERROR_INVALID, "tensor.shape");
    BAD(fgs_bind(scope, ID, 3, &data), FGS_ERROR_INVALID, "what");
    BAD(fgs_bind(scope, ID, UINT32_MAX, NULL), FGS_ERROR_INVALID, "what");

#define SHARD(change, status, word)                                                                                    \
    for (int how = BIND_SHARD; how < WAYS; how++) {                                                                    \
        fgs_shard s = FGS_SHARD_INIT;                                                                                  \
        change;                                                                                                        \
        BAD(hand_over((way)how, ID, &half, &s, 1.0, NULL), status, word);                                              \
    }
    SHARD(memset(&s, 0xab, sizeof s), FGS_ERROR_STRUCT, "FGS_SHARD_INIT")
    SHARD(s.size = 0, FGS_ERROR_STRUCT, "fgs_shard.size")
    SHARD(s.offset = SIZE / 2 + 1, FGS_ERROR_INVALID, "shard")
    SHARD(s.offset = UINT64_MAX, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_length = SIZE / 2 - 1, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_length = UINT64_MAX, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_count = 2; s.run_length = 3; s.run_step = 2, FGS_ERROR_INVALID, "shard.run_step")
    SHARD(s.run_count = 2; s.run_length = 3; s.run_step = 10, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_count = 3; s.run_length = 3; s.run_step = 4, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_count = UINT64_MAX; s.run_length = 1; s.run_step = UINT64_MAX, FGS_ERROR_INVALID, "shard")
    SHARD(s.run_count = 5, FGS_ERROR_INVALID, "shard")
#undef SHARD

    /* Bands of columns cannot be found without the number of columns. */
    fgs_tensor columns = FGS_TENSOR_INIT;
    columns.name = "output";
    columns.role = FGS_ROLE_OUTPUT;
    columns.head_count = 2;
    columns.numel = SIZE;
    uint32_t id;
    OK(fgs_register(scope, &columns, &id));
    for (int how = BIND; how < WAYS; how++)
        BAD(hand_over((way)how, id, &data, NULL, 1.0, NULL), FGS_ERROR_INVALID, "tensor.cols");
}

/* ---- phases ---- */

static void check_phases(void)
{
    fgs_dltensor data = F32(gradient, SIZE);
    BAD(fgs_gradients_ready(scope, 1.0, 0, NULL), FGS_ERROR_PHASE, "fgs_step_begin");
    BAD(fgs_gradient_feed(scope, ID, &data, NULL, 1.0, NULL), FGS_ERROR_PHASE, "fgs_step_begin");
    BAD(fgs_step_end(scope, 1, NULL), FGS_ERROR_PHASE, "fgs_step_begin");
    BAD(fgs_task_end(scope), FGS_ERROR_PHASE, "fgs_task_begin");
    BAD(fgs_snapshot(scope, NULL, NULL), FGS_ERROR_PHASE, "fgs_task_begin");

    OK(fgs_task_begin(scope, "first"));
    BAD(fgs_task_begin(scope, "second"), FGS_ERROR_PHASE, "'first'");
    OK(fgs_step_begin(scope, 2));
    BAD(fgs_task_begin(scope, "second"), FGS_ERROR_PHASE, "fgs_step_end");
    BAD(fgs_task_end(scope), FGS_ERROR_PHASE, "fgs_step_end");
    BAD(fgs_snapshot(scope, "first", NULL), FGS_ERROR_PHASE, "fgs_step_end");
    BAD(fgs_reference_add(scope, "first", 1, 1.0, NULL), FGS_ERROR_PHASE, "fgs_step_end");
    BAD(fgs_reference_feed(scope, "first", ID, &data, NULL, 1.0, NULL), FGS_ERROR_PHASE, "fgs_step_end");
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    BAD(fgs_gradients_ready(scope, 1.0, 0, NULL), FGS_ERROR_PHASE, "fgs_step_end");
    BAD(fgs_gradient_feed(scope, ID, &data, NULL, 1.0, NULL), FGS_ERROR_PHASE, "fgs_step_end");
    OK(fgs_step_end(scope, 0, NULL));
    BAD(fgs_step_end(scope, 0, NULL), FGS_ERROR_PHASE, "fgs_step_begin");
    OK(fgs_task_end(scope));
}

/* ---- the rest of the arguments ---- */

static void check_step_arguments(void)
{
    static const double scales[] = {0.0, -1.0, NAN, INFINITY, -INFINITY};
    int stream;
    OK(fgs_step_begin(scope, 3));
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        BAD(fgs_gradients_ready(scope, scales[i], 0, NULL), FGS_ERROR_INVALID, "scale");
    BAD(fgs_gradients_ready(scope, 1.0, 2, NULL), FGS_ERROR_INVALID, "flags");
    BAD(fgs_gradients_ready(scope, 1.0, UINT32_MAX, NULL), FGS_ERROR_INVALID, "flags");
    BAD(fgs_gradients_ready(scope, 1.0, 0, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    BAD(fgs_step_end(scope, 1, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    OK(fgs_step_end(scope, 0, NULL));
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        BAD(fgs_reference_add(scope, "first", 1, scales[i], NULL), FGS_ERROR_INVALID, "scale");
    BAD(fgs_reference_add(scope, "first", 1, 1.0, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    BAD(fgs_snapshot(scope, "first", &stream), FGS_ERROR_UNSUPPORTED, "stream");
}

static void check_texts(void)
{
    fgs_dltensor data = F32(gradient, SIZE);
#define BEGIN(text) fgs_task_begin(scope, text)
#define ADD(text) fgs_reference_add(scope, text, 1, 1.0, NULL)
#define FEED(text) fgs_reference_feed(scope, text, ID, &data, NULL, 1.0, NULL)
#define SNAPSHOT(text) fgs_snapshot(scope, text, NULL)
#define LOSS(text) fgs_record_loss(scope, text, 1.0)
#define EVAL(text) fgs_record_eval(scope, text, "accuracy", 1.0, 1)
#define METRIC(text) fgs_record_eval(scope, "first", text, 1.0, 1)
    BAD_TEXT(BEGIN, "name");
    BAD_TEXT(ADD, "task");
    BAD_TEXT(FEED, "task");
    BAD_UNLESS_NULL(SNAPSHOT, "task");
    BAD_TEXT(LOSS, "task");
    BAD_TEXT(EVAL, "task");
    BAD_TEXT(METRIC, "metric");
    BAD(BEGIN(""), FGS_ERROR_INVALID, "name");
    BAD(ADD(""), FGS_ERROR_INVALID, "name");
    BAD(FEED(""), FGS_ERROR_INVALID, "name");
    BAD(SNAPSHOT(""), FGS_ERROR_INVALID, "name");
    BAD(LOSS(""), FGS_ERROR_INVALID, "name");
    BAD(METRIC(""), FGS_ERROR_INVALID, "metric");

    OK(fgs_record_eval(scope, "first", "perplexity", 2.0, 0));
    BAD(fgs_record_eval(scope, "unheard of", "perplexity", 2.0, 1), FGS_ERROR_INVALID, "higher_is_better");
    BAD(fgs_record_eval(scope, "first", "loss", 2.0, 1), FGS_ERROR_INVALID, "higher_is_better");
}

/* A reference needs gradients, and one batch is completed before another begins. */
static void check_references(void)
{
    fgs_dltensor data = F32(gradient, SIZE);
    OK(fgs_bind(scope, ID, FGS_GRAD, NULL));
    BAD(fgs_reference_add(scope, "unheard of", 1, 1.0, NULL), FGS_ERROR_INVALID, "FGS_GRAD");
    OK(fgs_reference_feed(scope, "first", ID, &data, NULL, 1.0, NULL));
    BAD(fgs_reference_feed(scope, "unheard of", ID, &data, NULL, 1.0, NULL), FGS_ERROR_INVALID, "'first'");
    BAD(fgs_reference_add(scope, "unheard of", 1, 1.0, NULL), FGS_ERROR_INVALID, "'first'");
    OK(fgs_reference_add(scope, "first", 1, 1.0, NULL));
    OK(fgs_bind(scope, ID, FGS_GRAD, &data));
}

/* ---- curvature: whatever is refused, the parameters are as they were ---- */

static void check_curvature(void)
{
    static const double scales[] = {0.0, -1.0, NAN, INFINITY, -INFINITY};
    fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT, garbage = FGS_CURVATURE_REQUEST_INIT;
    uint32_t unknown = UNKNOWN_ID, twice[] = {ID, ID};
    int stream;
#define CURVATURE(change, status, word)                                                                                \
    do {                                                                                                               \
        fgs_curvature c = FGS_CURVATURE_INIT;                                                                          \
        c.task = "unheard of";                                                                                         \
        change;                                                                                                        \
        BAD(fgs_curvature_begin(scope, &c), status, word);                                                             \
    } while (0)
    BAD(fgs_curvature_begin(scope, NULL), FGS_ERROR_NULL, "options");
    CURVATURE(memset(&c, 0xab, sizeof c), FGS_ERROR_STRUCT, "FGS_CURVATURE_INIT");
    CURVATURE(memset(&c, 0, sizeof c), FGS_ERROR_STRUCT, "FGS_CURVATURE_INIT");
    CURVATURE(c.size -= 8, FGS_ERROR_STRUCT, "fgs_curvature.size");
    CURVATURE(c.task = NULL, FGS_ERROR_NULL, "curvature.task");
    CURVATURE(c.task = NOT_UTF8, FGS_ERROR_INVALID, "curvature.task");
    CURVATURE(c.task = too_long, FGS_ERROR_INVALID, "curvature.task");
    CURVATURE(c.task = "", FGS_ERROR_INVALID, "task");
    CURVATURE(c.lanczos_steps = 0, FGS_ERROR_INVALID, "curvature.lanczos_steps");
    CURVATURE(c.lanczos_steps = UINT32_MAX, FGS_ERROR_INVALID, "curvature.lanczos_steps");
    CURVATURE(c.trace_vectors = UINT32_MAX, FGS_ERROR_INVALID, "curvature.trace_vectors");
    CURVATURE(c.density_vectors = UINT32_MAX, FGS_ERROR_INVALID, "curvature.density_vectors");
    CURVATURE(c.eigenvectors = UINT32_MAX, FGS_ERROR_INVALID, "curvature.eigenvectors");
    CURVATURE(c.path_points = 1, FGS_ERROR_INVALID, "curvature.path_points");
    CURVATURE(c.block_vectors = 0, FGS_ERROR_INVALID, "curvature.block_vectors");
    CURVATURE(c.block_count = 1, FGS_ERROR_NULL, "curvature.blocks");
    CURVATURE(c.block_count = UINT64_MAX, FGS_ERROR_INVALID, "curvature.block_count");
    CURVATURE(c.block_count = 1; c.blocks = &unknown, FGS_ERROR_NOT_FOUND, "999");
    CURVATURE(c.block_count = 2; c.blocks = twice, FGS_ERROR_INVALID, "curvature.blocks");
    CURVATURE(c.relative_step = 0.0, FGS_ERROR_INVALID, "curvature.relative_step");
    CURVATURE(c.relative_step = NAN, FGS_ERROR_INVALID, "curvature.relative_step");
    CURVATURE(c.relative_step = 1.0, FGS_ERROR_INVALID, "curvature.relative_step");
#undef CURVATURE
    BAD(fgs_curvature_next(scope, NULL), FGS_ERROR_NULL, "request");
    memset(&garbage, 0, sizeof garbage);
    BAD(fgs_curvature_next(scope, &garbage), FGS_ERROR_STRUCT, "FGS_CURVATURE_REQUEST_INIT");
    BAD(fgs_curvature_next(scope, &request), FGS_ERROR_PHASE, "fgs_curvature_begin");
    BAD(fgs_curvature_submit(scope, 1.0, 1.0, NULL), FGS_ERROR_PHASE, "fgs_curvature_begin");
    OK(fgs_curvature_end(scope));

    fgs_curvature options = FGS_CURVATURE_INIT;
    options.task = "first";
    OK(fgs_step_begin(scope, 1));
    BAD(fgs_curvature_begin(scope, &options), FGS_ERROR_PHASE, "fgs_step_end");
    OK(fgs_step_end(scope, 0, NULL));
    OK(fgs_bind(scope, ID, FGS_GRAD, NULL));
    BAD(fgs_curvature_begin(scope, &options), FGS_ERROR_INVALID, "FGS_GRAD");
    fgs_dltensor data = F32(gradient, SIZE);
    OK(fgs_bind(scope, ID, FGS_GRAD, &data));

    OK(fgs_curvature_begin(scope, &options));
    BAD(fgs_curvature_begin(scope, &options), FGS_ERROR_PHASE, "fgs_curvature_end");
    BAD(fgs_snapshot(scope, "first", NULL), FGS_ERROR_PHASE, "fgs_curvature_end");
    BAD(fgs_task_begin(scope, "first"), FGS_ERROR_PHASE, "fgs_curvature_end");
    BAD(fgs_reference_add(scope, "first", 1, 1.0, NULL), FGS_ERROR_PHASE, "fgs_curvature_end");
    BAD(fgs_curvature_submit(scope, 1.0, 1.0, NULL), FGS_ERROR_PHASE, "fgs_curvature_next");
    OK(fgs_curvature_next(scope, &request));
    BAD(fgs_curvature_next(scope, &request), FGS_ERROR_PHASE, "fgs_curvature_submit");
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        BAD(fgs_curvature_submit(scope, 1.0, scales[i], NULL), FGS_ERROR_INVALID, "scale");
    BAD(fgs_curvature_submit(scope, 1.0, 1.0, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    OK(fgs_curvature_submit(scope, 1.0, 1.0, NULL));
    OK(fgs_curvature_next(scope, &request));
    BAD(fgs_curvature_submit(scope, NAN, 1.0, NULL), FGS_ERROR_INVALID, "loss");
    BAD(fgs_curvature_next(scope, &request), FGS_ERROR_PHASE, "fgs_curvature_begin");
}

static void check_reader(void)
{
    fgs_reader *reader = (fgs_reader *)&reader;
    fgs_record record;
    const char *path, *name;
    OK(fgs_ring_path(scope, &path));
    BAD(fgs_reader_open(path, NULL), FGS_ERROR_NULL, "out");
#define OPEN(text) fgs_reader_open(text, &reader)
    BAD_TEXT(OPEN, "path");
    CHECK(reader == NULL);
    BAD(OPEN("/nonexistent/ring"), FGS_ERROR_NOT_FOUND, "/nonexistent/ring");
    BAD(OPEN("/tmp"), FGS_ERROR_RING, "/tmp");
    BAD(OPEN("/proc/self/status"), FGS_ERROR_RING, "/proc/self/status");
    BAD(OPEN(""), FGS_ERROR_NOT_FOUND, "ring");
    CHECK(reader == NULL);
    OK(OPEN(path));
    BAD(fgs_reader_next(NULL, &record, NULL), FGS_ERROR_NULL, "reader");
    BAD(fgs_reader_next(reader, NULL, NULL), FGS_ERROR_NULL, "record");
    BAD(fgs_reader_name(NULL, FGS_NAME_KIND, 1, &name), FGS_ERROR_NULL, "reader");
    BAD(fgs_reader_name(reader, FGS_NAME_KIND, 1, NULL), FGS_ERROR_NULL, "name");
    BAD(fgs_reader_name(reader, 99, 1, &name), FGS_ERROR_INVALID, "what");
    BAD(fgs_reader_name(reader, FGS_NAME_TENSOR, UNKNOWN_ID, &name), FGS_ERROR_NOT_FOUND, "999");
    BAD(fgs_reader_name(reader, FGS_NAME_TASK, UNKNOWN_ID, &name), FGS_ERROR_NOT_FOUND, "999");
    OK(fgs_reader_close(reader));
}

/* ---- probes ---- */

static void check_probe_begin(void)
{
#define PASS(change, status, word)                                                                                    \
    do {                                                                                                               \
        fgs_probe probe = FGS_PROBE_INIT;                                                                              \
        probe.task = "first";                                                                                          \
        change;                                                                                                        \
        BAD(fgs_probe_begin(scope, &probe), status, word);                                                             \
    } while (0)
    BAD(fgs_probe_begin(scope, NULL), FGS_ERROR_NULL, "probe");
    PASS(memset(&probe, 0xab, sizeof probe), FGS_ERROR_STRUCT, "FGS_PROBE_INIT");
    PASS(probe.size += 8, FGS_ERROR_STRUCT, "fgs_probe.size");
    PASS(probe.task = NULL, FGS_ERROR_NULL, "probe.task");
    PASS(probe.task = NOT_UTF8, FGS_ERROR_INVALID, "probe.task");
    PASS(probe.task = "", FGS_ERROR_INVALID, "task");
    PASS(probe.flags = 2, FGS_ERROR_INVALID, "probe.flags");
    PASS(probe.continued_updates = 0, FGS_ERROR_INVALID, "probe.continued_updates");
    PASS(probe.continued_updates = 5, FGS_ERROR_INVALID, "no base pass");
    PASS(probe.continued_updates = 5; probe.flags = FGS_PROBE_BASE, FGS_ERROR_INVALID, "probe.continued_updates");
    PASS(probe.task = "never heard of"; probe.continued_updates = 5, FGS_ERROR_INVALID, "never heard of");
    OK(fgs_step_begin(scope, 3));
    PASS((void)0, FGS_ERROR_PHASE, "fgs_step_end");
    OK(fgs_step_end(scope, 0, NULL));
#undef PASS
}

/* A batch of 2 sequences of 3 tokens: gradient and parameters serve as activations, 12 values each. */
static void check_probe_data(void)
{
    fgs_dltensor hidden = F32(gradient, 2, 3, 2), flat = F32(gradient, 6, 2), squares = F32(parameters, 1, 2, 2, 3);
    fgs_dltensor fewer = F32(gradient, 5, 2), no_tokens = F32(gradient, 12), on_gpu = hidden;
    fgs_dltensor five = F32(gradient, 2, 3, 1, 2, 1), query = F32(gradient, 2, 3, 1, 2), key = query, bad_key = F32(gradient, 2, 3, 2, 1);
    on_gpu.device.device_type = 2;
    int stream, labels[6] = {0, 1, 0, 1, 0, 1};
    fgs_attention attention = FGS_ATTENTION_INIT;
    attention.query = &query, attention.key = &key;
    fgs_probe probe = FGS_PROBE_INIT;
    probe.task = "first";

    BAD(fgs_probe_batch(scope, 2, 3, NULL, 0), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_hidden(scope, 0, &hidden, NULL), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_attention(scope, 0, &attention, NULL), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_head_output(scope, 0, 2, 0, &hidden, NULL, NULL), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_router(scope, 0, &hidden, 1, NULL), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_end(scope), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_probe_abandon(scope), FGS_ERROR_PHASE, "fgs_probe_begin");
    BAD(fgs_head_effect(scope, "never heard of", 0, 0, 1.0, 1.0, 0.1), FGS_ERROR_NOT_FOUND, "never heard of");
    BAD(fgs_head_effect(scope, NULL, 0, 0, 1.0, 1.0, 0.1), FGS_ERROR_NULL, "task");
    BAD(fgs_head_effect(scope, "first", 1 << 16, 0, 1.0, 1.0, 0.1), FGS_ERROR_INVALID, "layer");
    BAD(fgs_head_effect(scope, "first", 0, 0, NAN, 1.0, 0.1), FGS_ERROR_INVALID, "loss");
    BAD(fgs_head_effect(scope, "first", 0, 0, 1.0, INFINITY, 0.1), FGS_ERROR_INVALID, "loss_restored");
    BAD(fgs_head_effect(scope, "first", 0, 0, 1.0, 1.0, -0.1), FGS_ERROR_INVALID, "error");

    OK(fgs_probe_begin(scope, &probe));
    BAD(fgs_probe_hidden(scope, 0, &hidden, NULL), FGS_ERROR_PHASE, "fgs_probe_batch");
    BAD(fgs_probe_attention(scope, 0, &attention, NULL), FGS_ERROR_PHASE, "fgs_probe_batch");
    BAD(fgs_probe_batch(scope, 0, 3, NULL, 0), FGS_ERROR_INVALID, "sequences");
    BAD(fgs_probe_batch(scope, 2, 0, NULL, 0), FGS_ERROR_INVALID, "sequences");
    BAD(fgs_probe_batch(scope, UINT64_MAX, UINT64_MAX, NULL, 0), FGS_ERROR_INVALID, "sequences");
    BAD(fgs_probe_batch(scope, 2, 3, NULL, 6), FGS_ERROR_NULL, "labels");
    BAD(fgs_probe_batch(scope, 2, 3, labels, 5), FGS_ERROR_INVALID, "label_count");
    BAD(fgs_probe_batch(scope, 2, 3, labels, UINT64_MAX), FGS_ERROR_INVALID, "label_count");
    OK(fgs_probe_batch(scope, 2, 3, NULL, 0));

    BAD(fgs_probe_hidden(scope, 0, NULL, NULL), FGS_ERROR_NULL, "tensor");
    BAD(fgs_probe_hidden(scope, 0, &on_gpu, NULL), FGS_ERROR_UNSUPPORTED, "device");
    BAD(fgs_probe_hidden(scope, 0, &hidden, &stream), FGS_ERROR_UNSUPPORTED, "stream");
    BAD(fgs_probe_hidden(scope, 1 << 16, &hidden, NULL), FGS_ERROR_INVALID, "layer");
    BAD(fgs_probe_hidden(scope, 0, &fewer, NULL), FGS_ERROR_INVALID, "tensor.shape");
    BAD(fgs_probe_hidden(scope, 0, &no_tokens, NULL), FGS_ERROR_INVALID, "tensor.shape");
    BAD(fgs_probe_hidden(scope, 0, &squares, NULL), FGS_ERROR_INVALID, "tensor.shape");
    BAD(fgs_probe_hidden(scope, 0, &five, NULL), FGS_ERROR_INVALID, "ndim");
    OK(fgs_probe_hidden(scope, 0, &hidden, NULL));
    BAD(fgs_probe_hidden(scope, 0, &flat, NULL), FGS_ERROR_INVALID, "already");

    BAD(fgs_probe_head_output(scope, 0, 3, 0, &flat, NULL, NULL), FGS_ERROR_INVALID, "3 heads");
    BAD(fgs_probe_head_output(scope, 0, 0, 0, &flat, NULL, NULL), FGS_ERROR_INVALID, "heads");
    BAD(fgs_probe_head_output(scope, 0, 2, 0, &query, NULL, NULL), FGS_ERROR_INVALID, "head_count");
    BAD(fgs_probe_head_output(scope, 0, 2, 0, &flat, &no_tokens, NULL), FGS_ERROR_INVALID, "projection.shape");
    BAD(fgs_probe_head_output(scope, 0, 2, 0, NULL, NULL, NULL), FGS_ERROR_NULL, "tensor");
    BAD(fgs_probe_router(scope, 0, &flat, 0, NULL), FGS_ERROR_INVALID, "top_k");
    BAD(fgs_probe_router(scope, 0, &flat, 3, NULL), FGS_ERROR_INVALID, "top_k");
    BAD(fgs_probe_router(scope, 0, &query, 1, NULL), FGS_ERROR_INVALID, "logits.shape");

#define ATTEND(change, status, word)                                                                                   \
    do {                                                                                                               \
        attention = (fgs_attention)FGS_ATTENTION_INIT;                                                                 \
        attention.query = &query, attention.key = &key;                                                                \
        change;                                                                                                        \
        BAD(fgs_probe_attention(scope, 0, &attention, NULL), status, word);                                            \
    } while (0)
    BAD(fgs_probe_attention(scope, 0, NULL, NULL), FGS_ERROR_NULL, "attention");
    ATTEND(memset(&attention, 0, sizeof attention), FGS_ERROR_STRUCT, "FGS_ATTENTION_INIT");
    ATTEND(attention.size -= 8, FGS_ERROR_STRUCT, "fgs_attention.size");
    ATTEND(attention.mask = 7, FGS_ERROR_INVALID, "attention.mask");
    ATTEND(attention.query = NULL, FGS_ERROR_NULL, "attention.query");
    ATTEND(attention.key = NULL, FGS_ERROR_NULL, "attention.key");
    ATTEND(attention.query = attention.key = NULL, FGS_ERROR_NULL, "attention.probabilities");
    ATTEND(attention.probabilities = &squares, FGS_ERROR_INVALID, "not both");
    ATTEND(attention.query = &flat, FGS_ERROR_INVALID, "attention.query");
    ATTEND(attention.key = &bad_key, FGS_ERROR_INVALID, "attention.key");
    ATTEND(attention.scale = -1.0, FGS_ERROR_INVALID, "attention.scale");
    ATTEND(attention.scale = NAN, FGS_ERROR_INVALID, "attention.scale");
    ATTEND(attention.softcap = -1.0, FGS_ERROR_INVALID, "attention.softcap");
    ATTEND(attention.log_sum_exp = &flat, FGS_ERROR_INVALID, "attention.log_sum_exp");
    ATTEND(attention.query = attention.key = NULL; attention.probabilities = &squares, FGS_ERROR_INVALID,
           "attention.probabilities");
#undef ATTEND
    /* Not of the trainer's softmax: the sum of a row is far from 1. */
    fgs_dltensor wrong = F32(parameters, 2, 1, 3, 2);
    attention = (fgs_attention)FGS_ATTENTION_INIT;
    attention.probabilities = &wrong;
    BAD(fgs_probe_attention(scope, 0, &attention, NULL), FGS_ERROR_INVALID, "sum to");
    attention.mask = FGS_MASK_CAUSAL;
    BAD(fgs_probe_attention(scope, 0, &attention, NULL), FGS_ERROR_INVALID, "attention.mask");

    OK(fgs_probe_batch(scope, 2, 3, NULL, 0));
    BAD(fgs_probe_batch(scope, 2, 3, labels, 6), FGS_ERROR_INVALID, "labels");
    BAD(fgs_probe_end(scope), FGS_ERROR_INVALID, "layer 0");
    BAD(fgs_probe_end(scope), FGS_ERROR_PHASE, "fgs_probe_begin");
    OK(fgs_probe_begin(scope, &probe));
    BAD(fgs_probe_end(scope), FGS_ERROR_INVALID, "nothing");

    /* A probe's batches are those of its base pass. */
    OK(fgs_probe_begin(scope, &probe));
    OK(fgs_probe_batch(scope, 2, 3, NULL, 0));
    OK(fgs_probe_hidden(scope, 0, &hidden, NULL));
    OK(fgs_probe_end(scope));
    OK(fgs_probe_begin(scope, &probe));
    OK(fgs_probe_batch(scope, 3, 2, NULL, 0));
    OK(fgs_probe_hidden(scope, 0, &flat, NULL));
    BAD(fgs_probe_end(scope), FGS_ERROR_INVALID, "base pass");
}

/* After all this the scope measures what it measured before, and knows of nothing that was refused. */
static void check_usable(uint64_t step)
{
    OK(fgs_step_begin(scope, step));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    OK(fgs_step_end(scope, 1, NULL));
    ring all = ring_of(scope);
    CHECK_NEAR(value(&all, of_tensor(&all, "gradient", step, ID), "squares"), dot(gradient, gradient, SIZE));
    CHECK_NEAR(value(&all, of_tensor(&all, "update", step, ID), "weights"), dot(parameters, parameters, SIZE));
    CHECK(strcmp(name_of(&all, FGS_NAME_TENSOR, ID), "weight") == 0);
    /* "output" was registered without a shape and never bound: it is announced when it can be measured. */
    CHECK(strcmp(name_of(&all, FGS_NAME_TENSOR, ID + 1), "") == 0);
    CHECK(strcmp(name_of(&all, FGS_NAME_TENSOR, ID + 2), "") == 0);
    CHECK(strcmp(name_of(&all, FGS_NAME_TASK, 0), "first") == 0);
    CHECK(strcmp(name_of(&all, FGS_NAME_TASK, 1), "") == 0);
    for (size_t i = 0; i < all.count; i++)
        CHECK(!is_kind(&all, &all.records[i], "fault"));
    ring_free(&all);
}

int main(void)
{
    memset(too_long, 'x', sizeof too_long - 1);
    fill(gradient, SIZE, 1);
    fill(parameters, SIZE, 2);
    memcpy(kept_gradient, gradient, sizeof gradient);
    memcpy(kept_parameters, parameters, sizeof parameters);
    check_open();
    scope = open_scope();
    fgs_dltensor data = F32(gradient, SIZE), values = F32(parameters, SIZE);
    OK(fgs_bind(scope, register_plain(scope, "weight", SIZE), FGS_GRAD, &data));
    OK(fgs_bind(scope, ID, FGS_PARAM, &values));

    check_null_scope();
    check_register();
    check_phases();
    check_data();
    check_step_arguments();
    check_texts();
    check_references();
    check_probe_begin();
    check_probe_data();
    check_reader();
    check_usable(4);
    check_curvature();
    OK(fgs_close(scope));
    return RESULT();
}
