/* lost.c: see lost.h.
 *
 * The file is the daemon's own, but whoever can write it could keep a device from being used; no
 * more than that comes of a line, and what is not a line is passed over. It is read whole, at most
 * FILE_BYTES of it, and written anew at each start, so it stays small. */
#include "lost.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES 8192u
#define LINE_BYTES (INFER_DEVICE_NAME_MAX + 24u)

static void take_line(struct lost *l, const char *text, int64_t now_s)
{
    struct lost_line line = {.at_s = 0};
    char format[32], end;
    snprintf(format, sizeof format, "%%%us %%" SCNd64 "%%c", INFER_DEVICE_NAME_MAX - 1);
    if (sscanf(text, format, line.device, &line.at_s, &end) != 2)
        return;
    /* Of the future: the clock was wrong then, or is now. */
    if (line.at_s > now_s || line.at_s < now_s - LOST_MEMORY_S)
        return;
    if (l->n == LOST_LINES_MAX)
        memmove(&l->lines[0], &l->lines[1], --l->n * sizeof l->lines[0]);
    l->lines[l->n++] = line;
}

static int write_line(const struct lost *l, const struct lost_line *line)
{
    char text[LINE_BYTES];
    int n = snprintf(text, sizeof text, "%s %" PRId64 "\n", line->device, line->at_s);
    ssize_t wrote = write(l->fd, text, (size_t)n);
    return wrote == n ? 0 : wrote < 0 ? -errno : -EIO;
}

static int read_lines(struct lost *l, int64_t now_s)
{
    char text[FILE_BYTES + 1];
    ssize_t n = pread(l->fd, text, FILE_BYTES, 0);
    if (n < 0)
        return -errno;
    text[n] = '\0';
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        *end = '\0';
        take_line(l, at, now_s);
    }
    if (n == 0)
        return 0;
    int rc = ftruncate(l->fd, 0) < 0 ? -errno : 0;
    for (uint32_t i = 0; i < l->n && rc == 0; i++)
        rc = write_line(l, &l->lines[i]);
    return rc;
}

int lost_open(struct lost *ret, const char *state_directory, int64_t now_s)
{
    *ret = (struct lost){.fd = -1, .added_at = -1};
    if (state_directory == NULL)
        return 0;
    int folder = open(state_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return -errno;
    ret->fd = openat(folder, "lost", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    int rc = ret->fd < 0 ? -errno : read_lines(ret, now_s);
    close(folder);
    if (rc < 0)
        lost_close(ret);
    return rc;
}

void lost_close(struct lost *l)
{
    if (l->fd >= 0)
        close(l->fd);
    *l = (struct lost){.fd = -1, .added_at = -1};
}

uint32_t lost_times(const struct lost *l, const char *device)
{
    uint32_t n = 0;
    for (uint32_t i = 0; l != NULL && i < l->n; i++)
        n += strcmp(l->lines[i].device, device) == 0;
    return n;
}

int lost_add(struct lost *l, const char *device, int64_t now_s)
{
    struct lost_line line = {.at_s = now_s};
    if (l->fd < 0)
        return 0;
    snprintf(line.device, sizeof line.device, "%s", device);
    l->added_at = lseek(l->fd, 0, SEEK_END);
    return write_line(l, &line);
}

int lost_take_back(struct lost *l)
{
    int64_t at = l->added_at;
    l->added_at = -1;
    return l->fd < 0 || at < 0 || ftruncate(l->fd, at) == 0 ? 0 : -errno;
}
