/* metrics.c: counting (see metrics.h). */
#include "metrics.h"

#include "inferd/abi.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const uint32_t metrics_bounds_us[METRICS_BUCKETS] = {
    100,    250,    500,     1000,    2500,    5000,     10000,    25000,    50000,    100000,
    250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 60000000, 120000000};

/* ---- entries --------------------------------------------------------------------------------- */

uint32_t metrics_user(struct metrics *m, uint32_t uid)
{
    for (uint32_t i = 0; i < m->n_users; i++)
        if (m->users[i].uid == uid)
            return i;
    if (m->n_users == METRICS_USERS_MAX)
        return METRICS_USERS_MAX;
    m->users[m->n_users].uid = uid;
    return m->n_users++;
}

struct metrics_model *metrics_model(struct metrics *m, uint32_t index, const char *name)
{
    assert(index < INFER_MODELS_MAX);
    struct metrics_model *model = &m->models[index];
    if (strcmp(model->name, name) != 0) {
        *model = (struct metrics_model){0};
        snprintf(model->name, sizeof model->name, "%s", name);
    }
    return model;
}

/* ---- requests -------------------------------------------------------------------------------- */

void metrics_refused(struct metrics *m, uint32_t user, enum metrics_limit limit)
{
    m->refused[limit]++;
    if (user != METRICS_USER_NONE)
        m->users[user].refused[limit]++;
}

const char *const metrics_op_names[METRICS_OPS] = {"other",      "generate", "score",  "tokenize",
                                                   "detokenize", "status",   "models", "end",
                                                   "forget",     "topology", "metrics"};

static enum metrics_op op_index(uint32_t op)
{
    return op >= INFER_ABI_GENERATE && op <= INFER_ABI_METRICS ? (enum metrics_op)op
                                                               : METRICS_OP_OTHER;
}

static int error_index(int code)
{
    switch (code) {
#define INDEX_OF(name, number, exit_status, text)                                                  \
    case number:                                                                                   \
        return METRICS_ERROR_##name;
        INFER_ERROR_TABLE (INDEX_OF)
#undef INDEX_OF
        default:
            return METRICS_ERROR_INTERNAL;
    }
}

void metrics_finished(struct metrics *m, uint32_t op, uint32_t finish, int code)
{
    assert(finish < METRICS_FINISHES);
    m->finished[op_index(op)][finish]++;
    if (code != 0)
        m->errors[error_index(code)]++;
}

/* ---- users that a reader may see ---------------------------------------------------------------
 */

void metrics_show_users(struct metrics_snapshot *s, bool all, uint32_t uid)
{
    struct metrics *m = &s->counters;
    if (all)
        return;
    struct metrics_user own = {.uid = uid};
    bool known = false;
    for (uint32_t i = 0; i < m->n_users; i++)
        if (m->users[i].uid == uid) {
            own = m->users[i];
            known = true;
        }
    memset(m->users, 0, sizeof m->users);
    m->users[0] = own;
    m->n_users = known;
}

/* ---- loads ----------------------------------------------------------------------------------- */

void metrics_copy_loads(struct metrics_loads *to, struct metrics_loads *from)
{
#define COPY(field)                                                                                \
    atomic_init(&to->field,                                                                        \
                from != NULL ? atomic_load_explicit(&from->field, memory_order_relaxed) : 0)
    COPY(n_done);
    COPY(n_failed);
    COPY(direct_bytes);
    COPY(buffered_bytes);
    COPY(n_reads);
    COPY(n_retries);
    COPY(took_us);
#undef COPY
}

/* ---- starts ---------------------------------------------------------------------------------- */

/* The number in the file; 0 when there is none or it is no number. */
static int64_t read_starts(int folder)
{
    char text[24] = "";
    int fd = openat(folder, "starts", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    long long was = n > 0 ? strtoll(text, NULL, 10) : 0;
    return was > 0 && was < INT64_MAX ? was : 0;
}

int64_t metrics_count_start(const char *state_directory)
{
    char text[24];
    int folder = open(state_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return -errno;
    int64_t now = read_starts(folder) + 1;
    int n = snprintf(text, sizeof text, "%" PRId64 "\n", now);
    int rc = 0;
    /* A new file takes the old one's place, so that there always is a whole one. */
    int fd =
        openat(folder, "starts.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || write(fd, text, (size_t)n) != n ||
        renameat(folder, "starts.new", folder, "starts") < 0)
        rc = -(errno != 0 ? errno : EIO);
    if (fd >= 0)
        close(fd);
    close(folder);
    return rc < 0 ? rc : now;
}

/* ---- the process ----------------------------------------------------------------------------- */

uint64_t metrics_resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL)
        return 0;
    if (fscanf(f, "%*s %llu", &pages) != 1)
        pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
