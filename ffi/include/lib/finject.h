/* Fault injection points: none are built in. */
#ifndef CLOVIS_INCLUDE_LIB_FINJECT_H
#define CLOVIS_INCLUDE_LIB_FINJECT_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define M0_FI_ENABLED(tag) (false)

#ifdef __cplusplus
}
#endif

#endif
