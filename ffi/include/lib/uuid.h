/* Universally unique ids as text. */
#ifndef CLOVIS_INCLUDE_LIB_UUID_H
#define CLOVIS_INCLUDE_LIB_UUID_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { M0_UUID_STRLEN = 36 };

#ifdef __cplusplus
}
#endif

#endif
