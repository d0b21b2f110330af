/* See rpc/rpc_machine.h. */
#ifndef CLOVIS_INCLUDE_RPC_RPCLIB_H
#define CLOVIS_INCLUDE_RPC_RPCLIB_H

#include "rpc/rpc_machine.h"

#endif
