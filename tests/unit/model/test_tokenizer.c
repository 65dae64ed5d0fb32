/* test_tokenizer.c: exactness on the published cases, round trips, special tokens, streaming,
 * bounds of time. What a vocabulary is refused for is in test_vocabulary.c. */
#include "tokenizer_fixture.h"

#include "model/pretokenizer.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__)
#define SLOWER 20
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLOWER 20
#endif
#endif
#ifndef SLOWER
#define SLOWER 1
#endif

#define MIB (1u << 20)

/* ---- files ----------------------------------------------------------------------------------- */

static char *read_file(const char *path, size_t *ret_bytes)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return NULL;
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long n = ftell(f);
    rewind(f);
    char *data = malloc((size_t)n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)n, f), n);
    fclose(f);
    data[n] = '\0';
    *ret_bytes = (size_t)n;
    return data;
}

/* A fixture of the repository, or of the shared folder beside it; false: it is in neither. */
static bool fixture(const char *name, char *path, size_t size)
{
    const char *shared = getenv("INFERD_SHARED");
    snprintf(path, size, "tests/data/vocab/%s", name);
    if (access(path, R_OK) == 0)
        return true;
    snprintf(path, size, "%s/fixtures/vocab/%s", shared != NULL ? shared : "../shared", name);
    return access(path, R_OK) == 0;
}

static struct tokenizer *load_path(const char *path)
{
    struct gguf *g;
    struct report report = {0};
    struct tokenizer *t = NULL;
    if (gguf_open(path, &g, &report) < 0 || tokenizer_new(g, &t, &report) < 0)
        fail_msg("%s: %s", path, report.text);
    gguf_free(g);
    return t;
}

static struct tokenizer *load(const char *name)
{
    char file[128], path[512];
    snprintf(file, sizeof file, "ggml-vocab-%s.gguf", name);
    if (!fixture(file, path, sizeof path))
        skip();
    return load_path(path);
}

/* ---- the published cases --------------------------------------------------------------------- */

/* Numbers of the text up to `end`, whatever is between them. */
static void check_numbers(const struct token_list *l, const char *text, const char *end,
                          const char *what)
{
    size_t n = 0;
    while (text < end) {
        if (*text < '0' || *text > '9') {
            text++;
            continue;
        }
        char *next;
        long id = strtol(text, &next, 10);
        if (n >= l->n || l->ids[n] != id)
            fail_msg("%s: token %zu is %d, not %ld", what, n, n < l->n ? l->ids[n] : -1, id);
        n++;
        text = next;
    }
    if (n != l->n)
        fail_msg("%s: %zu tokens, not %zu", what, l->n, n);
}

static void check_cases(const struct tokenizer *t, const char *name)
{
    static const char border[] = "\n__ggml_vocab_test__\n";
    char file[128], path[512], what[160];
    size_t bytes, n_cases = 0;
    snprintf(file, sizeof file, "ggml-vocab-%s.gguf.inp", name);
    assert_true(fixture(file, path, sizeof path));
    char *in = read_file(path, &bytes);
    snprintf(file, sizeof file, "ggml-vocab-%s.gguf.out", name);
    assert_true(fixture(file, path, sizeof path));
    char *out = read_file(path, &bytes);
    const char *expected = out;
    for (char *p = in, *end; (end = strstr(p, border)) != NULL; p = end + sizeof border - 1) {
        const char *line = strchr(expected, '\n');
        assert_non_null(line);
        struct token_list l = encode(t, p, (size_t)(end - p), 0);
        snprintf(what, sizeof what, "%s, case %zu", name, ++n_cases);
        check_numbers(&l, expected, line, what);
        token_list_free(&l);
        expected = line + 1;
    }
    assert_int_equal(n_cases, 46);
    assert_int_equal(*expected, '\0');
    free(in);
    free(out);
}

/* mixed.txt as the reference read it: its tool turns the two characters \n into a line break, and
 * parses special tokens (the text has <unk> in it). */
static void check_mixed(const struct tokenizer *t, const char *name)
{
    char file[128], path[512];
    size_t bytes, n = 0, ids_bytes;
    assert_true(fixture("mixed.txt", path, sizeof path));
    char *text = read_file(path, &bytes);
    for (size_t i = 0; i < bytes; i++) {
        bool escape = text[i] == '\\' && i + 1 < bytes && text[i + 1] == 'n';
        text[n++] = escape ? '\n' : text[i];
        i += escape;
    }
    snprintf(file, sizeof file, "%s.ids", name);
    assert_true(fixture(file, path, sizeof path));
    char *ids = read_file(path, &ids_bytes);
    struct token_list l = encode(t, text, n, TOKENIZER_PARSE_SPECIAL);
    check_numbers(&l, ids, ids + ids_bytes, file);
    token_list_free(&l);
    free(ids);
    free(text);
}

static void check_vocabulary(const char *name)
{
    struct tokenizer *t = load(name);
    check_cases(t, name);
    check_mixed(t, name);
    tokenizer_free(t);
}

static void test_gpt_2(void **state)
{
    (void)state;
    check_vocabulary("gpt-2");
}

static void test_qwen2(void **state)
{
    (void)state;
    check_vocabulary("qwen2");
}

static void test_phi_3(void **state)
{
    (void)state;
    check_vocabulary("phi-3");
}

static void test_llama_bpe(void **state)
{
    (void)state;
    check_vocabulary("llama-bpe");
}

static void test_llama_spm(void **state)
{
    (void)state;
    check_vocabulary("llama-spm");
}

static void test_unix(void **state)
{
    (void)state;
    struct tokenizer *t = load_path("models/unix-46m-Q6_K.gguf");
    check_mixed(t, "unix");
    assert_string_equal(tokenizer_model_name(t), "gpt2 (qwen2)");
    assert_int_equal(tokenizer_n_tokens(t), 16384);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_false(tokenizer_add_bos(t));
    tokenizer_free(t);
}

/* ---- round trips ----------------------------------------------------------------------------- */

static uint32_t random_state = 1;

static uint32_t draw(uint32_t below)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)random_state * below) >> 32);
}

static size_t put_utf8(uint32_t c, char *to)
{
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6)
        to[i] = (char)(0x80 | (c & 0x3f));
    to[0] = (char)(lead[n] | c);
    return n;
}

static size_t random_unicode(char *to, size_t n_characters)
{
    static const uint32_t ends[] = {0x80, 0x300, 0x3000, 0xd800, 0x110000};
    size_t n = 0;
    for (size_t i = 0; i < n_characters; i++) {
        uint32_t c = draw(ends[draw(5)]);
        if ((c >= 0xd800 && c < 0xe000) || c == 0x2581) /* SentencePiece's own space */
            c = '?';
        n += put_utf8(c, to + n);
    }
    return n;
}

static void check_round_trip(const struct tokenizer *t, const char *text, size_t bytes, bool spm)
{
    struct token_list l = encode(t, text, bytes, 0);
    size_t n;
    char *back = decode(t, &l, TOKENIZER_SHOW_SPECIAL, &n);
    size_t skipped = spm && bytes > 0 && text[0] != '\0' ? 1 : 0;
    skipped = spm && bytes > 0 ? 1 : skipped;
    assert_int_equal(n - skipped, bytes);
    assert_memory_equal(back + skipped, text, bytes);
    free(back);
    token_list_free(&l);
}

static void check_round_trips(const char *name, bool spm)
{
    struct tokenizer *t = load(name);
    char text[1024];
    for (int i = 0; i < 400; i++) {
        size_t n = draw(200);
        for (size_t k = 0; k < n; k++)
            text[k] = (char)draw(256);
        /* a byte string may happen to hold U+2581 */
        if (!spm || memmem(text, n, "\xe2\x96\x81", 3) == NULL)
            check_round_trip(t, text, n, spm);
        n = random_unicode(text, draw(200));
        check_round_trip(t, text, n, spm);
    }
    tokenizer_free(t);
}

static void test_round_trip_bpe(void **state)
{
    (void)state;
    check_round_trips("gpt-2", false);
    check_round_trips("qwen2", false);
}

static void test_round_trip_spm(void **state)
{
    (void)state;
    check_round_trips("phi-3", true);
}

/* ---- streaming ------------------------------------------------------------------------------- */

/* All tokens through a detokenizer; the caller frees. */
static char *stream(const struct tokenizer *t, const struct token_list *l, bool at_start,
                    size_t *ret_bytes)
{
    struct detokenizer d;
    char *text = malloc((l->n + 1) * 64 + TOKENIZER_PUSH_ROOM);
    size_t n = 0;
    assert_non_null(text);
    detokenizer_init(&d, t, 0, at_start);
    for (size_t i = 0; i < l->n; i++) {
        char piece[TOKENIZER_PUSH_ROOM];
        size_t k = detokenizer_push(&d, l->ids[i], piece, sizeof piece);
        /* Whole characters: neither begins inside of one nor ends there. */
        if (k > 0)
            assert_true(((uint8_t)piece[0] & 0xc0) != 0x80);
        size_t last = k;
        while (last > 0 && ((uint8_t)piece[last - 1] & 0xc0) == 0x80)
            last--;
        if (last > 0 && (uint8_t)piece[last - 1] >= 0xc0)
            assert_true(k - last + 1 >= ((uint8_t)piece[last - 1] >= 0xf0   ? 4u
                                         : (uint8_t)piece[last - 1] >= 0xe0 ? 3u
                                                                            : 2u));
        memcpy(text + n, piece, k);
        n += k;
    }
    n += detokenizer_flush(&d, text + n, 3);
    *ret_bytes = n;
    return text;
}

static void check_stream(const struct tokenizer *t, const char *in, size_t in_bytes,
                         const char *out, size_t out_bytes)
{
    struct token_list l = encode(t, in, in_bytes, 0);
    size_t n;
    char *text = stream(t, &l, true, &n);
    assert_int_equal(n, out_bytes);
    assert_memory_equal(text, out, n);
    free(text);
    token_list_free(&l);
}

static void check_streams(const char *name)
{
    struct tokenizer *t = load(name);
    char text[1024];
    for (int i = 0; i < 200; i++) {
        size_t n = random_unicode(text, draw(200));
        check_stream(t, text, n, text, n);
    }
#define STREAM(in, out) check_stream(t, in, sizeof in - 1, out, sizeof out - 1)
    STREAM("", "");
    STREAM("a\xff\xfe"
           "b",
           "a\xef\xbf\xbd\xef\xbf\xbd"
           "b");
    STREAM("\xf0\x9f\x98", "\xef\xbf\xbd");   /* cut short: one for the whole of it */
    STREAM("\xf0\x9f\x98!", "\xef\xbf\xbd!"); /* and given up on when it does not go on */
    STREAM("\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac");
    STREAM("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* a surrogate */
    STREAM("\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd");                 /* overlong */
    STREAM("\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
#undef STREAM
    tokenizer_free(t);
}

static void test_stream_bpe(void **state)
{
    (void)state;
    check_streams("gpt-2");
}

static void test_stream_spm(void **state)
{
    (void)state;
    check_streams("phi-3");
}

static void test_stream_space(void **state)
{
    (void)state;
    struct tokenizer *t = load("phi-3");
    struct token_list l = encode(t, "tar x", 5, 0);
    size_t n;
    char *text = stream(t, &l, true, &n);
    assert_int_equal(n, 5);
    assert_memory_equal(text, "tar x", 5);
    free(text);
    text = stream(t, &l, false, &n); /* the answer to a prompt keeps its space */
    assert_int_equal(n, 6);
    assert_memory_equal(text, " tar x", 6);
    free(text);
    token_list_free(&l);
    tokenizer_free(t);
}

/* ---- special tokens -------------------------------------------------------------------------- */

static void test_special(void **state)
{
    (void)state;
    struct tokenizer *t = load("qwen2");
    const unsigned parse = TOKENIZER_PARSE_SPECIAL;
    const struct text_span inside = {0, 12}, half = {11, 1}, before = {0, 0}, after = {12, 1};
    IDS(t, "<|im_start|>", parse, NULL, 0, 151644);
    IDS(t, "<|im_start|>", 0, NULL, 0, 27, 91, 318, 4906, 91, 29);
    IDS(t, "<|im_start|>", parse, &inside, 1, 27, 91, 318, 4906, 91, 29);
    IDS(t, "<|im_start|>", parse, &half, 1, 27, 91, 318, 4906, 91, 29);
    IDS(t, "<|im_start|>", parse, &before, 1, 151644);
    IDS(t, "<|im_start|>a", parse, &after, 1, 151644, 64);
    IDS(t, "a<|im_end|><|im_end|>\n", parse, NULL, 0, 64, 151645, 151645, 198);
    /* Two plain spans with markup between them. */
    const struct text_span two[] = {{0, 10}, {20, 10}};
    IDS(t, "<|im_end|><|im_end|><|im_end|>", parse, two, 2, 27, 91, 318, 6213, 91, 29, 151645, 27,
        91, 318, 6213, 91, 29);
    /* User-defined tokens are text: found in any case. */
    IDS(t, "[PAD151646]", 0, NULL, 0, 151646);
    IDS(t, "[PAD151646]", parse, &inside, 1, 151646);
    /* This file does not ask for the beginning-of-text token. */
    IDS(t, "a", TOKENIZER_ADD_BOS, NULL, 0, 64);
    tokenizer_free(t);
}

static void test_special_spm(void **state)
{
    (void)state;
    struct tokenizer *t = load("phi-3");
    const unsigned parse = TOKENIZER_PARSE_SPECIAL;
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 32000);
    assert_true(tokenizer_add_bos(t));
    assert_string_equal(tokenizer_model_name(t), "llama");
    IDS(t, "a", TOKENIZER_ADD_BOS, NULL, 0, 1, 263);
    IDS(t, "", TOKENIZER_ADD_BOS, NULL, 0, 1);
    /* Phi-3's tokens take the white space behind them, and a space goes before the next text. */
    IDS(t, "<|user|>\n a<|end|>\n<|assistant|>\n", parse, NULL, 0, 32010, 263, 32007, 32001);
    IDS(t, "<s> a", parse, NULL, 0, 1, 29871, 263);
    /* A byte token's name is text, whatever the flags. */
    struct token_list l = encode(t, "<0x0A>", 6, parse);
    assert_true(l.n > 1);
    token_list_free(&l);
    tokenizer_free(t);
}

static void test_end_tokens(void **state)
{
    (void)state;
    struct tokenizer *t = load("qwen2");
    size_t n;
    const int32_t *ends = tokenizer_end_tokens(t, &n);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        assert_true(tokenizer_is_end(t, ends[i]));
    assert_true(tokenizer_is_end(t, 151643));
    assert_true(tokenizer_is_end(t, 151645));
    assert_false(tokenizer_is_end(t, 151644));
    assert_false(tokenizer_is_end(t, -1));
    tokenizer_free(t);
    t = load("phi-3");
    assert_true(tokenizer_is_end(t, 32000)); /* <|endoftext|> */
    assert_true(tokenizer_is_end(t, 32007)); /* <|end|> */
    assert_true(tokenizer_is_end(t, 2));     /* </s> */
    assert_false(tokenizer_is_end(t, 32010));
    tokenizer_free(t);
}

static void test_pieces(void **state)
{
    (void)state;
    struct tokenizer *t = load("phi-3");
    char text[32];
    assert_int_equal(tokenizer_piece(t, 32007, 0, text, sizeof text), 0);
    assert_int_equal(tokenizer_piece(t, 32007, TOKENIZER_SHOW_SPECIAL, text, sizeof text), 7);
    assert_memory_equal(text, "<|end|>", 7);
    assert_int_equal(tokenizer_piece(t, 13, 0, text, sizeof text), 1); /* <0x0A> */
    assert_int_equal(text[0], '\n');
    assert_int_equal(tokenizer_piece(t, 263, 0, text, 1), 2); /* no room: nothing is written */
    assert_int_equal(text[0], '\n');
    assert_int_equal(tokenizer_piece(t, -1, 0, text, sizeof text), 0);
    assert_int_equal(tokenizer_piece(t, 32064, 0, text, sizeof text), 0);
    tokenizer_free(t);
}

/* ---- time ------------------------------------------------------------------------------------ */

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill(char *text, const char *pattern)
{
    size_t n = strlen(pattern);
    for (size_t i = 0; i < MIB; i++)
        text[i] = pattern[i % n];
}

static void check_time(const struct tokenizer *t, const char *what, const char *text)
{
    double begin = cpu_seconds();
    struct token_list l = encode(t, text, MIB, TOKENIZER_PARSE_SPECIAL);
    double took = cpu_seconds() - begin;
    if (took > 1.0 * SLOWER)
        fail_msg("1 MiB of %s takes %.2f s", what, took);
    assert_true(l.n > 0);
    token_list_free(&l);
}

static void check_times(const char *name)
{
    static const char *const patterns[] = {
        "a",
        " ",
        "\n",
        "\t \n",
        "a ",
        "1",
        "'",
        "\xff",
        "\xf0\x9f\x98\x80",
        "\xe4\xb8\xad",
        "<|im_start",
        "<|im_start|>",
        "ABCD",
        "\n                                                              ",
    };
    struct tokenizer *t = load(name);
    char *text = malloc(MIB);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        fill(text, patterns[i]);
        check_time(t, patterns[i], text);
    }
    memset(text, ' ', MIB);
    text[MIB - 1] = 'x';
    check_time(t, "spaces before a letter", text);
    for (size_t i = 0; i < MIB; i++)
        text[i] = (char)draw(256);
    check_time(t, "random bytes", text);
    for (size_t i = 0; i < MIB; i++)
        text[i] = (char)('a' + draw(26));
    check_time(t, "random letters", text);
    free(text);
    tokenizer_free(t);
}

static void test_linear_bpe(void **state)
{
    (void)state;
    check_times("qwen2");
}

static void test_linear_spm(void **state)
{
    (void)state;
    check_times("phi-3");
}

static void test_load_time(void **state)
{
    (void)state;
    char path[512];
    struct gguf *g;
    struct report report = {0};
    struct tokenizer *t;
    double best = 1e9;
    assert_true(fixture("ggml-vocab-qwen2.gguf", path, sizeof path));
    assert_int_equal(gguf_open(path, &g, &report), 0);
    for (int i = 0; i < 3; i++) {
        double begin = cpu_seconds();
        assert_int_equal(tokenizer_new(g, &t, &report), 0);
        double took = cpu_seconds() - begin;
        best = took < best ? took : best;
        tokenizer_free(t);
    }
    gguf_free(g);
    if (best > 0.1 * SLOWER)
        fail_msg("152k tokens take %.0f ms to load", best * 1e3);
}

/* ---- sharing, and a machine that forbids new code -------------------------------------------- */

struct job {
    const struct tokenizer *tokenizer;
    const char *text;
    size_t bytes;
    struct token_list expected;
    int wrong;
};

static void *work(void *argument)
{
    struct job *job = argument;
    for (int i = 0; i < 20; i++) {
        struct token_list l = {0};
        if (tokenizer_encode(job->tokenizer, job->text, job->bytes, 0, NULL, 0, &l) < 0 ||
            l.n != job->expected.n || memcmp(l.ids, job->expected.ids, l.n * sizeof *l.ids) != 0)
            job->wrong++;
        token_list_free(&l);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[3];
    struct job jobs[3];
    size_t bytes;
    struct tokenizer *t = load("qwen2");
    char *text = read_file("tests/data/vocab/mixed.txt", &bytes);
    assert_non_null(text);
    for (size_t i = 0; i < 3; i++) {
        size_t n = bytes / (i + 1);
        jobs[i] = (struct job){t, text, n, encode(t, text, n, 0), 0};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &jobs[i]), 0);
    }
    for (size_t i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].wrong, 0);
        token_list_free(&jobs[i].expected);
    }
    free(text);
    tokenizer_free(t);
}

#ifndef PR_SET_MDWE
#define PR_SET_MDWE              65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

/* Under a policy against writable code the expressions are interpreted: same tokens. */
static void test_without_jit(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct pretokenizer *p;
        if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0)
            _exit(77);
        assert_int_equal(pretokenizer_new("gpt-2", 5, &p, NULL), 0);
        assert_false(pretokenizer_has_jit(p));
        pretokenizer_free(p);
        struct tokenizer *t = load("gpt-2");
        check_cases(t, "gpt-2");
        check_mixed(t, "gpt-2");
        tokenizer_free(t);
        check_times("qwen2");
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* first, before others fill the pool of machine code */
        cmocka_unit_test(test_without_jit),    cmocka_unit_test(test_gpt_2),
        cmocka_unit_test(test_qwen2),          cmocka_unit_test(test_phi_3),
        cmocka_unit_test(test_llama_bpe),      cmocka_unit_test(test_llama_spm),
        cmocka_unit_test(test_unix),           cmocka_unit_test(test_round_trip_bpe),
        cmocka_unit_test(test_round_trip_spm), cmocka_unit_test(test_stream_bpe),
        cmocka_unit_test(test_stream_spm),     cmocka_unit_test(test_stream_space),
        cmocka_unit_test(test_special),        cmocka_unit_test(test_special_spm),
        cmocka_unit_test(test_end_tokens),     cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_linear_bpe),     cmocka_unit_test(test_linear_spm),
        cmocka_unit_test(test_load_time),      cmocka_unit_test(test_threads),

    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
