/* attend.h: attention of a tile of rows over the cached rows of their sequence; a template.
 *
 *   out_m = sum over j of p_mj v_j / sum over j of p_mj,   p_mj = exp(q_m . k_j - max_j q_m . k_j)
 *
 * A tile is M = 1 .. 8 (query, head) pairs of one sequence that share a kv head, so that each key
 * and value is widened to float once for all of them. A page has, for one layer and kv head, the
 * keys transposed, [head_dim][16 rows] half numbers, then the values, [16 rows][dim_v]: sixteen
 * rows' scores come out of one vector, and the values are added row by row. Q8_0 and Q4_0 pages
 * (cache.c) have codes in their place: keys are multiplied with the query's codes in integers, and
 * a value's scale goes into its row's weight, so that no number is decoded on its own.
 *
 * The maximum and the sum run online over chunks of 128 cached rows whose borders are fixed
 * positions. Rows that a pair does not see have the score -inf and the weight 0, which adds
 * nothing; so a pair's bits depend on its own position alone and not on the tile it is in.
 *
 * Work: head_dim + dim_v multiply-adds per pair and cached row; bytes: 4 per cached number and
 * tile, from the second-level cache while a sequence's head fits there. Bound by the multiply ports
 * at M = 8 and by the stream of pages at M = 1. On two cores of a Zen 4 EPYC: 15% of a 512-row
 * prefill of a 46M-parameter model (190 G operations/s, 80% of the ports); a third of a decoding
 * step at 1,300 cached rows, where it moves 15 MB at about two thirds of the weights' rate. At
 * 1,500 rows a step of that model takes 1.45 ms with F16, 1.2 with Q8_0 and 1.1 with Q4_0. A
 * sequence's rows are not split between workers: one long sequence keeps n_kv_heads of them busy.
 */

/* Scores of the 16 rows of one page for every pair, into scores[m][at ..]. */
SIMD_INLINE void score_page(const struct cpu_attend *a, uint32_t M, const uint8_t *keys,
                            uint32_t row, uint32_t at)
{
    for (uint32_t lane = 0; lane < CPU_PAGE_TOKENS; lane += SIMD_LANES) {
        vf even[CPU_TILE], odd[CPU_TILE];
        const uint8_t *k = keys + 2 * lane;
        const float *q = a->q;
        for (uint32_t m = 0; m < M; m++)
            even[m] = odd[m] = vf_zero();
        for (uint32_t d = 0; d + 2 <= a->head_dim; d += 2, k += 4 * CPU_PAGE_TOKENS, q += 2 * M) {
            vf first = vf_load_f16(k), second = vf_load_f16(k + 2 * CPU_PAGE_TOKENS);
            for (uint32_t m = 0; m < M; m++) {
                even[m] = vf_fma(first, vf_set(q[m]), even[m]);
                odd[m] = vf_fma(second, vf_set(q[M + m]), odd[m]);
            }
        }
        if (a->head_dim % 2) {
            vf first = vf_load_f16(k);
            for (uint32_t m = 0; m < M; m++)
                even[m] = vf_fma(first, vf_set(q[m]), even[m]);
        }
        for (uint32_t m = 0; m < M; m++) {
            vf s = vf_add(even[m], odd[m]);
            s = vf_within(s, row + lane, a->first[m], a->limit[m], -INFINITY);
            vf_store(a->scores + (size_t)CPU_ATTEND_CHUNK * m + at + lane, s);
        }
    }
}

/* A block's integer sums to its share of the scores. */
SIMD_INLINE void add_block(uint32_t M, const vi *high, const vi *low, vf scale, vf offset,
                           const struct cpu_query_block *numbers, vf *score)
{
    for (uint32_t m = 0; m < M; m++) {
        vf sum = vf_fma(vf_from_i32(high[m]), vf_set(128.0f), vf_from_i32(low[m]));
        vf all = vf_set((float)(128 * numbers[m].high + numbers[m].low));
        sum = vf_sub(sum, vf_mul(offset, all));
        score[m] = vf_fma(sum, vf_mul(scale, vf_set(numbers[m].scale)), score[m]);
    }
}

/* Keys of 8 bits: four numbers of 16 keys times four of a query at a time, in integers. */
SIMD_INLINE void score_q8_0(const struct cpu_attend *a, uint32_t M, const uint8_t *k,
                            const uint8_t *scales, vf *score)
{
    const uint8_t *q = (const uint8_t *)a->q;
    const struct cpu_query_block *numbers = (const void *)(q + (size_t)2 * a->head_dim * M);
    const vf offset = vf_set(SIMD_OFFSETS ? 128.0f : 0.0f);
    for (uint32_t b = 0; b < a->head_dim / CPU_BLOCK; b++) {
        vi high[CPU_TILE], low[CPU_TILE];
        for (uint32_t m = 0; m < M; m++)
            high[m] = low[m] = v_zero();
        for (uint32_t g = 0; g < CPU_BLOCK / 4; g++, q += 8 * M, k += 4 * CPU_PAGE_TOKENS) {
            vi w = v_load(k);
            for (uint32_t m = 0; m < M; m++) {
                high[m] = v_dot8(high[m], w, v_spread(q + 8 * m));
                low[m] = v_dot8(low[m], w, v_spread(q + 8 * m + 4));
            }
        }
        add_block(M, high, low, vf_load_f16(scales), offset, numbers, score);
        scales += 2 * CPU_PAGE_TOKENS;
        numbers += M;
    }
}

/* Keys of 4 bits: the same, two fours from each byte, with an offset of its own per block. */
SIMD_INLINE void score_q4_0(const struct cpu_attend *a, uint32_t M, const uint8_t *k,
                            const uint8_t *words, vf *score)
{
    const uint8_t *q = (const uint8_t *)a->q;
    const struct cpu_query_block *numbers = (const void *)(q + (size_t)2 * a->head_dim * M);
    const vi mask = v_set8(15);
    for (uint32_t b = 0; b < a->head_dim / CPU_BLOCK; b++) {
        vi high[CPU_TILE], low[CPU_TILE];
        for (uint32_t m = 0; m < M; m++)
            high[m] = low[m] = v_zero();
        for (uint32_t g = 0; g < CPU_BLOCK / 8; g++, q += 16 * M, k += 4 * CPU_PAGE_TOKENS) {
            vi both = v_load(k), w = v_and(both, mask), next = v_and(v_srl16(both, 4), mask);
            for (uint32_t m = 0; m < M; m++) {
                high[m] = v_dot6(high[m], w, v_spread(q + 8 * m));
                low[m] = v_dot6(low[m], w, v_spread(q + 8 * m + 4));
                high[m] = v_dot6(high[m], next, v_spread(q + 8 * M + 8 * m));
                low[m] = v_dot6(low[m], next, v_spread(q + 8 * M + 8 * m + 4));
            }
        }
        vf offset = vf_fma(vf_load_bits3(words), vf_set(0.5f), vf_set(7.5f));
        add_block(M, high, low, vf_load_f16(words), offset, numbers, score);
        words += 2 * CPU_PAGE_TOKENS;
        numbers += M;
    }
}

/* As score_page, of keys in codes (cache.c). */
SIMD_INLINE void score_codes(const struct cpu_attend *a, uint32_t M, bool wide, const uint8_t *keys,
                             uint32_t row, uint32_t at)
{
    const uint8_t *scales = keys + (size_t)CPU_PAGE_TOKENS * a->head_dim / (wide ? 1 : 2);
    for (uint32_t lane = 0; lane < CPU_PAGE_TOKENS; lane += SIMD_LANES) {
        vf score[CPU_TILE];
        for (uint32_t m = 0; m < M; m++)
            score[m] = vf_zero();
        if (wide)
            score_q8_0(a, M, keys + 4 * lane, scales + 2 * lane, score);
        else
            score_q4_0(a, M, keys + 4 * lane, scales + 2 * lane, score);
        for (uint32_t m = 0; m < M; m++)
            vf_store(a->scores + (size_t)CPU_ATTEND_CHUNK * m + at + lane,
                     vf_within(score[m], row + lane, a->first[m], a->limit[m], -INFINITY));
    }
}

/* Scores of one pair to weights; the running maximum and sum. How much the past shrinks. */
SIMD_INLINE float weigh(float *scores, uint32_t n, float *max, float *sum)
{
    vf largest = vf_set(-INFINITY), total = vf_zero();
    for (uint32_t i = 0; i < n; i += SIMD_LANES)
        largest = vf_max(largest, vf_load(scores + i));
    float here = vf_largest(largest);
    float before = *max, now = here > before ? here : before;
    if (now == -INFINITY) { /* nothing seen so far */
        for (uint32_t i = 0; i < n; i += SIMD_LANES)
            vf_store(scores + i, vf_zero());
        return 1.0f;
    }
    vf top = vf_set(now);
    for (uint32_t i = 0; i < n; i += SIMD_LANES) {
        vf p = vf_exp(vf_sub(vf_load(scores + i), top));
        vf_store(scores + i, p);
        total = vf_add(total, p);
    }
    float shrink[SIMD_LANES];
    vf_store(shrink, vf_exp(vf_set(before - now)));
    *max = now;
    *sum = *sum * shrink[0] + vf_sum(total);
    return shrink[0];
}

/* Columns c .. c + C * SIMD_LANES - 1 of out = out * shrink + weights times the values of rows
 * begin .. end - 1. */
SIMD_INLINE void add_columns(const struct cpu_attend *a, uint32_t M, uint32_t C, uint32_t c,
                             uint32_t begin, uint32_t end, uint32_t base,
                             const float shrink[CPU_TILE])
{
    vf acc[CPU_TILE * 4];
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < C; i++)
            acc[m * C + i] = vf_mul(vf_load(a->out + (size_t)a->dim_v * m + c + i * SIMD_LANES),
                                    vf_set(shrink[m]));
    for (uint32_t row = begin; row < end;) {
        uint32_t slot = row % CPU_PAGE_TOKENS;
        uint32_t n = CPU_PAGE_TOKENS - slot < end - row ? CPU_PAGE_TOKENS - slot : end - row;
        const uint8_t *v = a->pages_base + a->page_bytes * a->pages[row / CPU_PAGE_TOKENS] +
                           a->key_bytes + 2 * ((size_t)a->dim_v * slot + c);
        const float *weights = a->scores + (row - base);
        for (uint32_t r = 0; r < n; r++, v += 2 * (size_t)a->dim_v)
            for (uint32_t i = 0; i < C; i++) {
                vf value = vf_load_f16(v + 2 * SIMD_LANES * i);
                for (uint32_t m = 0; m < M; m++)
                    acc[m * C + i] =
                        vf_fma(value, vf_set(weights[CPU_ATTEND_CHUNK * m + r]), acc[m * C + i]);
            }
        row += n;
    }
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < C; i++)
            vf_store(a->out + (size_t)a->dim_v * m + c + i * SIMD_LANES, acc[m * C + i]);
}

/* Few pairs take several columns at a time, so that enough sums are under way to hide the latency
 * of one. */
SIMD_INLINE void add_values(const struct cpu_attend *a, uint32_t M, uint32_t begin, uint32_t end,
                            uint32_t base, const float shrink[CPU_TILE])
{
    const uint32_t C = M <= 2 ? 4 : M == 4 ? 2 : 1;
    uint32_t c = 0;
    for (; c + C * SIMD_LANES <= a->dim_v; c += C * SIMD_LANES)
        add_columns(a, M, C, c, begin, end, base, shrink);
    for (; C > 1 && c < a->dim_v; c += SIMD_LANES)
        add_columns(a, M, 1, c, begin, end, base, shrink);
}

/* Weights of the rows of pages page .. last times the scales of blocks b .. b + N - 1 of 32
 * columns: weights[block][m][row]. What all codes of a block are too high by comes to
 * ret_over[block][m]. */
SIMD_INLINE void scale_weights(const struct cpu_attend *a, uint32_t M, uint32_t N, bool wide,
                               uint32_t b, uint32_t page, uint32_t last, uint32_t base,
                               float *weights, float *ret_over)
{
    const size_t row_bytes = wide ? a->dim_v : a->dim_v / 2 + a->dim_v / 8;
    const uint8_t *scales = a->pages_base + a->key_bytes + CPU_PAGE_TOKENS * (row_bytes + 2 * b);
    vf over[2 * CPU_TILE];
    for (uint32_t t = 0; t < N * M; t++)
        over[t] = vf_zero();
    for (uint32_t p = page; p <= last; p++)
        for (uint32_t lane = 0; lane < CPU_PAGE_TOKENS; lane += SIMD_LANES)
            for (uint32_t n = 0; n < N; n++) {
                uint32_t at = p * CPU_PAGE_TOKENS - base + lane;
                const uint8_t *word =
                    scales + a->page_bytes * a->pages[p] + 2 * (CPU_PAGE_TOKENS * n + lane);
                vf scale = vf_load_f16(word), offset = vf_zero();
                if (!wide)
                    offset = vf_add(vf_load_bits3(word), vf_set(15.5f));
                for (uint32_t m = 0; m < M; m++) {
                    vf x = vf_mul(scale, vf_load(a->scores + CPU_ATTEND_CHUNK * m + at));
                    vf_store(weights + CPU_ATTEND_CHUNK * (n * M + m) + at, x);
                    if (!wide)
                        over[n * M + m] = vf_fma(x, offset, over[n * M + m]);
                }
            }
    for (uint32_t t = 0; t < N * M; t++)
        ret_over[t] = wide ? 0 : vf_sum(over[t]);
}

/* Blocks b .. b + N - 1 of 32 columns, of values in codes. Whole pages: rows that are not seen have
 * the weight 0, and what lies there is finite. */
SIMD_INLINE void add_blocks(const struct cpu_attend *a, uint32_t M, uint32_t N, bool wide,
                            uint32_t b, uint32_t page, uint32_t last, uint32_t base,
                            const float shrink[CPU_TILE])
{
    const size_t row_bytes = wide ? a->dim_v : a->dim_v / 2, step = wide ? 32 : 16;
    const size_t high_bytes = a->dim_v / 8;
    _Alignas(64) float weights[2 * CPU_TILE * CPU_ATTEND_CHUNK];
    float over[2 * CPU_TILE];

    scale_weights(a, M, N, wide, b, page, last, base, weights, over);
    for (uint32_t i = 0; i < CPU_BLOCK / 2; i += SIMD_LANES) {
        vf acc[4 * CPU_TILE]; /* [block][half][m] */
        float *out = a->out + (size_t)CPU_BLOCK * b + i;
        for (uint32_t t = 0; t < 2 * N; t++)
            for (uint32_t m = 0; m < M; m++)
                acc[t * M + m] =
                    vf_mul(vf_load(out + (size_t)a->dim_v * m + 16 * t), vf_set(shrink[m]));
        for (uint32_t p = page; p <= last; p++) {
            const uint8_t *values = a->pages_base + a->key_bytes + a->page_bytes * a->pages[p];
            const uint8_t *v = values + step * b + i;
            const uint8_t *high = values + CPU_PAGE_TOKENS * row_bytes + 4 * b;
            const float *weight = weights + (p * CPU_PAGE_TOKENS - base);
            for (uint32_t r = 0; r < CPU_PAGE_TOKENS; r++, v += row_bytes, high += high_bytes)
                for (uint32_t n = 0; n < N; n++) {
                    vf left, right;
                    if (wide)
                        left = vf_load_i8(v + 32 * n), right = vf_load_i8(v + 32 * n + 16);
                    else
                        vf_load_fives(v + 16 * n, high + 4 * n, i, &left, &right);
                    for (uint32_t m = 0; m < M; m++) {
                        vf x = vf_set(weight[CPU_ATTEND_CHUNK * (n * M + m) + r]);
                        vf *to = acc + 2 * n * M + m;
                        to[0] = vf_fma(left, x, to[0]);
                        to[M] = vf_fma(right, x, to[M]);
                    }
                }
        }
        for (uint32_t t = 0; t < 2 * N; t++)
            for (uint32_t m = 0; m < M; m++)
                vf_store(out + (size_t)a->dim_v * m + 16 * t,
                         vf_sub(acc[t * M + m], vf_set(over[t / 2 * M + m])));
    }
}

SIMD_INLINE void add_codes(const struct cpu_attend *a, uint32_t M, bool wide, uint32_t page,
                           uint32_t last, uint32_t base, const float shrink[CPU_TILE])
{
    const uint32_t N = M <= 2 ? 2 : 1, n_blocks = a->dim_v / CPU_BLOCK;
    uint32_t b = 0;
    for (; b + N <= n_blocks; b += N)
        add_blocks(a, M, N, wide, b, page, last, base, shrink);
    for (; N > 1 && b < n_blocks; b++)
        add_blocks(a, M, 1, wide, b, page, last, base, shrink);
}

/* A page's share of one layer and head is a few KiB between jumps, too short for the processor to
 * follow: so the keys of the page after next and the values of this one are asked for here. */
static void fetch_pages(const struct cpu_attend *a, uint32_t page, uint32_t last)
{
    const size_t keys = a->key_bytes, values = a->value_bytes;
    const uint8_t *here = a->pages_base + a->page_bytes * a->pages[page] + keys;
    for (size_t i = 0; i < values; i += 64)
        __builtin_prefetch(here + i, 0, 2);
    if (page + 2 <= last) {
        const uint8_t *next = a->pages_base + a->page_bytes * a->pages[page + 2];
        for (size_t i = 0; i < keys; i += 64)
            __builtin_prefetch(next + i, 0, 2);
    }
}

SIMD_INLINE void attend(struct cpu_attend *a, uint32_t M)
{
    float max[CPU_TILE], sum[CPU_TILE], shrink[CPU_TILE];
    uint32_t first = a->first[0], limit = a->limit[0];
    for (uint32_t m = 0; m < M; m++) {
        max[m] = -INFINITY;
        sum[m] = 0;
        first = a->first[m] < first ? a->first[m] : first;
        limit = a->limit[m] > limit ? a->limit[m] : limit;
    }
    memset(a->out, 0, sizeof(float) * a->dim_v * M);

    for (uint32_t base = first / CPU_ATTEND_CHUNK * CPU_ATTEND_CHUNK; base < limit;
         base += CPU_ATTEND_CHUNK) {
        uint32_t begin = first > base ? first : base;
        uint32_t end = limit - base < CPU_ATTEND_CHUNK ? limit : base + CPU_ATTEND_CHUNK;
        uint32_t page = begin / CPU_PAGE_TOKENS, last = (end - 1) / CPU_PAGE_TOKENS;
        uint32_t from = page * CPU_PAGE_TOKENS - base;
        uint32_t n = (last - page + 1) * CPU_PAGE_TOKENS;
        for (uint32_t p = page; p <= last; p++) {
            const uint8_t *keys = a->pages_base + a->page_bytes * a->pages[p];
            uint32_t row = p * CPU_PAGE_TOKENS;
            if (a->streams)
                fetch_pages(a, p, (limit - 1) / CPU_PAGE_TOKENS);
            if (a->k_type == INFER_TYPE_F16)
                score_page(a, M, keys, row, row - base);
            else if (a->k_type == INFER_TYPE_Q8_0)
                score_codes(a, M, true, keys, row, row - base);
            else
                score_codes(a, M, false, keys, row, row - base);
        }
        for (uint32_t m = 0; m < M; m++)
            shrink[m] = weigh(a->scores + (size_t)CPU_ATTEND_CHUNK * m + from, n, &max[m], &sum[m]);
        if (a->v_type == INFER_TYPE_F16)
            add_values(a, M, begin, end, base, shrink);
        else if (a->v_type == INFER_TYPE_Q8_0)
            add_codes(a, M, true, page, last, base, shrink);
        else
            add_codes(a, M, false, page, last, base, shrink);
    }
    for (uint32_t m = 0; m < M; m++) {
        vf inverse = vf_set(1.0f / sum[m]);
        for (uint32_t c = 0; c < a->dim_v; c += SIMD_LANES) {
            float *out = a->out + (size_t)a->dim_v * m + c;
            vf_store(out, vf_mul(vf_load(out), inverse));
        }
    }
}

static void attend_1(struct cpu_attend *a)
{
    attend(a, 1);
}
static void attend_2(struct cpu_attend *a)
{
    attend(a, 2);
}
static void attend_4(struct cpu_attend *a)
{
    attend(a, 4);
}
#if SIMD_TILE == 8
static void attend_8(struct cpu_attend *a)
{
    attend(a, 8);
}
#else
#define attend_8 NULL
#endif

void JOIN(cpu_isa, SIMD)(struct cpu_isa *ret)
{
    *ret = (struct cpu_isa){
        .tile = SIMD_TILE,
        .attend = {attend_1, attend_2, attend_4, attend_8},
        .norm = norm_row,
        .pack = pack_row,
        .gated = gated_row,
        .rope = rope_row,
        .turn_f16 = turn_halves,
        .to_f16 = f16_row,
    };
    memcpy(ret->matmul, JOIN(cpu_matmul, SIMD), sizeof ret->matmul);
}
