/* Channels and what waits on them: members of public structures, opaque to programs. */
#ifndef CLOVIS_INCLUDE_LIB_CHAN_H
#define CLOVIS_INCLUDE_LIB_CHAN_H

#include "lib/types.h"
#include "lib/mutex.h"
#include "lib/tlist.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_chan {
	struct m0_mutex *ch_guard;
	uint64_t ch_opaque[7];
};

struct m0_clink;
typedef bool (*m0_chan_cb_t)(struct m0_clink *);

struct m0_clink {
	struct m0_chan *cl_chan;
	m0_chan_cb_t cl_cb;
	struct m0_clink *cl_group;
	uint64_t cl_opaque[5];
	bool cl_is_oneshot;
};

static inline void m0_clink_init(struct m0_clink *clink, m0_chan_cb_t callback)
{
	struct m0_clink empty = {NULL, callback, NULL, {0}, false};

	*clink = empty;
}

static inline void m0_clink_fini(struct m0_clink *clink)
{
	clink->cl_cb = NULL;
}

#ifdef __cplusplus
}
#endif

#endif
