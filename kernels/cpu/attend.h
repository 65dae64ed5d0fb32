/* attend.h: attention of a tile of rows over the cached rows of their sequence; a template.
 *
 *   out_m = sum over j of p_mj v_j / sum over j of p_mj,   p_mj = exp(q_m . k_j - max_j q_m . k_j)
 *
 * A tile is M = 1 .. 8 (query, head) pairs of one sequence that share a kv head, so that each key
 * and value is widened to float once for all of them. A page has, for one layer and kv head, the
 * keys transposed, [head_dim][16 rows] half numbers, then the values, [16 rows][dim_v]: sixteen
 * rows' scores come out of one vector, and the values are added row by row.
 *
 * The maximum and the sum run online over chunks of 128 cached rows whose borders are fixed
 * positions. Rows that a pair does not see have the score -inf and the weight 0, which adds
 * nothing; so a pair's bits depend on its own position alone and not on the tile it is in.
 *
 * Work: head_dim + dim_v multiply-adds per pair and cached row; bytes: 4 per cached number and
 * tile, from the second-level cache while a sequence's head fits there. Bound by the multiply ports
 * at M = 8 and by the stream of pages at M = 1. On two cores of a Zen 4 EPYC: 15% of a 512-row
 * prefill of a 46M-parameter model (190 G operations/s, 80% of the ports); a third of a decoding
 * step at 1,300 cached rows, where it moves 15 MB at about two thirds of the weights' rate. A
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
    const size_t values = (size_t)2 * CPU_PAGE_TOKENS * a->head_dim;
    vf acc[CPU_TILE * 4];
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < C; i++)
            acc[m * C + i] = vf_mul(vf_load(a->out + (size_t)a->dim_v * m + c + i * SIMD_LANES),
                                    vf_set(shrink[m]));
    for (uint32_t row = begin; row < end;) {
        uint32_t slot = row % CPU_PAGE_TOKENS;
        uint32_t n = CPU_PAGE_TOKENS - slot < end - row ? CPU_PAGE_TOKENS - slot : end - row;
        const uint8_t *v = a->pages_base + a->page_bytes * a->pages[row / CPU_PAGE_TOKENS] +
                           values + 2 * ((size_t)a->dim_v * slot + c);
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

/* A page's share of one layer and head is a few KiB between jumps, too short for the processor to
 * follow: so the keys of the page after next and the values of this one are asked for here. */
static void fetch_pages(const struct cpu_attend *a, uint32_t page, uint32_t last)
{
    const size_t keys = (size_t)2 * CPU_PAGE_TOKENS * a->head_dim;
    const size_t values = (size_t)2 * CPU_PAGE_TOKENS * a->dim_v;
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
        for (; page <= last; page++) {
            if (a->streams)
                fetch_pages(a, page, (limit - 1) / CPU_PAGE_TOKENS);
            score_page(a, M, a->pages_base + a->page_bytes * a->pages[page], page * CPU_PAGE_TOKENS,
                       page * CPU_PAGE_TOKENS - base);
        }
        for (uint32_t m = 0; m < M; m++)
            shrink[m] = weigh(a->scores + (size_t)CPU_ATTEND_CHUNK * m + from, n, &max[m], &sum[m]);
        add_values(a, M, begin, end, base, shrink);
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
        .to_f16 = f16_row,
    };
    memcpy(ret->matmul, JOIN(cpu_matmul, SIMD), sizeof ret->matmul);
}
