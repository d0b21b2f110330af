/* A mutex, not recursive. All zeros is an unlocked one. */
#ifndef CLOVIS_INCLUDE_LIB_MUTEX_H
#define CLOVIS_INCLUDE_LIB_MUTEX_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_mutex {
	union {
		pthread_mutex_t m_pthread;
		uint64_t m_room[8];
	} m_arch;
};

void m0_mutex_init(struct m0_mutex *mutex);
void m0_mutex_fini(struct m0_mutex *mutex);
void m0_mutex_lock(struct m0_mutex *mutex);
/* 0, or -EBUSY if it is locked. */
int m0_mutex_trylock(struct m0_mutex *mutex);
void m0_mutex_unlock(struct m0_mutex *mutex);
bool m0_mutex_is_locked(const struct m0_mutex *mutex);
bool m0_mutex_is_not_locked(const struct m0_mutex *mutex);

#ifdef __cplusplus
}
#endif

#endif
