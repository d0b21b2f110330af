/* Names of the rpc layer that programs set in their configuration. */
#ifndef CLOVIS_INCLUDE_RPC_RPC_MACHINE_H
#define CLOVIS_INCLUDE_RPC_RPC_MACHINE_H

#include "lib/types.h"
#include "lib/vec.h"
#include "net/net.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
	/* The usual value of cc_max_rpc_msg_size: 128 KiB. */
	M0_RPC_DEF_MAX_RPC_MSG_SIZE = 1 << 17
};

#ifdef __cplusplus
}
#endif

#endif
