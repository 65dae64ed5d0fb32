/* status.c: `inferctl status` and `inferctl models`: what the daemon says of itself. */
#include "ctl.h"

#include <string.h>

/* Text of a fixed field, which a daemon should have terminated. */
#define FIELD(field) field, strnlen(field, sizeof(field))

/* Are its first layers on a device and the rest in the host's memory? */
static bool is_split(const struct infer_model *m)
{
    return m->rest_device[0] != '\0';
}

static json_t *model_json(const struct infer_model *m)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:b}", "name",
        output_json_text(FIELD(m->name)), "architecture", output_json_text(FIELD(m->architecture)),
        "description", output_json_text(FIELD(m->description)), "backend",
        output_json_text(FIELD(m->backend)), "chat_template",
        output_json_text(FIELD(m->chat_template)), "n_vocab", (json_int_t)m->n_vocab, "n_context",
        (json_int_t)m->n_context, "n_embd", (json_int_t)m->n_embd, "n_layers",
        (json_int_t)m->n_layers, "n_parameters", (json_int_t)m->n_parameters, "weights_bytes",
        (json_int_t)m->weights_bytes, "state_bytes", (json_int_t)m->state_bytes, "scratch_bytes",
        (json_int_t)m->scratch_bytes, "bos", (int)m->bos, "eos", (int)m->eos, "add_bos",
        m->add_bos != 0);
}

static const char *state_name(const struct infer_model *m)
{
    static const char *const names[] = {"ready", "ready", "listed", "loading", "leaving", "failed"};
    return m->state < sizeof names / sizeof names[0] ? names[m->state] : "";
}

static json_t *life_json(const struct infer_model *m)
{
    return json_pack("{s:s, s:b, s:I, s:I, s:f, s:I, s:I, s:I, s:o}", "state", state_name(m),
                     "pinned", m->pinned != 0, "keep_alive_s", (json_int_t)m->keep_alive_s,
                     "n_requests", (json_int_t)m->n_requests, "idle_s", (double)m->idle_us * 1e-6,
                     "vocabulary_bytes", (json_int_t)m->vocabulary_bytes, "done_bytes",
                     (json_int_t)m->done_bytes, "total_bytes", (json_int_t)m->total_bytes, "error",
                     m->error ? json_string(infer_error_name(m->error)) : json_null());
}

static json_t *device_json(const struct infer_model *m)
{
    return json_pack("{s:o, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "device",
                     output_json_text(FIELD(m->device)), "device_memory_bytes",
                     (json_int_t)m->device_memory, "device_free_bytes", (json_int_t)m->device_free,
                     "rest_device", output_json_text(FIELD(m->rest_device)), "device_layers",
                     (json_int_t)(is_split(m) ? m->device_layers : m->n_layers),
                     "rest_weights_bytes", (json_int_t)m->rest_weights_bytes, "rest_state_bytes",
                     (json_int_t)m->rest_state_bytes, "rest_scratch_bytes",
                     (json_int_t)m->rest_scratch_bytes, "file_bytes", (json_int_t)m->file_bytes,
                     "device_read_bytes_per_s", (json_int_t)m->device_read_per_s,
                     "weights_read_bytes_per_s", (json_int_t)m->weights_read_per_s);
}

static json_t *models_json(const struct infer_model *models, size_t n)
{
    json_t *array = json_array();

    for (size_t i = 0; i < n; i++) {
        json_t *one = model_json(&models[i]), *life = life_json(&models[i]);
        json_t *device = device_json(&models[i]);
        json_object_update(one, life);
        json_object_update(one, device);
        json_decref(life);
        json_decref(device);
        json_array_append_new(array, one);
    }
    return array;
}

static void print_field(const char *text, size_t n, int columns)
{
    term_write(stdout, text, n);
    if (columns > (int)n)
        printf("%*s", columns - (int)n, "");
    fputs("  ", stdout);
}

/* After the name of its device. */
static void print_layers(const struct infer_model *m)
{
    printf("; layers 0-%u of %u on ", m->device_layers - 1, m->n_layers);
    term_write(stdout, FIELD(m->device));
    fputs(", the rest on ", stdout);
    term_write(stdout, FIELD(m->rest_device));
}

/* "ready", or "loading 43 %" once something of it is read. */
static const char *now_text(const struct infer_model *m, char text[16])
{
    const uint64_t done = m->done_bytes, total = m->total_bytes;
    if (m->state != INFER_MODEL_LOADING || done == 0 || total < done)
        return state_name(m);
    snprintf(text, 16, "loading %u %%", (unsigned)(100.0 * (double)done / (double)total));
    return text;
}

static void print_models(const struct infer_model *models, size_t n)
{
    int name = 4, architecture = 4, description = 11, device = 6;

    for (size_t i = 0; i < n; i++) {
        int a = (int)strnlen(models[i].name, sizeof models[i].name);
        int b = (int)strnlen(models[i].architecture, sizeof models[i].architecture);
        int c = (int)strnlen(models[i].description, sizeof models[i].description);
        int d = (int)strnlen(models[i].device, sizeof models[i].device);
        name = a > name ? a : name;
        architecture = b > architecture ? b : architecture;
        description = c > description ? c : description;
        device = d > device ? d : device;
    }
    printf("%s%-*s  %-12s  %-*s  %-*s  %8s  %8s  %8s  %8s  %8s  %-*s  %s%s\n",
           term_style(stdout, TERM_BOLD), name, "NAME", "NOW", architecture, "ARCH", description,
           "DESCRIPTION", "CONTEXT", "WEIGHTS", "STATE", "SCRATCH", "VOCAB", device, "DEVICE",
           "BACKEND", term_style(stdout, TERM_PLAIN));
    for (size_t i = 0; i < n; i++) {
        const struct infer_model *m = &models[i];
        char weights[16], state[16], scratch[16], vocabulary[16], now[16];

        print_field(FIELD(m->name), name);
        printf("%-12s  ", now_text(m, now));
        print_field(FIELD(m->architecture), architecture);
        print_field(FIELD(m->description), description);
        printf("%8u  %8s  %8s  %8s  %8s  ", m->n_context, output_size(m->weights_bytes, weights),
               output_size(m->state_bytes, state), output_size(m->scratch_bytes, scratch),
               output_size(m->vocabulary_bytes, vocabulary));
        print_field(FIELD(m->device), device);
        term_write(stdout, FIELD(m->backend));
        if (is_split(m))
            print_layers(m);
        putchar('\n');
    }
}

json_t *status_json(const struct infer_status *s, const struct infer_model *models, size_t n)
{
    json_t *root =
        json_pack("{s:o, s:I, s:o, s:f, s:I, s:I}", "version", output_json_text(FIELD(s->version)),
                  "pid", (json_int_t)s->pid, "event_loop", output_json_text(FIELD(s->event_loop)),
                  "uptime_s", (double)s->uptime_us * 1e-6, "memory_bytes",
                  (json_int_t)s->memory_bytes, "memory_available", (json_int_t)s->memory_available);
    json_t *pressure = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "n_preempted", (json_int_t)s->n_preempted,
        "n_preemptions", (json_int_t)s->n_preemptions, "n_conversations",
        (json_int_t)s->n_conversations, "request_bytes", (json_int_t)s->request_bytes,
        "conversation_bytes", (json_int_t)s->conversation_bytes, "swap_memory_bytes",
        (json_int_t)s->swap_memory_bytes, "swap_file_bytes", (json_int_t)s->swap_file_bytes);
    json_t *rest = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "n_sessions",
        (json_int_t)s->n_sessions, "n_running", (json_int_t)s->n_running, "n_waiting",
        (json_int_t)s->n_waiting, "n_parked", (json_int_t)s->n_parked, "n_pages",
        (json_int_t)s->n_pages, "n_pages_used", (json_int_t)s->n_pages_used, "page_tokens",
        (json_int_t)s->page_tokens, "n_requests", (json_int_t)s->n_requests, "n_failed",
        (json_int_t)s->n_failed, "n_prompt_tokens", (json_int_t)s->n_prompt_tokens, "n_tokens",
        (json_int_t)s->n_tokens, "n_steps", (json_int_t)s->n_steps, "prompt_tokens_per_second",
        output_json_number(s->prompt_tokens_per_s), "tokens_per_second",
        output_json_number(s->tokens_per_s), "models", models_json(models, n));
    json_object_update(root, pressure);
    json_decref(pressure);
    json_object_update(root, rest);
    json_decref(rest);
    return root;
}

static bool same_device(const struct infer_model *a, const struct infer_model *b)
{
    return strncmp(a->device, b->device, sizeof a->device) == 0 &&
           strncmp(a->backend, b->backend, sizeof a->backend) == 0;
}

/* What a model takes of a memory. */
struct purposes {
    uint64_t weights, state, scratch;
};

/* Of its device's, and beside it, when it is split. */
static struct purposes on_device(const struct infer_model *m)
{
    return (struct purposes){m->weights_bytes - m->rest_weights_bytes,
                             m->state_bytes - m->rest_state_bytes,
                             m->scratch_bytes - m->rest_scratch_bytes};
}

static struct purposes beside_device(const struct infer_model *m)
{
    return (struct purposes){m->rest_weights_bytes, m->rest_state_bytes, m->rest_scratch_bytes};
}

/* Weights, state and scratch of the models on one device, or, when it is NULL, in the memory of the
 * host: there also what models on a device have beside it. */
static void print_purposes(const struct infer_model *models, size_t n,
                           const struct infer_model *device)
{
    struct purposes all = {0};
    char a[16], b[16], c[16];

    for (size_t i = 0; i < n; i++) {
        const struct infer_model *m = &models[i];
        if (device != NULL ? !same_device(m, device) : m->device_memory != 0 && !is_split(m))
            continue;
        const struct purposes one = device == NULL && is_split(m) ? beside_device(m) : on_device(m);
        all.weights += one.weights;
        all.state += one.state;
        all.scratch += one.scratch;
    }
    printf("weights %s, state %s, scratch %s", output_size(all.weights, a),
           output_size(all.state, b), output_size(all.scratch, c));
}

/* What decoding reached of what the device's memory gives: the weights are read for every step. */
static void print_speed(const struct infer_model *m)
{
    char a[16], b[16];

    if (m->weights_read_per_s == 0 || m->device_read_per_s == 0)
        return;
    printf("; read at %s/s, %.0f %% of the %s/s that it gives",
           output_size(m->weights_read_per_s, a),
           100.0 * (double)m->weights_read_per_s / (double)m->device_read_per_s,
           output_size(m->device_read_per_s, b));
}

/* The models on a device with a memory of its own. */
static void print_on_device(const struct infer_model *models, size_t n,
                            const struct infer_model *device)
{
    char a[16], b[16], c[16], d[16];

    for (size_t i = 0; i < n; i++) {
        const struct infer_model *m = &models[i];
        if (!same_device(m, device))
            continue;
        const struct purposes of = on_device(m);
        fputs("            ", stdout);
        term_write(stdout, FIELD(m->name));
        printf(": weights %s (%s in the file), state %s, scratch %s", output_size(of.weights, a),
               output_size(m->file_bytes, b), output_size(of.state, c), output_size(of.scratch, d));
        print_speed(m);
        putchar('\n');
    }
}

/* Each device once, as the models name theirs; of one with a memory of its own what they take. */
static void print_devices(const struct infer_model *models, size_t n)
{
    const char *before = "    Device: ";

    for (size_t i = 0; i < n; i++) {
        const struct infer_model *m = &models[i];
        char a[16], b[16];
        size_t k = 0;
        while (k < i && !same_device(&models[k], m))
            k++;
        if (k < i || m->backend[0] == '\0')
            continue;
        fputs(before, stdout);
        before = "            ";
        term_write(stdout, FIELD(m->backend));
        putchar('\n');
        if (m->device_memory == 0)
            continue;
        fputs(before, stdout);
        term_write(stdout, FIELD(m->device));
        printf(" has %s, %s free: ", output_size(m->device_memory, a),
               output_size(m->device_free, b));
        print_purposes(models, n, m);
        putchar('\n');
        print_on_device(models, n, m);
    }
}

static void print_memory(const struct infer_status *s, const struct infer_model *models, size_t n)
{
    char a[16], b[16], d[16], e[16], f[16];

    printf("    Memory: %s resident, %s available\n", output_size(s->memory_bytes, a),
           output_size(s->memory_available, b));
    fputs("            ", stdout);
    print_purposes(models, n, NULL);
    printf(", requests %s, conversations %s, saved %s\n", output_size(s->request_bytes, d),
           output_size(s->conversation_bytes, e), output_size(s->swap_memory_bytes, f));
}

static void print_requests(const struct infer_status *s)
{
    char file[16], saved[16];

    printf("  Requests: %u running, %u waiting", s->n_running, s->n_waiting);
    if (s->n_preempted > 0)
        printf(" (%u of them preempted)", s->n_preempted);
    printf(", %u parked; %u connections, %llu conversations\n", s->n_parked, s->n_sessions,
           (unsigned long long)s->n_conversations);
    printf("     State: %u of %u pages used, %u tokens each\n", s->n_pages_used, s->n_pages,
           s->page_tokens);
    if (s->n_preemptions > 0)
        printf("  Pressure: %llu preemptions; saved states: %s in memory, %s in the swap file\n",
               (unsigned long long)s->n_preemptions, output_size(s->swap_memory_bytes, saved),
               output_size(s->swap_file_bytes, file));
}

static void print_status(const struct infer_status *s, const struct infer_model *models, size_t n)
{
    char uptime[32];

    printf("%sinferd ", term_style(stdout, TERM_GREEN));
    term_write(stdout, FIELD(s->version));
    printf("%s  pid %u, up %s, event loop ", term_style(stdout, TERM_PLAIN), s->pid,
           output_duration(s->uptime_us, uptime));
    term_write(stdout, FIELD(s->event_loop));
    putchar('\n');
    print_devices(models, n);
    print_memory(s, models, n);
    print_requests(s);
    printf("     Speed: %.1f prompt tokens/s, %.1f tokens/s in the last 10 s\n",
           s->prompt_tokens_per_s, s->tokens_per_s);
    printf("    Served: %llu requests (%llu failed), %llu prompt tokens, %llu tokens, %llu steps\n",
           (unsigned long long)s->n_requests, (unsigned long long)s->n_failed,
           (unsigned long long)s->n_prompt_tokens, (unsigned long long)s->n_tokens,
           (unsigned long long)s->n_steps);
}

/* All models, or the one that -m names. 0 or an exit status; free with infer_free(). */
static int fetch_models(struct ctl *ctl, struct infer_model **ret_models, size_t *ret_n)
{
    struct infer_model one, *models;
    size_t n;
    int r, status;

    if (ctl->options.model) {
        status = ctl_model(ctl, &one);
        if (status)
            return status;
    }
    r = infer_models(ctl->conn, &models, &n);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    if (ctl->options.model && n > 0) {
        models[0] = one;
        n = 1;
    }
    *ret_models = models;
    *ret_n = n;
    return 0;
}

/* `inferctl status --topology`. */
static int topology_command(struct ctl *ctl)
{
    char *text;
    size_t n;
    int r = infer_topology(ctl->conn, &text, &n), result;

    if (r < 0)
        return ctl_fail_conn(ctl, r);
    if (ctl->options.json) {
        result = output_json(json_pack("{s:o}", "topology", output_json_text(text, n)));
    } else {
        for (size_t at = 0; at < n; at++) {
            size_t line = 0;
            while (at + line < n && text[at + line] != '\n')
                line++;
            term_write(stdout, text + at, line);
            putchar('\n');
            at += line;
        }
        result = ctl_finish_output(0);
    }
    infer_free(text);
    return result;
}

int status_command(struct ctl *ctl)
{
    struct infer_status status;
    struct infer_model *models;
    size_t n;
    int r, result;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    result = ctl_connect(ctl);
    if (result)
        return result;
    if (ctl->options.topology)
        return topology_command(ctl);
    r = infer_status(ctl->conn, &status);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    result = fetch_models(ctl, &models, &n);
    if (result)
        return result;
    if (ctl->options.json) {
        result = output_json(status_json(&status, models, n));
    } else {
        print_status(&status, models, n);
        putchar('\n');
        print_models(models, n);
        result = ctl_finish_output(0);
    }
    infer_free(models);
    return result;
}

int models_command(struct ctl *ctl)
{
    struct infer_model *models;
    size_t n;
    int result;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    result = ctl_connect(ctl);
    if (!result)
        result = fetch_models(ctl, &models, &n);
    if (result)
        return result;
    if (ctl->options.json) {
        result = output_json(models_json(models, n));
    } else {
        print_models(models, n);
        result = ctl_finish_output(0);
    }
    infer_free(models);
    return result;
}
