/* Runs `body` of each library that it is given, which call NCCL. With PLUGIN they are loaded as Python loads PyTorch: by dlopen with
 * RTLD_LOCAL, so that NCCL is in no global scope. Else the program is linked with it. */
#include <dlfcn.h>
#include <stdio.h>

int body(void);

int main(int argc, char **argv) {
#ifdef PLUGIN
    void *libraries[2] = {NULL, NULL};
    for (int i = 0; i + 1 < argc && i < 2; ++i) {
        libraries[i] = dlopen(argv[i + 1], RTLD_NOW | RTLD_LOCAL);
        if (!libraries[i]) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    int status = libraries[0] == NULL;
    for (int i = 0; i < 2 && libraries[i]; ++i) {
        int (*run)(void) = NULL;
        *(void **)&run = dlsym(libraries[i], "body");
        status |= run ? run() : 1;
    }
    return status;
#else
    (void)argc, (void)argv;
    return body();
#endif
}
