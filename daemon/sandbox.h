/* sandbox.h: what the daemon gives up once it serves, and files that others name.
 *
 * After sandbox_enter() no thread of the process, present or future, can gain privileges, start a
 * program, look into another process, load code, make its memory executable (but for what a GPU's
 * driver needs), or make system calls that the daemon has no use for. There is no option to switch
 * it off; where the system does not allow a part of it, the daemon goes on without that part and
 * says so.
 *
 * Threads: sandbox_enter() once; the rest from any thread. */
#ifndef INFERD_SANDBOX_H
#define INFERD_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

#define SANDBOX_NOTE_MAX 256u

/* For the process as a whole. gpu: one is driven, which needs more. 0: all is in force; negative
 * errno: *ret_note is a sentence that says what is missing. */
int sandbox_enter(bool gpu, char ret_note[SANDBOX_NOTE_MAX]);

/* Opens a regular file below a directory for reading: no component of path may be "..", absolute,
 * or a symbolic link of any kind, and nothing is opened that would wait or act when opened. The
 * descriptor, or a negative errno: -EXDEV for a path that leads out, -ELOOP for a link, -EISDIR,
 * -EINVAL for what is no regular file, else open's own. */
int sandbox_open_beneath(int directory, const char *path);

/* May a descriptor that a client sent be read as a file? Only of a regular file, opened for
 * reading. 0, -EISDIR, -EINVAL (a device, a pipe, a socket), -EACCES (not for reading), -EBADF. */
int sandbox_check_file(int fd);

#endif
