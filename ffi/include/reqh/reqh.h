/* Request handlers are servers' business; programs include this for the types behind it. */
#ifndef CLOVIS_INCLUDE_REQH_REQH_H
#define CLOVIS_INCLUDE_REQH_REQH_H

#include "lib/types.h"
#include "fid/fid.h"

#endif
