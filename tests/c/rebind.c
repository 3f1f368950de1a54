/* Gradients that lie elsewhere in every step, as a trainer has them that frees them after the update; and how often steps
 * are sampled, changed while training goes on. */

#include "check.h"

enum { TENSORS = 3, SIZE = 4, ROWS = 2 };

static float pool[2][TENSORS][SIZE];

/* The addresses of the step's gradients, which were written to one half of the pool. */
static void place_gradients(uint64_t step, void *addresses[TENSORS])
{
    for (int i = 0; i < TENSORS; i++) {
        memset(pool[(step + 1) % 2][i], 0xff, sizeof pool[0][i]); /* freed: reading it would show as NaN */
        for (int k = 0; k < SIZE; k++)
            pool[step % 2][i][k] = (float)(step + (uint64_t)i);
        addresses[i] = pool[step % 2][i];
    }
}

int main(void)
{
    fgs_options options = FGS_OPTIONS_INIT;
    options.every = 2;
    fgs_scope *scope = NULL;
    OK(fgs_open(&options, &scope));
    static const char *const names[TENSORS] = {"a", "b", "c"};
    uint32_t ids[TENSORS];
    void *addresses[TENSORS];
    place_gradients(0, addresses);
    for (int i = 0; i < TENSORS; i++) {
        ids[i] = register_plain(scope, names[i], SIZE);
        fgs_dltensor gradient = F32(addresses[i], ROWS, SIZE / ROWS);
        OK(fgs_bind(scope, ids[i], FGS_GRAD, &gradient));
    }
    int32_t sampled = -1;
    OK(fgs_step_sampled(scope, &sampled));
    CHECK(sampled == 0);

    uint64_t measured = 0;
    for (uint64_t step = 0; step < 12; step++) {
        if (step == 6)
            OK(fgs_set_every(scope, 3));
        if (step == 10)
            OK(fgs_set_every(scope, 0));
        place_gradients(step, addresses);
        OK(fgs_step_begin(scope, step));
        OK(fgs_step_sampled(scope, &sampled));
        CHECK(sampled == (step < 6 ? step % 2 == 0 : step < 10 && step % 3 == 0));
        if (sampled) {
            /* From step 4 on, one of the tensors has no gradient. */
            if (step >= 4)
                addresses[1] = NULL;
            OK(fgs_rebind(scope, FGS_GRAD, ids, addresses, step <= 4 ? TENSORS : 1));
            if (step > 4) /* an unbound tensor has to be bound, not moved */
                OK(fgs_rebind(scope, FGS_GRAD, ids + 2, addresses + 2, 1));
            measured++;
        }
        REFUSED(fgs_set_every(scope, 1), FGS_ERROR_PHASE, "fgs_step_end");
        OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
        OK(fgs_step_end(scope, 1, NULL));
        OK(fgs_flush(scope));
    }

    /* Refused as a whole: the first address is not taken either. */
    void *moved[TENSORS] = {pool[0][0], NULL, (char *)pool[0][2] + 1};
    uint32_t both[2] = {ids[0], ids[2]};
    void *places[2] = {moved[0], moved[2]};
    REFUSED(fgs_rebind(scope, FGS_GRAD, both, places, 2), FGS_ERROR_INVALID, "multiple of its size");
    REFUSED(fgs_rebind(scope, FGS_GRAD, ids, moved, 2), FGS_ERROR_INVALID, "'b'");
    REFUSED(fgs_rebind(scope, FGS_PARAM, ids, moved, 1), FGS_ERROR_INVALID, "fgs_bind first");
    REFUSED(fgs_rebind(scope, 3, ids, moved, 1), FGS_ERROR_INVALID, "what");
    REFUSED(fgs_rebind(scope, FGS_GRAD, NULL, moved, 1), FGS_ERROR_NULL, "ids");
    REFUSED(fgs_rebind(scope, FGS_GRAD, ids, NULL, 1), FGS_ERROR_NULL, "data");
    uint32_t unknown = 99;
    REFUSED(fgs_rebind(scope, FGS_GRAD, &unknown, moved, 1), FGS_ERROR_NOT_FOUND, "99");
    OK(fgs_rebind(scope, FGS_GRAD, NULL, NULL, 0));
    OK(fgs_set_every(scope, 1));
    measure_step(scope, 13); /* where the gradient of step 9 lay, and that of step 11 lies now */

    ring seen = ring_of(scope);
    CHECK(measured == 5);
    for (uint64_t step = 0; step < 12; step++)
        for (int i = 0; i < TENSORS; i++) {
            const fgs_record *record = seek(&seen, "gradient", step, LEVEL_TENSOR, ids[i], NONE);
            int expected = (step < 6 ? step % 2 == 0 : step == 6 || step == 9) && (i != 1 || step < 4);
            if (CHECK((record != NULL) == expected) && record != NULL)
                CHECK_NEAR(value(&seen, record, "norm"), 2.0 * (double)(step + (uint64_t)i));
        }
    CHECK_NEAR(value(&seen, of_tensor(&seen, "gradient", 13, ids[2]), "norm"), 2.0 * (11 + 2));
    OK(fgs_close(scope));
    return RESULT();
}
