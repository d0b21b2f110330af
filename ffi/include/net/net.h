/* Names of the network that programs set in their configuration. */
#ifndef CLOVIS_INCLUDE_NET_NET_H
#define CLOVIS_INCLUDE_NET_NET_H

#include "lib/types.h"
#include "lib/vec.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
	/* Shortest receive queue worth having: the usual value of cc_tm_recv_queue_min_len. */
	M0_NET_TM_RECV_QUEUE_DEF_LEN = 2
};

#ifdef __cplusplus
}
#endif

#endif
