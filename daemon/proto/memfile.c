/* memfile.c: see memfile.h. Owns nothing. */
#include "proto/memfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
_Static_assert(MEMFILE_FUTURE_WRITE == F_SEAL_FUTURE_WRITE, "the kernel's number");

int memfile_new(const char *name, size_t bytes)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int memfile_map(int fd, size_t bytes, int protection, int seals, void **ret)
{
    void *map = mmap(NULL, bytes, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    /* After the mapping: FUTURE_WRITE leaves a writable mapping that is already there. */
    if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int error = -errno;
        munmap(map, bytes);
        return error;
    }
    *ret = map;
    return 0;
}
