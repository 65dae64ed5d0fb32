/* manage.c: load, unload, reload: what a manager tells the daemon.
 *
 * The file is opened here and handed over open, so the daemon needs no permission on it. Ctrl-C
 * while a model loads cancels that. */
#include "ctl.h"

#include <string.h>

/* ---- load ------------------------------------------------------------------------------------ */

struct loading {
    const char *name;
    double started;
};

static int on_progress(void *ctx, uint64_t done, uint64_t total)
{
    const struct loading *l = ctx;
    char done_text[16], total_text[16];

    if (total > 0)
        term_progress((double)done / (double)total, "%s  %s of %s", l->name,
                      output_size(done, done_text), output_size(total, total_text));
    else
        term_remark("%s: waiting to be loaded", l->name);
    return term_interrupts() > 0;
}

static json_t *loaded_json(const struct infer_loaded *l)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "weights_bytes",
                     (json_int_t)l->weights_bytes, "state_bytes", (json_int_t)l->state_bytes,
                     "scratch_bytes", (json_int_t)l->scratch_bytes, "vocabulary_bytes",
                     (json_int_t)l->vocabulary_bytes, "available_bytes",
                     (json_int_t)l->available_bytes, "n_context", (json_int_t)l->n_context,
                     "n_pages", (json_int_t)l->n_pages, "page_tokens", (json_int_t)l->page_tokens);
}

static void print_loaded(const struct infer_loaded *l)
{
    uint64_t sum = l->weights_bytes + l->state_bytes + l->scratch_bytes + l->vocabulary_bytes;
    char text[16];

    printf("   Weights: %8s\n", output_size(l->weights_bytes, text));
    printf("     State: %8s  %u pages of %u tokens, context %u\n",
           output_size(l->state_bytes, text), l->n_pages, l->page_tokens, l->n_context);
    printf("   Scratch: %8s\n", output_size(l->scratch_bytes, text));
    printf("Vocabulary: %8s\n", output_size(l->vocabulary_bytes, text));
    printf("    Needed: %8s\n", output_size(sum, text));
    printf(" Available: %8s\n", output_size(l->available_bytes, text));
}

static void fill_load(const struct ctl *ctl, struct infer_load *load, struct loading *progress)
{
    const struct ctl_options *o = &ctl->options;

    infer_load_default(load);
    load->socket = o->socket;
    load->path = ctl->n_operands > 0 ? ctl->operands[0] : NULL;
    load->name = o->name;
    load->n_context = o->context;
    load->parallel = o->parallel;
    load->device = o->device;
    load->cache_type_k = o->cache_type_k;
    load->cache_type_v = o->cache_type_v;
    load->keep_alive_s = o->keep_alive;
    load->pin = o->pin != 0;
    load->dry_run = o->dry_run != 0;
    load->progress = on_progress;
    load->progress_ctx = progress;
    progress->name = load->name ? load->name : load->path;
    progress->started = ctl_seconds();
}

int load_command(struct ctl *ctl)
{
    struct infer_loaded loaded = {.bytes = sizeof loaded};
    struct loading progress;
    struct infer_load load;
    int r;

    if (ctl->n_operands > 1)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[1]);
    if (ctl->n_operands == 0 && !ctl->options.name)
        return ctl_usage(ctl, "give the file, or the --name of a model that is listed");
    fill_load(ctl, &load, &progress);
    term_interrupt_watch(false);
    r = infer_load(&load, &loaded);
    term_progress_clear();
    if (r == -INFER_E_CANCELLED && term_interrupts() > 0) {
        ctl_fail(r, infer_detail(NULL));
        return CTL_EXIT_INTERRUPTED;
    }
    if (load.dry_run && (r == 0 || r == -INFER_E_MODEL_TOO_LARGE)) {
        if (ctl->options.json)
            output_json(loaded_json(&loaded));
        else
            print_loaded(&loaded);
    } else if (r == 0 && ctl->options.json) {
        output_json(loaded_json(&loaded));
    } else if (r == 0 && !ctl->options.quiet) {
        printf("%s: ready after %.1f s\n", progress.name, ctl_seconds() - progress.started);
    }
    return r < 0 ? ctl_fail(r, infer_detail(NULL)) : ctl_finish_output(0);
}

/* ---- unload, reload -------------------------------------------------------------------------- */

int unload_command(struct ctl *ctl)
{
    int status = 0;

    if (ctl->n_operands == 0)
        return ctl_usage(ctl, "give the names of models, as 'inferctl models' lists them");
    for (size_t i = 0; i < ctl->n_operands; i++) {
        int r = infer_unload(ctl->options.socket, ctl->operands[i], ctl->options.force != 0);
        int one = r < 0 ? ctl_fail(r, infer_detail(NULL)) : 0;
        if (!status)
            status = one;
    }
    return status;
}

int reload_command(struct ctl *ctl)
{
    int r;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    r = infer_reload(ctl->options.socket);
    if (r < 0)
        return ctl_fail(r, infer_detail(NULL));
    if (!ctl->options.quiet) {
        term_write(stdout, infer_detail(NULL), strlen(infer_detail(NULL)));
        putchar('\n');
    }
    return ctl_finish_output(0);
}
