/* test_vocabulary.c: vocabularies that are made here: small ones, whose tokens are known, and those
 * that are refused, each for its reason. */
#include "tokenizer_fixture.h"

#include "model/pretokenizer.h"

static void set_strings(struct writer *w, const char *key, size_t n, const char *const *texts)
{
    writer_drop(w, key);
    struct writer_bytes *b = writer_key(w, key, GGUF_ARRAY);
    bytes_u32(b, GGUF_STRING);
    bytes_u64(b, n);
    for (size_t i = 0; i < n; i++)
        bytes_string(b, texts[i]);
}

static void set_numbers(struct writer *w, const char *key, uint32_t type, size_t n,
                        const void *values)
{
    writer_drop(w, key);
    struct writer_bytes *b = writer_key(w, key, GGUF_ARRAY);
    bytes_u32(b, type);
    bytes_u64(b, n);
    bytes_put(b, values, 4 * n);
}

static struct writer *small_bpe(void)
{
    static const char *const tokens[] = {"a", "b", "c", "ab", "abc", "<|im_end|>", "\xc4\xa0"};
    static const char *const merges[] = {"a b", "ab c"};
    static const int32_t types[] = {1, 1, 1, 1, 1, 4, 1};
    struct writer *w = writer_new();
    writer_set_string(w, "general.architecture", "llama");
    writer_set_string(w, "tokenizer.ggml.model", "gpt2");
    writer_set_string(w, "tokenizer.ggml.pre", "gpt-2");
    set_strings(w, "tokenizer.ggml.tokens", 7, tokens);
    set_strings(w, "tokenizer.ggml.merges", 2, merges);
    set_numbers(w, "tokenizer.ggml.token_type", GGUF_INT32, 7, types);
    return w;
}

static struct writer *small_spm(void)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "a", "b", "ab", "\xe2\x96\x81"};
    static const float scores[] = {0, 0, 0, -1, -2, -3, -4};
    static const int32_t types[] = {2, 3, 3, 1, 1, 1, 1};
    struct writer *w = writer_new();
    writer_set_string(w, "general.architecture", "llama");
    writer_set_string(w, "tokenizer.ggml.model", "llama");
    set_strings(w, "tokenizer.ggml.tokens", 7, tokens);
    set_numbers(w, "tokenizer.ggml.scores", GGUF_FLOAT32, 7, scores);
    set_numbers(w, "tokenizer.ggml.token_type", GGUF_INT32, 7, types);
    return w;
}

/* Takes w. */
static struct tokenizer *build(struct writer *w)
{
    struct gguf *g;
    struct report report = {0};
    struct tokenizer *t = NULL;
    if (writer_open(w, &g, &report) < 0 || tokenizer_new(g, &t, &report) < 0)
        fail_msg("refused: %s", report.text);
    gguf_free(g);
    writer_free(w);
    return t;
}

static void refused(struct writer *w, int code, const char *says)
{
    struct gguf *g;
    struct report report = {0};
    struct tokenizer *t = (void *)1;
    if (writer_open(w, &g, &report) < 0)
        fail_msg("not opened: %s", report.text);
    assert_int_equal(tokenizer_new(g, &t, &report), -code);
    assert_ptr_equal(t, (void *)1);
    if (strstr(report.text, says) == NULL)
        fail_msg("'%s' does not say '%s'", report.text, says);
    gguf_free(g);
    writer_free(w);
}

static void test_small(void **state)
{
    (void)state;
    struct tokenizer *t = build(small_bpe());
    IDS(t, "abcab", 0, NULL, 0, 4, 3);
    IDS(t, "a?c", 0, NULL, 0, 0, 2); /* no token and no unknown token: it is dropped */
    /* Markup that the file calls user-defined is markup all the same. */
    IDS(t, "a<|im_end|>", TOKENIZER_PARSE_SPECIAL, NULL, 0, 0, 5);
    IDS(t, "a<|im_end|>", 0, NULL, 0, 0);
    assert_true(tokenizer_is_end(t, 5));
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    tokenizer_free(t);
    t = build(small_spm());
    IDS(t, "ab", 0, NULL, 0, 6, 5);
    IDS(t, "a?b", 0, NULL, 0, 6, 3, 0, 4); /* no byte tokens: unknown */
    IDS(t, "b</s>a", TOKENIZER_PARSE_SPECIAL, NULL, 0, 6, 4, 2, 6, 3);
    tokenizer_free(t);
    struct writer *w = small_spm();
    const uint8_t no = 0;
    bytes_put(writer_key(w, "tokenizer.ggml.add_space_prefix", GGUF_BOOL), &no, 1);
    t = build(w);
    IDS(t, "ab", 0, NULL, 0, 5);
    tokenizer_free(t);
}

/* A merge through a string that is no token: the result is used, the string falls into bytes. */
static void test_merge_through_no_token(void **state)
{
    (void)state;
    static const char *const merges[] = {"b c", "a bc"};
    struct writer *w = small_bpe();
    set_strings(w, "tokenizer.ggml.merges", 2, merges);
    struct tokenizer *t = build(w);
    IDS(t, "abc", 0, NULL, 0, 4);
    IDS(t, "bcb", 0, NULL, 0, 1, 2, 1);
    tokenizer_free(t);
}

/* Every pre-tokenizer that the refusal lists can be had. */
static void test_pretokenizers(void **state)
{
    (void)state;
    struct gguf *g;
    struct report report = {0}, other;
    struct tokenizer *t;
    size_t n = 0;
    struct writer *w = small_bpe();
    writer_set_string(w, "tokenizer.ggml.pre", "nonsense");
    assert_int_equal(writer_open(w, &g, &report), 0);
    assert_int_equal(tokenizer_new(g, &t, &report), -INFER_E_MODEL_UNSUPPORTED);
    gguf_free(g);
    assert_non_null(strstr(report.text, "nonsense"));
    char *list = strstr(report.text, "known are:");
    assert_non_null(list);
    for (char *name = strtok(list + 10, " "); name != NULL; name = strtok(NULL, " "), n++) {
        writer_set_string(w, "tokenizer.ggml.pre", name);
        assert_int_equal(writer_open(w, &g, &other), 0);
        if (tokenizer_new(g, &t, &other) < 0)
            fail_msg("%s: %s", name, other.text);
        assert_non_null(strstr(tokenizer_model_name(t), name));
        struct token_list l = encode(t, "ab abc\xff", 7, 0);
        assert_true(l.n >= 2);
        token_list_free(&l);
        tokenizer_free(t);
        gguf_free(g);
    }
    assert_true(n > 30);
    writer_free(w);
}

static void test_refused_bpe(void **state)
{
    (void)state;
    static const int32_t bad_types[] = {1, 1, 1, 1, 1, 9, 1};
    static const char *const bad_merges[][1] = {{"ab"}, {""}, {" "}, {"a "}, {" b"}};
    char longest[1026];
    memset(longest, 'x', sizeof longest);
    longest[1025] = '\0';
    const char *const long_tokens[] = {longest};

    struct writer *w = small_bpe();
    writer_drop(w, "tokenizer.ggml.model");
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.model");
    w = small_bpe();
    writer_set_string(w, "tokenizer.ggml.model", "bert");
    refused(w, INFER_E_MODEL_UNSUPPORTED, "'bert'");
    w = small_bpe();
    writer_drop(w, "tokenizer.ggml.tokens");
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.tokens");
    w = small_bpe();
    set_strings(w, "tokenizer.ggml.tokens", 0, NULL);
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.tokens");
    w = small_bpe();
    writer_drop(w, "tokenizer.ggml.merges");
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.merges");
    w = small_bpe();
    set_numbers(w, "tokenizer.ggml.token_type", GGUF_INT32, 6, bad_types);
    refused(w, INFER_E_MODEL_FORMAT, "6 entries for 7 tokens");
    w = small_bpe();
    set_numbers(w, "tokenizer.ggml.token_type", GGUF_INT32, 7, bad_types);
    refused(w, INFER_E_MODEL_FORMAT, "type 9 for token 5");
    for (size_t i = 0; i < sizeof bad_merges / sizeof bad_merges[0]; i++) {
        w = small_bpe();
        set_strings(w, "tokenizer.ggml.merges", 1, bad_merges[i]);
        refused(w, INFER_E_MODEL_FORMAT, "entry 0");
    }
    w = small_bpe();
    writer_drop(w, "tokenizer.ggml.token_type");
    set_strings(w, "tokenizer.ggml.tokens", 1, long_tokens);
    refused(w, INFER_E_MODEL_UNSUPPORTED, "1025 bytes");
    w = small_bpe();
    writer_set_u32(w, "tokenizer.ggml.tokens", 3);
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.tokens");
}

static void test_refused_spm(void **state)
{
    (void)state;
    static const float no_number[] = {0, 0, 0, -1, -2, __builtin_nanf(""), -4};
    struct writer *w = small_spm();
    writer_drop(w, "tokenizer.ggml.scores");
    refused(w, INFER_E_MODEL_FORMAT, "tokenizer.ggml.scores");
    w = small_spm();
    set_numbers(w, "tokenizer.ggml.scores", GGUF_FLOAT32, 6, no_number);
    refused(w, INFER_E_MODEL_FORMAT, "7 tokens");
    w = small_spm();
    set_numbers(w, "tokenizer.ggml.scores", GGUF_FLOAT32, 7, no_number);
    refused(w, INFER_E_MODEL_FORMAT, "token 5");
    w = small_spm();
    writer_set_u32(w, "tokenizer.ggml.unknown_token_id", 4000000000u);
    refused(w, INFER_E_MODEL_FORMAT, "<0x00>");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),         cmocka_unit_test(test_merge_through_no_token),
        cmocka_unit_test(test_pretokenizers), cmocka_unit_test(test_refused_bpe),
        cmocka_unit_test(test_refused_spm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
