/* A counting semaphore. */
#ifndef CLOVIS_INCLUDE_LIB_SEMAPHORE_H
#define CLOVIS_INCLUDE_LIB_SEMAPHORE_H

#include "lib/types.h"
#include "lib/time.h"
#include <semaphore.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m0_semaphore {
	union {
		sem_t s_posix;
		uint64_t s_room[8];
	} s_arch;
};

/* 0 or a negative error number. */
int m0_semaphore_init(struct m0_semaphore *semaphore, unsigned value);
void m0_semaphore_fini(struct m0_semaphore *semaphore);
void m0_semaphore_up(struct m0_semaphore *semaphore);
void m0_semaphore_down(struct m0_semaphore *semaphore);
bool m0_semaphore_trydown(struct m0_semaphore *semaphore);
/* False if `abs_timeout` came first. */
bool m0_semaphore_timeddown(struct m0_semaphore *semaphore, const m0_time_t abs_timeout);
unsigned m0_semaphore_value(struct m0_semaphore *semaphore);

#ifdef __cplusplus
}
#endif

#endif
