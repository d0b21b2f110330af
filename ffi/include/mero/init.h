/* Starting the process: nothing is needed, so these succeed and do nothing. */
#ifndef CLOVIS_INCLUDE_MERO_INIT_H
#define CLOVIS_INCLUDE_MERO_INIT_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

int m0_init(struct m0 *instance);
void m0_fini(void);

#ifdef __cplusplus
}
#endif

#endif
