/* test_config.c: the daemon's command line. */
#include "config.h"

#include "base/log.h"
#include "memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct config config;
static struct report report;

/* Parses "inferd" and the words of a line, which are separated by single blanks. */
static int parse(const char *line)
{
    static char words[4096];
    static char *argv[128];
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t) "inferd";
    assert_true(strlen(line) < sizeof words);
    strcpy(words, line);
    char *rest = words, *word;
    while ((word = strsep(&rest, " ")) != NULL)
        if (word[0] != '\0')
            argv[argc++] = word[0] == '\'' ? word + strlen(word) : word; /* ' is the empty word */
    argv[argc] = NULL;
    report = (struct report){0};
    memset(&config, 0xa5, sizeof config);
    return config_parse(argc, argv, &config, &report);
}

static void refused(const char *line, const char *sentence)
{
    int r = parse(line);
    if (r != -INFER_E_INVALID)
        print_error("accepted: %s\n", line);
    assert_int_equal(r, -INFER_E_INVALID);
    assert_int_equal(report.code, INFER_E_INVALID);
    assert_string_equal(report.text, sentence);
    assert_int_equal(((unsigned char *)&config)[0], 0xa5); /* untouched */
}

static void defaults(void **state)
{
    (void)state;
    unsetenv("INFERD_SOCKET");
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(parse("--model models/unix-46m.gguf"), 0);
    assert_int_equal(config.action, CONFIG_SERVE);
    assert_int_equal(config.n_models, 1);
    assert_string_equal(config.models[0].name, "unix-46m");
    assert_string_equal(config.models[0].path, "models/unix-46m.gguf");
    assert_string_equal(config.socket, "/run/user/7/inferd.sock");
    assert_string_equal(config.backend, "auto");
    assert_string_equal(config.backend_options, "");
    assert_int_equal(config.threads, 0);
    assert_int_equal(config.n_context, 0);
    assert_int_equal(config.parallel, 16);
    assert_int_equal(config.state_memory_bytes, 0);
    assert_int_equal(config.k_type, INFER_TYPE_F16);
    assert_int_equal(config.v_type, INFER_TYPE_F16);
    assert_int_equal(config.event_loop, LOOP_AUTO);
    assert_int_equal(config.huge_pages, MEMORY_HUGE_AUTO);
    assert_int_equal(config.log_level, LOG_LEVEL_INFO);
    assert_int_equal(config.spin_us, 50);
    assert_int_equal(config.slow_reader_preempt_s, 10);
    assert_int_equal(config.slow_reader_timeout_s, 20);
    assert_int_equal(config.conversation_idle_s, 4 * 3600);
    assert_int_equal(config.swap_memory_bytes, 0);
    assert_int_equal(config.swap_file_bytes, 0);
    assert_null(config.state_directory);
    assert_int_equal(config.skips_max, 64);
    assert_int_equal(config.newcomer_slots, 0);
    assert_int_equal(config.keep_alive_s, 600);
    assert_int_equal(config.models[0].keep_alive_s, 0); /* of --model: it stays */
    assert_true(config.models[0].preload);
    assert_string_equal(config.model_device, "auto");
    assert_string_equal(config.models[0].device, "auto");
    assert_int_equal(config.models[0].parallel, 16);
    assert_int_equal(config.n_model_directories, 0);
    assert_string_equal(config.metrics_socket, "");
    assert_int_equal(config.drain_timeout_s, 10);
    config_done(&config);
}

static void options_of_many_users(void **state)
{
    (void)state;
    assert_int_equal(parse("--model m --socket /s --slow-reader-preempt 30s --slow-reader-timeout "
                           "2m --swap-memory 512M --swap-file 4G --state-directory /var/lib/x "
                           "--conversation-idle 7d --fair-skips 1 --newcomer-slots none "
                           "--keep-alive 1h --model-directory /a --model-directory b --device "
                           "cuda:0 --metrics-socket /m --drain-timeout 0 "
                           "--policy default:domain=all"),
                     0);
    assert_int_equal(config.slow_reader_preempt_s, 30);
    assert_int_equal(config.slow_reader_timeout_s, 120);
    assert_int_equal(config.swap_memory_bytes, 512u << 20);
    assert_int_equal(config.swap_file_bytes, (uint64_t)4 << 30);
    assert_string_equal(config.state_directory, "/var/lib/x");
    assert_int_equal(config.conversation_idle_s, 7 * 86400);
    assert_int_equal(config.skips_max, 1);
    assert_int_equal(config.newcomer_slots, CONFIG_NEWCOMERS_NONE);
    assert_int_equal(config.models[0].keep_alive_s, 3600);
    assert_int_equal(config.n_model_directories, 2);
    assert_string_equal(config.model_directories[1], "b");
    assert_string_equal(config.models[0].device, "cuda:0");
    assert_string_equal(config.metrics_socket, "/m");
    assert_int_equal(config.drain_timeout_s, 0);
    assert_int_equal(config.n_policies, 1);
    assert_string_equal(config.policies[0], "default:domain=all");
    config_done(&config);
    refused("--model m --slow-reader-timeout 5",
            "--slow-reader-timeout: 5s is less than slow-reader-preempt, 10s");
    refused("--model m --swap-file 1G",
            "--swap-file: there is no state directory; give a state-directory, too");
    refused("--model m --newcomer-slots 17", "--newcomer-slots: 17 is more than parallel, 16");
    refused("--model m --newcomer-slots few",
            "--newcomer-slots: 'few' is not a number from 1 to 256, none or default");
    refused(
        "--model m --conversation-idle 0",
        "--conversation-idle: '0' is not a time from 1s to 2592000s, such as 90s, 5m, 4h or 2d");
}

static void everything_given(void **state)
{
    (void)state;
    assert_int_equal(parse("--model a=/m/one.gguf --model=/m/Two.GGUF --socket /tmp/i.sock "
                           "--backend ref --backend-options x=1,y=2 --threads 3 --ctx 4096 "
                           "--parallel 256 --state-memory 3G --cache-type-k q4_0 "
                           "--cache-type-v f16 --huge-pages explicit --event-loop epoll "
                           "--log-level debug --spin-us 0"),
                     0);
    assert_int_equal(config.n_models, 2);
    assert_string_equal(config.models[0].name, "a");
    assert_string_equal(config.models[0].path, "/m/one.gguf");
    assert_string_equal(config.models[1].name, "Two");
    assert_string_equal(config.models[1].path, "/m/Two.GGUF");
    assert_string_equal(config.socket, "/tmp/i.sock");
    assert_string_equal(config.backend, "ref");
    assert_string_equal(config.backend_options, "x=1,y=2");
    assert_int_equal(config.threads, 3);
    assert_int_equal(config.n_context, 4096);
    assert_int_equal(config.parallel, 256);
    assert_int_equal(config.state_memory_bytes, (uint64_t)3 << 30);
    assert_int_equal(config.k_type, INFER_TYPE_Q4_0);
    assert_int_equal(config.v_type, INFER_TYPE_F16);
    assert_int_equal(config.event_loop, LOOP_EPOLL);
    assert_int_equal(config.huge_pages, MEMORY_HUGE_EXPLICIT);
    assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
    assert_int_equal(config.spin_us, 0);
}

static void names_of_models(void **state)
{
    (void)state;
    assert_int_equal(parse("--socket /s --model /m/big-00001-of-00003.gguf --model plain "
                           "--model ./odd=name/m.gguf --model x=a=b"),
                     0);
    assert_string_equal(config.models[0].name, "big");
    assert_string_equal(config.models[1].name, "plain");
    assert_string_equal(config.models[2].name, "m");
    assert_string_equal(config.models[2].path, "./odd=name/m.gguf");
    assert_string_equal(config.models[3].name, "x");
    assert_string_equal(config.models[3].path, "a=b");
    refused("--model a/m.gguf --model b/m.gguf",
            "--model: two models are named 'm'; give one another name: --model NAME=b/m.gguf");
    refused("--model m\xc3\xbc.gguf",
            "--model: 'm\xc3\xbc' cannot be a model's name (up to 63 of A-Z a-z 0-9 . _ -); give "
            "one: --model NAME=m\xc3\xbc.gguf");
    refused("--model x=", "--model: no file is given");
    refused("--model '", "--model: no file is given");
    refused("--model dir/",
            "--model: '' cannot be a model's name (up to 63 of A-Z a-z 0-9 . _ -); give one: "
            "--model NAME=dir/");
    char line[256] = "--socket /s --model ";
    memset(line + strlen(line), 'n', 63);
    assert_int_equal(parse(strcat(line, "=f")), 0);
    assert_int_equal(strlen(config.models[0].name), 63);
    strcpy(line, "--socket /s --model n");
    memset(line + strlen(line), 'n', 63);
    assert_int_equal(parse(strcat(line, "=f")), -INFER_E_INVALID);
}

static void too_many_models(void **state)
{
    (void)state;
    char line[4096] = "--socket /s";
    for (int i = 0; i < (int)INFER_MODELS_MAX; i++)
        sprintf(line + strlen(line), " --model m%d=f", i);
    assert_int_equal(parse(line), 0);
    assert_int_equal(config.n_models, INFER_MODELS_MAX);
    refused(strcat(line, " --model one-more=f"), "--model: at most 32 models can be served");
}

static void mistakes_are_named(void **state)
{
    (void)state;
    refused("", "no model is given; say which with --model FILE.gguf");
    refused("--modle x", "unknown option '--modle'; did you mean --model?");
    refused("--mod x", "unknown option '--mod'; did you mean --model?");
    refused("--thread=4", "unknown option '--thread=4'; did you mean --threads?");
    refused("--cache-type x", "unknown option '--cache-type'; did you mean --cache-type-k?");
    refused("--frobnicate", "unknown option '--frobnicate'; 'inferd --help' lists all");
    refused("-x", "unknown option '-x'; 'inferd --help' lists all");
    refused("--a-very-long-option-that-nobody-would-type-at-all",
            "unknown option '--a-very-long-option-that-nobody-would-type-at-all'; 'inferd --help' "
            "lists all");
    refused("m.gguf", "unexpected 'm.gguf'; did you mean --model m.gguf?");
    refused("--model a serve", "unexpected 'serve'; 'inferd --help' lists the options");
    refused("--model", "--model needs a value");
    refused("--model a --socket", "--socket needs a value");
    refused("--inspect f --tokenize=yes", "--tokenize takes no value");
    refused("--model a --threads 1025", "--threads: '1025' is not a number from 0 to 1024");
    refused("--model a --threads -1", "--threads: '-1' is not a number from 0 to 1024");
    refused("--model a --threads 4x", "--threads: '4x' is not a number from 0 to 1024");
    refused("--model a --threads 99999999999999999999999",
            "--threads: '99999999999999999999999' is not a number from 0 to 1024");
    refused("--model a --threads '", "--threads: '' is not a number from 0 to 1024");
    refused("--model a --parallel 0", "--parallel: '0' is not a number from 1 to 256");
    refused("--model a --parallel 257", "--parallel: '257' is not a number from 1 to 256");
    refused("--model a --ctx 16777217", "--ctx: '16777217' is not a number from 0 to 16777216");
    refused("--model a --state-memory lots",
            "--state-memory: 'lots' is not a size, such as 512M or 4G");
    refused("--model a --cache-type-k q4_1", "--cache-type-k: 'q4_1' is not f16, q8_0 or q4_0");
    refused("--model a --event-loop kqueue",
            "--event-loop: 'kqueue' is not auto, io_uring or epoll");
    refused("--model a --log-level loud",
            "--log-level: 'loud' is not error, warning, info or debug");
    refused("--model a --backend ../evil",
            "--backend: '../evil' is not auto or a list of backends, such as cpu or cuda,cpu");
    refused("--tokenize --model a", "--tokenize needs --inspect FILE");
    refused("--no-escape --model a", "--no-escape needs --tokenize");
    refused("--tokenize --model a", "--tokenize needs --inspect FILE");
    refused("--inspect f --model a", "--inspect serves nothing, so --model has no place beside it");
    refused("--inspect '", "--inspect: '' is not a file");
}

static void control_bytes_do_not_reach_the_terminal(void **state)
{
    (void)state;
    refused("--x\x1b[31m", "unknown option '--x?[31m'; 'inferd --help' lists all");
}

static void other_actions(void **state)
{
    (void)state;
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(parse("--inspect f.gguf"), 0);
    assert_int_equal(config.action, CONFIG_INSPECT);
    assert_string_equal(config.inspect_path, "f.gguf");
    assert_int_equal(parse("--inspect=f.gguf --backend ref --ctx 512"), 0);
    assert_int_equal(config.action, CONFIG_INSPECT);
    assert_int_equal(parse("--inspect f.gguf --tokenize"), 0);
    assert_int_equal(config.action, CONFIG_TOKENIZE);
    assert_int_equal(parse("--version"), 0);
    assert_int_equal(config.action, CONFIG_VERSION);
    assert_int_equal(parse("--help"), 0);
    assert_int_equal(config.action, CONFIG_HELP);
    assert_int_equal(parse("-h"), 0);
    assert_int_equal(config.action, CONFIG_HELP);
}

static void sockets(void **state)
{
    (void)state;
    char path[CONFIG_SOCKET_MAX] = "untouched", long_path[200];
    assert_int_equal(config_default_socket("/run/user/1", true, path, &report), 0);
    assert_string_equal(path, "/run/user/1/inferd.sock");
    assert_int_equal(config_default_socket(NULL, true, path, &report), 0);
    assert_string_equal(path, "/run/inferd/inferd.sock");
    assert_int_equal(config_default_socket("", false, path, &report), -INFER_E_SOCKET_PATH);
    assert_string_equal(report.text,
                        "XDG_RUNTIME_DIR is not set; say where to listen with --socket PATH");
    assert_int_equal(config_default_socket("relative", false, path, &report), -INFER_E_SOCKET_PATH);
    memset(long_path, 'x', sizeof long_path - 1);
    long_path[0] = '/';
    long_path[sizeof long_path - 1] = '\0';
    assert_int_equal(config_default_socket(long_path, true, path, &report), -INFER_E_SOCKET_PATH);
    assert_string_equal(path, "/run/inferd/inferd.sock");
    char line[300] = "--model a --socket /";
    memset(line + strlen(line), 's', 106); /* 107 bytes and the NUL: the most that fits */
    assert_int_equal(parse(line), 0);
    assert_int_equal(strlen(config.socket), 107);
    setenv("INFERD_SOCKET", "/run/mine.sock", 1);
    assert_int_equal(parse("--model a"), 0);
    assert_string_equal(config.socket, "/run/mine.sock");
    assert_int_equal(parse("--model a --socket /run/other.sock"), 0);
    assert_string_equal(config.socket, "/run/other.sock");
    unsetenv("INFERD_SOCKET");
    assert_int_equal(parse(strcat(line, "s")), -INFER_E_SOCKET_PATH);
    assert_int_equal(parse("--model a --socket '"), -INFER_E_SOCKET_PATH);
}

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"512", 512},
                {"64K", 64 << 10},
                {"64k", 64 << 10},
                {"512M", 512u << 20},
                {"4G", (uint64_t)4 << 30},
                {"2T", (uint64_t)2 << 40},
                {"18446744073709551615", UINT64_MAX},
                {"16777215T", (uint64_t)16777215 << 40}};
    static const char *const bad[] = {"",          "K",
                                      "1.5G",      "4GB",
                                      "-1",        "4 G",
                                      " 4",        "0x10",
                                      "4P",        "+4",
                                      "4g4",       "18446744073709551616",
                                      "16777216T", "99999999999999999999999999"};
    uint64_t bytes = 42;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_true(config_size(good[i].text, &bytes));
        assert_true(bytes == good[i].bytes);
    }
    bytes = 42;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(config_size(bad[i], &bytes));
    assert_int_equal(bytes, 42);
}

/* Every option stands in the help, on lines that fit a terminal. */
static void help_is_complete_and_narrow(void **state)
{
    (void)state;
    static const char *const names[] = {
        "model",     "socket",       "backend",      "backend-options", "threads",    "ctx",
        "parallel",  "state-memory", "cache-type-k", "cache-type-v",    "event-loop", "spin-us",
        "log-level", "inspect",      "tokenize",     "version",         "help",       "policy",
        "no-escape", "config",       "check-config", "completion",      "swap-file",  "fair-skips"};
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_help(out);
    fclose(out);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char want[40];
        snprintf(want, sizeof want, "\n  --%s ", names[i]);
        if (strstr(text, want) == NULL)
            print_error("help lacks --%s\n", names[i]);
        assert_non_null(strstr(text, want));
    }
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) != NULL)
        assert_true(strlen(line) <= 88);
    free(text);
}

int main(void)
{
    unsetenv("STATE_DIRECTORY");
    setenv("CONFIGURATION_DIRECTORY", "/nonexistent", 1); /* the machine's own plays no part */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(everything_given),
        cmocka_unit_test(options_of_many_users),
        cmocka_unit_test(names_of_models),
        cmocka_unit_test(too_many_models),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(control_bytes_do_not_reach_the_terminal),
        cmocka_unit_test(other_actions),
        cmocka_unit_test(sockets),
        cmocka_unit_test(sizes),
        cmocka_unit_test(help_is_complete_and_narrow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
