/* Files that fail while they are read: preloaded, it stands between a program and its C library.
 *
 * A mapped file lists absolute paths, each with what becomes of it: an errno (EACCES and EPERM when
 * it is opened, as the kernel decides permissions there, all others when it is read), reads that
 * give a few bytes at a time, or another file in its place. The list may change at any time, also
 * for files that are open already. It is made by read_errors.py.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST_PATHS 64
#define MOST_FILES 4096

struct fault {
    int32_t code;        /* an errno; below 0: so many bytes per read; 0: `instead` */
    char path[1022];     /* ends in NUL */
    char instead[1022];
};

struct list {
    _Atomic int32_t count;
    struct fault faults[MOST_PATHS];
};

static const struct list *list;
static char *opened[MOST_FILES]; /* the path of each descriptor */

static void *next(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

__attribute__((constructor)) static void attach(void) {
    int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))next("open");
    const char *path = getenv("TEST_READ_ERRORS");
    int file = path == NULL ? -1 : real_open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof(struct list), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED) list = memory;
}

static const struct fault *fault_of(const char *path) {
    if (list == NULL || path == NULL) return NULL;
    int32_t count = atomic_load(&list->count);
    for (int32_t number = 0; number < count && number < MOST_PATHS; number++)
        if (strcmp(list->faults[number].path, path) == 0) return &list->faults[number];
    return NULL;
}

static const struct fault *fault_at(int file) {
    return file >= 0 && file < MOST_FILES ? fault_of(opened[file]) : NULL;
}

static void remember(int file, const char *path) {
    if (file < 0 || file >= MOST_FILES) return;
    free(opened[file]);
    opened[file] = path == NULL ? NULL : strdup(path);
}

static int open_by(const char *name, int folder, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))next(name);
    const struct fault *fault = fault_of(path);
    if (fault != NULL && (fault->code == EACCES || fault->code == EPERM)) {
        errno = fault->code;
        return -1;
    }
    int file = real(folder, fault != NULL && fault->code == 0 ? fault->instead : path, flags, mode);
    remember(file, path);
    return file;
}

static mode_t mode_of(int flags, va_list rest) {
    return (flags & (O_CREAT | O_TMPFILE)) != 0 ? (mode_t)va_arg(rest, unsigned int) : 0;
}

#define OPEN(NAME, REAL)                                  \
    int NAME(const char *path, int flags, ...) {          \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = mode_of(flags, rest);               \
        va_end(rest);                                     \
        return open_by(REAL, AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(NAME)                                           \
    int NAME(int folder, const char *path, int flags, ...) {   \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        mode_t mode = mode_of(flags, rest);                    \
        va_end(rest);                                          \
        return open_by(#NAME, folder, path, flags, mode);      \
    }
OPEN(open, "openat")
OPEN(open64, "openat64")
OPENAT(openat)
OPENAT(openat64)

/* Return 1 where the read fails, with errno set; else cut the number of bytes down. */
static int spoil(int file, size_t *size) {
    const struct fault *fault = fault_at(file);
    if (fault == NULL || fault->code == 0) return 0;
    if (fault->code > 0) {
        errno = fault->code;
        return 1;
    }
    if (*size > (size_t)-fault->code) *size = (size_t)-fault->code;
    return 0;
}

ssize_t read(int file, void *buffer, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (real == NULL) real = (ssize_t(*)(int, void *, size_t))next("read");
    return spoil(file, &size) ? -1 : real(file, buffer, size);
}

ssize_t pread(int file, void *buffer, size_t size, off_t offset) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (real == NULL) real = (ssize_t(*)(int, void *, size_t, off_t))next("pread");
    return spoil(file, &size) ? -1 : real(file, buffer, size, offset);
}

ssize_t pread64(int file, void *buffer, size_t size, off64_t offset) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (real == NULL) real = (ssize_t(*)(int, void *, size_t, off64_t))next("pread64");
    return spoil(file, &size) ? -1 : real(file, buffer, size, offset);
}

int close(int file) {
    static int (*real)(int);
    if (real == NULL) real = (int (*)(int))next("close");
    remember(file, NULL);
    return real(file);
}
