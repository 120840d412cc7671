/* A wall clock that a test can set: preloaded, it stands between a program and its C library.
 *
 * CLOCK_REALTIME is moved by what the mapped file says, CLOCK_MONOTONIC is left alone, as the
 * kernel leaves it alone when a clock is set; ntp_adjtime(3) says what the file says. Waits that
 * are timed by the wall clock (sem_timedwait, pthread_cond_timedwait) still wait by the real one,
 * so a program that uses them waits for years or not at all.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

struct shown {
    _Atomic int64_t shift_s;
    _Atomic int32_t adjtime; /* what ntp_adjtime returns: TIME_OK 0, TIME_ERROR 5 */
};

static const struct shown *shown;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void attach(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("TEST_WALL_CLOCK");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof(struct shown), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED) shown = memory;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (real_clock_gettime == NULL) attach(); /* another library's constructor was first */
    int failed = real_clock_gettime(clock, now);
    if (failed == 0 && shown != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)shown->shift_s;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    if (result != NULL) *result = now.tv_sec;
    return now.tv_sec;
}

int ntp_adjtime(struct timex *unused) {
    (void)unused;
    return shown == NULL ? TIME_ERROR : shown->adjtime;
}
