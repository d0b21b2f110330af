/* Pools: programs name them by fid. */
#ifndef CLOVIS_INCLUDE_POOL_POOL_H
#define CLOVIS_INCLUDE_POOL_POOL_H

#include "lib/types.h"
#include "fid/fid.h"

#endif
