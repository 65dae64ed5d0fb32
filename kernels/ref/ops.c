/* ops.c: the operations of a plan except attention, over all rows of a batch.
 *
 * Everything between operations is float32. A result of a row depends on that row alone: products
 * are sums in a fixed order, whatever the number of rows.
 *
 * Owns nothing; works in the model's scratch. Threads: the caller of run(). */
#include "ref/ops.h"

#include "ref/cache.h"
#include "ref/quant.h"
#include "ref/rope.h"

#include <math.h>
#include <string.h>

/* Values that are summed in float before they are added to a double. */
#define DOT_CHUNK 128u
#define DOT_LANES 16u

/* Each chunk is summed in DOT_LANES float lanes, of 8 terms each, so that its rounding error is
 * that of a few additions; the chunks are summed in double. */
float ref_dot(const float *a, const float *b, uint64_t n)
{
    double sum = 0;
    uint64_t i = 0;
    for (; i + DOT_CHUNK <= n; i += DOT_CHUNK) {
        float lane[DOT_LANES] = {0};
        for (uint32_t j = 0; j < DOT_CHUNK; j += DOT_LANES) {
            for (uint32_t l = 0; l < DOT_LANES; l++)
                lane[l] += a[i + j + l] * b[i + j + l];
        }
        for (uint32_t half = DOT_LANES / 2; half > 0; half /= 2) {
            for (uint32_t l = 0; l < half; l++)
                lane[l] += lane[l + half];
        }
        sum += (double)lane[0];
    }
    for (; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static const float *vector_of(const struct infer_backend_model *model, uint32_t tensor)
{
    return (const float *)model->weights[tensor].rows;
}

void ref_multiply(struct infer_backend_model *model, const struct ref_product *p)
{
    const struct infer_tensor *info = model->weights[p->w].info;
    const uint8_t *rows = model->weights[p->w].rows;
    const float *bias = p->bias != INFER_TENSOR_NONE ? vector_of(model, p->bias) : NULL;
    float *row = model->scratch.weight_row;
    uint64_t n_in = info->ne[0], n_out = info->n_rows;

    for (uint64_t r = 0; r < n_out; r++) {
        ref_decode_row(info->type, rows + r * info->row_bytes, row, n_in);
        for (uint32_t b = 0; b < p->n_rows; b++) {
            float value = ref_dot(row, p->in + b * n_in, n_in);
            if (bias != NULL)
                value += bias[r];
            value *= p->scale;
            float *out = p->out + b * n_out + r;
            *out = p->add ? *out + value : value;
        }
    }
}

void ref_rms_norm(const float *x, const float *weight, float *y, uint32_t n, float eps)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    float scale = (float)(1.0 / sqrt(squares / n + (double)eps));
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

/* h = rms(x) * norm, for all rows. */
static void norm_rows(struct infer_backend_model *model, uint32_t norm, uint32_t n_rows)
{
    uint32_t n = model->plan->shape.n_embd;
    for (uint32_t b = 0; b < n_rows; b++)
        ref_rms_norm(model->scratch.x + (size_t)b * n, vector_of(model, norm),
                     model->scratch.h + (size_t)b * n, n, model->plan->shape.norm_eps);
}

/* ---- embed ----------------------------------------------------------------------------------- */

void ref_op_embed(struct infer_backend_model *model, const struct infer_op *op,
                  const struct infer_batch *batch)
{
    const struct ref_weights *table = &model->weights[op->as.embed.table];
    uint64_t n = model->plan->shape.n_embd;
    for (uint32_t b = 0; b < batch->n_rows; b++) {
        float *x = model->scratch.x + b * n;
        ref_decode_row(table->info->type,
                       table->rows + (uint64_t)batch->tokens[b] * table->info->row_bytes, x, n);
        for (uint64_t i = 0; i < n; i++)
            x[i] *= op->as.embed.scale;
    }
}

/* ---- queries, keys, values ------------------------------------------------------------------- */

/* Angles are the float32 products of position and frequency, as the models were trained with. */
void ref_rope_table(struct infer_backend_model *model, const struct infer_batch *batch)
{
    const struct infer_rope *rope = &model->plan->rope;
    uint32_t n_pairs = rope->n_dims / 2;
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        const struct infer_batch_seq *seq = &batch->seqs[s];
        for (uint32_t i = 0; i < seq->n_rows; i++) {
            size_t first = (size_t)(seq->first_row + i) * n_pairs;
            for (uint32_t p = 0; p < n_pairs; p++) {
                float angle = (float)(seq->position + i) * rope->inv_freq[p];
                model->scratch.cosine[first + p] = cosf(angle) * rope->magnitude;
                model->scratch.sine[first + p] = sinf(angle) * rope->magnitude;
            }
        }
    }
}

/* Head norm, if the model has one, then rope, over all heads of all rows. */
static void finish_heads(struct infer_backend_model *model, float *values, uint32_t n_heads,
                         uint32_t norm, uint32_t n_rows)
{
    const struct infer_shape *shape = &model->plan->shape;
    const struct infer_rope *rope = &model->plan->rope;
    for (uint32_t b = 0; b < n_rows; b++) {
        const float *cosine = model->scratch.cosine + (size_t)b * (rope->n_dims / 2);
        const float *sine = model->scratch.sine + (size_t)b * (rope->n_dims / 2);
        for (uint32_t n = 0; n < n_heads; n++) {
            float *head = values + ((size_t)b * n_heads + n) * shape->head_dim;
            if (norm != INFER_TENSOR_NONE)
                ref_rms_norm(head, vector_of(model, norm), head, shape->head_dim, shape->norm_eps);
            ref_rope_turn(rope, cosine, sine, head);
        }
    }
}

/* Every head of a few types of cache is turned before it is rounded; see cache.c. */
static void rotate_heads(float *values, uint64_t n_heads, uint32_t dim)
{
    for (uint64_t n = 0; n < n_heads; n++)
        ref_cache_rotate(values + n * dim, dim);
}

static void cache_rows(struct infer_backend_model *model, uint32_t layer,
                       const struct infer_batch *batch)
{
    const struct infer_shape *shape = &model->plan->shape;
    const struct infer_state_config *state = &model->state;
    uint64_t n_k = (uint64_t)shape->n_kv_heads * shape->head_dim;
    uint64_t n_v = (uint64_t)shape->n_kv_heads * shape->head_dim_v;
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        const struct infer_batch_seq *seq = &batch->seqs[s];
        for (uint32_t i = 0; i < seq->n_rows; i++) {
            uint64_t row = seq->first_row + i;
            ref_cache_encode(state->k_type, REF_KEY, model->scratch.k + row * n_k,
                             ref_cached_key(model, layer, seq, seq->position + i), n_k);
            ref_cache_encode(state->v_type, REF_VALUE, model->scratch.v + row * n_v,
                             ref_cached_value(model, layer, seq, seq->position + i), n_v);
        }
    }
}

void ref_op_qkv(struct infer_backend_model *model, const struct infer_op *op,
                const struct infer_batch *batch)
{
    const struct infer_shape *shape = &model->plan->shape;
    struct ref_scratch *s = &model->scratch;
    struct ref_product product = {.in = s->h, .n_rows = batch->n_rows, .scale = 1.0f};

    norm_rows(model, op->norm, batch->n_rows);
    product.w = op->as.qkv.wq, product.bias = op->as.qkv.bq, product.out = s->q;
    ref_multiply(model, &product);
    product.w = op->as.qkv.wk, product.bias = op->as.qkv.bk, product.out = s->k;
    ref_multiply(model, &product);
    product.w = op->as.qkv.wv, product.bias = op->as.qkv.bv, product.out = s->v;
    ref_multiply(model, &product);
    finish_heads(model, s->q, shape->n_heads, op->as.qkv.q_norm, batch->n_rows);
    finish_heads(model, s->k, shape->n_kv_heads, op->as.qkv.k_norm, batch->n_rows);
    if (ref_cache_rotates(model->state.k_type)) {
        rotate_heads(s->q, (uint64_t)batch->n_rows * shape->n_heads, shape->head_dim);
        rotate_heads(s->k, (uint64_t)batch->n_rows * shape->n_kv_heads, shape->head_dim);
    }
    if (ref_cache_rotates(model->state.v_type))
        rotate_heads(s->v, (uint64_t)batch->n_rows * shape->n_kv_heads, shape->head_dim_v);
    cache_rows(model, op->layer, batch);
}

/* ---- the rest -------------------------------------------------------------------------------- */

void ref_op_project(struct infer_backend_model *model, const struct infer_op *op,
                    const struct infer_batch *batch)
{
    const struct ref_scratch *s = &model->scratch;
    struct ref_product product = {
        .w = op->as.project.w,
        .bias = op->as.project.b,
        .in = op->as.project.from == INFER_VALUE_O ? s->o : s->t,
        .out = s->x,
        .n_rows = batch->n_rows,
        .add = true,
        .scale = 1.0f,
    };
    ref_multiply(model, &product);
}

static float activate(uint32_t activation, float x)
{
    if (activation == INFER_ACT_SILU)
        return x / (1.0f + expf(-x));
    const float root_2_over_pi = 0.79788456080286535588f;
    return 0.5f * x * (1.0f + tanhf(root_2_over_pi * (x + 0.044715f * x * x * x)));
}

void ref_op_ffn_gated(struct infer_backend_model *model, const struct infer_op *op,
                      const struct infer_batch *batch)
{
    const struct ref_scratch *s = &model->scratch;
    size_t n = (size_t)batch->n_rows * model->plan->shape.n_ffn;
    struct ref_product product = {
        .bias = INFER_TENSOR_NONE, .in = s->h, .n_rows = batch->n_rows, .scale = 1.0f};

    norm_rows(model, op->norm, batch->n_rows);
    product.w = op->as.ffn.gate, product.out = s->t;
    ref_multiply(model, &product);
    product.w = op->as.ffn.up, product.out = s->u;
    ref_multiply(model, &product);
    for (size_t i = 0; i < n; i++)
        s->t[i] = activate(op->as.ffn.activation, s->t[i]) * s->u[i];
}

/* The first of the outputs from `first` on that needs another row of logits than REF_HEAD_ROWS
 * distinct rows; the normalized rows stand in h, side by side, in this order. */
static uint32_t head_gather(struct infer_backend_model *model, const struct infer_op *op,
                            const struct infer_batch *batch, uint32_t first, uint32_t *ret_rows)
{
    const struct infer_shape *shape = &model->plan->shape;
    uint32_t n_rows = 0, i;
    for (i = first; i < batch->n_outputs; i++) {
        uint32_t row = batch->outputs[i].row;
        if (i > first && row == batch->outputs[i - 1].row)
            continue;
        if (n_rows == REF_HEAD_ROWS)
            break;
        ref_rms_norm(model->scratch.x + (size_t)row * shape->n_embd, vector_of(model, op->norm),
                     model->scratch.h + (size_t)n_rows * shape->n_embd, shape->n_embd,
                     shape->norm_eps);
        n_rows++;
    }
    *ret_rows = n_rows;
    return i;
}

void ref_op_head(struct infer_backend_model *model, const struct infer_op *op,
                 struct infer_batch *batch)
{
    struct ref_scratch *s = &model->scratch;
    uint64_t n_vocab = model->plan->shape.n_vocab;
    for (uint32_t first = 0; first < batch->n_outputs;) {
        uint32_t n_rows;
        uint32_t end = head_gather(model, op, batch, first, &n_rows);
        struct ref_product product = {
            .w = op->as.head.w,
            .bias = INFER_TENSOR_NONE,
            .in = s->h,
            .out = s->logits,
            .n_rows = n_rows,
            .scale = op->as.head.scale,
        };
        ref_multiply(model, &product);
        float *logits = s->logits;
        for (uint32_t i = first; i < end; i++) {
            if (i > first && batch->outputs[i].row != batch->outputs[i - 1].row)
                logits += n_vocab;
            ref_sample(&model->sampler, logits, &batch->outputs[i]);
        }
        first = end;
    }
}
