/* A name for an object in memory, opaque to programs. */
#ifndef CLOVIS_INCLUDE_LIB_COOKIE_H
#define CLOVIS_INCLUDE_LIB_COOKIE_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_cookie {
	uint64_t co_addr;
	uint64_t co_generation;
};

#define COOKIE_F "%" PRIx64 ":%" PRIx64
#define COOKIE_P(cookie) (cookie)->co_addr, (cookie)->co_generation

#ifdef __cplusplus
}
#endif

#endif
