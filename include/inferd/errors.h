/* errors.h: every error a user of inferd can see, in one table.
 *
 * A code is stable: programs may store it and compare it across versions. Codes start at 1001 so
 * that a negative return value can carry either an errno (-1 .. -133) or a code, and nobody can
 * confuse the two. Functions return -INFER_E_NAME; infer_strerror() accepts either sign and errno.
 *
 * X(NAME, code, exit status of inferctl and inferd, what happened and what to do next)
 *
 * Exit statuses: 2 wrong usage, 3 no daemon, 4 the daemon refused the request, 5 the daemon or its
 * backend went away while answering, 6 a model file was refused, 130 interrupted by the user. */
#ifndef INFERD_ERRORS_H
#define INFERD_ERRORS_H

/* clang-format off */
#define INFER_ERROR_TABLE(X) \
    X(PROTOCOL,          1001, 5, "the ring protocol was broken; update the client library, or report a bug if it is current") \
    X(VERSION,           1002, 3, "client and daemon share no protocol version; update the older of the two") \
    X(DAEMON_ABSENT,     1003, 3, "no daemon listens at the socket; start inferd, or set INFERD_SOCKET to its socket") \
    X(DAEMON_LOST,       1004, 5, "the daemon went away while the request was running; submit it again") \
    X(DENIED,            1005, 3, "permission to use the daemon's socket was denied; ask to be added to its group") \
    X(SESSIONS_FULL,     1006, 4, "the daemon serves as many connections as it may; close one or try again later") \
    X(SOCKET_BUSY,       1007, 3, "another daemon already listens at this socket; stop it or choose another --socket") \
    X(SOCKET_PATH,       1008, 2, "the socket path cannot be used; choose another --socket") \
    X(UNKNOWN_MODEL,     1010, 4, "no such model is served; 'inferctl models' lists those that are") \
    X(PROMPT_TOO_LONG,   1011, 4, "the prompt does not fit the model's context; shorten it or serve a larger context") \
    X(PROMPT_EMPTY,      1012, 4, "the prompt holds no token; give a text, messages or token ids") \
    X(BAD_PARAMETER,     1013, 4, "a parameter is out of range") \
    X(BAD_TOKEN,         1014, 4, "a token id lies outside the model's vocabulary") \
    X(BAD_REQUEST,       1015, 4, "the request record is malformed; update the client library") \
    X(REQUEST_TOO_LARGE, 1016, 4, "the request is larger than the daemon takes; split it") \
    X(NO_TEMPLATE,       1017, 4, "the model has no chat template that inferd knows; use --raw and write the prompt's markup") \
    X(UNSUPPORTED,       1018, 4, "the daemon does not support this operation; update it") \
    X(NOT_FOUND,         1019, 4, "no such request or conversation; it may be over") \
    X(QUEUE_FULL,        1020, 4, "too many requests are waiting; wait for some to finish") \
    X(NO_MEMORY,         1021, 4, "the request does not fit in the memory set aside for sequences") \
    X(SLOW_READER,       1022, 5, "the client did not read its tokens in time; the request was ended") \
    X(CANCELLED,         1023, 5, "the request was cancelled") \
    X(SHUTDOWN,          1024, 5, "the daemon is stopping; submit the request again when it is back") \
    X(BACKEND,           1025, 5, "the backend failed on this request; the daemon's log says why") \
    X(BACKEND_LOST,      1026, 5, "the backend was lost; the daemon restarts it") \
    X(BUSY,              1027, 2, "another thread already waits for events on this connection") \
    X(INVALID,           1028, 2, "an argument is not valid") \
    X(OUT_OF_MEMORY,     1029, 5, "out of memory") \
    X(MODEL_UNREADABLE,  1030, 6, "the model file cannot be read") \
    X(MODEL_FORMAT,      1031, 6, "the model file is damaged or not a GGUF file; download it again") \
    X(MODEL_UNSUPPORTED, 1032, 6, "the model needs something that this version of inferd does not know") \
    X(MODEL_TOO_LARGE,   1033, 6, "the model does not fit in this machine's memory") \
    X(MODEL_PARTS,       1034, 6, "a part of the split model is missing or does not belong to it") \
    X(BACKEND_LOAD,      1035, 6, "the backend cannot be loaded; reinstall inferd or choose another --backend") \
    X(QUOTA,             1036, 4, "a limit of this user is reached; wait for requests to finish, or ask the administrator") \
    X(DEADLINE,          1037, 5, "the request did not start before its deadline") \
    X(CONVERSATION,      1038, 4, "another request has this conversation; wait for its end") \
    X(UNLOADED,          1039, 5, "the model was unloaded while the request ran or waited; load it and submit the request again") \
    X(MODEL_NO_ROOM,     1040, 4, "other models hold the memory that this one needs; unload one, or try again later") \
    X(INTERNAL,          1099, 5, "inferd made a mistake; please report it with the daemon's log")
/* clang-format on */

enum infer_error {
    INFER_OK = 0,
#define INFER_ERROR_ENUM(name, code, exit_status, text) INFER_E_##name = code,
    INFER_ERROR_TABLE (INFER_ERROR_ENUM)
#undef INFER_ERROR_ENUM
};

#endif
