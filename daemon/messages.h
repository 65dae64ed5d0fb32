/* messages.h: the lines of the log that programs look for, in one table. The ids (MESSAGE_ID= of
 * the journal) are stable: "journalctl MESSAGE_ID=..." finds the line whatever its words are. They
 * are documented in inferd(8).
 *
 * X(NAME, id, what has happened) */
#ifndef INFERD_MESSAGES_H
#define INFERD_MESSAGES_H

/* clang-format off */
#define MESSAGE_TABLE(X) \
    X(READY, "0891628597224af7b6aa875e2badd5c9", "the daemon is ready") \
    X(STOPPING, "1da9175054de4d88aff03b716cd30f66", "the daemon was asked to stop") \
    X(MODEL_LOADED, "5b0396bdab684d0fa457b4c514945d68", "a model was loaded; INFERD_MODEL= names it") \
    X(STEP_FAILED, "39024ceec4594148a7db5057660ac23b", "a step of a model failed on the backend; INFERD_MODEL= names it") \
    X(ENGINE_STUCK, "a54ee958037841f6b1a1d4d50da477ef", "the engine does not move, the watchdog is not fed") \
    X(CLIENTS_KEPT, "a1ff30d2ed4c402da709df1b16673798", "clients of the former daemon were welcomed") \
    X(CLIENT_ENDED, "7fae6e9705934255931dafdcb4bb9722", "a client lost its connection because of what it did; INFERD_UID= is its user")
/* clang-format on */

#define MESSAGE_CONSTANT(name, id, text)                                                           \
    static const char MESSAGE_##name[] __attribute__((unused)) = id;
MESSAGE_TABLE(MESSAGE_CONSTANT)
#undef MESSAGE_CONSTANT

#endif
