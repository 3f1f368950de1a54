/* Probes: a base pass at the end of a task, passes while training goes on with the task itself, and a pass after it was
 * disturbed. Hidden states, attention in both forms, head outputs, a router, labels; strided views; buffers used again. */

#include "check.h"

enum {
    SEQUENCES = 16, LENGTH = 8, TOKENS = SEQUENCES * LENGTH, HEADS = 2, SIZE = 4, WIDTH = HEADS * SIZE, EXPERTS = 4,
    LAYERS = 2, BATCHES = 2
};

/* One layer's activations: they live from its forward pass to the end of its calls, and no longer. */
static float *hidden, *outputs, *logits, *query, *key, *probabilities;
static float projection[WIDTH * WIDTH];

static float *activations(size_t count, uint32_t seed)
{
    float *values = (float *)malloc(count * sizeof *values);
    fill(values, count, seed);
    return values;
}

static void forget(void)
{
    float *all[] = {hidden, outputs, logits, query, key, probabilities};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* Causal softmax of query and key, as a trainer would store it. */
static void attend(void)
{
    for (int s = 0; s < SEQUENCES; s++)
        for (int h = 0; h < HEADS; h++)
            for (int q = 0; q < LENGTH; q++) {
                float *row = probabilities + ((s * HEADS + h) * LENGTH + q) * LENGTH;
                double total = 0.0;
                for (int k = 0; k < LENGTH; k++) {
                    const float *a = query + (s * LENGTH + q) * WIDTH + h * SIZE, *b = key + (s * LENGTH + k) * WIDTH + h * SIZE;
                    row[k] = k <= q ? (float)exp(dot(a, b, SIZE) / sqrt(SIZE)) : 0.0f;
                    total += row[k];
                }
                for (int k = 0; k < LENGTH; k++)
                    row[k] = (float)(row[k] / total);
            }
}

/* What a disturbed model does to each layer's activations: shifts hidden states, scales the heads' outputs. */
static void forward(int layer, int batch, float shift, float head_0, float head_1)
{
    uint32_t seed = 100 * (uint32_t)layer + 10 * (uint32_t)batch;
    hidden = activations(TOKENS * WIDTH, seed + 1);
    outputs = activations(TOKENS * WIDTH, seed + 2);
    logits = activations(TOKENS * EXPERTS, seed + 3);
    query = activations(TOKENS * WIDTH, seed + 4);
    key = activations(TOKENS * WIDTH, seed + 5);
    probabilities = activations(SEQUENCES * HEADS * LENGTH * LENGTH, seed + 6);
    for (int i = 0; i < TOKENS * WIDTH; i++) {
        hidden[i] += shift;
        outputs[i] *= i % WIDTH < SIZE ? head_0 : head_1;
    }
    attend();
}

/* One pass. `shown`: probabilities; else queries and keys, seen through strides. */
static void pass(fgs_scope *scope, uint64_t continued, int run, float shift, float head_0, float head_1, int shown)
{
    fgs_probe probe = FGS_PROBE_INIT;
    probe.task = "first";
    probe.continued_updates = continued;
    probe.run = (uint32_t)run;
    int32_t labels[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++)
        labels[s] = s % 2;
    OK(fgs_probe_begin(scope, &probe));
    for (int batch = 0; batch < BATCHES; batch++) {
        OK(fgs_probe_batch(scope, SEQUENCES, LENGTH, labels, SEQUENCES));
        for (int layer = 0; layer < LAYERS; layer++) {
            forward(layer, batch, shift, head_0, head_1);
            fgs_dltensor states = F32(hidden, SEQUENCES, LENGTH, WIDTH), o = F32(outputs, TOKENS, WIDTH);
            fgs_dltensor r = F32(logits, TOKENS, EXPERTS), w = F32(projection, WIDTH, WIDTH);
            fgs_dltensor p = F32(probabilities, SEQUENCES, HEADS, LENGTH, LENGTH);
            fgs_dltensor q = F32(query, SEQUENCES, LENGTH, HEADS, SIZE), k = F32(key, SEQUENCES, LENGTH, HEADS, SIZE);
            fgs_attention attention = FGS_ATTENTION_INIT;
            attention.mask = FGS_MASK_CAUSAL;
            if (shown)
                attention.probabilities = &p;
            else
                attention.query = &q, attention.key = &k;
            OK(fgs_probe_hidden(scope, (uint32_t)layer, &states, NULL));
            OK(fgs_probe_attention(scope, (uint32_t)layer, &attention, NULL));
            OK(fgs_probe_head_output(scope, (uint32_t)layer, HEADS, 0, &o, &w, NULL));
            OK(fgs_probe_router(scope, (uint32_t)layer, &r, 2, NULL));
            /* All reading was over when the calls returned. */
            forget();
        }
    }
    OK(fgs_probe_end(scope));
}

/* The latest record of a kind about a layer or a head. */
static const fgs_record *latest(const ring *all, const char *kind, uint8_t level, uint32_t slice)
{
    const fgs_record *found = NULL;
    for (size_t i = 0; i < all->count; i++)
        if (all->records[i].level == level && all->records[i].slice == slice && is_kind(all, &all->records[i], kind))
            found = &all->records[i];
    if (found == NULL) {
        fprintf(stderr, "no record of kind %s at level %d of slice %#x\n", kind, level, slice);
        exit(EXIT_FAILURE);
    }
    return found;
}

int main(void)
{
    fill(projection, WIDTH * WIDTH, 9);
    fgs_scope *scope = open_scope();
    OK(fgs_task_begin(scope, "first"));
    pass(scope, FGS_UNSET_U64, 0, 0.0f, 1.0f, 1.0f, 1);
    OK(fgs_task_end(scope));

    ring all = ring_of(scope);
    const fgs_record *base = latest(&all, "representation", LEVEL_LAYER, 1);
    CHECK(has_flag(&all, base, "base"));
    CHECK(isnan(value(&all, base, "cka")));
    CHECK(value(&all, base, "tokens") == 4.0 * SEQUENCES * BATCHES);
    CHECK(value(&all, base, "batches") == BATCHES);
    CHECK(value(&all, latest(&all, "collapse", LEVEL_LAYER, 0), "classes") == 2.0);
    CHECK(value(&all, latest(&all, "router", LEVEL_LAYER, 0), "load_entropy") <= log(EXPERTS) + 1e-9);
    CHECK(count_of(&all, "head", 0) == 0);
    ring_free(&all);

    /* Training goes on with the task itself: heads change by one to three percent. */
    for (int run = 0; run < 4; run++) {
        float less = 0.002f * (float)run, more = 0.003f * (float)run;
        pass(scope, 10, run, 0.0f, 1.012f - less, 1.010f + less, 1);
        pass(scope, 20, run, 0.0f, 1.024f - more, 1.020f + more, 1);
    }

    /* The same weights: nothing has changed, in whatever form attention is given. */
    OK(fgs_task_begin(scope, "second"));
    pass(scope, FGS_UNSET_U64, 0, 0.0f, 1.0f, 1.0f, 0);
    all = ring_of(scope);
    const fgs_record *same = latest(&all, "representation", LEVEL_LAYER, 1);
    CHECK(!has_flag(&all, same, "base"));
    CHECK_WITHIN(value(&all, same, "cka"), 1.0, 1e-12);
    CHECK_WITHIN(value(&all, same, "procrustes"), 0.0, 1e-6);
    CHECK_WITHIN(value(&all, same, "mean_shift"), 0.0, 1e-12);
    CHECK_WITHIN(value(&all, latest(&all, "subspace", LEVEL_LAYER, 1), "angle_max"), 0.0, 1e-5);
    CHECK_WITHIN(value(&all, latest(&all, "neighbour", LEVEL_LAYER, 0), "change"), 0.0, 1e-12);
    const fgs_record *attention = latest(&all, "attention", LEVEL_ATTENTION_HEAD, 1 << 16 | 1);
    /* Stored probabilities and those computed again differ by fp32 rounding: in divergence that squares. */
    CHECK_WITHIN(value(&all, attention, "divergence"), 0.0, 1e-9);
    CHECK_WITHIN(value(&all, attention, "entropy"), value(&all, attention, "entropy_base"), 1e-5);
    CHECK(isnan(value(&all, attention, "max_logit_base")) && !isnan(value(&all, attention, "max_logit")));
    const fgs_record *router = latest(&all, "router", LEVEL_LAYER, 0);
    CHECK_WITHIN(value(&all, router, "divergence"), 0.0, 1e-12);
    CHECK(value(&all, router, "jaccard") == 1.0);
    const fgs_record *head = latest(&all, "head", LEVEL_ATTENTION_HEAD, 1 << 16 | 1);
    CHECK_WITHIN(value(&all, head, "contribution_change"), 0.0, 1e-7);
    CHECK(isnan(value(&all, head, "severity")) && has_flag(&all, head, "undetermined"));
    ring_free(&all);

    /* Disturbed: hidden states are shifted, head 1 puts out half as much again, head 0 what it did before. */
    float on = 1.0f, off = 0.0f;
    fgs_dltensor parameter = F32(&on, 1), gradient = F32(&off, 1);
    uint32_t id = register_plain(scope, "any", 1);
    OK(fgs_bind(scope, id, FGS_GRAD, &gradient));
    OK(fgs_bind(scope, id, FGS_PARAM, &parameter));
    for (uint64_t step = 0; step < 15; step++)
        measure_step(scope, step);
    pass(scope, FGS_UNSET_U64, 0, 0.5f, 1.012f, 1.5f, 0);
    OK(fgs_record_loss(scope, "first", 2.0));
    OK(fgs_head_effect(scope, "first", 1, 1, 2.0, 1.5, 0.01));
    all = ring_of(scope);
    const fgs_record *shifted = latest(&all, "representation", LEVEL_LAYER, 1);
    CHECK_WITHIN(value(&all, shifted, "cka"), 1.0, 1e-6);
    CHECK(value(&all, shifted, "mean_shift") > 0.3);
    const fgs_record *still = latest(&all, "head", LEVEL_ATTENTION_HEAD, 1 << 16);
    head = latest(&all, "head", LEVEL_ATTENTION_HEAD, 1 << 16 | 1);
    CHECK(value(&all, still, "contribution_change") < value(&all, still, "null_high"));
    CHECK(value(&all, still, "severity") == 0.0);
    CHECK(value(&all, head, "updates") == 15.0);
    CHECK(value(&all, head, "contribution_change") > value(&all, head, "null_high"));
    CHECK(value(&all, head, "q_value") < 0.05);
    CHECK_WITHIN(value(&all, head, "output_cosine"), 1.0, 1e-6);
    CHECK_NEAR(value(&all, head, "effect"), 0.5);
    /* Nobody said how much was forgotten since the task's own end, so it is changed and not severe. */
    CHECK(value(&all, head, "severity") == 1.0);
    CHECK(strcmp(name_of(&all, FGS_NAME_TASK, head->reference), "first") == 0);
    ring_free(&all);

    /* A step that begins gives an open pass up; the next pass is none the worse. */
    fgs_probe probe = FGS_PROBE_INIT;
    probe.task = "first";
    OK(fgs_probe_begin(scope, &probe));
    OK(fgs_probe_batch(scope, SEQUENCES, LENGTH, NULL, 0));
    measure_step(scope, 15);
    REFUSED(fgs_probe_end(scope), FGS_ERROR_PHASE, "fgs_probe_begin");
    pass(scope, FGS_UNSET_U64, 0, 0.0f, 1.0f, 1.0f, 1);
    all = ring_of(scope);
    CHECK(count_of(&all, "fault", 14) == 1);
    CHECK_WITHIN(value(&all, latest(&all, "representation", LEVEL_LAYER, 0), "cka"), 1.0, 1e-12);
    size_t before = all.count;
    ring_free(&all);

    /* A forward run that failed after a whole batch: what it handed over would be a pass, with other batches. */
    OK(fgs_task_end(scope));
    OK(fgs_task_begin(scope, "third"));
    probe.task = "third";
    OK(fgs_probe_begin(scope, &probe));
    OK(fgs_probe_batch(scope, SEQUENCES, LENGTH, NULL, 0));
    forward(0, 0, 0.0f, 1.0f, 1.0f);
    fgs_dltensor states = F32(hidden, SEQUENCES, LENGTH, WIDTH);
    OK(fgs_probe_hidden(scope, 0, &states, NULL));
    forget();
    OK(fgs_probe_abandon(scope));
    REFUSED(fgs_probe_end(scope), FGS_ERROR_PHASE, "fgs_probe_begin");
    OK(fgs_task_end(scope));
    /* It is no base: a later pass is not compared with it. */
    all = ring_of(scope);
    CHECK(count_of(&all, "fault", 15) == 1);
    for (size_t i = before; i < all.count; i++)
        CHECK(!is_kind(&all, &all.records[i], "representation"));
    ring_free(&all);
    OK(fgs_close(scope));
    return RESULT();
}
