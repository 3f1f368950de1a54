/* llm.c keeps one buffer per kind of tensor, with all layers stacked in it. One call registers them all, one binds them. */

#include "check.h"

enum { LAYERS = 3, CHANNELS = 6, HEADS = 2, QKV = 3 * CHANNELS * CHANNELS, FIRST_LAYER = 2 };

static float qkv[LAYERS * QKV], norm[LAYERS * CHANNELS], other[8];

static uint32_t register_stack(fgs_scope *scope, const char *name, uint32_t role, uint64_t numel, uint32_t heads)
{
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = name;
    tensor.role = role;
    tensor.layer = FIRST_LAYER;
    tensor.layer_count = LAYERS;
    tensor.head_count = heads;
    tensor.numel = numel; /* of one layer */
    uint32_t id = NONE;
    OK(fgs_register(scope, &tensor, &id));
    return id;
}

/* Every layer is filled with a number of its own, which its records have to show. */
static void fill_layers(float *values, int numel)
{
    for (int i = 0; i < LAYERS * numel; i++)
        values[i] = (float)(1 + i / numel);
}

static void check_layers(fgs_scope *scope, uint64_t step, uint32_t id, double numel)
{
    measure_step(scope, step);
    ring all = ring_of(scope);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const fgs_record *record = of_tensor(&all, "gradient", step, id + layer);
        CHECK(value(&all, record, "peak") == layer + 1.0);
        CHECK(value(&all, record, "elements") == numel);
    }
    ring_free(&all);
}

/* Ids of a stack's layers that are measured in a step, as bits. */
static unsigned measured(fgs_scope *scope, uint64_t step, uint32_t id)
{
    unsigned layers = 0;
    measure_step(scope, step);
    ring all = ring_of(scope);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        if (seek(&all, "gradient", step, LEVEL_TENSOR, id + layer, NONE) != NULL)
            layers |= 1u << layer;
    ring_free(&all);
    return layers;
}

/* What was bound by one call is unbound by one call: the buffer may be freed after it. */
static void unbinding(void)
{
    fgs_scope *scope = open_scope();
    uint32_t id = register_stack(scope, "h{layer}.ln1w", FGS_ROLE_NORM, CHANNELS, 0);
    fgs_dltensor stacked = F32(norm, LAYERS, CHANNELS), layer = F32(norm, CHANNELS), empty = F32(norm, 0);
    uint64_t step = 0;
    OK(fgs_bind(scope, id, FGS_GRAD, &stacked));
    CHECK(measured(scope, step++, id) == 7);
    OK(fgs_bind(scope, id, FGS_GRAD, NULL));
    CHECK(measured(scope, step++, id) == 0);
    OK(fgs_bind(scope, id, FGS_GRAD, &stacked));
    OK(fgs_bind(scope, id, FGS_GRAD, &empty));
    CHECK(measured(scope, step++, id) == 0);
    /* Another layer than the first stands for itself, and so does each that is bound as a shard. */
    OK(fgs_bind(scope, id, FGS_GRAD, &stacked));
    OK(fgs_bind(scope, id + 1, FGS_GRAD, NULL));
    CHECK(measured(scope, step++, id) == 5);
    fgs_shard shard = FGS_SHARD_INIT;
    OK(fgs_bind_shard(scope, id, FGS_GRAD, &empty, &shard));
    CHECK(measured(scope, step++, id) == 4);
    OK(fgs_bind_shard(scope, id, FGS_GRAD, &layer, &shard));
    CHECK(measured(scope, step++, id) == 5);
    OK(fgs_close(scope));
}

/* The heads of an output projection are columns of each layer: its shape is that of the buffer without the layers. */
static void heads_of_columns(void)
{
    enum { ROWS = 5, COLUMNS = 6 };
    static float output[LAYERS * ROWS * COLUMNS];
    int columns_per_head = COLUMNS / HEADS;
    for (int i = 0; i < LAYERS * ROWS * COLUMNS; i++)
        output[i] = i % COLUMNS < columns_per_head ? 2.0f : 0.0f;
    fgs_scope *scope = open_scope();
    uint32_t id = register_stack(scope, "h{layer}.attn.proj", FGS_ROLE_OUTPUT, ROWS * COLUMNS, HEADS);
    fgs_dltensor cube = F32(output, LAYERS, ROWS, COLUMNS);
    OK(fgs_bind(scope, id, FGS_GRAD, &cube));
    measure_step(scope, 0);
    ring all = ring_of(scope);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const fgs_record *first = of_head(&all, "gradient", 0, id + layer, FGS_ROLE_OUTPUT, 0);
        const fgs_record *second = of_head(&all, "gradient", 0, id + layer, FGS_ROLE_OUTPUT, 1);
        CHECK(value(&all, first, "squares") == 4.0 * ROWS * columns_per_head);
        CHECK(value(&all, second, "squares") == 0.0);
        CHECK(value(&all, second, "elements") == ROWS * columns_per_head);
    }
    ring_free(&all);
    OK(fgs_close(scope));
}

int main(void)
{
    fill_layers(qkv, QKV);
    fill_layers(norm, CHANNELS);
    fgs_scope *scope = open_scope();
    uint32_t qkv_id = register_stack(scope, "h{layer}.attn.qkvw", FGS_ROLE_QKV, QKV, HEADS);
    uint32_t norm_id = register_stack(scope, "h{layer}.ln1w", FGS_ROLE_NORM, CHANNELS, 0);
    uint32_t other_id = register_plain(scope, "other", 8);
    CHECK(qkv_id == 0 && norm_id == LAYERS && other_id == 2 * LAYERS);

    /* The first dimension is the layer, or layers × rows, or everything: the buffer is the same. */
    uint64_t step = 0;
    fgs_dltensor stacked = F32(norm, LAYERS, CHANNELS), flat = F32(norm, LAYERS * CHANNELS);
    OK(fgs_bind(scope, norm_id, FGS_GRAD, &stacked));
    check_layers(scope, step++, norm_id, CHANNELS);
    OK(fgs_bind(scope, norm_id, FGS_GRAD, &flat));
    check_layers(scope, step++, norm_id, CHANNELS);

    fgs_dltensor cube = F32(qkv, LAYERS, 3 * CHANNELS, CHANNELS), rows = F32(qkv, LAYERS * 3 * CHANNELS, CHANNELS);
    OK(fgs_bind(scope, qkv_id, FGS_GRAD, &cube));
    check_layers(scope, step++, qkv_id, QKV);
    OK(fgs_bind(scope, qkv_id, FGS_GRAD, &rows));
    check_layers(scope, step++, qkv_id, QKV);

    /* Layers are ordinary tensors: each has its name, its heads, and can be bound by itself. */
    float alone[CHANNELS] = {9.0f};
    fgs_dltensor one = F32(alone, CHANNELS);
    OK(fgs_bind(scope, norm_id + 1, FGS_GRAD, &one));
    measure_step(scope, step);
    ring all = ring_of(scope);
    CHECK(strcmp(name_of(&all, FGS_NAME_TENSOR, qkv_id), "h2.attn.qkvw") == 0);
    CHECK(strcmp(name_of(&all, FGS_NAME_TENSOR, qkv_id + 2), "h4.attn.qkvw") == 0);
    CHECK(value(&all, of_tensor(&all, "gradient", step, norm_id + 1), "peak") == 9.0);
    CHECK(value(&all, of_tensor(&all, "gradient", step, norm_id + 2), "peak") == 3.0);
    CHECK(value(&all, of_head(&all, "gradient", step, qkv_id + 1, FGS_ROLE_VALUE, 1), "peak") == 2.0);
    /* Layer 4 holds the last layer of both stacks. */
    CHECK(value(&all, find(&all, "gradient", step, LEVEL_LAYER, NONE, 4), "elements") == QKV + CHANNELS);
    ring_free(&all);

    /* A stack is registered whole or not at all. */
    (void)register_plain(scope, "x4", 8);
    fgs_tensor clash = FGS_TENSOR_INIT;
    clash.name = "x{layer}";
    clash.layer = FIRST_LAYER;
    clash.layer_count = LAYERS;
    clash.numel = 8;
    uint32_t id = NONE;
    REFUSED(fgs_register(scope, &clash, &id), FGS_ERROR_INVALID, "'x4'");
    CHECK(id == NONE);
    CHECK(register_plain(scope, "x2", 8) == 2 * LAYERS + 2);
    /* The first dimension has to be made of layers. */
    fgs_dltensor odd = F32(norm, 2, LAYERS * CHANNELS / 2);
    REFUSED(fgs_bind(scope, norm_id, FGS_GRAD, &odd), FGS_ERROR_INVALID, "tensor.shape");

    fgs_dltensor last = F32(other, 8);
    OK(fgs_bind(scope, other_id, FGS_GRAD, &last));
    OK(fgs_close(scope));

    unbinding();
    heads_of_columns();
    return RESULT();
}
