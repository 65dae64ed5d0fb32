/* life.h: a daemon with a configuration of its own whose models come and go, and what tests ask of
 * it. Header only. */
#ifndef INFERD_TESTS_LIFE_H
#define INFERD_TESTS_LIFE_H

#include "integration/many.h"

#include <limits.h>

#define SLOW   "delay_us=20000"
#define PAGES  "page_bytes=65536,delay_us=1000"
#define WAIT_S 10

static struct daemon d;
static char folder[64], config_path[96], model_path[4096];

/* ---- a daemon with a configuration -----------------------------------------------------------
 */

static inline void write_config(const char *daemon_keys, const char *sections)
{
    FILE *f = fopen(config_path, "w");
    assert_non_null(f);
    fprintf(f, "[daemon]\n%s\n", daemon_keys);
    for (const char *at = sections; *at != '\0'; at++)
        if (*at == '@')
            fprintf(f, "path = %s\n", model_path);
        else
            fputc(*at, f);
    assert_int_equal(fclose(f), 0);
}

/* With what write_config() wrote; by daemon_start() or daemon_start_only(). */
static inline void start_configured(void (*starts)(struct daemon *d, const char *const *arguments),
                                    const char *backend, const char *options)
{
    starts(&d, (const char *[]){"--config", config_path, "--backend", backend, "--backend-options",
                                options, NULL});
}

static inline void start(const char *backend, const char *options, const char *daemon_keys,
                         const char *sections)
{
    write_config(daemon_keys, sections);
    start_configured(daemon_start, backend, options);
}

static inline int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/inferd-life.XXXXXX");
    if (mkdtemp(folder) == NULL || realpath(DAEMON_MODEL, model_path) == NULL)
        return -1;
    snprintf(config_path, sizeof config_path, "%s/inferd.conf", folder);
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    unlink(config_path);
    return rmdir(folder);
}

static inline int teardown(void **state)
{
    (void)state;
    if (d.pid > 0)
        daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

static inline struct infer_conn *open_conn(void)
{
    struct infer_conn *c = many_connect(&d);
    assert_non_null(c);
    return c;
}

/* ---- requests -------------------------------------------------------------------------------- */

static inline uint32_t submit(struct infer_conn *c, const char *model, uint32_t n_tokens)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.model = model;
    r.text = "The kernel";
    r.sampling.max_tokens = n_tokens;
    r.sampling.ignore_eos = 1;
    r.sampling.seed = 7;
    assert_int_equal(infer_submit(c, &r, &id), 0);
    return id;
}

/* Takes tokens until there are n (UINT32_MAX: until DONE, whose error is returned). */
static inline int take(struct infer_conn *c, uint32_t id, uint32_t n)
{
    struct infer_event e;
    for (uint32_t got = 0; got < n;) {
        int r = infer_next(c, id, 1000 * WAIT_S * program_slowness(), &e);
        if (r != 1)
            fail_msg("infer_next: %d", r);
        got += e.kind == INFER_EVENT_TOKEN && e.has_token;
        if (e.kind == INFER_EVENT_DONE)
            return n == UINT32_MAX ? e.error : -1;
    }
    return 0;
}

static inline int ask(struct infer_conn *c, const char *model)
{
    return take(c, submit(c, model, 4), UINT32_MAX);
}

static inline struct infer_model find(struct infer_conn *c, const char *name)
{
    struct infer_model *models, found = {0};
    size_t n;
    assert_int_equal(infer_models(c, &models, &n), 0);
    for (size_t i = 0; i < n; i++)
        if (strcmp(models[i].name, name) == 0)
            found = models[i];
    infer_free(models);
    return found;
}

static inline uint32_t state_of(struct infer_conn *c, const char *name)
{
    return find(c, name).state;
}

static inline void wait_state(struct infer_conn *c, const char *name, uint32_t state)
{
    uint64_t end = test_clock_us() + 1000000u * WAIT_S * (unsigned)program_slowness();
    while (state_of(c, name) != state) {
        if (test_clock_us() > end)
            fail_msg("%s is in state %u, not %u", name, state_of(c, name), state);
        usleep(5000);
    }
}

static inline void check_log(const char *text, bool wanted)
{
    char *log = daemon_read_log(&d);
    if ((strstr(log, text) != NULL) != wanted)
        fail_msg("the log %s '%s':\n%s", wanted ? "lacks" : "has", text, log);
    free(log);
}

static inline void assert_log(const char *text)
{
    check_log(text, true);
}

static inline void assert_log_lacks(const char *text)
{
    check_log(text, false);
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

#endif
