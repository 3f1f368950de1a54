/* Head maps: where each head of a projection lies. Every head's gradient is filled with a number of its own, and that
 * number is looked for in the record of that head and in no other. */

#include "check.h"

/* Heads as "q0 q1 k0 v0": in the order in which they lie along the head axis. */
typedef struct {
    const char *what;
    uint32_t role, layout, axis, heads, kv_heads, head_offset, kv_head_offset;
    const char *order;
} head_map;

static const head_map MAPS[] = {
    {"query", FGS_ROLE_QUERY, FGS_HEADS_AUTO, FGS_UNSET_U32, 3, 0, 0, 0, "q0 q1 q2"},
    {"key", FGS_ROLE_KEY, FGS_HEADS_SEPARATE, FGS_UNSET_U32, 2, 0, 0, 0, "k0 k1"},
    {"value, fewer than query heads", FGS_ROLE_VALUE, FGS_HEADS_AUTO, FGS_UNSET_U32, 4, 2, 0, 0, "v0 v1"},
    {"key, query heads not given", FGS_ROLE_KEY, FGS_HEADS_AUTO, FGS_UNSET_U32, 0, 2, 0, 5, "k5 k6"},
    {"gate", FGS_ROLE_GATE, FGS_HEADS_AUTO, FGS_UNSET_U32, 2, 0, 0, 0, "g0 g1"},
    {"output: bands of columns", FGS_ROLE_OUTPUT, FGS_HEADS_AUTO, FGS_UNSET_U32, 4, 0, 0, 0, "o0 o1 o2 o3"},
    {"output, transposed in memory", FGS_ROLE_OUTPUT, FGS_HEADS_AUTO, 0, 4, 0, 0, 0, "o0 o1 o2 o3"},
    {"query, columns", FGS_ROLE_QUERY, FGS_HEADS_SEPARATE, 1, 3, 0, 0, 0, "q0 q1 q2"},
    {"GPT-2", FGS_ROLE_QKV, FGS_HEADS_AUTO, FGS_UNSET_U32, 2, 0, 0, 0, "q0 q1 k0 k1 v0 v1"},
    {"GPT-2, Conv1D", FGS_ROLE_QKV, FGS_HEADS_AUTO, 1, 2, 0, 0, 0, "q0 q1 k0 k1 v0 v1"},
    {"concatenated, grouped", FGS_ROLE_QKV, FGS_HEADS_CONCATENATED, 0, 4, 2, 0, 0, "q0 q1 q2 q3 k0 k1 v0 v1"},
    {"Megatron", FGS_ROLE_QKV, FGS_HEADS_INTERLEAVED, 0, 4, 2, 0, 0, "q0 q1 k0 v0 q2 q3 k1 v1"},
    {"Megatron, ungrouped", FGS_ROLE_QKV, FGS_HEADS_INTERLEAVED, 0, 2, 0, 0, 0, "q0 k0 v0 q1 k1 v1"},
    {"Megatron, gated", FGS_ROLE_QKV, FGS_HEADS_INTERLEAVED_GATED, 0, 4, 2, 0, 0,
     "q0 q1 g0 g1 k0 v0 q2 q3 g2 g3 k1 v1"},
    {"second rank of tensor parallelism", FGS_ROLE_QKV, FGS_HEADS_INTERLEAVED, 0, 4, 1, 4, 1, "q4 q5 q6 q7 k1 v1"},
    {"second rank, output", FGS_ROLE_OUTPUT, FGS_HEADS_AUTO, FGS_UNSET_U32, 2, 0, 6, 0, "o6 o7"},
};

enum { BAND = 3, ACROSS = 5, MOST_HEADS = 12, ROOM = BAND * MOST_HEADS * ACROSS };

static uint32_t role_of(char letter)
{
    switch (letter) {
    case 'q': return FGS_ROLE_QUERY;
    case 'k': return FGS_ROLE_KEY;
    case 'v': return FGS_ROLE_VALUE;
    case 'g': return FGS_ROLE_GATE;
    default: return FGS_ROLE_OUTPUT;
    }
}

/* Both ways in which the shape becomes known: at registration, or with the first data that is bound. */
static void check_map(const head_map *map, int register_shape)
{
    uint32_t roles[MOST_HEADS], numbers[MOST_HEADS], count = 0;
    for (const char *c = map->order; *c != '\0'; c++) {
        if (*c == ' ')
            continue;
        char *end;
        roles[count] = role_of(*c);
        numbers[count++] = (uint32_t)strtoul(c + 1, &end, 10);
        c = end - 1;
    }

    fgs_scope *scope = open_scope();
    uint32_t axis = map->axis != FGS_UNSET_U32 ? map->axis : map->role == FGS_ROLE_OUTPUT;
    uint32_t rows = axis == 0 ? BAND * count : ACROSS, columns = axis == 0 ? ACROSS : BAND * count;
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = map->what;
    tensor.role = map->role;
    tensor.numel = (uint64_t)rows * columns;
    tensor.rows = register_shape ? rows : 0;
    tensor.cols = register_shape ? columns : 0;
    tensor.head_layout = map->layout;
    tensor.head_axis = map->axis;
    tensor.head_count = map->heads;
    tensor.kv_head_count = map->kv_heads;
    tensor.head_offset = map->head_offset;
    tensor.kv_head_offset = map->kv_head_offset;
    uint32_t id;
    OK(fgs_register(scope, &tensor, &id));

    float gradient[ROOM];
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t column = 0; column < columns; column++)
            gradient[row * columns + column] = (float)(1 + (axis == 0 ? row : column) / BAND);
    fgs_dltensor data = F32(gradient, rows, columns);
    OK(fgs_bind(scope, id, FGS_GRAD, &data));
    measure_step(scope, 0);

    ring all = ring_of(scope);
    size_t heads = 0;
    for (size_t i = 0; i < all.count; i++)
        heads += all.records[i].level == LEVEL_HEAD && is_kind(&all, &all.records[i], "gradient");
    int failed_before = failed_checks;
    CHECK(heads == count);
    for (uint32_t k = 0; k < count; k++) {
        const fgs_record *record = of_head(&all, "gradient", 0, id, roles[k], numbers[k]);
        CHECK(value(&all, record, "peak") == k + 1.0);
        CHECK(value(&all, record, "elements") == BAND * ACROSS);
        CHECK_NEAR(value(&all, record, "squares"), BAND * ACROSS * (k + 1.0) * (k + 1.0));
    }
    CHECK(value(&all, of_tensor(&all, "gradient", 0, id), "elements") == rows * columns);
    if (failed_checks != failed_before)
        fprintf(stderr, "  in the head map \"%s\"\n", map->what);
    ring_free(&all);
    OK(fgs_close(scope));
}

int main(void)
{
    for (size_t i = 0; i < sizeof MAPS / sizeof *MAPS; i++) {
        check_map(&MAPS[i], 1);
        check_map(&MAPS[i], 0);
    }
    return RESULT();
}
