/* test_config_file.c: inferd.conf, its drop-ins, what wins, and that the manual tells the truth.
 *
 * Files are made in a folder of the test's own, which CONFIGURATION_DIRECTORY names. */
#include "config_internal.h"

#include "policy.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];
static struct config config;
static struct report report;

static const char *in_folder(const char *name)
{
    static char path[2][256];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void write_bytes(const char *name, const char *text, size_t n)
{
    FILE *f = fopen(in_folder(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
    assert_int_equal(chmod(in_folder(name), 0644), 0);
}

static void write_text(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/inferd-config.XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_int_equal(mkdir(in_folder("inferd.conf.d"), 0755), 0);
    setenv("CONFIGURATION_DIRECTORY", folder, 1);
    unsetenv("INFERD_SOCKET");
    unsetenv("STATE_DIRECTORY");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    config_done(&config);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* Parses "inferd" and the given words, up to NULL. */
static int parse(const char *first, ...)
{
    char *argv[16] = {(char *)(uintptr_t) "inferd"};
    int argc = 1;
    va_list more;
    va_start(more, first);
    for (const char *word = first; word != NULL; word = va_arg(more, const char *))
        argv[argc++] = (char *)(uintptr_t)word;
    va_end(more);
    config_done(&config);
    memset(&config, 0, sizeof config);
    report = (struct report){0};
    int r = config_parse(argc, argv, &config, &report);
    if (r < 0 && report.code == 0)
        fail_msg("a failure without a report");
    return r;
}

static const char small[] = "[model m]\npath = /m.gguf\n";

/* inferd.conf with this text is refused with "inferd.conf:LINE: SENTENCE". */
static void refused(const char *text, unsigned line, const char *sentence)
{
    char want[640];
    write_text("inferd.conf", text);
    int r = parse("--socket", "/s", NULL);
    if (r == 0)
        fail_msg("accepted: %s", text);
    snprintf(want, sizeof want, "%s/inferd.conf:%u: %s", folder, line, sentence);
    assert_string_equal(report.text, want);
    assert_int_equal(report.code, INFER_E_INVALID);
    assert_null(config.texts);
}

static void a_whole_file(void **state)
{
    (void)state;
    write_text("inferd.conf", "# a remark\n"
                              "; another\n"
                              "\n"
                              "[daemon]\n"
                              "parallel = 8   # beside it\n"
                              "\tkeep-alive=5m\r\n"
                              "backend-options = a=1,b=#2\n"
                              "model-directory = /models one\n"
                              "model-directory = /two\n"
                              "[model big]\n"
                              "path = /m/big.gguf\n"
                              "parallel = 2\n"
                              "cache-type-k = q8_0\n"
                              "preload = yes\n"
                              "pin = yes\n"
                              "[ model  small ]\n"
                              "path = /m/small.gguf\n"
                              "keep-alive = 0\n"
                              "[user root]\n"
                              "weight = 300\n"
                              "domain = team\n"
                              "[user *]\n"
                              "running = 2\n"
                              "[user 1000]"); /* no newline, no key */
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(config.parallel, 8);
    assert_int_equal(config.keep_alive_s, 300);
    assert_string_equal(config.backend_options, "a=1,b=#2");
    assert_int_equal(config.n_model_directories, 2);
    assert_string_equal(config.model_directories[0], "/models one");
    assert_int_equal(config.n_models, 2);
    assert_string_equal(config.models[0].name, "big");
    assert_string_equal(config.models[0].path, "/m/big.gguf");
    assert_int_equal(config.models[0].parallel, 2);
    assert_int_equal(config.models[0].k_type, INFER_TYPE_Q8_0);
    assert_int_equal(config.models[0].v_type, INFER_TYPE_F16);
    assert_int_equal(config.models[0].keep_alive_s, 300);
    assert_true(config.models[0].preload && config.models[0].pin);
    assert_string_equal(config.models[1].name, "small");
    assert_int_equal(config.models[1].parallel, 8);
    assert_int_equal(config.models[1].keep_alive_s, 0);
    assert_false(config.models[1].preload || config.models[1].pin);
    assert_int_equal(config.n_policies, 2);
    assert_string_equal(config.policies[0], "root:weight=300,domain=team");
    assert_string_equal(config.policies[1], "default:running=2");
}

static void mistakes_have_a_line(void **state)
{
    (void)state;
    refused("[deamon]\n", 1,
            "[deamon] is none of [daemon], [model NAME], [user NAME], [user UID], [user *]");
    refused("\n\n[model]\n", 3,
            "[model] is none of [daemon], [model NAME], [user NAME], [user UID], [user *]");
    refused("[daemon\n", 1, "'[daemon' lacks its ']'");
    refused("parallel = 3\n", 1, "'parallel' stands before any section; begin with [daemon]");
    refused("[daemon]\nparallel\n", 2, "'parallel' is neither [SECTION] nor KEY = VALUE");
    refused("[daemon]\nparallel = 0\n", 2, "parallel: '0' is not a number from 1 to 256");
    refused("[daemon]\nparallel =\n", 2, "parallel: '' is not a number from 1 to 256");
    refused("[daemon]\nparallel = 3\nctx = 1\nparallel = 3\n", 4,
            "parallel: it is set in line 2 already");
    refused("[daemon]\n[model m]\npath=/m\n[daemon]\n", 4,
            "[daemon] began in line 1 already; write both into one");
    refused("[model m]\n[model m]\n", 2, "[model m] began in line 1 already; write both into one");
    refused("[user 0]\n[user root]\n", 2,
            "[user root] began in line 1 already; write both into one");
    refused("[model a/b]\n", 1, "[model a/b]: a model's name has 1 to 63 of A-Z a-z 0-9 . _ -");
    refused("[user nobody-of-that-name]\n", 1,
            "there is no user 'nobody-of-that-name'; give a name, a uid or 'default'");
    refused("[user 1]\nweight = 0\n", 2, "weight is '0'; it must be a number from 1 to 10000");
    refused("[user 1]\nweight = 1\nweight = 2\n", 3, "weight: it is set in line 2 already");
    refused("[user 1]\nwieght = 2\n", 2,
            "'wieght' is no key of [user]; it has weight, running, waiting, tokens-per-minute, "
            "pages, best, domain");
    refused("[daemon]\npath = /m\n", 2, "'path' belongs into [model NAME], not into [daemon]");
    refused("[model m]\nspin-us = 1\n", 2, "'spin-us' belongs into [daemon], not into [model]");
    refused("[model m]\nflavour = sour\n", 2,
            "'flavour' is no key of [model]; it has path, preload, pin, device, device-layers, "
            "ctx, parallel, "
            "state-memory, cache-type-k, cache-type-v, keep-alive");
    refused("[model m]\npin = true\n", 2, "pin: 'true' is not yes or no");
    refused("[model m]\npath = m.gguf\n", 2, "path: 'm.gguf' is not an absolute path");
    refused("[daemon]\nmodel-directory = models\n", 2,
            "model-directory: 'models' is not an absolute path");
    refused("[daemon]\nsocket = s\n", 2, "socket: 's' is not an absolute path");
    refused("[daemon]\nkeep-alive = 5min\n", 2,
            "keep-alive: '5min' is not a time from 0s to 2592000s, such as 90s, 5m, 4h or 2d");
    refused("[daemon]\nhelp = yes\n", 2,
            "'help' is no key of [daemon]; it has model-directory, socket, metrics-socket, "
            "state-directory, backend, backend-options, device, device-layers, threads, "
            "huge-pages, ctx, parallel, "
            "state-memory, memory-limit, device-memory-limit, device-wait, read-timeout, "
            "cache-type-k, cache-type-v, keep-alive, "
            "swap-memory, swap-file, "
            "slow-reader-preempt, slow-reader-timeout, conversation-idle, fair-skips, "
            "newcomer-slots, drain-timeout, event-loop, spin-us, log-level");
    refused(
        "[model m]\nctx = 5\n", 1,
        "[model m] has no path, and there is no m.gguf in any model directory; add path = FILE");
    refused("[model m]\npath=/m\n[daemon]\nslow-reader-preempt = 30s\n", 4,
            "slow-reader-timeout: 20s is less than slow-reader-preempt, 30s");
}

static void bytes_that_are_no_text(void **state)
{
    (void)state;
    char text[8300] = "[daemon]\nbackend-options = ";
    memset(text + strlen(text), 'x', 4095 - 18);
    strcat(text, "\n[model m]\npath=/m\n");
    write_text("inferd.conf", text);
    assert_int_equal(parse("--socket", "/s", NULL), 0); /* 4095 bytes */
    strcpy(text, "[daemon]\nbackend-options = ");
    memset(text + strlen(text), 'x', 4096);
    refused(text, 2, "the line is longer than 4095 bytes");
    write_bytes("inferd.conf", "[daemon]\npar\0allel = 3\n", 23);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, ":2: the line holds a zero byte"));
    refused("[daemon]\n\x1b[31m\n", 2, "'?[31m' is neither [SECTION] nor KEY = VALUE");
    refused("[]\n", 1, "[] is none of [daemon], [model NAME], [user NAME], [user UID], [user *]");
    refused("[\n", 1, "'[' lacks its ']'");
    refused("=\n", 1, "'' stands before any section; begin with [daemon]");
    write_text("inferd.conf", "");
    assert_int_equal(parse("--socket", "/s", "--model", "m", NULL), 0);
}

static void files_of_others_are_refused(void **state)
{
    (void)state;
    write_text("inferd.conf", small);
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(chmod(in_folder("inferd.conf"), 0664), 0);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "it can be written by others; run: chmod go-w /tmp/"));
    assert_int_equal(chmod(in_folder("inferd.conf"), 0646), 0);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_int_equal(unlink(in_folder("inferd.conf")), 0);
    assert_int_equal(mkfifo(in_folder("inferd.conf"), 0600), 0);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID); /* and does not wait */
    assert_non_null(strstr(report.text, "not a regular file"));
    assert_int_equal(unlink(in_folder("inferd.conf")), 0);
    if (geteuid() == 0) {
        write_text("inferd.conf", small);
        assert_int_equal(chown(in_folder("inferd.conf"), 1, 1), 0);
        assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
        assert_non_null(strstr(report.text, "it belongs to user 1; only root's"));
    }
}

static void too_large_a_file(void **state)
{
    (void)state;
    FILE *f = fopen(in_folder("inferd.conf"), "w");
    assert_non_null(f);
    for (int i = 0; i < (1 << 20) / 2 + 1; i++)
        fputs("#\n", f);
    fclose(f);
    assert_int_equal(chmod(in_folder("inferd.conf"), 0644), 0);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "larger than 1 MiB"));
}

static void drop_ins_in_order_of_names(void **state)
{
    (void)state;
    write_text("inferd.conf", "[daemon]\nparallel = 2\nthreads = 2\nmodel-directory = /a\n"
                              "[model m]\npath = /m.gguf\nctx = 100\n[user 7]\nweight = 7\n");
    write_text("inferd.conf.d/20-b.conf", "[daemon]\nparallel = 4\nmodel-directory = /b\n");
    write_text("inferd.conf.d/10-a.conf", "[daemon]\nparallel = 3\nthreads = 3\n[model m]\n"
                                          "path = /n.gguf\n[user 7]\nrunning = 1\n");
    write_text("inferd.conf.d/30-c.conf.off", "[nonsense\n");
    write_text("inferd.conf.d/.hidden.conf", "[nonsense\n");
    assert_int_equal(symlink("/dev/null", in_folder("inferd.conf.d/40-masked.conf")), 0);
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(config.parallel, 4);
    assert_int_equal(config.threads, 3);
    assert_int_equal(config.n_model_directories, 1);
    assert_string_equal(config.model_directories[0], "/b");
    assert_int_equal(config.n_models, 1);
    assert_string_equal(config.models[0].path, "/n.gguf");
    assert_int_equal(config.models[0].n_context, 100);
    assert_string_equal(config.policies[0], "7:weight=7,running=1");
    write_text("inferd.conf.d/50-bad.conf", "[daemon]\nparallel = x\n");
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "inferd.conf.d/50-bad.conf:2: parallel: 'x'"));
}

static void the_command_line_wins(void **state)
{
    (void)state;
    write_text("inferd.conf", "[daemon]\nparallel = 2\nsocket = /from/file\nmodel-directory = /a\n"
                              "keep-alive = 1m\n[model first]\npath = /f.gguf\n"
                              "[model unix]\npath = /u.gguf\nctx = 64\n[user 7]\nweight = 7\n"
                              "pages = 3\n");
    assert_int_equal(parse("--parallel", "5", "--model", "unix=x.gguf", "--model", "y.gguf",
                           "--model-directory", "rel", "--policy", "7:running=1", NULL),
                     0);
    assert_int_equal(config.parallel, 5);
    assert_string_equal(config.socket, "/from/file");
    assert_int_equal(config.n_model_directories, 1);
    assert_string_equal(config.model_directories[0], "rel");
    assert_int_equal(config.n_models, 3);
    assert_string_equal(config.models[0].name, "unix");
    assert_string_equal(config.models[0].path, "x.gguf");
    assert_int_equal(config.models[0].n_context, 64);
    assert_int_equal(config.models[0].parallel, 5);
    assert_int_equal(config.models[0].keep_alive_s, 60); /* said by somebody */
    assert_true(config.models[0].preload);
    assert_string_equal(config.models[1].name, "y");
    assert_string_equal(config.models[2].name, "first");
    assert_false(config.models[2].preload);
    assert_int_equal(config.n_policies, 1);
    assert_string_equal(config.policies[0], "7:running=1");
    setenv("INFERD_SOCKET", "/from/variable", 1);
    assert_int_equal(parse(NULL), 0);
    assert_string_equal(config.socket, "/from/variable");
    assert_int_equal(parse("--socket", "/from/option", NULL), 0);
    assert_string_equal(config.socket, "/from/option");
    unsetenv("INFERD_SOCKET");
}

static void another_file_or_none(void **state)
{
    (void)state;
    write_text("inferd.conf", "[nonsense\n");
    assert_int_equal(parse("--config", "none", "--model", "m", "--socket", "/s", NULL), 0);
    assert_int_equal(parse("--config", in_folder("absent"), "--model", "m", NULL),
                     -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "absent: No such file"));
    write_text("other", small);
    assert_int_equal(mkdir(in_folder("other.d"), 0755), 0);
    write_text("other.d/1.conf", "[daemon]\nparallel = 9\n");
    assert_int_equal(parse("--config", in_folder("other"), "--socket", "/s", NULL), 0);
    assert_int_equal(config.parallel, 9);
    assert_int_equal(parse("--help", NULL), 0); /* reads none, so it never fails */
    assert_int_equal(parse("--inspect", "f", NULL), 0);
}

static void models_by_name_alone(void **state)
{
    (void)state;
    char text[256];
    snprintf(text, sizeof text,
             "[daemon]\nmodel-directory = /nonexistent\nmodel-directory = %s\n"
             "[model m]\npin = yes\n",
             folder);
    write_text("inferd.conf", text);
    assert_int_equal(parse("--socket", "/s", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "there is no m.gguf in a model directory"));
    write_text("m.gguf", "");
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_string_equal(config.models[0].path, in_folder("m.gguf"));
}

static void state_directory_from_systemd(void **state)
{
    (void)state;
    write_text("inferd.conf", small);
    setenv("STATE_DIRECTORY", "/var/lib/inferd:/var/lib/other", 1);
    assert_int_equal(parse("--socket", "/s", "--swap-file", "1G", NULL), 0);
    assert_string_equal(config.state_directory, "/var/lib/inferd");
    assert_int_equal(parse("--socket", "/s", "--state-directory", "/x", NULL), 0);
    assert_string_equal(config.state_directory, "/x");
    unsetenv("STATE_DIRECTORY");
}

static char *shown(void)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_show(&config, out);
    fclose(out);
    return text;
}

/* What --check-config prints is a file that means the same, and says where each value is from. */
static void what_is_shown_can_be_read(void **state)
{
    (void)state;
    char line[200];
    write_text("m.gguf", "");
    snprintf(line, sizeof line,
             "[daemon]\nparallel = 8\nswap-memory = 3M\nconversation-idle = 90m\nnewcomer-slots = "
             "none\n[model m]\npath = %s/m.gguf\n[user *]\nbest = batch\n",
             folder);
    write_text("inferd.conf", line);
    assert_int_equal(parse("--check-config", "--socket", "/s", "--ctx", "512", NULL), 0);
    assert_int_equal(config.action, CONFIG_CHECK);
    char *first = shown();
    snprintf(line, sizeof line, "/inferd.conf:2\n");
    assert_non_null(strstr(first, line));
    assert_non_null(strstr(first, "conversation-idle = 90m "));
    assert_non_null(strstr(first, "swap-memory = 3M "));
    assert_non_null(strstr(first, "newcomer-slots = none "));
    assert_non_null(strstr(first, "# the command line\n"));
    assert_non_null(strstr(first, "# default, reloads\n"));
    assert_non_null(strstr(first, "\n[user *]\nbest = batch "));
    struct config before = config;
    config.texts = NULL; /* parse() ends the one before */
    write_text("copy", first);
    assert_int_equal(parse("--config", in_folder("copy"), "--check-config", NULL), 0);
    char *second = shown();
    for (char *a = first, *b = second, *x, *y; (x = strsep(&a, "\n")) != NULL;) {
        y = strsep(&b, "\n");
        assert_non_null(y);
        x[strcspn(x, "#")] = y[strcspn(y, "#")] = '\0';
        assert_string_equal(x, y);
    }
    free(first);
    free(second);
    config_done(&before);
}

static void check_looks_for_the_models(void **state)
{
    (void)state;
    refused("[model m]\npath = /m\npath = /m\n", 3, "path: it is set in line 2 already");
    write_text("inferd.conf", "[model m]\npath = /nonexistent/m.gguf\n");
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(parse("--socket", "/s", "--check-config", NULL), -INFER_E_INVALID);
    assert_non_null(strstr(report.text, "inferd.conf:2: model m: /nonexistent/m.gguf: No such"));
    assert_int_equal(parse("--inspect", "f", "--check-config", NULL), -INFER_E_INVALID);
}

/* ---- reload ---------------------------------------------------------------------------------- */

static char differences[1024];

static void note(void *ctx, const char *name, bool reloads)
{
    (void)ctx;
    snprintf(differences + strlen(differences), sizeof differences - strlen(differences), "%s%s;",
             name, reloads ? "" : " (at the next start)");
}

static void what_differs(void **state)
{
    (void)state;
    static struct config before;
    write_text("inferd.conf", "[daemon]\nparallel = 8\nlog-level = debug\nmodel-directory = /a\n"
                              "[model a]\npath = /a\n[model b]\npath = /b\n[user 1]\nweight = 1\n");
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    before = config;
    config.texts = NULL;
    differences[0] = '\0';
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(config_compare(&before, &config, note, NULL), 0);
    write_text("inferd.conf", "[daemon]\nparallel = 9\nlog-level = info\nmodel-directory = /b\n"
                              "[model a]\npath = /a\nctx = 5\nparallel = 8\n[model c]\npath = /b\n"
                              "[user 1]\nweight = 2\n");
    assert_int_equal(parse("--socket", "/s", NULL), 0);
    assert_int_equal(config_compare(&before, &config, note, NULL), 7);
    assert_string_equal(differences, "model-directory;parallel (at the next start);log-level;"
                                     "model a: ctx;model b: gone;model c: new;policy;");
    config_done(&before);
}

/* ---- the manual ------------------------------------------------------------------------------ */

static char *read_manual(const char *path)
{
    FILE *f = fopen(path, "r");
    if (f == NULL)
        fail_msg("%s cannot be read; run this from the repository's root", path);
    char *text = calloc(1, 1 << 17);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 17) - 1, f) > 1000);
    fclose(f);
    return text;
}

static void append(char *to, size_t bytes, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to + strlen(to), bytes - strlen(to), format, arguments);
    va_end(arguments);
}

/* What a setting may be, in the words of the manual. */
static void put_range(char *to, size_t bytes, const struct config_rule *rule)
{
    char room[2][32];
    if (rule->kind == KIND_NUMBER)
        append(to, bytes, "; %llu to %llu", (unsigned long long)rule->min,
               (unsigned long long)rule->max);
    if (rule->kind == KIND_SECONDS) {
        struct config_rule plain = {.kind = KIND_SECONDS};
        uint32_t min = (uint32_t)rule->min, max = (uint32_t)rule->max;
        append(to, bytes, "; a time from %s to %s",
               config_value(&plain, &min, false, room[0], sizeof room[0]),
               config_value(&plain, &max, false, room[1], sizeof room[1]));
    }
    if (rule->kind == KIND_SIZE)
        append(to, bytes, "; a size");
    if (rule->kind == KIND_YES)
        append(to, bytes, "; yes or no");
    for (const struct config_choice *c = rule->choices; c != NULL && c->word != NULL; c++)
        append(to, bytes, "%s%s",
               c == rule->choices && rule->kind == KIND_CHOICE ? "; "
               : c[1].word == NULL                             ? " or "
                                                               : ", ",
               c->word);
}

/* "Default 16; 1 to 256; takes effect at the next start." */
static void wanted_line(char *to, size_t bytes, const struct config_rule *rule)
{
    const char *value = rule->fallback ? rule->fallback : "";
    to[0] = '\0';
    append(to, bytes, "Default %s%s%s", value, value[0] && rule->remark ? ", " : "",
           rule->remark ? rule->remark
           : value[0]   ? ""
                        : "none");
    put_range(to, bytes, rule);
    append(to, bytes, "; takes effect %s.",
           (rule->flags & RELOADS) != 0 ? "on reload" : "at the next start");
    for (char *c = to; *c != '\0'; c++)
        if (*c == '\n')
            *c = ' ';
}

/* Each key of a file has an entry in inferd.conf(5) with its default, range, and when it counts. */
static void manual_agrees_with_table(void **state)
{
    (void)state;
    char *page = read_manual("man/inferd.conf.5"), head[128], line[512];
    unsigned missing = 0;
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if ((rule->flags & (IN_DAEMON | IN_MODEL)) == 0)
            continue;
        snprintf(head, sizeof head, "\n.It Cm %s No = Ar ", rule->name);
        wanted_line(line, sizeof line, rule);
        const char *entry = strstr(page, head);
        const char *next = entry ? strstr(entry + 1, "\n.It ") : NULL;
        const char *text = entry ? strstr(entry, line) : NULL;
        if (entry == NULL || text == NULL || (next != NULL && text > next)) {
            print_error("inferd.conf(5), %s lacks: %s\n", rule->name, line);
            missing++;
        }
    }
    for (unsigned i = 0; i < POLICY_KEYS; i++) {
        snprintf(head, sizeof head, "\n.It Cm %s No = Ar ", policy_key(i));
        if (strstr(page, head) == NULL) {
            print_error("inferd.conf(5) lacks %s\n", policy_key(i));
            missing++;
        }
    }
    assert_int_equal(missing, 0);
    for (const char *at = page; (at = strstr(at, "\n.It Cm ")) != NULL; at++) {
        size_t n = strcspn(at + 8, " \n");
        bool known = false;
        snprintf(head, sizeof head, "%.*s", (int)n, at + 8);
        for (unsigned i = 0; i < POLICY_KEYS; i++)
            known |= strcmp(head, policy_key(i)) == 0;
        if (!known && config_find_rule(head, IN_DAEMON | IN_MODEL) == NULL)
            fail_msg("inferd.conf(5) has '%s', which is no key", head);
    }
    free(page);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_whole_file),
        TEST(mistakes_have_a_line),
        TEST(bytes_that_are_no_text),
        TEST(files_of_others_are_refused),
        TEST(too_large_a_file),
        TEST(drop_ins_in_order_of_names),
        TEST(the_command_line_wins),
        TEST(another_file_or_none),
        TEST(models_by_name_alone),
        TEST(state_directory_from_systemd),
        TEST(what_is_shown_can_be_read),
        TEST(check_looks_for_the_models),
        TEST(what_differs),
        TEST(manual_agrees_with_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
