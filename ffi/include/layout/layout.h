/* Layout ids of objects. */
#ifndef CLOVIS_INCLUDE_LAYOUT_LAYOUT_H
#define CLOVIS_INCLUDE_LAYOUT_LAYOUT_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
	/* Units of 4 KiB. */
	M0_DEFAULT_LAYOUT_ID = 1
};

#ifdef __cplusplus
}
#endif

#endif
