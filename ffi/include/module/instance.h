/* The instance that a process stands on. */
#ifndef CLOVIS_INCLUDE_MODULE_INSTANCE_H
#define CLOVIS_INCLUDE_MODULE_INSTANCE_H

#include "lib/types.h"
#include "lib/thread.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The process's instance, the same for all threads. */
struct m0 *m0_get(void);
void m0_set(struct m0 *instance);

#ifdef __cplusplus
}
#endif

#endif
