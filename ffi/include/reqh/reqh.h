/* Request handlers are servers' business; programs include this for the types behind it. */
#ifndef CLOVIS_INCLUDE_REQH_REQH_H
#define CLOVIS_INCLUDE_REQH_REQH_H

#include "lib/types.h"
#include "fid/fid.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_pools_common;

struct m0_layout_domain {
	uint64_t ld_opaque[4];
};

struct m0_reqh {
	struct m0_pools_common *rh_pools;
	struct m0_layout_domain rh_ldom;
};

#ifdef __cplusplus
}
#endif

#endif
