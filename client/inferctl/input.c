/* input.c: text and token ids as the user gives them: arguments, a file, a pipe, JSON.
 *
 * Limits: a text or a file is at most INFER_REQUEST_BYTES_MAX bytes, since one request carries no
 * more; what is longer is refused here with that figure, before it is read in full. */
#include "ctl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_IDS_MAX (INFER_REQUEST_BYTES_MAX / sizeof(int32_t))

void buffer_append(struct ctl_buffer *buffer, const char *bytes, size_t n)
{
    if (n > SIZE_MAX / 2 - buffer->n - 1)
        exit(ctl_fail(INFER_E_OUT_OF_MEMORY, NULL));
    if (buffer->n + n + 1 > buffer->capacity) {
        buffer->capacity = 2 * (buffer->n + n + 1);
        buffer->bytes = ctl_resize(buffer->bytes, buffer->capacity);
    }
    if (n > 0)
        memcpy(buffer->bytes + buffer->n, bytes, n);
    buffer->n += n;
    buffer->bytes[buffer->n] = '\0';
}

void buffer_done(struct ctl_buffer *buffer)
{
    free(buffer->bytes);
    memset(buffer, 0, sizeof *buffer);
}

static int read_all(int fd, const char *name, struct ctl_buffer *ret_text)
{
    struct ctl_buffer text = {NULL, 0, 0};
    char chunk[65536];

    buffer_append(&text, "", 0);
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int status = ctl_error("cannot read %s: %s", name, strerror(errno));
            buffer_done(&text);
            return status;
        }
        if (n == 0)
            break;
        buffer_append(&text, chunk, (size_t)n);
        if (text.n > INFER_REQUEST_BYTES_MAX) {
            char detail[INFER_DETAIL_MAX];
            snprintf(detail, sizeof detail, "%s is longer than %u bytes", name,
                     INFER_REQUEST_BYTES_MAX);
            buffer_done(&text);
            return ctl_fail(INFER_E_REQUEST_TOO_LARGE, detail);
        }
    }
    *ret_text = text;
    return 0;
}

int input_file(const char *path, struct ctl_buffer *ret_text)
{
    int fd, status;

    if (strcmp(path, "-") == 0)
        return read_all(STDIN_FILENO, "standard input", ret_text);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ctl_error("cannot open '%s': %s", path, strerror(errno));
    status = read_all(fd, path, ret_text);
    close(fd);
    return status;
}

int input_text(const struct ctl *ctl, struct ctl_buffer *ret_text)
{
    struct ctl_buffer text = {NULL, 0, 0};

    if (ctl->options.file) {
        if (ctl->n_operands > 0)
            return ctl_usage(ctl, "give either --file or a text");
        return input_file(ctl->options.file, ret_text);
    }
    if (ctl->n_operands == 1 && strcmp(ctl->operands[0], "-") == 0)
        return input_file("-", ret_text);
    if (ctl->n_operands == 0) {
        if (term_is_input())
            return ctl_usage(ctl, "no text; give it as arguments, with --file, or pipe it in");
        return input_file("-", ret_text);
    }
    for (size_t i = 0; i < ctl->n_operands; i++) {
        if (i > 0)
            buffer_append(&text, " ", 1);
        buffer_append(&text, ctl->operands[i], strlen(ctl->operands[i]));
    }
    *ret_text = text;
    return 0;
}

/* ---- token ids ------------------------------------------------------------------------------- */

static int parse_json_ids(const struct ctl *ctl, const char *what, const char *text, size_t n,
                          struct ctl_ids *ret_ids)
{
    json_error_t error;
    json_t *root = json_loadb(text, n, 0, &error);
    json_t *array = json_is_object(root) ? json_object_get(root, "ids") : root;
    struct ctl_ids ids;
    int status = 0;

    if (!root)
        return ctl_usage(ctl, "%s is no JSON: %s in line %d", what, error.text, error.line);
    if (!json_is_array(array)) {
        json_decref(root);
        return ctl_usage(ctl, "%s holds no array of token ids", what);
    }
    ids.n = json_array_size(array);
    ids.ids = ctl_alloc(ids.n * sizeof *ids.ids);
    for (size_t i = 0; i < ids.n && !status; i++) {
        json_t *entry = json_array_get(array, i);
        json_int_t value = json_integer_value(entry);
        if (!json_is_integer(entry) || value < 0 || value > INT32_MAX)
            status = ctl_usage(ctl, "entry %zu of %s is no token id", i, what);
        else
            ids.ids[i] = (int32_t)value;
    }
    json_decref(root);
    if (status)
        free(ids.ids);
    else
        *ret_ids = ids;
    return status;
}

static int parse_plain_ids(const struct ctl *ctl, const char *what, const char *text, size_t n,
                           struct ctl_ids *ret_ids)
{
    struct ctl_ids ids = {ctl_alloc((n / 2 + 1) * sizeof(int32_t)), 0};
    const char *at = text, *end = text + n;

    for (;;) {
        int64_t value = 0;
        const char *start;

        while (at < end && (*at == ',' || isspace((unsigned char)*at)))
            at++;
        if (at == end)
            break;
        start = at;
        while (at < end && isdigit((unsigned char)*at) && value <= INT32_MAX)
            value = value * 10 + (*at++ - '0');
        if (at == start || value > INT32_MAX ||
            (at < end && *at != ',' && !isspace((unsigned char)*at))) {
            size_t shown = 0;
            while (start + shown < end && shown < 20 && start[shown] != ',' &&
                   !isspace((unsigned char)start[shown]))
                shown++;
            free(ids.ids);
            return ctl_usage(ctl, "%s: '%.*s' is no token id", what, (int)shown, start);
        }
        ids.ids[ids.n++] = (int32_t)value;
    }
    *ret_ids = ids;
    return 0;
}

int input_ids(const struct ctl *ctl, const char *what, const char *text, size_t n,
              struct ctl_ids *ret_ids)
{
    struct ctl_ids ids;
    size_t blank = 0;
    int status;

    while (blank < n && isspace((unsigned char)text[blank]))
        blank++;
    if (blank < n && (text[blank] == '[' || text[blank] == '{'))
        status = parse_json_ids(ctl, what, text, n, &ids);
    else
        status = parse_plain_ids(ctl, what, text, n, &ids);
    if (status)
        return status;
    if (ids.n > INPUT_IDS_MAX) {
        free(ids.ids);
        return ctl_fail(INFER_E_REQUEST_TOO_LARGE, what);
    }
    *ret_ids = ids;
    return 0;
}
