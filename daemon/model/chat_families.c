/* chat_families.c: what each family of chat templates prints.
 *
 * Every render function is the template's program in C: the same text for the same messages, the
 * same refusals. Jinja's trim and Python's strip take Unicode white space, so strip() here does.
 * Where published templates of one family differ, read_*() looks for the literal that differs.
 *
 * Not rendered: tools and their results (roles `tool` and the like are refused), and today's date
 * where a template asks for a clock (it prints the date that it has for want of one).
 *
 * Order matters in the table: a family whose marks are a part of another's comes after it. */
#include "model/chat_private.h"

#include <stdlib.h>

/* ---- slices ---------------------------------------------------------------------------------- */

static struct chat_slice content_of(const struct chat_message *m)
{
    return (struct chat_slice){m->content, m->content_bytes};
}

/* Bytes of the white-space character at p, 0 when there is none. As Python's str.isspace(). */
static size_t space_at(const char *p, size_t n)
{
    const unsigned char *u = (const unsigned char *)p;
    if (n >= 1 && (u[0] == ' ' || (u[0] >= 0x09 && u[0] <= 0x0d) || (u[0] >= 0x1c && u[0] <= 0x1f)))
        return 1;
    if (n >= 2 && u[0] == 0xc2 && (u[1] == 0x85 || u[1] == 0xa0))
        return 2;
    if (n < 3)
        return 0;
    unsigned code = (unsigned)u[0] << 16 | (unsigned)u[1] << 8 | u[2];
    bool space = code == 0xe19a80 || (code >= 0xe28080 && code <= 0xe2808a) || code == 0xe280a8 ||
                 code == 0xe280a9 || code == 0xe280af || code == 0xe2819f || code == 0xe38080;
    return space ? 3 : 0;
}

static struct chat_slice strip_start(struct chat_slice s)
{
    size_t n;
    while ((n = space_at(s.data, s.bytes)) > 0) {
        s.data += n;
        s.bytes -= n;
    }
    return s;
}

static struct chat_slice strip_end(struct chat_slice s)
{
    for (;;) {
        size_t n;
        for (n = 1; n <= 3 && n <= s.bytes; n++)
            if (space_at(s.data + s.bytes - n, n) == n)
                break;
        if (n > 3 || n > s.bytes)
            return s;
        s.bytes -= n;
    }
}

static struct chat_slice strip(struct chat_slice s)
{
    return strip_end(strip_start(s));
}

static struct chat_slice strip_lines(struct chat_slice s)
{
    while (s.bytes > 0 && s.data[0] == '\n') {
        s.data++;
        s.bytes--;
    }
    while (s.bytes > 0 && s.data[s.bytes - 1] == '\n')
        s.bytes--;
    return s;
}

static struct chat_slice strip_lines_start(struct chat_slice s)
{
    while (s.bytes > 0 && s.data[0] == '\n') {
        s.data++;
        s.bytes--;
    }
    return s;
}

/* Where `mark` is first or last in s; s.bytes when nowhere. */
static size_t find_mark(struct chat_slice s, const char *mark, bool last)
{
    size_t n = strlen(mark), found = s.bytes;
    for (size_t i = 0; i + n <= s.bytes; i++)
        if (s.data[i] == mark[0] && memcmp(s.data + i, mark, n) == 0) {
            found = i;
            if (!last)
                break;
        }
    return found;
}

/* What follows the last `mark`, or all of s. */
static struct chat_slice after_last(struct chat_slice s, const char *mark)
{
    size_t at = find_mark(s, mark, true);
    if (at == s.bytes)
        return s;
    at += strlen(mark);
    return (struct chat_slice){s.data + at, s.bytes - at};
}

static struct chat_slice maybe_strip(const struct chat_template *t, const struct chat_message *m)
{
    return t->trim ? strip(content_of(m)) : content_of(m);
}

static bool is_known_role(const struct chat_message *m)
{
    return chat_role_is(m, "system") || chat_role_is(m, "user") || chat_role_is(m, "assistant");
}

/* A role that the template names is markup (<|user|> is one token); any other is the client's. */
static void put_role(struct chat_output *o, const struct chat_message *m)
{
    if (chat_role_is(m, "system"))
        chat_put(o, "system");
    else if (chat_role_is(m, "user"))
        chat_put(o, "user");
    else if (chat_role_is(m, "assistant"))
        chat_put(o, "assistant");
    else
        chat_put_plain(o, (struct chat_slice){m->role, m->role_bytes});
}

/* User and assistant in turn, beginning with the user. */
static int check_turns(const struct chat_message *m, size_t n, struct chat_output *o)
{
    for (size_t i = 0; i < n; i++) {
        if (chat_role_is(&m[i], "user") != (i % 2 == 0))
            return chat_refuse(o, "roles must alternate user/assistant/user/assistant/...");
        if (!chat_role_is(&m[i], "user") && !chat_role_is(&m[i], "assistant"))
            return chat_refuse(o, "only user and assistant roles are taken here");
    }
    return 0;
}

static bool reads_trim(const struct chat_template *t)
{
    return chat_has(t, "message['content'] | trim") || chat_has(t, "message['content']|trim") ||
           chat_has(t, "message.content | trim") || chat_has(t, "message.content|trim") ||
           chat_has(t, "message['content'].strip()") || chat_has(t, "content.strip()");
}

/* ---- ChatML ---------------------------------------------------------------------------------- */

static bool prints_bos_first(const struct chat_template *t)
{
    return chat_has(t, "{{ bos_token }}") || chat_has(t, "{{bos_token}}") ||
           chat_has(t, "{{- bos_token }}");
}

/* '<|im_start|>system\nTEXT<|im_end|>' within one literal is what stands in for a system message.
 */
static char *find_default_system(const char *source)
{
    static const char begin[] = "<|im_start|>system\n", end[] = "<|im_end|>";
    for (const char *p = source; (p = strstr(p, begin)) != NULL;) {
        p += sizeof begin - 1;
        const char *stop = strstr(p, end);
        const char *quote = strchr(p, '\'');
        if (stop != NULL && stop > p && (quote == NULL || quote > stop) &&
            memchr(p, '{', (size_t)(stop - p)) == NULL)
            return strndup(p, (size_t)(stop - p));
    }
    return NULL;
}

static void read_chatml(struct chat_template *t)
{
    t->default_system = find_default_system(t->source);
    t->trim = reads_trim(t);
    t->known_roles = chat_has(t, "tool_calls");
    t->thinks = chat_has(t, "reasoning_content") && chat_has(t, "last_query_index");
    t->open = prints_bos_first(t) ? t->bos : "";
}

/* An answer of a model that thinks aloud: what is before the user's last question loses its
 * thoughts, what comes after shows them. */
static void put_thinking(const struct chat_message *m, bool after_question, bool last,
                         struct chat_output *o)
{
    struct chat_slice content = content_of(m);
    struct chat_slice thoughts = {content.data, 0};
    size_t at = find_mark(content, "</think>", false);
    if (at < content.bytes) {
        thoughts = (struct chat_slice){content.data, at};
        thoughts = strip_lines(after_last(strip_lines(thoughts), "<think>"));
        content = strip_lines_start(after_last(content, "</think>"));
    }
    if (after_question && (last || thoughts.bytes > 0)) {
        chat_put(o, "<think>\n");
        chat_put_plain(o, thoughts);
        chat_put(o, "\n</think>\n\n");
        content = strip_lines_start(content);
    }
    chat_put_plain(o, content);
}

static int render_chatml(const struct chat_template *t, const struct chat_message *m, size_t n,
                         bool generate, struct chat_output *o)
{
    size_t question = n - 1;
    for (size_t i = n; i-- > 0;)
        if (chat_role_is(&m[i], "user")) {
            question = i;
            break;
        }
    chat_put(o, t->open);
    if (t->default_system != NULL && !chat_role_is(&m[0], "system")) {
        chat_put(o, "<|im_start|>system\n");
        chat_put(o, t->default_system);
        chat_put(o, "<|im_end|>\n");
    }
    for (size_t i = 0; i < n; i++) {
        if (t->known_roles && !is_known_role(&m[i]))
            return chat_refuse(o, "only system, user and assistant roles are taken here");
        chat_put(o, "<|im_start|>");
        put_role(o, &m[i]);
        chat_put(o, "\n");
        if (t->thinks && chat_role_is(&m[i], "assistant"))
            put_thinking(&m[i], i > question, i + 1 == n, o);
        else
            chat_put_plain(o, maybe_strip(t, &m[i]));
        chat_put(o, "<|im_end|>\n");
    }
    if (generate)
        chat_put(o, "<|im_start|>assistant\n");
    return 0;
}

/* Phi-4: ChatML with a separator in the place of line breaks. */
static int render_phi4(const struct chat_template *t, const struct chat_message *m, size_t n,
                       bool generate, struct chat_output *o)
{
    for (size_t i = 0; i < n; i++) {
        if (!is_known_role(&m[i]))
            continue;
        chat_put(o, "<|im_start|>");
        put_role(o, &m[i]);
        chat_put(o, "<|im_sep|>");
        chat_put_plain(o, maybe_strip(t, &m[i]));
        chat_put(o, "<|im_end|>");
    }
    if (generate)
        chat_put(o, "<|im_start|>assistant<|im_sep|>");
    return 0;
}

/* ---- Llama 2 --------------------------------------------------------------------------------- */

static void read_llama2(struct chat_template *t)
{
    static const char key[] = "set system_message = '";
    bool each = chat_has(t, "bos_token + '[INST] '");
    t->open = each ? t->bos : "";
    t->lead = !each && prints_bos_first(t) ? t->bos : "";
    const char *branch = strstr(t->source, "elif true == true");
    const char *text = branch != NULL ? strstr(branch, key) : NULL;
    const char *end = text != NULL ? strchr(text + sizeof key - 1, '\'') : NULL;
    if (end != NULL)
        t->default_system = strndup(text + sizeof key - 1, (size_t)(end - text) + 1 - sizeof key);
}

/* The system text and the first question are stripped as one string, which begins with markup. */
static void put_llama2_first(const struct chat_template *t, const struct chat_message *system,
                             const struct chat_message *user, struct chat_output *o)
{
    struct chat_slice question = strip_end(content_of(user));
    chat_put(o, "<<SYS>>\n");
    if (system != NULL)
        chat_put_plain(o, content_of(system));
    else
        chat_put(o, t->default_system);
    if (question.bytes == 0) {
        chat_put(o, "\n<</SYS>>");
        return;
    }
    chat_put(o, "\n<</SYS>>\n\n");
    chat_put_plain(o, question);
}

static int render_llama2(const struct chat_template *t, const struct chat_message *m, size_t n,
                         bool generate, struct chat_output *o)
{
    const struct chat_message *system = NULL;
    if (chat_role_is(&m[0], "system")) {
        system = m++;
        n--;
    }
    if (check_turns(m, n, o) < 0)
        return -1;
    bool with_system = system != NULL;
    if (!with_system && t->default_system != NULL && n > 0)
        with_system = find_mark(content_of(&m[0]), "<<SYS>>", false) == m[0].content_bytes;
    chat_put(o, t->lead);
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) {
            chat_put(o, t->open);
            chat_put(o, "[INST] ");
            if (i == 0 && with_system)
                put_llama2_first(t, system, &m[i], o);
            else
                chat_put_plain(o, strip(content_of(&m[i])));
            chat_put(o, " [/INST]");
        } else {
            chat_put(o, " ");
            chat_put_plain(o, strip(content_of(&m[i])));
            chat_put(o, " ");
            chat_put(o, t->eos);
        }
    }
    return 0;
}

/* ---- Llama 3 --------------------------------------------------------------------------------- */

static void read_llama3(struct chat_template *t)
{
    static const char key[] = "set date_string = '";
    t->trim = true;
    t->known_roles = chat_has(t, "tool_calls");
    /* 3.1 and later begin with the dates, whether there is a system message or not. */
    if (chat_has(t, "Cutting Knowledge Date: ")) {
        const char *date = strstr(t->source, key);
        const char *end = date != NULL ? strchr(date + sizeof key - 1, '\'') : NULL;
        t->default_system =
            end != NULL ? strndup(date + sizeof key - 1, (size_t)(end - date) + 1 - sizeof key)
                        : strdup("26 Jul 2024");
    }
    t->prompt = chat_has(t, "add_generation_prompt") ? "" : "always";
}

static void put_llama3_head(const char *role, struct chat_output *o)
{
    chat_put(o, "<|start_header_id|>");
    chat_put(o, role);
    chat_put(o, "<|end_header_id|>\n\n");
}

static int render_llama3(const struct chat_template *t, const struct chat_message *m, size_t n,
                         bool generate, struct chat_output *o)
{
    chat_put(o, t->bos);
    if (t->default_system != NULL) {
        put_llama3_head("system", o);
        chat_put(o, "Cutting Knowledge Date: December 2023\nToday Date: ");
        chat_put(o, t->default_system);
        chat_put(o, "\n\n");
        if (chat_role_is(&m[0], "system")) {
            chat_put_plain(o, strip(content_of(&m[0])));
            m++;
            n--;
        }
        chat_put(o, "<|eot_id|>");
    }
    for (size_t i = 0; i < n; i++) {
        if (t->known_roles && !is_known_role(&m[i]))
            return chat_refuse(o, "only system, user and assistant roles are taken here");
        chat_put(o, "<|start_header_id|>");
        put_role(o, &m[i]);
        chat_put(o, "<|end_header_id|>\n\n");
        chat_put_plain(o, strip(content_of(&m[i])));
        chat_put(o, "<|eot_id|>");
    }
    if (generate || t->prompt[0] != '\0')
        put_llama3_head("assistant", o);
    return 0;
}

/* ---- Mistral --------------------------------------------------------------------------------- */

static void read_mistral(struct chat_template *t)
{
    t->open = chat_has(t, "' [INST] '")  ? " [INST] "
              : chat_has(t, "'[INST] '") ? "[INST] "
                                         : "[INST]";
    t->close = chat_has(t, "' [/INST]'") ? " [/INST]" : "[/INST]";
    t->lead =
        chat_has(t, "' ' + message['content']") || chat_has(t, "' ' + message.content") ? " " : "";
    t->tail = chat_has(t, "eos_token + ' '") ? " " : "";
    t->trim = chat_has(t, "message['content']|trim + eos_token") ||
              chat_has(t, "message['content'] | trim + eos_token");
    t->system_open = chat_has(t, "'[SYSTEM_PROMPT] '") ? "[SYSTEM_PROMPT] " : "[SYSTEM_PROMPT]";
    t->system_close = "[/SYSTEM_PROMPT]";
    if (chat_has(t, "[SYSTEM_PROMPT]"))
        t->system = CHAT_SYSTEM_MARKED;
    else if (chat_has(t, "loop.last and system_message"))
        t->system = CHAT_SYSTEM_LAST;
    else if (chat_has(t, "loop.first and system_message"))
        t->system = CHAT_SYSTEM_FIRST;
}

static int render_mistral(const struct chat_template *t, const struct chat_message *m, size_t n,
                          bool generate, struct chat_output *o)
{
    const struct chat_message *system = NULL;
    if (chat_role_is(&m[0], "system")) {
        if (t->system == CHAT_SYSTEM_REFUSED)
            return chat_refuse(o, "it has no place for a system message");
        system = m++;
        n--;
    }
    if (check_turns(m, n, o) < 0)
        return -1;
    chat_put(o, t->bos);
    if (system != NULL && t->system == CHAT_SYSTEM_MARKED) {
        chat_put(o, t->system_open);
        chat_put_plain(o, content_of(system));
        chat_put(o, t->system_close);
    }
    size_t where = t->system == CHAT_SYSTEM_FIRST ? 0 : n - 1;
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) {
            chat_put(o, t->open);
            if (system != NULL && t->system != CHAT_SYSTEM_MARKED && i == where) {
                chat_put_plain(o, content_of(system));
                chat_put(o, "\n\n");
            }
            chat_put_plain(o, content_of(&m[i]));
            chat_put(o, t->close);
        } else {
            chat_put(o, t->lead);
            chat_put_plain(o, maybe_strip(t, &m[i]));
            chat_put(o, t->eos);
            chat_put(o, t->tail);
        }
    }
    return 0;
}

/* ---- Gemma ----------------------------------------------------------------------------------- */

static void read_gemma(struct chat_template *t)
{
    t->system = chat_has(t, "first_user_prefix") ? CHAT_SYSTEM_FIRST : CHAT_SYSTEM_REFUSED;
}

static int render_gemma(const struct chat_template *t, const struct chat_message *m, size_t n,
                        bool generate, struct chat_output *o)
{
    const struct chat_message *system = NULL;
    if (chat_role_is(&m[0], "system")) {
        if (t->system == CHAT_SYSTEM_REFUSED)
            return chat_refuse(o, "it has no place for a system message");
        system = m++;
        n--;
    }
    if (check_turns(m, n, o) < 0)
        return -1;
    chat_put(o, t->bos);
    for (size_t i = 0; i < n; i++) {
        chat_put(o, i % 2 == 0 ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
        if (i == 0 && system != NULL) {
            chat_put_plain(o, content_of(system));
            chat_put(o, "\n\n");
        }
        chat_put_plain(o, strip(content_of(&m[i])));
        chat_put(o, "<end_of_turn>\n");
    }
    if (generate)
        chat_put(o, "<start_of_turn>model\n");
    return 0;
}

/* ---- Phi-3 ----------------------------------------------------------------------------------- */

static void read_phi3(struct chat_template *t)
{
    bool lines =
        chat_has(t, "<|user|>\n") || chat_has(t, "'<|user|>' + '\n'") || chat_has(t, "'|>' + '\n'");
    t->close = lines ? "<|end|>\n" : "<|end|>";
    t->open = lines ? "\n" : "";
    /* The first ones print the prompt behind each question, and know no system message. */
    t->prompts_itself = !chat_has(t, "add_generation_prompt");
    t->any_role = chat_has(t, "'<|' + message['role']");
    bool system = t->any_role || chat_has(t, "'system'");
    t->system = system ? CHAT_SYSTEM_MARKED : CHAT_SYSTEM_DROPPED;
    t->prompts_once =
        chat_has(t, "messages[-1]['role'] != 'assistant'"); /* no prompt after an answer */
    t->drops_empty_system =
        chat_has(t, "== 'system' and message['content']"); /* drops an empty one */
    t->lead = chat_has(t, "bos_token") ? t->bos : "";
    t->tail = chat_has(t, "eos_token") ? t->eos : "";
}

static void put_phi3_prompt(const struct chat_template *t, struct chat_output *o)
{
    chat_put(o, "<|assistant|>");
    chat_put(o, t->open);
}

static void put_phi3(const struct chat_template *t, const struct chat_message *m,
                     struct chat_output *o)
{
    bool user = chat_role_is(m, "user"), system = chat_role_is(m, "system");
    bool answer = chat_role_is(m, "assistant");
    if (!is_known_role(m) && !t->any_role)
        return;
    if (system &&
        (t->system == CHAT_SYSTEM_DROPPED || (t->drops_empty_system && m->content_bytes == 0)))
        return;
    if (!answer || !t->prompts_itself) {
        chat_put(o, "<|");
        put_role(o, m);
        chat_put(o, "|>");
        chat_put(o, t->open);
    }
    chat_put_plain(o, content_of(m));
    chat_put(o, t->close);
    if (t->prompts_itself && user)
        put_phi3_prompt(t, o);
}

static int render_phi3(const struct chat_template *t, const struct chat_message *m, size_t n,
                       bool generate, struct chat_output *o)
{
    chat_put(o, t->lead);
    for (size_t i = 0; i < n; i++)
        put_phi3(t, &m[i], o);
    if (t->prompts_itself)
        return 0;
    if (generate && !(t->prompts_once && chat_role_is(&m[n - 1], "assistant")))
        put_phi3_prompt(t, o);
    else if (!generate)
        chat_put(o, t->tail);
    return 0;
}

/* ---- Zephyr ---------------------------------------------------------------------------------- */

static int render_zephyr(const struct chat_template *t, const struct chat_message *m, size_t n,
                         bool generate, struct chat_output *o)
{
    for (size_t i = 0; i < n; i++) {
        if (!is_known_role(&m[i]))
            continue;
        chat_put(o, chat_role_is(&m[i], "user")     ? "<|user|>\n"
                    : chat_role_is(&m[i], "system") ? "<|system|>\n"
                                                    : "<|assistant|>\n");
        chat_put_plain(o, content_of(&m[i]));
        chat_put(o, t->eos);
        chat_put(o, "\n");
    }
    if (generate)
        chat_put(o, "<|assistant|>\n");
    return 0;
}

/* ---- DeepSeek -------------------------------------------------------------------------------- */

/* V1 and V2: words as markup. */
static int render_deepseek(const struct chat_template *t, const struct chat_message *m, size_t n,
                           bool generate, struct chat_output *o)
{
    chat_put(o, t->bos);
    for (size_t i = 0; i < n; i++) {
        if (!is_known_role(&m[i]))
            continue;
        bool answer = chat_role_is(&m[i], "assistant");
        if (answer)
            chat_put(o, "Assistant: ");
        else if (chat_role_is(&m[i], "user"))
            chat_put(o, "User: ");
        chat_put_plain(o, content_of(&m[i]));
        chat_put(o, answer ? t->eos : "\n\n");
    }
    if (generate)
        chat_put(o, "Assistant:");
    return 0;
}

static void read_deepseek_coder(struct chat_template *t)
{
    static const char begin[] = "You are an AI programming assistant";
    const char *text = strstr(t->source, begin);
    const char *end = text != NULL ? strchr(text, '\'') : NULL;
    if (end != NULL)
        t->default_system = strndup(text, (size_t)(end - text));
    t->prompt = chat_has(t, "### Response:'}}\n") || chat_has(t, "### Response:\n'}}{% endif")
                    ? "### Response:\n"
                    : "### Response:";
}

static int render_deepseek_coder(const struct chat_template *t, const struct chat_message *m,
                                 size_t n, bool generate, struct chat_output *o)
{
    bool system = false;
    for (size_t i = 0; i < n; i++)
        system = system || chat_role_is(&m[i], "system");
    chat_put(o, t->bos);
    if (!system && t->default_system != NULL)
        chat_put(o, t->default_system);
    for (size_t i = 0; i < n; i++) {
        if (chat_role_is(&m[i], "system")) {
            chat_put_plain(o, content_of(&m[i]));
            continue;
        }
        bool user = chat_role_is(&m[i], "user");
        chat_put(o, user ? "### Instruction:\n" : "### Response:\n");
        chat_put_plain(o, content_of(&m[i]));
        chat_put(o, user ? "\n" : "\n<|EOT|>\n");
    }
    if (generate)
        chat_put(o, t->prompt);
    return 0;
}

#define DS_USER "<\xef\xbd\x9cUser\xef\xbd\x9c>"
#define DS_ASSISTANT                                                                               \
    "<\xef\xbd\x9c"                                                                                \
    "Assistant\xef\xbd\x9c>"
#define DS_END                                                                                     \
    "<\xef\xbd\x9c"                                                                                \
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"

static void read_deepseek3(struct chat_template *t)
{
    t->system = chat_has(t, "is_first_sp") ? CHAT_SYSTEM_FIRST : CHAT_SYSTEM_LAST;
    t->thinks = chat_has(t, "</think>");
    t->prompt = chat_has(t, DS_ASSISTANT "<think>\n'") ? DS_ASSISTANT "<think>\n" : DS_ASSISTANT;
}

/* V2.5, V3, R1: all system messages come first, joined (or, in older files, the last one). */
static int render_deepseek3(const struct chat_template *t, const struct chat_message *m, size_t n,
                            bool generate, struct chat_output *o)
{
    bool any = false;
    size_t last = n;
    for (size_t i = 0; i < n; i++) {
        if (!is_known_role(&m[i]))
            return chat_refuse(o, "only system, user and assistant roles are taken here");
        if (chat_role_is(&m[i], "system"))
            last = i;
    }
    chat_put(o, t->bos);
    for (size_t i = 0; i < n; i++) {
        if (!chat_role_is(&m[i], "system") || (t->system == CHAT_SYSTEM_LAST && i != last))
            continue;
        if (any)
            chat_put(o, "\n\n");
        chat_put_plain(o, content_of(&m[i]));
        any = true;
    }
    for (size_t i = 0; i < n; i++) {
        if (chat_role_is(&m[i], "user")) {
            chat_put(o, DS_USER);
            chat_put_plain(o, content_of(&m[i]));
        } else if (chat_role_is(&m[i], "assistant")) {
            struct chat_slice s = content_of(&m[i]);
            chat_put(o, DS_ASSISTANT);
            chat_put_plain(o, t->thinks ? after_last(s, "</think>") : s);
            chat_put(o, DS_END);
        }
    }
    if (generate)
        chat_put(o, t->prompt);
    return 0;
}

/* ---- Command-R ------------------------------------------------------------------------------- */

static int render_command_r(const struct chat_template *t, const struct chat_message *m, size_t n,
                            bool generate, struct chat_output *o)
{
    static const char open[] = "<|START_OF_TURN_TOKEN|>", close[] = "<|END_OF_TURN_TOKEN|>";
    chat_put(o, t->bos);
    if (chat_role_is(&m[0], "system")) {
        chat_put(o, open);
        chat_put(o, "<|SYSTEM_TOKEN|>");
        chat_put_plain(o, content_of(&m[0]));
        chat_put(o, close);
        m++;
        n--;
    }
    if (check_turns(m, n, o) < 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        chat_put(o, open);
        chat_put(o, i % 2 == 0 ? "<|USER_TOKEN|>" : "<|CHATBOT_TOKEN|>");
        chat_put_plain(o, strip(content_of(&m[i])));
        chat_put(o, close);
    }
    if (generate) {
        chat_put(o, open);
        chat_put(o, "<|CHATBOT_TOKEN|>");
    }
    return 0;
}

/* ---- the table ------------------------------------------------------------------------------- */

const struct chat_family chat_families[] = {
    {"phi4", {"<|im_start|>", "<|im_sep|>"}, NULL, render_phi4},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, read_chatml, render_chatml},
    {"llama3", {"<|start_header_id|>", "<|eot_id|>"}, read_llama3, render_llama3},
    {"command-r", {"<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"}, NULL, render_command_r},
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}, read_gemma, render_gemma},
    {"deepseek3", {DS_USER, DS_ASSISTANT}, read_deepseek3, render_deepseek3},
    {"deepseek-coder", {"### Instruction:", "<|EOT|>"}, read_deepseek_coder, render_deepseek_coder},
    {"deepseek", {"'User: '", "'Assistant: '", "eos_token"}, NULL, render_deepseek},
    {"llama2", {"[INST]", "<<SYS>>", "content.strip()"}, read_llama2, render_llama2},
    {"mistral", {"[INST]", "[/INST]", "must alternate"}, read_mistral, render_mistral},
    {"zephyr", {"<|user|>\n", "message['content'] + eos_token"}, NULL, render_zephyr},
    {"phi3", {"<|end|>", "<|assistant|>", "message"}, read_phi3, render_phi3},
};

const size_t chat_n_families = sizeof chat_families / sizeof chat_families[0];
