/* Preloaded into a process: notes what of a file a power cut would leave.

   After each fsync or fdatasync that succeeds, one line "device:inode size" is appended to
   the file named by SYNCED_LOG, with the size the file had before the call: bytes written
   later, or during it, are not known to be on disk. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int noted(int fd, const char *name)
{
    struct stat before;
    int known = fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(fd);
    const char *where = getenv("SYNCED_LOG");
    if (result == 0 && known && where != NULL) {
        int log = open(where, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (log >= 0) {
            dprintf(log, "%lu:%lu %lld\n", (unsigned long)before.st_dev,
                    (unsigned long)before.st_ino, (long long)before.st_size);
            close(log);
        }
    }
    return result;
}

int fsync(int fd) { return noted(fd, "fsync"); }

int fdatasync(int fd) { return noted(fd, "fdatasync"); }
