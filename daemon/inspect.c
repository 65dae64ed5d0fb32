/* inspect.c: see inspect.h. */
#include "inspect.h"

#include "devices.h"
#include "loader.h"
#include "memory.h"
#include "model/inspect.h"
#include "topology.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The backend's estimate; false when it has none (a vocabulary, an unknown architecture, no such
 * backend): inspect_print() says itself why a file cannot be served. */
static bool estimate(const struct config *config, const struct gguf *g,
                     struct infer_state_config *ret_state, struct infer_estimate *ret)
{
    static struct topology topology;
    struct memory memory;
    struct infer_host host;
    struct backend backend;
    struct plan *plan;
    char name[BACKEND_NAME_MAX];
    bool ok = false;

    if (!devices_first(config->backend, name) || plan_new(g, &plan, NULL) < 0)
        return false;
    memory_init(&memory, 0);
    if (topology_discover(&topology, NULL) == 0) {
        memory_host_init(&memory, topology.cpus, topology.default_threads, &host);
        if (backend_load(name, config->backend_options, &host, &backend, NULL) == 0) {
            struct loader_options options = {.n_context = config->n_context,
                                             .parallel = config->parallel,
                                             .state_memory = config->state_memory_bytes,
                                             .k_type = config->k_type,
                                             .v_type = config->v_type};
            ok = loader_estimate(plan, &backend, &options, ret_state, ret, NULL) == 0;
            backend_unload(&backend);
        }
    }
    plan_free(plan);
    return ok;
}

int inspect_file(const struct config *config, struct report *report)
{
    struct gguf *g;
    struct infer_state_config state;
    struct infer_estimate e;
    int rc = gguf_open(config->inspect_path, &g, report);
    if (rc < 0)
        return rc;
    bool known = estimate(config, g, &state, &e);
    rc = inspect_print(g, stdout, known ? &e : NULL, known ? &state : NULL);
    gguf_free(g);
    if (rc < 0 || fflush(stdout) != 0)
        return report_fail(report, INFER_E_INTERNAL, "cannot write: %s", strerror(errno));
    return 0;
}

static int read_all(int fd, char **ret, size_t *ret_bytes, struct report *report)
{
    char *text = NULL;
    size_t n = 0, room = 0;
    for (;;) {
        if (n == room) {
            char *grown = n > TOKENIZER_TEXT_MAX ? NULL : realloc(text, room = 2 * room + 65536);
            if (grown == NULL) {
                free(text);
                return report_fail(report, INFER_E_REQUEST_TOO_LARGE, "the text is too large");
            }
            text = grown;
        }
        ssize_t got = read(fd, text + n, room - n);
        if (got == 0)
            break;
        if (got < 0 && errno != EINTR) {
            free(text);
            return report_fail(report, INFER_E_INVALID, "standard input cannot be read: %s",
                               strerror(errno));
        }
        n += got > 0 ? (size_t)got : 0;
    }
    *ret = text;
    *ret_bytes = n;
    return 0;
}

static int print_ids(const struct token_list *ids, struct report *report)
{
    putchar('[');
    for (size_t i = 0; i < ids->n; i++)
        printf("%s%d", i > 0 ? ", " : "", ids->ids[i]);
    puts("]");
    if (fflush(stdout) != 0)
        return report_fail(report, INFER_E_INTERNAL, "cannot write: %s", strerror(errno));
    return 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Replaces \n \r \t \' \" \\ and \xHH in place; any other backslash stays. Returns the new size. */
static size_t unescape(char *text, size_t bytes)
{
    static const char from[] = "nrt'\"\\", to[] = "\n\r\t'\"\\";
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        const char *known = NULL;
        if (text[i] == '\\' && i + 1 < bytes)
            known = memchr(from, text[i + 1], sizeof from - 1);
        if (known != NULL) {
            text[n++] = to[known - from];
            i++;
        } else if (text[i] == '\\' && i + 3 < bytes && text[i + 1] == 'x' &&
                   hex_digit(text[i + 2]) >= 0 && hex_digit(text[i + 3]) >= 0) {
            text[n++] = (char)(16 * hex_digit(text[i + 2]) + hex_digit(text[i + 3]));
            i += 3;
        } else {
            text[n++] = text[i];
        }
    }
    return n;
}

int inspect_tokenize(const struct config *config, struct report *report)
{
    struct gguf *g;
    struct tokenizer *t;
    struct token_list ids = {0};
    char *text = NULL;
    size_t bytes = 0;

    int rc = gguf_open(config->inspect_path, &g, report);
    if (rc < 0)
        return rc;
    rc = tokenizer_new(g, &t, report);
    gguf_free(g);
    if (rc < 0)
        return rc;
    rc = read_all(STDIN_FILENO, &text, &bytes, report);
    if (rc == 0) {
        if (!config->no_escape)
            bytes = unescape(text, bytes);
        rc = tokenizer_encode(t, text, bytes, TOKENIZER_PARSE_SPECIAL, NULL, 0, &ids);
        free(text);
        rc = rc < 0 ? report_fail(report, INFER_E_REQUEST_TOO_LARGE,
                                  "the text cannot be tokenized: %s", strerror(-rc))
                    : print_ids(&ids, report);
    }
    token_list_free(&ids);
    tokenizer_free(t);
    return rc;
}
