/* rope.c: all methods of stretching the rotary embedding, folded into inverse frequencies.
 *
 * Pair i of a head with n turning values has f(i) = base^(-2i/n), divided by the file's own factor
 * i (rope_freqs.weight) where there is one. With s = rope.scaling.factor:
 *
 *   none     inv_freq = f
 *   linear   inv_freq = f / s
 *   llama3   wavelength w = 2 pi / f against the original context c: f for w < c / high, f / s for
 *            w > c / low, and between them a mix by (c / w - low) / (high - low). Files of
 *            llama.cpp carry the result as rope_freqs.weight instead.
 *   yarn     inv_freq = f / s * (1 - m) + f * m, where m falls from 1 to 0 between the pairs that
 *            turn beta_fast and beta_slow times over the original context;
 *            magnitude = attn_factor * (1 + 0.1 ln s); for the others it is attn_factor, 1 by
 *            default.
 *
 * A file with a factor and no type is linear, as llama.cpp reads it. Computed in double precision.
 * Threads: none of its own. Limits: every number of the file is checked against a range here. */
#include "model/architecture.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROPE_PI          3.14159265358979323846
#define ROPE_FACTOR_MAX  65536.0f
#define ROPE_BASE_MAX    1e12f
#define ROPE_CONTEXT_MAX (1u << 30)

enum rope_scaling { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct rope_keys {
    enum rope_scaling scaling;
    uint32_t n_dims, context;
    float base, factor;
    float attn_factor, beta_fast, beta_slow, ext_factor; /* yarn */
    float low, high;                                     /* llama3 */
};

static int rope_type(struct plan_builder *b, struct rope_keys *k)
{
    static const char *const names[] = {"none", "linear", "llama3", "yarn"};
    char key[64];
    struct gguf_string type;
    k->scaling = ROPE_LINEAR;
    snprintf(key, sizeof key, "%s.rope.scaling.type", b->architecture);
    if (!gguf_has(b->g, key, NULL))
        return 0;
    if (!gguf_get_string(b->g, key, &type))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is not a text", key);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (type.bytes == strlen(names[i]) && memcmp(type.data, names[i], type.bytes) == 0) {
            k->scaling = (enum rope_scaling)i;
            return 0;
        }
    int shown = type.bytes < 40 ? (int)type.bytes : 40;
    return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                     "key '%s' is '%.*s'; none, linear, llama3 and yarn are known", key, shown,
                     type.data);
}

static int rope_yarn_keys(struct plan_builder *b, struct rope_keys *k)
{
    float log_multiplier = 0;
    int r = plan_key_f32(b, "rope.scaling.yarn_ext_factor", -1, 1, &k->ext_factor);
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.yarn_beta_fast", 1e-3f, 1e6f, &k->beta_fast);
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.yarn_beta_slow", 1e-3f, 1e6f, &k->beta_slow);
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.yarn_log_multiplier", -1e4f, 1e4f, &log_multiplier);
    if (r == 0 && log_multiplier != 0)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "key '%s.rope.scaling.yarn_log_multiplier' is %g, which is not known for "
                         "this architecture",
                         b->architecture, (double)log_multiplier);
    if (r == 0 && k->base <= 1)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key '%s.rope.freq_base' is %g; yarn needs more than 1", b->architecture,
                         (double)k->base);
    return r;
}

static int rope_llama3_keys(struct plan_builder *b, struct rope_keys *k)
{
    int r = plan_key_f32(b, "rope.scaling.low_freq_factor", 1e-3f, 1e6f, &k->low);
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.high_freq_factor", 1e-3f, 1e6f, &k->high);
    if (r == 0 && k->low >= k->high)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key '%s.rope.scaling.low_freq_factor' is %g, not below the "
                         "high_freq_factor %g",
                         b->architecture, (double)k->low, (double)k->high);
    return r;
}

static int rope_keys_read(struct plan_builder *b, struct rope_keys *k)
{
    float linear = 0;
    *k = (struct rope_keys){.n_dims = b->shape.head_dim,
                            .base = 10000.0f,
                            .attn_factor = 1,
                            .beta_fast = 32,
                            .beta_slow = 1,
                            .ext_factor = 1,
                            .low = 1,
                            .high = 4};
    int r = rope_type(b, k);
    if (r == 0)
        r = plan_key_u32(b, "rope.dimension_count", 2, b->shape.head_dim, &k->n_dims);
    if (r == 0 && k->n_dims % 2 != 0)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key '%s.rope.dimension_count' is %u, which is odd", b->architecture,
                         k->n_dims);
    if (r == 0)
        r = plan_key_f32(b, "rope.freq_base", 1e-3f, ROPE_BASE_MAX, &k->base);
    if (r == 0)
        r = plan_key_f32(b, "rope.scale_linear", 0, ROPE_FACTOR_MAX, &linear);
    k->factor = linear;
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.factor", 0, ROPE_FACTOR_MAX, &k->factor);
    if (k->factor == 0) /* as files write that there is none */
        k->factor = 1;
    k->context = b->shape.n_context;
    if (r == 0)
        r = plan_key_u32(b, "rope.scaling.original_context_length", 1, ROPE_CONTEXT_MAX,
                         &k->context);
    if (r == 0)
        r = plan_key_f32(b, "rope.scaling.yarn_attn_factor", 1e-4f, 1e4f, &k->attn_factor);
    if (r == 0) /* both names are in use */
        r = plan_key_f32(b, "rope.scaling.attn_factor", 1e-4f, 1e4f, &k->attn_factor);
    if (r == 0 && k->scaling == ROPE_YARN)
        r = rope_yarn_keys(b, k);
    if (r == 0 && k->scaling == ROPE_LLAMA3)
        r = rope_llama3_keys(b, k);
    return r;
}

/* rope_freqs.weight, when the file has one, into factors. */
static int rope_factors(struct plan_builder *b, uint32_t n, float *factors)
{
    const struct gguf_tensor *t = gguf_find_tensor(b->g, "rope_freqs.weight");
    for (uint32_t i = 0; i < n; i++)
        factors[i] = 1;
    if (t == NULL)
        return 0;
    if (t->tensor.type != INFER_TYPE_F32 || t->tensor.ne[0] != n || t->tensor.n_rows != 1)
        return plan_fail(
            b, INFER_E_MODEL_FORMAT,
            "tensor 'rope_freqs.weight' is %s with %llu x %llu values; F32 with 1 x %u "
            "is expected",
            type_info(t->tensor.type)->name, (unsigned long long)t->tensor.n_rows,
            (unsigned long long)t->tensor.ne[0], n);
    size_t done = 0, bytes = n * sizeof *factors;
    while (done < bytes) {
        ssize_t got = pread(gguf_part_fd(b->g, t->part), (char *)factors + done, bytes - done,
                            (off_t)(t->offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return plan_fail(b, INFER_E_MODEL_UNREADABLE,
                             "tensor 'rope_freqs.weight' cannot be read: %s",
                             got < 0 ? strerror(errno) : "the file became shorter");
        done += (size_t)got;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!(factors[i] >= 1e-6f && factors[i] <= 1e9f))
            return plan_fail(b, INFER_E_MODEL_FORMAT,
                             "tensor 'rope_freqs.weight' holds %g at place %u, which is no factor",
                             (double)factors[i], i);
    return 0;
}

/* f of the equation at the top for llama3. */
static double rope_llama3(const struct rope_keys *k, double f)
{
    double turns = (double)k->context * f / (2 * ROPE_PI);
    double mix = (turns - (double)k->low) / ((double)k->high - (double)k->low);
    mix = mix < 0 ? 0 : mix > 1 ? 1 : mix;
    return f / (double)k->factor * (1 - mix) + f * mix;
}

/* The pair, as a real number of dimensions, that turns `turns` times over the original context. */
static double rope_yarn_dim(const struct rope_keys *k, float turns)
{
    return k->n_dims * log(k->context / ((double)turns * 2 * ROPE_PI)) / (2 * log((double)k->base));
}

static double rope_yarn(const struct rope_keys *k, double f, uint32_t i)
{
    double low = floor(rope_yarn_dim(k, k->beta_fast));
    double high = ceil(rope_yarn_dim(k, k->beta_slow));
    if (low < 0)
        low = 0;
    if (high > k->n_dims - 1)
        high = k->n_dims - 1;
    double width = high - low > 0.001 ? high - low : 0.001;
    double y = (i - low) / width;
    double ramp = 1 - (y < 0 ? 0 : y > 1 ? 1 : y);
    double mix = ramp * (double)(k->ext_factor < 0 ? 1 : k->ext_factor);
    return f / (double)k->factor * (1 - mix) + f * mix;
}

int plan_rope(struct plan_builder *b, uint32_t style)
{
    struct rope_keys k;
    int r = rope_keys_read(b, &k);
    if (r < 0)
        return r;
    uint32_t n = k.n_dims / 2;
    float *inv_freq = calloc(n, sizeof *inv_freq);
    if (inv_freq == NULL)
        return plan_fail(b, INFER_E_OUT_OF_MEMORY, "no memory for its plan");
    b->plan->inv_freq = inv_freq; /* plan_free() frees it on failure, too */
    r = rope_factors(b, n, inv_freq);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        double f = pow((double)k.base, -2.0 * i / k.n_dims) / (double)inv_freq[i];
        if (k.scaling == ROPE_LINEAR)
            f /= (double)k.factor;
        else if (k.scaling == ROPE_LLAMA3)
            f = rope_llama3(&k, f);
        else if (k.scaling == ROPE_YARN)
            f = rope_yarn(&k, f, i);
        inv_freq[i] = (float)f;
    }
    double magnitude = (double)k.attn_factor;
    if (k.scaling == ROPE_YARN && k.ext_factor != 0 && k.factor > 1)
        magnitude *= 1 + 0.1 * log((double)k.factor);
    b->plan->backend.rope = (struct infer_rope){
        .style = style, .n_dims = k.n_dims, .inv_freq = inv_freq, .magnitude = (float)magnitude};
    return 0;
}
