/* See rpc/rpc_machine.h. */
#ifndef CLOVIS_INCLUDE_RPC_RPC_H
#define CLOVIS_INCLUDE_RPC_RPC_H

#include "rpc/rpc_machine.h"

#endif
