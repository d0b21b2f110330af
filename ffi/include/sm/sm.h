/* State machines: members of public structures. Programs read sm_state and sm_rc; the rest is the library's. */
#ifndef CLOVIS_INCLUDE_SM_SM_H
#define CLOVIS_INCLUDE_SM_SM_H

#include "lib/types.h"
#include "lib/time.h"
#include "lib/chan.h"
#include "lib/mutex.h"
#include "lib/tlist.h"
#include "lib/misc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_sm;
struct m0_sm_conf;
struct m0_sm_ast;
struct m0_sm_addb2_stats;

struct m0_sm_group {
	struct m0_mutex s_lock;
	struct m0_clink s_clink;
	struct m0_sm_ast *s_forkq;
	struct m0_chan s_chan;
	uint64_t s_opaque[4];
};

struct m0_sm_ast {
	void (*sa_cb)(struct m0_sm_group *group, struct m0_sm_ast *ast);
	void *sa_datum;
	struct m0_sm_ast *sa_next;
	struct m0_sm *sa_mach;
};

struct m0_sm {
	uint32_t sm_state;
	uint32_t sm_padding;
	const struct m0_sm_conf *sm_conf;
	struct m0_sm_group *sm_grp;
	m0_time_t sm_state_epoch;
	struct m0_sm_addb2_stats *sm_addb2_stats;
	struct m0_chan sm_chan;
	int32_t sm_rc;
	uint32_t sm_padding2;
	uint64_t sm_id;
};

struct m0_sm_state_descr {
	uint32_t sd_flags;
	const char *sd_name;
	uint64_t sd_allowed;
};

/* For programs that lock the group of an operation while they look at it. Nothing of the library waits for it. */
void m0_sm_group_init(struct m0_sm_group *group);
void m0_sm_group_fini(struct m0_sm_group *group);
void m0_sm_group_lock(struct m0_sm_group *group);
void m0_sm_group_unlock(struct m0_sm_group *group);

#ifdef __cplusplus
}
#endif

#endif
