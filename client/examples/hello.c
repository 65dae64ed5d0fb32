/* hello.c: ask a local model a question and show the answer as it comes.
 *
 *     cc hello.c -o hello $(pkg-config --cflags --libs libinferclient)
 *     ./hello "What is tar?"
 *
 * This is all that a program needs: connect, submit, read events until DONE. The rest of the
 * comments says what can go wrong and what to do about it.
 *
 * A daemon must be running (`inferd --model NAME=FILE.gguf`). The library finds it through
 * $INFERD_SOCKET, then $XDG_RUNTIME_DIR/inferd.sock, then /run/inferd/inferd.sock. */
#include <inferd/client.h>

#include <stdio.h>
#include <string.h>

/* One sentence on standard error, and the exit status that fits the error.
 *
 * Every function of the library returns a negative code on failure. infer_strerror() makes a
 * sentence of it that says what to do next. infer_detail() adds what is particular to this case,
 * such as the path of the socket; with NULL it speaks of infer_connect(), which gave us no
 * connection to ask. */
static int complain(struct infer_conn *conn, int code)
{
    const char *detail = infer_detail(conn);

    fprintf(stderr, "hello: %s", infer_strerror(code));
    if (detail[0] != '\0')
        fprintf(stderr, " (%s)", detail);
    fputc('\n', stderr);
    return infer_error_exit(code);
}

/* What the daemon measured, once the answer is complete. The three times follow each other: in
 * the queue, reading the prompt, writing the answer. */
static void show_speed(const struct infer_event *done)
{
    double seconds = (double)done->decode_us / 1e6;

    fprintf(stderr, "[%u prompt tokens, %u answer tokens", done->n_prompt, done->n_generated);
    /* The first token belongs to the prompt's time; the speed is that of the others. */
    if (done->n_generated > 1 && seconds > 0)
        fprintf(stderr, ", %.1f tokens/s", (done->n_generated - 1) / seconds);
    fprintf(stderr, ", ended by: %s]\n", infer_finish_name(done->finish));
}

/* Reads the events of one request and shows its text. Returns our exit status. */
static int show_answer(struct infer_conn *conn, uint32_t id)
{
    struct infer_event event;

    for (;;) {
        /* Waits for the next event of this request; -1: as long as it takes. A program with a
         * main loop of its own watches infer_poll_fd() instead and calls this with 0, until it
         * returns 0. The pointers in the event are good until the next call. */
        int r = infer_next(conn, id, -1, &event);
        if (r < 0)
            return complain(conn, r);

        switch (event.kind) {
        case INFER_EVENT_QUEUED:
            /* Admitted. event.position requests are before us. */
            if (event.position > 0)
                fprintf(stderr, "[waiting behind %u others]\n", event.position);
            break;

        case INFER_EVENT_TOKEN:
            /* A piece of the answer: whole UTF-8 sequences, so it can be shown at once. It may be
             * empty: the text of some tokens comes with the next one. */
            fwrite(event.text, 1, event.text_bytes, stdout);
            fflush(stdout);
            break;

        case INFER_EVENT_DONE:
            /* Always the last event, also when something failed: event.error is then a code of
             * errors.h, and event.text a sentence from the daemon. */
            fputc('\n', stdout);
            if (event.error != 0) {
                fprintf(stderr, "hello: %s", infer_strerror(event.error));
                if (event.text_bytes > 0)
                    fprintf(stderr, " (%.*s)", (int)event.text_bytes, event.text);
                fputc('\n', stderr);
                return infer_error_exit(event.error);
            }
            show_speed(&event);
            return 0;

        default:
            /* Newer libraries may have more kinds of events; skip what you do not know. */
            break;
        }
    }
}

int main(int argc, char **argv)
{
    const char *question = argc > 1 ? argv[1] : "What is tar?";
    struct infer_conn *conn;
    struct infer_request request;
    uint32_t id;
    int r, status;

    if (argc > 2 || strcmp(question, "--help") == 0) {
        fprintf(stderr, "usage: hello [QUESTION]\n");
        return 2;
    }

    /* 1. Connect. NULL takes the defaults; struct infer_connect_options chooses another socket,
     * the sizes of the rings, and how long to spin before sleeping. One connection serves a whole
     * program, any number of requests at a time, from any thread. */
    r = infer_connect(NULL, &conn);
    if (r < 0)
        return complain(NULL, r);

    /* 2. Fill in a request. First the defaults, then what you want to be different. Give exactly
     * one of
     *
     *     request.messages  a conversation, written with the model's own chat template;
     *     request.text      text that the model simply continues;
     *     request.tokens    token ids, when you do the tokenizing.
     *
     * The model is the daemon's first; request.model names another. */
    struct infer_message messages[] = {
        {"user", question},
    };
    infer_request_default(&request);
    request.messages = messages;
    request.n_messages = sizeof messages / sizeof messages[0];
    request.sampling.max_tokens = 256;
    /* request.sampling.temperature = 0 would always give the same, likeliest answer; a seed makes
     * a random one repeatable. sampling.h explains all of them. */

    /* 3. Submit. This copies the request into shared memory and returns at once; nothing of it
     * needs to live on. The id names the request from now on. */
    r = infer_submit(conn, &request, &id);
    if (r < 0) {
        status = complain(conn, r);
        infer_close(conn);
        return status;
    }

    /* 4. Read the answer. infer_cancel(conn, id) would end it early. Should the daemon die
     * meanwhile, the request ends with INFER_E_DAEMON_LOST, and the next infer_submit() on the
     * same connection finds the restarted daemon. */
    status = show_answer(conn, id);

    /* 5. Done. This also ends requests that are still running. */
    infer_close(conn);
    return status;
}
