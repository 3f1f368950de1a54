/* A trainer that takes a signal with sigwait, as jobs do that write a checkpoint on request: no thread of the library takes
 * it away, and the mask of the calling thread stays as it was. */

#include "check.h"

#include <signal.h>
#include <unistd.h>

int main(void)
{
    sigset_t before, after, wanted;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    fgs_options options = FGS_OPTIONS_INIT;
    options.every = 1;
    options.threads = 2;
    fgs_scope *scope = NULL;
    OK(fgs_open(&options, &scope)); /* before the trainer blocks its signal */
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int number = 1; number < NSIG; number++)
        CHECK(sigismember(&after, number) == sigismember(&before, number));

    float gradient[4] = {1, 2, 3, 4};
    uint32_t id = register_plain(scope, "w", 4);
    fgs_dltensor tensor = F32(gradient, 2, 2);
    OK(fgs_bind(scope, id, FGS_GRAD, &tensor));
    measure_step(scope, 0);

    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR1);
    sigaddset(&wanted, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &wanted, NULL);
    for (int turn = 0; turn < 20; turn++) {
        int taken = 0, sent = turn % 2 ? SIGUSR1 : SIGTERM;
        kill(getpid(), sent);
        CHECK(sigwait(&wanted, &taken) == 0 && taken == sent);
        measure_step(scope, (uint64_t)turn + 1);
    }
    OK(fgs_close(scope));
    return RESULT();
}
