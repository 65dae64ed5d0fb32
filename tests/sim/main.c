/* main.c: sim [-v] [-t] [-p FAULT] SEED [N]: simulates N days (1) from SEED on; the verdict.
 *
 *   -v        what happens, line by line
 *   -t        a line for each seed, with its trace
 *   -p FAULT  does something wrong on purpose, to see that it is found: token, page, share, starve,
 *             silent, leak
 *
 * Ends with 0 when every seed is good, with 1 after the first that is not. */
#include "sim.h"

#include "base/log.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of all seeds together. */
struct totals {
    uint64_t n_asks, n_done, n_tokens, n_events, n_steps, n_ahead, n_turns, trace;
    uint64_t by_code[128];
};

/* An assertion of the daemon's own: its text is on standard error already. */
static void on_crash(int signo)
{
    char line[128];
    int n = snprintf(line, sizeof line, "sim: seed %llu FAILED: signal %d in step %llu\n",
                     (unsigned long long)sim.plan.seed, signo, (unsigned long long)sim.n_steps);
    (void)!write(STDOUT_FILENO, line, (size_t)n);
    signal(signo, SIG_DFL);
    raise(signo);
}

/* The lowest number that a new descriptor gets: all that are opened are closed again. */
static int next_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

static void count(struct totals *t)
{
    t->n_asks += sim.n_asks;
    t->n_done += sim.n_done;
    t->n_tokens += sim.n_tokens;
    t->n_events += sim.n_events;
    t->n_steps += sim.n_steps;
    t->n_ahead += sim.n_ahead;
    t->n_turns += sim.n_turns;
    t->trace = rng_mix(t->trace ^ sim.trace);
    for (size_t i = 0; i < sizeof t->by_code / sizeof t->by_code[0]; i++)
        t->by_code[i] += sim.by_code[i];
}

static bool run_seed(uint64_t seed, bool verbose, enum sim_plant plant, struct totals *t)
{
    struct status_page *page = sim.page;
    int64_t blocks = watch_blocks();
    int descriptor = next_descriptor();
    memset(&sim, 0, sizeof sim);
    sim.page = page;
    sim.verbose = verbose;
    sim.plant = plant;
    sim.random.state = rng_mix(~seed);
    sim.now_ns = UINT64_C(1000000000); /* no clock begins at 0 */
    scenario_draw(seed, &sim.plan);
    world_run();
    if (!sim.failed && watch_blocks() != blocks)
        sim_fail("%lld blocks of memory are left", (long long)(watch_blocks() - blocks));
    if (!sim.failed && next_descriptor() != descriptor)
        sim_fail("descriptors are left: the next is %d, it was %d", next_descriptor(), descriptor);
    count(t);
    if (sim.failed)
        printf("sim: seed %llu FAILED: %s\n", (unsigned long long)seed, sim.verdict);
    return !sim.failed;
}

static void print_totals(const struct totals *t, uint64_t first, uint64_t n)
{
    printf("sim: seeds %llu to %llu are good: %llu requests, %llu answered, %llu tokens, %llu "
           "events, %llu steps, %llu of them ahead, %llu turns; trace %016llx\n",
           (unsigned long long)first, (unsigned long long)(first + n - 1),
           (unsigned long long)t->n_asks, (unsigned long long)t->n_done,
           (unsigned long long)t->n_tokens, (unsigned long long)t->n_events,
           (unsigned long long)t->n_steps, (unsigned long long)t->n_ahead,
           (unsigned long long)t->n_turns, (unsigned long long)t->trace);
    printf("sim: answers: good %llu", (unsigned long long)t->by_code[0]);
#define PRINT(name, code, exit_status, text)                                                       \
    if (t->by_code[(code)-1000] > 0)                                                               \
        printf(", " #name " %llu", (unsigned long long)t->by_code[(code)-1000]);
    INFER_ERROR_TABLE (PRINT)
#undef PRINT
        printf("\n");
}

static enum sim_plant plant_of(const char *name)
{
    static const char *const names[] = {"", "token", "page", "share", "starve", "silent", "leak"};
    for (size_t i = 1; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0)
            return (enum sim_plant)i;
    return PLANT_NONE;
}

static int usage(void)
{
    fprintf(stderr, "usage: sim [-v] [-t] [-p token|page|share|starve|silent|leak] SEED [N]\n");
    return 2;
}

int main(int argc, char **argv)
{
    bool verbose = false, traces = false, good = true;
    enum sim_plant plant = PLANT_NONE;
    struct totals totals = {0};
    int option;
    while ((option = getopt(argc, argv, "vtp:")) != -1) {
        verbose |= option == 'v';
        traces |= option == 't';
        if (option == '?' || (option == 'p' && (plant = plant_of(optarg)) == PLANT_NONE))
            return usage();
    }
    if (optind >= argc || argc - optind > 2)
        return usage();
    uint64_t first = strtoull(argv[optind], NULL, 10);
    uint64_t n = optind + 1 < argc ? strtoull(argv[optind + 1], NULL, 10) : 1;
    log_set_level(verbose ? LOG_LEVEL_DEBUG : 0);
    signal(SIGABRT, on_crash);
    signal(SIGSEGV, on_crash);
    if (world_load() < 0)
        return 2;
    for (uint64_t i = 0; good && i < n; i++) {
        good = run_seed(first + i, verbose, plant, &totals);
        if (traces)
            printf("sim: seed %llu trace %016llx\n", (unsigned long long)(first + i),
                   (unsigned long long)sim.trace);
    }
    if (good)
        print_totals(&totals, first, n);
    fflush(stdout);
    if (good)
        world_unload();
    return good ? 0 : 1;
}
