/* A counted string of bytes. */
#ifndef CLOVIS_INCLUDE_LIB_BITSTRING_H
#define CLOVIS_INCLUDE_LIB_BITSTRING_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_bitstring {
	uint32_t b_len;
	char b_data[];
};

#ifdef __cplusplus
}
#endif

#endif
