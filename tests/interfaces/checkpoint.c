/* Counts to a number and checkpoints at each tenth: what it was doing lies in static variables and on its heap. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nocopy.h"

static int goal, count;
static char *trail;
static int (*step)(int) = NULL;

static int by_one(int n) { return n + 1; }

static int32_t work(void) {
    while (count < goal) {
        size_t used = strlen(trail);
        count = step(count);
        trail = realloc(trail, used + 2);
        strcpy(trail + used, count % 2 ? "o" : "e");
        if (count % 10 == 0 && count < goal) {
            char label[32];
            int n = snprintf(label, sizeof label, "at %d", count);
            return nocopy_checkpoint(label, (uint32_t)n);
        }
    }
    printf("%d %s\n", count, trail);
    fflush(stdout);
    return count % 10;
}

NOCOPY_EXPORT(nocopy_resume) int32_t nocopy_resume(void) {
    char label[32];
    nocopy_clone_info info;
    nocopy_label(label, sizeof label);
    nocopy_clone(&info, sizeof info);
    printf("again %s, generation %d, clone %d\n", label, (int)info.generation, (int)info.index);
    fflush(stdout);
    return work();
}

NOCOPY_EXPORT(seed) uint64_t seed(void) { return nocopy_clone_seed(5); }

int main(int argc, char **argv) {
    goal = argc > 1 ? atoi(argv[1]) : 10;
    trail = calloc(1, 1);
    step = by_one;
    printf("start %d\n", argc);
    return work();
}
