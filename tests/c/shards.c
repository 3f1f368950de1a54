/* Parameters that are cut across ranks, at any place and by columns. Each rank measures what it owns; the sums that its
 * records carry add up to those of the unsharded model. Ranks are scopes of one process here. */

#include "check.h"

enum { ROWS = 12, COLUMNS = 16, SIZE = ROWS * COLUMNS, HEADS = 4, RANKS = 3, BATCHES = 2, STEPS = 3 };

/* The query projection is cut like an optimizer cuts it: anywhere. The output projection is cut by columns. */
static const int CUTS[RANKS + 1] = {0, 37, 101, SIZE};
static const int COLUMN_CUTS[RANKS + 1] = {0, 3, 10, COLUMNS};

static float query[SIZE], query_gradient[SIZE], output[SIZE], output_gradient[SIZE];

static void open_rank(fgs_scope **scope, uint32_t rank, uint32_t *query_id, uint32_t *output_id)
{
    fgs_options options = FGS_OPTIONS_INIT;
    options.every = 1;
    options.rank = rank;
    options.world_size = RANKS;
    OK(fgs_open(&options, scope));
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "q";
    tensor.role = FGS_ROLE_QUERY;
    tensor.numel = SIZE;
    tensor.rows = ROWS;
    tensor.cols = COLUMNS;
    tensor.head_count = HEADS;
    OK(fgs_register(*scope, &tensor, query_id));
    tensor.name = "o";
    tensor.role = FGS_ROLE_OUTPUT;
    OK(fgs_register(*scope, &tensor, output_id));
}

/* A rank that owns everything. */
static fgs_scope *open_whole(void)
{
    fgs_scope *scope;
    uint32_t q, o;
    open_rank(&scope, 0, &q, &o);
    fgs_dltensor tensor = F32(query, ROWS, COLUMNS);
    OK(fgs_bind(scope, q, FGS_PARAM, &tensor));
    tensor.data = query_gradient;
    OK(fgs_bind(scope, q, FGS_GRAD, &tensor));
    tensor.data = output;
    OK(fgs_bind(scope, o, FGS_PARAM, &tensor));
    tensor.data = output_gradient;
    OK(fgs_bind(scope, o, FGS_GRAD, &tensor));
    return scope;
}

/* A rank that owns a part. Its memory is a copy that ends where the part ends, so that reading on would be noticed. */
typedef struct {
    fgs_scope *scope;
    int from, to, first_column, columns;
    float *query, *query_gradient, *output, *output_gradient;
} part;

static part open_part(uint32_t rank)
{
    part p;
    p.from = CUTS[rank];
    p.to = CUTS[rank + 1];
    p.first_column = COLUMN_CUTS[rank];
    p.columns = COLUMN_CUTS[rank + 1] - COLUMN_CUTS[rank];
    size_t flat = (size_t)(p.to - p.from) * sizeof(float), block = (size_t)(ROWS * p.columns) * sizeof(float);
    p.query = (float *)malloc(flat);
    p.query_gradient = (float *)malloc(flat);
    p.output = (float *)malloc(block);
    p.output_gradient = (float *)malloc(block);

    uint32_t q, o;
    open_rank(&p.scope, rank, &q, &o);
    fgs_shard range = FGS_SHARD_INIT;
    range.offset = (uint64_t)p.from;
    fgs_dltensor flat_parameters = F32(p.query, p.to - p.from), flat_gradient = F32(p.query_gradient, p.to - p.from);
    OK(fgs_bind_shard(p.scope, q, FGS_PARAM, &flat_parameters, &range));
    OK(fgs_bind_shard(p.scope, q, FGS_GRAD, &flat_gradient, &range));

    fgs_shard columns = FGS_SHARD_INIT;
    columns.offset = (uint64_t)p.first_column;
    columns.run_length = (uint64_t)p.columns;
    columns.run_step = COLUMNS;
    columns.run_count = ROWS;
    fgs_dltensor parameters = F32(p.output, ROWS, p.columns), gradient = F32(p.output_gradient, ROWS, p.columns);
    OK(fgs_bind_shard(p.scope, o, FGS_PARAM, &parameters, &columns));
    OK(fgs_bind_shard(p.scope, o, FGS_GRAD, &gradient, &columns));
    return p;
}

/* Brings a rank's memory up to date with the model. */
static void scatter(const part *p)
{
    memcpy(p->query, query + p->from, (size_t)(p->to - p->from) * sizeof(float));
    memcpy(p->query_gradient, query_gradient + p->from, (size_t)(p->to - p->from) * sizeof(float));
    for (int row = 0; row < ROWS; row++) {
        size_t bytes = (size_t)p->columns * sizeof(float), at = (size_t)(row * COLUMNS + p->first_column);
        memcpy(p->output + row * p->columns, output + at, bytes);
        memcpy(p->output_gradient + row * p->columns, output_gradient + at, bytes);
    }
}

static fgs_scope *scopes[RANKS + 1]; /* the last one is the whole */
static part parts[RANKS];

static void scatter_all(void)
{
    for (int rank = 0; rank < RANKS; rank++)
        scatter(&parts[rank]);
}

static void train(const char *task, uint64_t first_step)
{
    for (int k = 0; k <= RANKS; k++)
        OK(fgs_task_begin(scopes[k], task));
    for (uint64_t step = first_step; step < first_step + STEPS; step++) {
        fill(query_gradient, SIZE, 10 + (uint32_t)step);
        fill(output_gradient, SIZE, 90 + (uint32_t)step);
        scatter_all();
        for (int k = 0; k <= RANKS; k++) {
            OK(fgs_step_begin(scopes[k], step));
            OK(fgs_gradients_ready(scopes[k], 2.0, 0, NULL));
        }
        for (int i = 0; i < SIZE; i++) {
            query[i] -= 0.02f * query_gradient[i];
            output[i] -= 0.02f * output_gradient[i];
        }
        scatter_all();
        for (int k = 0; k <= RANKS; k++) {
            OK(fgs_step_end(scopes[k], 1, NULL));
            OK(fgs_flush(scopes[k]));
        }
    }
}

static void keep_reference(const char *task)
{
    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        fill(query_gradient, SIZE, 500 + batch);
        fill(output_gradient, SIZE, 600 + batch);
        scatter_all();
        for (int k = 0; k <= RANKS; k++)
            OK(fgs_reference_add(scopes[k], task, 4, 1.0, NULL));
    }
    for (int k = 0; k <= RANKS; k++)
        OK(fgs_task_end(scopes[k]));
}

/* Values that are sums over coordinates. */
static const char *ADDITIVE[] = {"squares",  "reference_squares", "dot",      "opposing", "conflicts", "active",
                                 "elements", "updates",           "weights",  "drift",    "snapshot",  "drift_dot_snapshot",
                                 "first_order"};

static int is_additive(const char *name)
{
    for (size_t i = 0; i < sizeof ADDITIVE / sizeof *ADDITIVE; i++)
        if (strcmp(ADDITIVE[i], name) == 0)
            return 1;
    return 0;
}

int main(void)
{
    fill(query, SIZE, 1);
    fill(output, SIZE, 2);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        parts[rank] = open_part(rank);
        scopes[rank] = parts[rank].scope;
    }
    scopes[RANKS] = open_whole();
    train("first", 0);
    keep_reference("first");
    train("second", STEPS);

    ring rings[RANKS + 1];
    for (int k = 0; k <= RANKS; k++)
        rings[k] = ring_of(scopes[k]);
    const ring *whole = &rings[RANKS];
    size_t compared = 0, heads = 0;
    for (size_t i = 0; i < whole->count; i++) {
        const fgs_record *record = &whole->records[i];
        const char *kind = name_of(whole, FGS_NAME_KIND, record->kind);
        if (strcmp(kind, "gradient") && strcmp(kind, "interference") && strcmp(kind, "update") &&
            strcmp(kind, "alignment") && strcmp(kind, "drift"))
            continue;
        double sums[10] = {0};
        for (int rank = 0; rank < RANKS; rank++) {
            /* A rank that owns nothing of a head has no record of it. */
            const fgs_record *own =
                seek(&rings[rank], kind, record->step, record->level, record->tensor, record->slice);
            for (int k = 0; own != NULL && k < 10; k++)
                sums[k] += own->values[k];
            CHECK(own == NULL || own->rank == (uint32_t)rank);
        }
        for (uint32_t k = 0; k < 10; k++) {
            const char *name = name_of(whole, FGS_NAME_VALUE, (uint32_t)record->kind << 8 | k);
            if (!is_additive(name))
                continue;
            /* Inner products may cancel: their error is that of the coordinates, which are at most one. */
            if (!CHECK_WITHIN(sums[k], record->values[k], 1e-6 * (1.0 + fabs(record->values[k]))))
                fprintf(stderr, "  %s of %s: ranks %.17g, whole %.17g\n", name, kind, sums[k], record->values[k]);
            compared++;
        }
        heads += record->level == LEVEL_HEAD;
    }
    CHECK(heads > 0 && compared > 500);
    CHECK(value(whole, of_model(whole, "gradient", 0), "elements") == 2 * SIZE);

    for (int k = 0; k <= RANKS; k++) {
        ring_free(&rings[k]);
        OK(fgs_close(scopes[k]));
    }
    for (int rank = 0; rank < RANKS; rank++) {
        free(parts[rank].query);
        free(parts[rank].query_gradient);
        free(parts[rank].output);
        free(parts[rank].output_gradient);
    }
    return RESULT();
}
