/* Time as nanoseconds since the epoch of the system's clock: absolute where a call waits "until". */
#ifndef CLOVIS_INCLUDE_LIB_TIME_H
#define CLOVIS_INCLUDE_LIB_TIME_H

#include "lib/types.h"
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t m0_time_t;

/* Of 64 bits, so that products of them are, too. */
#define M0_TIME_ONE_SECOND INT64_C(1000000000)
#define M0_TIME_ONE_MSEC (M0_TIME_ONE_SECOND / 1000)

#define TIME_F "%" PRIu64 ".%09" PRIu64
#define TIME_P(t) m0_time_seconds(t), m0_time_nanoseconds(t)

/* Later than everything, and earlier than everything. */
M0_EXTERN const m0_time_t M0_TIME_NEVER;
M0_EXTERN const m0_time_t M0_TIME_IMMEDIATELY;

m0_time_t m0_time_now(void);
/* `secs` seconds and `ns` nanoseconds from now; NEVER if that is too far away. */
m0_time_t m0_time_from_now(uint64_t secs, long ns);
m0_time_t m0_time(uint64_t secs, long ns);
/* NEVER stays NEVER; sums do not wrap. */
m0_time_t m0_time_add(const m0_time_t left, const m0_time_t right);
/* NEVER stays NEVER; differences below zero are zero. */
m0_time_t m0_time_sub(const m0_time_t left, const m0_time_t right);
uint64_t m0_time_seconds(const m0_time_t time);
uint64_t m0_time_nanoseconds(const m0_time_t time);
bool m0_time_is_in_past(m0_time_t time);
/* Sleeps for `request`, 0; -1 if a signal ended it, with what is left in *remaining (may be NULL). */
int m0_nanosleep(const m0_time_t request, m0_time_t *remaining);

#ifdef __cplusplus
}
#endif

#endif
