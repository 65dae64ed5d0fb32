/* attention.c: softmax attention over the cached rows, the plainest way.
 *
 *   score[j] = scale * q . k[j]           for all rows j that the query may see
 *   p[j]     = exp(score[j] - max) / sum
 *   o        = sum over j of p[j] * v[j]
 *
 * A query at position t sees rows j <= t, with a window of w only those with j > t - w. Query head
 * n reads key and value head n / group, group = n_heads / n_kv_heads; the heads of a group share
 * the decoding of a cached row. Keys of this batch were written before, and are read back from the
 * cache like all others: a chunked prompt gives the same bits as a whole one.
 *
 * Where the cache is of a type whose heads are rotated (cache.h), queries come rotated like the
 * keys, and the sums of rotated values are turned back here.
 *
 * Scores are float32, the sums over rows are double. Owns nothing; works in the model's scratch. */
#include "ref/ops.h"

#include "ref/cache.h"

#include <math.h>

static uint8_t *cached_layer(const struct infer_backend_model *model, uint32_t layer,
                             const struct infer_batch_seq *seq, uint32_t position)
{
    uint32_t page = seq->pages[position / model->state.page_tokens];
    return model->pages + page * model->sizes.page + layer * model->sizes.layer;
}

uint8_t *ref_cached_key(const struct infer_backend_model *model, uint32_t layer,
                        const struct infer_batch_seq *seq, uint32_t position)
{
    return cached_layer(model, layer, seq, position) +
           position % model->state.page_tokens * model->sizes.k_row;
}

uint8_t *ref_cached_value(const struct infer_backend_model *model, uint32_t layer,
                          const struct infer_batch_seq *seq, uint32_t position)
{
    return cached_layer(model, layer, seq, position) +
           model->state.page_tokens * model->sizes.k_row +
           position % model->state.page_tokens * model->sizes.v_row;
}

/* Turns n scores into probabilities. */
static void softmax(float *scores, uint32_t n)
{
    float max = scores[0];
    double sum = 0;
    for (uint32_t j = 1; j < n; j++)
        max = fmaxf(max, scores[j]);
    for (uint32_t j = 0; j < n; j++) {
        scores[j] = expf(scores[j] - max);
        sum += (double)scores[j];
    }
    for (uint32_t j = 0; j < n; j++)
        scores[j] = (float)((double)scores[j] / sum);
}

/* One row's queries of the group that shares key and value head `kv`. */
struct query {
    const struct infer_batch_seq *seq;
    uint32_t position;
    uint32_t first; /* the first cached row it sees */
    uint32_t kv;
    const float *q; /* [group][head_dim] */
    float *o;       /* [group][head_dim_v] */
};

static void attend_scores(struct infer_backend_model *model, const struct infer_op *op,
                          const struct query *query)
{
    const struct infer_shape *shape = &model->plan->shape;
    uint32_t group = shape->n_heads / shape->n_kv_heads, dim = shape->head_dim;
    uint64_t offset = ref_cache_bytes(model->state.k_type, REF_KEY, (uint64_t)query->kv * dim);
    float *key = model->scratch.cached_row;

    for (uint32_t j = query->first; j <= query->position; j++) {
        const uint8_t *row = ref_cached_key(model, op->layer, query->seq, j);
        ref_cache_decode(model->state.k_type, REF_KEY, row + offset, key, dim);
        for (uint32_t g = 0; g < group; g++)
            model->scratch.scores[g * model->scratch.n_scores + (j - query->first)] =
                op->as.attend.scale * ref_dot(query->q + (size_t)g * dim, key, dim);
    }
}

static void attend_values(struct infer_backend_model *model, const struct infer_op *op,
                          const struct query *query)
{
    const struct infer_shape *shape = &model->plan->shape;
    uint32_t group = shape->n_heads / shape->n_kv_heads, dim = shape->head_dim_v;
    uint64_t offset = ref_cache_bytes(model->state.v_type, REF_VALUE, (uint64_t)query->kv * dim);
    float *value = model->scratch.cached_row;
    double *sums = model->scratch.sums;

    for (uint32_t i = 0; i < group * dim; i++)
        sums[i] = 0;
    for (uint32_t j = query->first; j <= query->position; j++) {
        const uint8_t *row = ref_cached_value(model, op->layer, query->seq, j);
        ref_cache_decode(model->state.v_type, REF_VALUE, row + offset, value, dim);
        for (uint32_t g = 0; g < group; g++) {
            double p = model->scratch.scores[g * model->scratch.n_scores + (j - query->first)];
            for (uint32_t d = 0; d < dim; d++)
                sums[g * dim + d] += p * (double)value[d];
        }
    }
    for (uint32_t i = 0; i < group * dim; i++)
        query->o[i] = (float)sums[i];
    for (uint32_t g = 0; g < group && ref_cache_rotates(model->state.v_type); g++)
        ref_cache_rotate(query->o + (size_t)g * dim, dim);
}

static void attend_row(struct infer_backend_model *model, const struct infer_op *op,
                       const struct infer_batch_seq *seq, uint32_t i)
{
    const struct infer_shape *shape = &model->plan->shape;
    size_t row = seq->first_row + i;
    uint32_t group = shape->n_heads / shape->n_kv_heads;
    uint32_t position = seq->position + i, window = op->as.attend.window;

    for (uint32_t kv = 0; kv < shape->n_kv_heads; kv++) {
        size_t head = row * shape->n_heads + (size_t)kv * group;
        struct query query = {
            .seq = seq,
            .position = position,
            .first = window > 0 && position >= window ? position - window + 1 : 0,
            .kv = kv,
            .q = model->scratch.q + head * shape->head_dim,
            .o = model->scratch.o + head * shape->head_dim_v,
        };
        attend_scores(model, op, &query);
        for (uint32_t g = 0; g < group; g++)
            softmax(model->scratch.scores + g * model->scratch.n_scores,
                    position - query.first + 1);
        attend_values(model, op, &query);
    }
}

void ref_op_attend(struct infer_backend_model *model, const struct infer_op *op,
                   const struct infer_batch *batch)
{
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        for (uint32_t i = 0; i < batch->seqs[s].n_rows; i++)
            attend_row(model, op, &batch->seqs[s], i);
    }
}
